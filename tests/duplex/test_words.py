"""What is said becomes text, on time, whose it is; and whatever befalls that, the audio does not notice.

Speech is the recording inside moonshine-voice ("It was the best of times, it was the worst of times"). Where
only the deciding is tested, a voice is a tone and its text says how long it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("moonshine_voice")
sphn = pytest.importorskip("sphn")
from aiohttp import web  # noqa: E402

import duplex.words  # noqa: E402
from duplex.echo import HOP, RATE, Canceller, Cleaner, Resampler, resemblance  # noqa: E402
from duplex.engine import Answer, NoRoom  # noqa: E402
from duplex.listen import (  # noqa: E402
    LONGEST,
    Caller,
    Job,
    Line,
    Pending,
    Turn,
    clean,
    is_echo,
    load_moonshine,
    overlap,
)
from duplex.moonshine import Tiny, folder, pieces  # noqa: E402
from duplex.opus import Codecs  # noqa: E402
from duplex.server import Rules, Server, Words  # noqa: E402
from duplex.words import Hearing, Moonshine, Sentences, start_worker  # noqa: E402

BEAT = 1920
BEST = ["It", "was", "the", "best", "of", "times", "it", "was", "the", "worst", "of", "times"]
ROOT = Path(__file__).parents[2]


def recording(seconds: float = 5.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return speech at 24 kHz from moonshine-voice's own recording: "It was the best of times, it was …"."""
    spec = find_spec("moonshine_voice")
    assert spec is not None and spec.origin is not None
    with wave.open(str(Path(spec.origin).parent / "assets" / "two_cities.wav")) as file:
        rate = file.getframerate()
        pcm = np.frombuffer(file.readframes(int(seconds * rate)), dtype=np.int16) / 32768
    places = np.arange(int(len(pcm) * 24_000 / rate)) * rate / 24_000
    return np.interp(places, np.arange(len(pcm)), pcm).astype(np.float32)


def silence(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.zeros(int(seconds * 24_000), dtype=np.float32)


def beats(*sounds: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    whole = np.concatenate(sounds)
    whole = np.concatenate((whole, silence(0.08)[: -len(whole) % BEAT]))
    return list(whole.reshape(-1, BEAT))


def tone(seconds: float, hertz: float = 440) -> np.ndarray[Any, Any]:
    return (0.3 * np.sin(np.arange(int(seconds * 24_000)) * 2 * np.pi * hertz / 24_000)).astype(np.float32)


class Loud:
    """Voice activity for tests: voice is what is loud."""

    def __init__(self) -> None:
        self.now = self.start = self.end = 0
        self.active = False

    def take(self, sound: Any) -> tuple[bool, int, int]:
        loud = float(np.abs(sound).max()) > 0.05
        if loud and not self.active:
            self.start = self.now
        self.now += len(sound)
        if loud:
            self.end = self.now
        self.active = loud
        return self.active, self.start, self.end

    def close(self) -> None: ...


def spoken(sound: Any) -> str:
    """The text of a tone: how many tenths of a second it lasted."""
    return f"tone {int((np.abs(sound) > 0.003).sum() / 1600 + 0.5)}."


class Talk:
    """A Caller with a transcriber that answers when it is told to."""

    def __init__(self, text: Callable[[Any], str] = spoken, voice: Any = None, first_ms: float = 80) -> None:
        self.events: list[dict[str, Any]] = []
        self.pending = Pending()
        self.text = text
        self.caller = Caller(
            1, voice or Loud(), lambda number, event: self.events.append(event), self.pending.put
        )
        self.at = first_ms

    def hear(
        self, sounds: list[Any], said: list[Any] | None = None, transcribe: bool = True, late: float = 0
    ) -> None:
        for number, pcm in enumerate(sounds):
            self.caller.hear(self.at + late, pcm)
            self.caller.say(None if said is None else said[number])
            self.at += 80
            if transcribe:
                self.transcribe()

    def transcribe(self) -> None:
        while (job := self.pending.get(float("inf"))) is not None:
            self.caller.heard_as(job, self.text(job.sound))

    def said(self, kind: str = "transcript", final: bool = True) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind and event.get("final", True) == final]


# ----------------------------------------------------------------------------------------------------- words


def test_speech_becomes_partial_and_final_lines_and_a_turn() -> None:
    voices, transcribe = load_moonshine()
    talk = Talk(transcribe, voices())
    talk.hear(beats(silence(0.5), recording(4.0), silence(2.5)))
    text = " ".join(event["text"] for event in talk.said()).lower()
    assert "best of times" in text and "worst of time" in text
    assert any("best" in event["text"].lower() for event in talk.said(final=False))
    (turn,) = talk.said("turn_end")
    assert turn["text"] == " ".join(event["text"] for event in talk.said())
    assert turn["start_ms"] == talk.said()[0]["start_ms"]


def test_our_sessions_of_the_model_say_what_its_package_says() -> None:
    from moonshine_voice import ModelArch
    from moonshine_voice.transcriber import Transcriber

    package = Transcriber(str(folder()), ModelArch.TINY, options={"vad_threshold": "0"})
    sound = Resampler().take(recording(13.0))
    ours = Tiny()
    for seconds in (2, 4, 8, 13):
        part = sound[: seconds * RATE]
        said = package.transcribe_without_streaming(part.tolist(), RATE).lines
        assert ours.text(part) == " ".join(line.text for line in said)
    assert "best of times" in ours.text(sound).lower()
    ours.text(sound[:100])  # shorter than the model can take


def test_tokens_have_their_text_or_their_byte() -> None:
    long = b"x" * 130
    assert pieces(b"\x03<s>\x01\xe2\x82\x01" + long + b"\x00\x01!") == [b"<s>", b"\xe2", long, b"", b"!"]
    assert len(pieces((folder() / "tokenizer.bin").read_bytes())) == 32_768


def test_a_line_has_the_times_of_its_voice_on_the_calls_clock() -> None:
    talk = Talk()
    talk.hear(beats(silence(0.8), tone(1.2), silence(1.2)))
    (line,) = talk.said()
    assert abs(line["start_ms"] - 800) <= 40 and abs(line["end_ms"] - 2000) <= 40
    assert line["text"] == "tone 12." and line["who"] == "caller"


def test_a_caller_who_speaks_late_in_a_call_has_late_times_and_a_burst_does_not_shift_them() -> None:
    talk = Talk(first_ms=60_080)
    quiet = beats(silence(1.6))
    talk.hear(quiet[:10])
    talk.hear(quiet[10:], late=700)  # the network held these and sends them at once
    talk.hear(beats(tone(0.8), silence(1.2)))
    (line,) = talk.said()
    assert abs(line["start_ms"] - 61_600) <= 40


def test_frames_that_never_came_move_the_clock() -> None:
    talk = Talk()
    talk.hear(beats(silence(0.8)))
    talk.at += 5000
    talk.hear(beats(silence(2.4), tone(0.8), silence(1.2)))
    (line,) = talk.said()
    assert abs(line["start_ms"] - 8200) <= 40


def test_a_short_pause_is_within_a_line_and_a_long_one_is_not() -> None:
    talk = Talk()
    talk.hear(beats(tone(0.8), silence(0.24), tone(0.8), silence(0.8), tone(0.4), silence(1.2)))
    assert [event["text"] for event in talk.said()] == ["tone 16.", "tone 4."]


def test_an_endless_line_is_cut_where_it_is_quietest() -> None:
    talk = Talk()
    sound = np.concatenate((tone(10.2), 0.2 * tone(0.2), tone(4.0)))
    talk.hear(beats(sound, silence(1.2)))
    first, second = talk.said()
    assert abs(first["end_ms"] - 10_300) < 100 and second["start_ms"] >= first["end_ms"] - 20
    assert first["end_ms"] - first["start_ms"] < LONGEST / RATE * 1000


def test_a_click_and_a_text_without_words_are_nothing() -> None:
    talk = Talk()
    talk.hear(beats(silence(0.4), tone(0.05), silence(1.6)))
    assert not talk.said()
    talk = Talk(lambda sound: "?!")
    talk.hear(beats(tone(1.0), silence(2.4)))
    assert not talk.events


def test_a_call_that_ends_in_the_middle_of_a_word_gives_what_was_said() -> None:
    talk = Talk()
    talk.hear(beats(silence(0.4), tone(0.8)))
    talk.caller.finish()
    assert not talk.caller.finished
    talk.transcribe()
    assert [event["text"] for event in talk.said()] == ["tone 8."]
    assert [event["text"] for event in talk.said("turn_end")] == ["tone 8."]
    assert talk.caller.finished


def test_finished_lines_go_first_and_unfinished_ones_leave_them_time() -> None:
    pending, sound = Pending(), np.zeros(0, dtype=np.float32)
    one, two, three = (Line(0, 1, number=number) for number in range(3))
    pending.put(Job(1, one, sound, False, 0.0))
    pending.put(Job(2, two, sound, True, 0.0))
    pending.put(Job(1, one, sound, False, 1.0))
    first = pending.get(2.0)
    assert first is not None and first.line is two
    assert pending.get(2.0) is None  # the other one had waited: unfinished lines have to
    part = pending.get(5.1)
    assert part is not None and part.line is one and part.asked == 1.0
    pending.done(part, 0.4, 5.5)
    pending.put(Job(3, three, sound, False, 5.6))
    assert pending.get(5.6) is None and pending.wait(5.6) == pytest.approx(1.1)
    assert pending.get(6.8) is not None
    pending.put(Job(1, one, sound, True, 6.8))
    pending.put(Job(1, one, sound, True, 7.0))  # it went on after all: this contains the former
    assert pending.lag(7.8) == pytest.approx(1.0)
    assert pending.get(7.8) is not None and pending.get(7.8) is None


# ----------------------------------------------------------------------------------------------------- turns


def test_a_turn_ends_sooner_after_a_sentence_than_in_the_middle_of_one() -> None:
    for text, pause in (("Yes, do that.", 800), ("I would like to", 1600), ("We go there and.", 1600)):
        turn = Turn()
        assert not turn.over(60_000)
        turn.add(text, 100, 900)
        assert not turn.over(pause - 1) and turn.over(pause), text


def test_a_turn_is_all_lines_until_the_caller_is_silent() -> None:
    talk = Talk()
    talk.hear(beats(tone(0.8), silence(0.56), tone(0.4), silence(1.2), tone(0.6), silence(1.6)))
    assert [event["text"] for event in talk.said("turn_end")] == ["tone 8. tone 4.", "tone 6."]
    first = talk.said("turn_end")[0]
    assert abs(first["start_ms"] - 0) <= 40 and abs(first["end_ms"] - 1760) <= 40


# ------------------------------------------------------------------------------------------------------ echo


@pytest.mark.parametrize(("hertz", "low", "high"), [(200, -0.1, 0.1), (6000, -0.1, 0.1), (9000, -100, -60)])
def test_resampling_keeps_the_voice_and_folds_nothing_back(hertz: float, low: float, high: float) -> None:
    sound = np.sin(np.arange(24_000) * 2 * np.pi * hertz / 24_000).astype(np.float32)
    out = Resampler().take(sound)
    assert len(out) == 16_000
    level = 20 * np.log10(np.sqrt(2 * np.mean(out[1000:-1000] ** 2)) + 1e-9)
    assert low <= level <= high


def test_resampling_in_frames_is_resampling_in_one() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 24_000 // BEAT * BEAT).astype(np.float32)
    pieces = Resampler()
    parts = np.concatenate([pieces.take(part) for part in sound.reshape(-1, BEAT)])
    np.testing.assert_allclose(parts, Resampler().take(sound), atol=1e-6)


def test_the_canceller_learns_the_way_of_the_echo_and_leaves_the_caller() -> None:
    chance = np.random.default_rng(1)
    said = chance.normal(0, 0.1, RATE * 6 // HOP * HOP).astype(np.float32)
    way = np.zeros(6000)
    way[4000:] = (
        chance.normal(size=2000) * np.exp(-np.arange(2000) / 300) * 0.05
    )  # 250 ms later, a small room
    echo = np.convolve(said, way)[: len(said)].astype(np.float32)
    near = np.zeros_like(echo)
    near[RATE * 5 :] = 0.1 * np.sin(np.arange(len(echo) - RATE * 5) * 0.2)
    canceller = Canceller()
    rest = [
        canceller.take((echo + near)[at : at + HOP], said[at : at + HOP])[0]
        for at in range(0, len(said), HOP)
    ]
    left = np.concatenate(rest) - near
    before, talking = slice(RATE * 4, RATE * 5), slice(RATE * 5, RATE * 6)
    assert np.mean(echo[before] ** 2) > 30 * np.mean(left[before] ** 2)
    assert np.mean(echo[talking] ** 2) > 10 * np.mean(left[talking] ** 2)


def test_frames_are_paired_with_their_answers_and_do_not_wait_for_those_that_never_come() -> None:
    cleaner, frame = Cleaner(), np.zeros(BEAT, dtype=np.float32)
    assert cleaner.hear(frame) == [] and len(cleaner.say(frame)) == 1
    assert [len(cleaner.hear(frame)) for _ in range(4)] == [0, 0, 1, 1]
    assert len(cleaner.say(frame)) == 1


def test_sound_that_came_back_resembles_what_was_said_and_a_voice_does_not() -> None:
    chance = np.random.default_rng(2)
    said = chance.normal(0, 0.1, 3 * RATE).astype(np.float32)
    heard = said[RATE - 5000 : 3 * RATE - 5000] * 0.03  # 312 ms later
    assert resemblance(heard, said) > 0.99
    assert resemblance(chance.normal(0, 0.1, 2 * RATE).astype(np.float32), said) < 0.1


def test_moshis_words_are_recognised_even_when_badly_heard() -> None:
    moshi = "Hello there. I have been living in this city for about ten years now"
    assert overlap("I have been living in the city for about tan years", moshi) > 0.8
    assert overlap("Please book a table for four", moshi) < 0.4
    assert is_echo("living in this city for about ten ears", moshi, 0.9, 0.3)
    assert not is_echo("Please book a table for four", moshi, 0.9, 0.1)
    # Whoever repeats it when Moshi is silent means it.
    assert not is_echo("ten years", moshi, 0.0, 0.0)


def test_moshi_coming_back_through_the_microphone_is_nobodys_words() -> None:
    voices, transcribe = load_moonshine()
    said = beats(silence(0.5), recording(4.0), silence(3.0))
    whole = np.concatenate(said)
    echo = np.concatenate((silence(0.2), 0.5 * whole))[: len(whole)]
    talk = Talk(transcribe, voices())
    for number, word in enumerate(BEST):
        talk.caller.tell(500 + 300 * number, f" {word}")
    talk.hear(beats(echo), said)
    assert not [event for event in talk.said() if event["text"]]
    assert not talk.said("turn_end")


def test_who_repeats_what_moshi_said_is_heard_though_moshi_goes_on() -> None:
    heard = beats(silence(5), tone(1.2), silence(1))
    moshi = np.random.default_rng(4).normal(0, 0.05, len(heard) * BEAT).astype(np.float32)
    for at_ms, lines in ((100, ["the words of moshi"]), (5000, [])):
        talk = Talk(lambda sound: "the words of moshi")
        talk.caller.tell(at_ms, " the words of moshi")
        talk.hear(heard, beats(moshi))
        assert [event["text"] for event in talk.said()] == lines


def test_the_caller_is_heard_while_moshi_talks() -> None:
    voices, transcribe = load_moonshine()
    near = beats(silence(6.5), recording(4.0), silence(2.0))
    chance = np.random.default_rng(3)
    babble = chance.normal(0, 0.05, len(near) * BEAT).astype(np.float32)
    babble *= 1 + np.sin(np.arange(len(babble)) / 3000)
    echo = np.concatenate((silence(0.2), 0.1 * babble))[: len(babble)]
    talk = Talk(transcribe, voices())
    talk.hear(beats(np.concatenate(near) + echo), beats(babble))
    text = " ".join(event["text"] for event in talk.said()).lower()
    assert "best of times" in text and "the worst of t" in text


def test_an_echo_that_was_shown_is_taken_back() -> None:
    talk = Talk(lambda sound: "something else" if len(sound) < 1.5 * RATE else "the words of moshi")
    said = beats(tone(2.4, 700), silence(1.6))
    talk.caller.tell(100, " the words of moshi")
    talk.caller.cleaner._louder = lambda rest, echo: True  # type: ignore[method-assign] # nothing is gated
    talk.caller.cleaner._canceller.take = lambda heard, said: (heard, heard * 0)  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    noisy = [pcm + rng.normal(0, 0.6, BEAT).astype(np.float32) * (np.abs(pcm).max() > 0) for pcm in said]
    talk.hear(noisy, said)
    assert [event["text"] for event in talk.said(final=False)] == ["something else"]
    assert [event["text"] for event in talk.said()] == [""]
    assert not talk.said("turn_end")


# ---------------------------------------------------------------------------------------------- Moshi's words


def test_moshis_pieces_become_sentences() -> None:
    pieces = {1: "\u2581Hel", 2: "lo", 4: ".", 5: "\u2581Caf", 6: "<0xC3>", 7: "<0xA9>", 8: "?"}
    words, sentences = Words(lambda token: pieces[token]), Sentences()
    events = []
    for frame, token in enumerate([1, 2, 3, 4, 3, 5, 6, 7, 8] + [3] * 6):
        events += sentences.take(words.take(token), 80 * frame)
    finals = [(event["text"], event["start_ms"], event["end_ms"]) for event in events if event["final"]]
    assert finals == [("Hello.", 0, 320), ("Caf\u00e9?", 400, 720)]
    assert [event["text"] for event in events if not event["final"]][:2] == ["Hel", "Hello"]
    assert {event["who"] for event in events} == {"moshi"}


def test_a_sentence_without_an_end_ends_by_silence_or_length() -> None:
    sentences = Sentences()
    assert [event["final"] for event in sentences.take(" and then", 0)] == [False]
    assert sentences.take("", 1200) == []
    assert [event["text"] for event in sentences.take("", 1400) if event["final"]] == ["and then"]
    assert sentences.take("", 1500) == []
    finals = [
        event for at in range(100) for event in sentences.take(" again", 2000 + at * 80) if event["final"]
    ]
    assert len(finals) == 1 and len(finals[0]["text"]) < 320


def test_text_is_data() -> None:
    assert clean(" a\x00b\x1b[31m\u202ec\n\nd ") == "a b [31m c d"
    assert len(clean("word " * 10_000)) <= 1000


# -------------------------------------------------------------------------- processes, and what befalls them


class Silent:
    """An engine without a model that says nothing."""

    slots = 4

    def __init__(self) -> None:
        self.taken: set[int] = set()

    def join(self, sampling: Any, spoken: int = 0) -> int:
        free = [slot for slot in range(self.slots) if slot not in self.taken]
        if not free:
            raise NoRoom("full")
        self.taken.add(free[0])
        return free[0]

    def leave(self, slot: int) -> None:
        self.taken.remove(slot)

    def restart(self, slot: int, sampling: Any) -> None: ...

    def step(self, frames: list[tuple[int, Any]]) -> list[Answer]:
        return [Answer(slot, [3, *range(8)], np.zeros(BEAT, dtype=np.float32)) for slot, _ in frames]


class Heard:
    """A hearing and what it told."""

    def __init__(self, transcriber: Moonshine) -> None:
        self.events: list[dict[str, Any]] = []
        self.hearing: Hearing = transcriber.open(self.events.append)
        self.at = 0.0

    async def talk(self, sounds: list[Any]) -> None:
        for pcm in sounds:
            self.at += 80
            self.hearing.hear(pcm, self.at)
            self.hearing.say(None)
            await asyncio.sleep(0)

    def words(self) -> list[bool]:
        return [event["available"] for event in self.events if event["type"] == "words"]

    def finals(self) -> list[str]:
        return [event["text"] for event in self.events if event["type"] == "transcript" and event["final"]]


async def eventually(check: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.02)):
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


@asynccontextmanager
async def moonshine(workers: int = 1) -> AsyncIterator[Moonshine]:
    transcriber = Moonshine(workers)
    await transcriber.start()
    try:
        await eventually(lambda: transcriber.status()["workers"] == workers)
        yield transcriber
    finally:
        await transcriber.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths; but a busy machine is not behind, unless a test is about that."""
    times = {"BEHIND_S": 300, "HUNG_S": 300, "HOLD_S": 0.3, "PING_S": 0.1, "TICK_S": 0.05, "RESTART_S": 0.1}
    for name, value in times.items():
        monkeypatch.setattr(duplex.words, name, value)


SENTENCE = beats(silence(0.4), recording(4.0), silence(2.0))


async def test_workers_hear_many_calls_and_keep_them_apart() -> None:
    async with moonshine(2) as transcriber:
        calls = [Heard(transcriber) for _ in range(3)]
        assert {len(worker.calls) for worker in transcriber._workers} == {1, 2}
        await calls[0].talk(SENTENCE)
        await calls[1].talk(beats(silence(4)))
        await eventually(lambda: any(event["type"] == "turn_end" for event in calls[0].events))
        assert "best of times" in " ".join(calls[0].finals()).lower()
        assert not calls[1].events and not calls[2].events


async def test_a_call_opened_before_the_workers_are_ready_gets_its_words_then() -> None:
    transcriber = Moonshine(1)
    await transcriber.start()
    try:
        call = Heard(transcriber)
        assert (call.hearing.available, call.hearing.reason) == (False, "starting")
        await eventually(lambda: call.words() == [False, True])
        await call.talk(SENTENCE)
        await eventually(lambda: bool(call.finals()))
    finally:
        await transcriber.stop()


async def test_a_worker_killed_in_the_middle_is_replaced_and_its_calls_are_told() -> None:
    async with moonshine(1) as transcriber:
        call = Heard(transcriber)
        await call.talk(SENTENCE[:30])
        os.kill(transcriber._workers[0].process.pid, signal.SIGKILL)
        await eventually(lambda: call.words() == [False])
        assert call.events[-1]["reason"] == "failed"
        await call.talk(SENTENCE[30:])  # nobody hears it, nobody waits
        await eventually(lambda: call.words() == [False, True])
        assert transcriber.status()["restarts"] == 1
        await call.talk(SENTENCE)
        await eventually(lambda: "best of times" in " ".join(call.finals()).lower())


async def test_a_worker_that_falls_behind_loses_words_not_memory_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with moonshine(1) as transcriber:
        call = Heard(transcriber)
        process = transcriber._workers[0].process
        monkeypatch.setattr(duplex.words, "BEHIND_S", 0.6)
        buffer = transcriber._workers[0].writer.transport.get_write_buffer_size
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for _ in range(20):  # two minutes of sound, as fast as it goes
                await call.talk(SENTENCE)
            await eventually(lambda: call.words() == [False])
            assert buffer() < 2 * duplex.words.WAITING_BYTES
            assert (call.hearing.available, call.hearing.reason) == (False, "behind")
            assert transcriber.status()["lost_frames"] > 0
            await eventually(lambda: transcriber.status()["lag_s"] > 0.6)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        await eventually(lambda: call.words() == [False, True])
        assert transcriber._workers[0].process is process
        monkeypatch.setattr(duplex.words, "BEHIND_S", 300)
        finals = len(call.finals())
        await call.talk(SENTENCE)
        await eventually(lambda: len(call.finals()) > finals)


async def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplex.words, "HUNG_S", 1.0)
    async with moonshine(1) as transcriber:
        process = transcriber._workers[0].process
        os.kill(process.pid, signal.SIGSTOP)
        await eventually(lambda: process.poll() is not None)
        await eventually(lambda: transcriber.status()["workers"] == 1)


def worker_after(code: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a worker that finds its interpreter as ``code`` left it."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [
            sys.executable,
            "-c",
            f"{code}; from duplex.listen import main; main()",
            str(theirs.fileno()),
        ]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdout=quiet, stderr=quiet, cwd=ROOT
        ), ours


async def test_a_worker_whose_sandbox_forbids_to_step_back_hears_all_the_same() -> None:
    # As systemd's SystemCallFilter=~@resources does it.
    refuse = "def refuse(by): raise PermissionError(1, 'setpriority')"
    transcriber = Moonshine(1, lambda: worker_after(f"import os; exec({refuse!r}); os.nice = refuse"))
    await transcriber.start()
    try:
        await eventually(lambda: transcriber.status()["workers"] == 1)
    finally:
        await transcriber.stop()


async def test_a_worker_that_cannot_start_says_why_and_is_not_started_in_a_rush() -> None:
    starts = []

    def broken() -> Any:
        starts.append(1)
        return worker_after("import sys; sys.modules['moonshine_voice'] = None")

    transcriber = Moonshine(1, broken)
    await transcriber.start()
    try:
        call = Heard(transcriber)
        await eventually(lambda: len(starts) == 3)
        assert "moonshine_voice" in transcriber.status()["reason"]
        assert call.words() == [False]
        assert transcriber._pause > 0.2
    finally:
        await transcriber.stop()


async def test_calls_that_come_and_go_leave_nothing_behind() -> None:
    async with moonshine(1) as transcriber:
        (worker,) = transcriber._workers

        def files() -> int:
            return len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))

        before = files()
        for number in range(40):
            call = Heard(transcriber)
            await call.talk(SENTENCE[: number % 40])
            call.hearing.close()
        await eventually(lambda: not worker.calls)
        assert not transcriber._homeless and files() == before


async def test_nothing_that_is_said_reaches_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    async with moonshine(1) as transcriber:
        call = Heard(transcriber)
        await call.talk(SENTENCE)
        call.hearing.tell(" secret", 100)
        await eventually(lambda: bool(call.finals()))
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def memory(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


async def test_a_long_call_grows_nothing() -> None:
    """``SOAK_MINUTES=60`` for the hour (make soak)."""
    minutes = float(os.environ.get("SOAK_MINUTES", "1.5"))
    async with moonshine(1) as transcriber:
        call = Heard(transcriber)
        (worker,) = transcriber._workers
        sizes = []
        for _ in range(int(minutes * 60 / 6.4)):
            await call.talk(SENTENCE)
            await eventually(lambda: any(event["type"] == "turn_end" for event in call.events))
            call.events.clear()
            sizes.append(memory(worker.process.pid))
        warm = sizes[len(sizes) // 3]
        assert max(sizes[len(sizes) // 3 :]) < warm * 1.05 + 8 * 1024, sizes
        assert transcriber.status()["lost_frames"] == 0


# ------------------------------------------------------------------------------------------- through the door


class Shop:
    """A server with words, and a page."""

    def __init__(self, server: Server, url: str, status: str, session: Any) -> None:
        self.server, self.url, self.status, self.session = server, url, status, session


@asynccontextmanager
async def shop(build: Any = Silent, transcriber: Any = None) -> AsyncIterator[Shop]:
    import aiohttp

    server = Server(
        build, Codecs(0, near=8), lambda token: f"\u2581w{token}", transcriber=transcriber, rules=Rules()
    )
    await server.start()
    runners, addresses = [], []
    for app in (server.door(), server.window()):
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        addresses.append(f"127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession() as session:
            yield Shop(server, f"ws://{addresses[0]}/api/chat", f"http://{addresses[1]}", session)
    finally:
        server.over.set()
        await server.stop()
        for runner in runners:
            await runner.cleanup()


async def metadata(ws: Any, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        message = await asyncio.wait_for(ws.receive(), 30)
        if message.data[0] == 4 and wanted(content := json.loads(message.data[1:])):
            return dict(content)


async def test_the_page_and_the_events_get_both_sides() -> None:
    class Chatty(Silent):
        def step(self, frames: list[tuple[int, Any]]) -> list[Answer]:
            return [Answer(slot, [7, *range(8)], np.zeros(BEAT, dtype=np.float32)) for slot, _ in frames]

    transcriber = Moonshine(1)
    async with shop(Chatty, transcriber) as here:
        await eventually(lambda: transcriber.status()["workers"] == 1)
        async with here.session.ws_connect(here.url) as ws:
            await ws.send_bytes(b'\x04{"type": "hello"}')
            assert (await metadata(ws, lambda content: content["type"] == "words"))["available"] is True
            writer = sphn.OpusStreamWriter(24_000)
            for pcm in SENTENCE:
                await ws.send_bytes(b"\x01" + bytes(writer.append_pcm(pcm)))
                await asyncio.sleep(0.02)
            moshi = await metadata(ws, lambda content: content.get("who") == "moshi")
            assert moshi["text"].startswith("w7")
            caller = await metadata(ws, lambda content: content.get("who") == "caller" and content["final"])
            assert "best of times" in caller["text"].lower()
            turn = await metadata(ws, lambda content: content["type"] == "turn_end")
            assert caller["text"] in turn["text"]
            assert set(caller) == {"type", "who", "text", "final", "start_ms", "end_ms"}
        kinds = {kind: content for _, kind, content in here.server.events}
        (call,) = {content["call"] for kind, content in kinds.items() if kind in ("transcript", "turn_end")}
        assert kinds["turn_end"]["text"] == turn["text"] and call
        async with here.session.get(here.status + "/metrics") as answer:
            text = await answer.text()
        assert "duplex_words_lag_seconds" in text and "duplex_words_restarts_total 0" in text


async def test_audio_does_not_notice_what_befalls_the_words() -> None:
    transcriber = Moonshine(1)
    async with shop(Silent, transcriber) as here:
        await eventually(lambda: transcriber.status()["workers"] == 1)
        async with here.session.ws_connect(here.url) as ws:
            await ws.send_bytes(b'\x04{"type": "hello"}')
            await metadata(ws, lambda content: content["type"] == "words")
            writer = sphn.OpusStreamWriter(24_000)
            process = transcriber._workers[0].process

            async def answered(pcm: Any) -> None:
                await ws.send_bytes(b"\x01" + bytes(writer.append_pcm(pcm)))
                while (await asyncio.wait_for(ws.receive(), 5)).data[0] != 1:
                    pass

            os.kill(process.pid, signal.SIGSTOP)
            for pcm in SENTENCE[:20]:
                await answered(pcm)
            os.kill(process.pid, signal.SIGKILL)
            for pcm in SENTENCE[:20]:
                await answered(pcm)
            told = []
            while told[-1:] != [True]:
                told.append((await metadata(ws, lambda content: content["type"] == "words"))["available"])
        assert here.server.metrics.dropped_in == 0


async def test_without_a_transcriber_the_page_is_told_that_there_are_no_words() -> None:
    async with shop() as here, here.session.ws_connect(here.url) as ws:
        await ws.send_bytes(b'\x04{"type": "hello"}')
        content = await metadata(ws, lambda content: content["type"] == "words")
        assert content == {"type": "words", "available": False, "reason": "off"}


def test_a_worker_ends_with_its_parent() -> None:
    process, ours = start_worker()
    ours.close()
    assert process.wait(20) in (0, 3)


def test_a_transcriber_that_is_not_there_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import duplex.__main__ as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        command.main(["--transcribe", "moonshine"])
    assert ended.value.code == 2
    assert "needs the packages moonshine-voice" in capsys.readouterr().err


async def test_who_reads_the_events_late_gets_those_that_are_kept() -> None:
    async with shop() as here:
        for number in range(5):
            here.server._event("transcript", {"call": "x", "text": str(number)})
        for after, first in ((2, 3), (0, 1), (-7, 1)):
            address = f"{here.status}/events?after={after}"
            async with here.session.get(address) as events:
                line = await asyncio.wait_for(events.content.readline(), 5)
                assert line == f"id: {first}\n".encode()
