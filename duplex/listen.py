"""A process that turns the sound of calls into words: ``python -m duplex.listen FD``.

One thread takes sound as it comes: to 16 kHz, Moshi's echo out (``echo.py``), voice activity. Another
transcribes, the finished lines first, and lines that are still being spoken when nothing else is to do.
What is said is data: it leaves this process as text of bounded length without control characters, and is
never printed.

The deciding (``Lines``, ``Turn``, ``Pending``, ``is_echo``) knows neither clock nor model.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from duplex.echo import FRAME, QUIET, RATE, Cleaner, Sound, resemblance
from duplex.moonshine import Tiny, folder

HEADER = struct.Struct("<IBI")
"""Length of what follows, kind, call."""
OPEN, HEAR, SAY, TELL, CLOSE, PING = range(6)
"""To the process: a call begins; ms on its clock and int16 sound heard; int16 sound said, or nothing; ms
and a word of Moshi; a call ends; a time that comes back. From it: JSON objects.
"""
STAMP = struct.Struct("<d")

PAUSE = int(0.32 * RATE)
"""Silence that ends a line."""
MARGIN = int(0.15 * RATE)
"""Kept after the voice: its last sounds are soft. (Before it the detector keeps half a second.)"""
LONGEST = 12 * RATE
"""A line longer than this is cut where it is quietest."""
SHORTEST = int(0.12 * RATE)
"""Less voice than this is a click."""
KEPT = LONGEST + 6 * RATE
"""Samples of a call that are kept."""
PARTIAL_EVERY = 1.0
"""Seconds of new sound after which an unfinished line is transcribed again."""
PARTIAL_GROWTH = 0.25
"""The same as a part of what the line is long already: a long line costs much."""
PARTIAL_SHARE = 0.25
"""Part of the time that unfinished lines may take from the finished ones."""
TURN_PAUSE_MS, OPEN_TURN_PAUSE_MS = 800, 1600
"""Silence after which a turn is over, when its text ends as a sentence does, and when not."""
TEXT, TURN_TEXT = 1000, 4000
"""Characters at most of a line, of a turn."""
SPOKEN_MS = 2500
"""What Moshi said so long before a line, or in it, is compared with it: his text is a little ahead of his
voice, the echo behind. Who repeats what he said earlier is heard.
"""
SKEW_FRAMES = 25
LATE_S, LATE_REST_S = 0.2, 3.0
"""A finished line that waited longer than the first lets unfinished ones wait for the second."""
REST_S = 1.0
"""Seconds without any sound after which a line and a turn end."""
OPEN_ENDED = {"and", "but", "or", "so", "because", "the", "a", "an", "to", "of", "with", "um", "uh", "well"}


# ------------------------------------------------------------------------------------------------- deciding


def clean(text: str, longest: int = TEXT) -> str:
    """Return text without control characters, runs of space and invisible signs, of bounded length."""
    plain = text[: 8 * longest]
    if not (plain.isascii() and plain.isprintable()):
        plain = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in plain)
    return " ".join(plain.split())[:longest].rstrip()


def tokens(text: str) -> list[str]:
    """Return the words of a text, small, without signs."""
    return re.findall(r"[\w']+", text.lower())


def overlap(line: str, spoken: str) -> float:
    """Return the part of the words of ``line`` that are in ``spoken``, in the same order; a word counts
    that is nearly the same, since an echo is badly heard.
    """
    mine, theirs = tokens(line), tokens(spoken)
    if not mine or not theirs:
        return 0.0
    row = [0.0] * (len(theirs) + 1)
    for word in mine:
        before = 0.0
        for at, other in enumerate(theirs, 1):
            same = 1.0 if word == other else difflib.SequenceMatcher(None, word, other).ratio()
            here = max(row[at], row[at - 1], before + (same if same >= 0.6 else 0.0))
            before, row[at] = row[at], here
    return row[-1] / len(mine)


def is_echo(line: str, spoken: str, said_share: float, likeness: float) -> bool:
    """Say whether a line is Moshi's, come back through the microphone.

    ``said_share`` is the part of the line's time in which Moshi could be heard, ``likeness`` the
    correlation of what was heard with what was said (``echo.resemblance``). Who repeats a word of Moshi's
    does it when Moshi has stopped, and in his own voice.
    """
    if said_share < 0.3:
        return False
    if likeness > 0.5:
        return True
    return overlap(line, spoken) >= (0.5 if likeness > 0.15 else 0.75)


@dataclass
class Line:
    """A stretch of voice, in samples of the call."""

    start: int
    end: int
    ended: bool = False
    """Its pause was long enough, or it was cut."""
    wanted: int = 0
    """Samples up to which a transcription was asked for."""
    asked: bool = False
    """Whether one of all of it was asked for."""
    text: str | None = None
    """The text of all of it, once there."""
    shown: str = ""
    number: int = 0


class Lines:
    """From voice activity to lines."""

    def __init__(self) -> None:
        self.open: Line | None = None
        self._count = 0

    def step(
        self, active: bool, start: int, end: int, now: int, quietest: Callable[[int, int], int]
    ) -> Line | None:
        """Take what voice activity says after ``now`` samples: whether there is voice, since when, until
        when (of the last stretch). Return the line that ended, if one did. ``quietest(a, b)`` finds where
        to cut.
        """
        line = self.open
        if active:
            if line is None:
                self._count += 1
                self.open = line = Line(start, now, number=self._count)
            line.end = now
            line.asked = False
            if line.end - line.start > LONGEST:
                cut = quietest(line.end - 3 * RATE, line.end)
                self._count += 1
                self.open = Line(cut, now, number=self._count)
                line.end, line.ended = cut, True
                return line
            return None
        if line is None:
            return None
        line.end = max(min(line.end, end), line.start + 1)
        if now - line.end >= PAUSE:
            line.ended = True
            self.open = None
            return line
        return None


@dataclass
class Turn:
    """What the caller said since he began to speak."""

    texts: list[str] = field(default_factory=list)
    start_ms: int = 0
    end_ms: int = 0

    def add(self, text: str, start_ms: int, end_ms: int) -> None:
        """Take a finished line."""
        if not self.texts:
            self.start_ms = start_ms
        self.texts.append(text)
        self.end_ms = end_ms

    def over(self, silent_ms: int) -> bool:
        """Say whether a turn is over, ``silent_ms`` after the last voice."""
        if not self.texts:
            return False
        last = self.texts[-1]
        words = tokens(last)
        whole = last.endswith((".", "?", "!", "\u2026")) and (not words or words[-1] not in OPEN_ENDED)
        return silent_ms >= (TURN_PAUSE_MS if whole else OPEN_TURN_PAUSE_MS)

    def take(self) -> dict[str, Any]:
        """Return the turn as an event and begin the next one."""
        text = clean(" ".join(self.texts), TURN_TEXT)
        self.texts.clear()
        return {"type": "turn_end", "text": text, "start_ms": self.start_ms, "end_ms": self.end_ms}


@dataclass(eq=False)
class Job:
    """Sound to be transcribed."""

    call: int
    line: Line
    sound: Sound
    whole: bool
    asked: float
    """time.monotonic()."""


class Pending:
    """What waits to be transcribed: whole lines in their order, then at most one unfinished line per call."""

    def __init__(self) -> None:
        self._whole: deque[Job] = deque()
        self._parts: dict[int, Job] = {}
        self._rested = 0.0

    def put(self, job: Job) -> None:
        """Take a job; it replaces an older one of the same line, which it contains."""
        self._parts.pop(job.call, None)
        if not job.whole:
            self._parts[job.call] = job
            return
        for at, old in enumerate(self._whole):
            if old.line is job.line:
                self._whole[at] = Job(job.call, job.line, job.sound, True, old.asked)
                return
        self._whole.append(job)

    def get(self, now: float) -> Job | None:
        """Return what is to be done next, if anything."""
        if self._whole:
            job = self._whole.popleft()
            if now - job.asked > LATE_S:
                self._rested = max(self._rested, now + LATE_REST_S)
            return job
        if self._parts and now >= self._rested:
            return self._parts.pop(next(iter(self._parts)))
        return None

    def wait(self, now: float) -> float | None:
        """Return the seconds until something may be done that may not yet; None: nothing is there."""
        return max(0.0, self._rested - now) if self._parts else None

    def done(self, job: Job, seconds: float, now: float) -> None:
        """Take how long a job took: unfinished lines leave time to the finished ones."""
        if not job.whole:
            self._rested = now + seconds * (1 / PARTIAL_SHARE - 1)

    def lag(self, now: float) -> float:
        """Return how long the oldest whole line has waited, in seconds."""
        return now - self._whole[0].asked if self._whole else 0.0


# --------------------------------------------------------------------------------------------------- a call


class Voice(Protocol):
    """Tells voice from other sound, for one call."""

    def take(self, sound: Sound) -> tuple[bool, int, int]:
        """Take FRAME samples; return whether there is voice, and where its last stretch began and ended, in
        samples.
        """

    def close(self) -> None:
        """Forget the call."""


Transcribe = Callable[[Sound], str]
"""From 16 kHz sound to text."""


class Caller:
    """One call's sound on its way to words. ``emit`` takes events, ``ask`` jobs."""

    def __init__(
        self,
        number: int,
        voice: Voice,
        emit: Callable[[int, dict[str, Any]], None],
        ask: Callable[[Job], None],
    ) -> None:
        self.number, self.voice, self._emit, self._ask = number, voice, emit, ask
        self.cleaner = Cleaner()
        self.lines = Lines()
        self.turn = Turn()
        self.waiting: deque[Line] = deque()
        """Lines that ended and whose text is on its way."""
        self._sound = np.zeros((3, 2 * KEPT), dtype=np.float32)
        """Clean, as heard, as said; the last KEPT samples at least."""
        self._filled = 0
        self._now = 0
        """Samples so far."""
        self._closing = self._resting = False
        self.heard_at = time.monotonic()
        self._arrivals: deque[float] = deque(maxlen=SKEW_FRAMES)
        self._frames = 0
        self._spoken: deque[tuple[float, str]] = deque(maxlen=400)
        self._voiced_until = 0

    def hear(self, at_ms: float, pcm: Sound) -> None:
        """Take a frame of the caller that came at ``at_ms`` on the call's clock."""
        self._frames += 1
        self._resting = False
        self.heard_at = time.monotonic()
        # Frames come in bursts and late, never early: the earliest of the last two seconds tells the clock.
        self._arrivals.append(at_ms - 80 * self._frames)
        for triple in self.cleaner.hear(pcm):
            self._step(*triple)

    def say(self, pcm: Sound | None) -> None:
        """Take the frame that Moshi answered with."""
        for triple in self.cleaner.say(pcm):
            self._step(*triple)

    def tell(self, at_ms: float, text: str) -> None:
        """Take a word of Moshi's."""
        self._spoken.append((at_ms, text))

    def ms(self, samples: int) -> int:
        """Return a place in the sound as milliseconds on the call's clock."""
        skew = min(self._arrivals, default=0.0)
        return max(0, round(samples * 1000 / RATE + skew))

    def cut(self, start: int, end: int, row: int = 0) -> Sound:
        """Return sound between two places, as far as it is kept."""
        first = self._now - self._filled
        return self._sound[row, max(0, start - first) : min(self._filled, max(0, end - first))]

    def _keep(self, *rows: Sound) -> None:
        if self._filled + FRAME > 2 * KEPT:
            self._sound[:, :KEPT] = self._sound[:, self._filled - KEPT : self._filled]
            self._filled = KEPT
        for row, sound in enumerate(rows):
            self._sound[row, self._filled : self._filled + FRAME] = sound
        self._filled += FRAME
        self._now += FRAME

    def quietest(self, start: int, end: int) -> int:
        """Return the middle of the quietest 100 ms between two places."""
        width = RATE // 10
        sound = self.cut(start, end)
        power = np.add.reduceat(sound**2, np.arange(0, max(1, len(sound) - width), width))
        return start + int(np.argmin(power)) * width + width // 2

    def _step(self, sound: Sound, heard: Sound, said: Sound) -> None:
        self._keep(sound, heard, said)
        active, start, end = self.voice.take(sound)
        before = self.lines.open
        # A stretch begins where the detector was not sure yet, but never in what the last line has.
        line = self.lines.step(active, max(start, self._voiced_until), end, self._now, self.quietest)
        if line is not None:
            self._voiced_until = line.end
            self.waiting.append(line)
            if not line.asked:
                self._want(line, whole=True)
            self._settle()
        current = self.lines.open
        if current is not None and not active and not current.asked:
            self._want(
                current, whole=True
            )  # a pause: perhaps the line is over, then its text is there already
        elif current is not None:
            new = current.end - max(current.start, current.wanted)
            if new > max(PARTIAL_EVERY * RATE, PARTIAL_GROWTH * (current.end - current.start)):
                self._want(current, whole=False)
        if before is None and current is None and not self.waiting:
            last = self._now - self._voiced_until
            if self.turn.over(round(last * 1000 / RATE)):
                self._emit(self.number, self.turn.take())

    def _want(self, line: Line, whole: bool) -> None:
        line.wanted, line.asked, line.text = line.end, whole, None
        sound = self.cut(line.start, line.end + MARGIN).copy()
        self._ask(Job(self.number, line, sound, whole, time.monotonic()))

    def heard_as(self, job: Job, text: str) -> None:
        """Take the text of a job."""
        line, text = job.line, clean(text)
        if job.whole and line.end == line.wanted and line.asked:
            line.text = text
        if line.ended:
            self._settle()
        elif line is self.lines.open and text != line.shown and self._is_callers(line, text):
            line.shown = text
            self._emit(self.number, self._event(line, text, final=False))

    def _is_callers(self, line: Line, text: str) -> bool:
        return bool(re.search(r"\w", text)) and not self._is_click(line) and not self._is_echo(line, text)

    def _settle(self) -> None:
        while self.waiting and self.waiting[0].text is not None:
            line = self.waiting.popleft()
            text = line.text or ""
            if not self._is_callers(line, text):
                if line.shown:  # what was shown is taken back
                    self._emit(self.number, self._event(line, "", final=True))
                continue
            event = self._event(line, text, final=True)
            self._emit(self.number, event)
            self.turn.add(text, event["start_ms"], event["end_ms"])
        if self._resting and not self.waiting and self.turn.texts:
            self._emit(self.number, self.turn.take())

    def _event(self, line: Line, text: str, final: bool) -> dict[str, Any]:
        start, end = self._voiced(line)
        return {
            "type": "transcript",
            "who": "caller",
            "text": text,
            "final": final,
            "start_ms": self.ms(start),
            "end_ms": self.ms(end),
        }

    def _voiced(self, line: Line) -> tuple[int, int]:
        """Return where in a line the voice begins and ends: within 35 dB of its loudest 20 ms."""
        step = RATE // 50
        sound = self.cut(line.start, line.end)
        whole = len(sound) // step * step
        if not whole:
            return line.start, line.end
        power = (sound[:whole].reshape(-1, step) ** 2).mean(axis=1)
        loud = np.flatnonzero(power > max(power.max() * 10**-3.5, 1e-9))
        first = max(line.start, self._now - self._filled)
        return (
            (first + int(loud[0]) * step, first + int(loud[-1] + 1) * step)
            if len(loud)
            else (line.start, line.end)
        )

    def _is_click(self, line: Line) -> bool:
        start, end = self._voiced(line)
        return end - start < SHORTEST

    def _is_echo(self, line: Line, text: str) -> bool:
        start, end = self._voiced(line)
        heard = self.cut(start, end, 1)
        said = self.cut(start - RATE, end, 2)
        if len(heard) < FRAME or len(said) < len(heard):
            return False
        step = RATE // 50
        loud = (said[: len(said) // step * step].reshape(-1, step) ** 2).mean(axis=1) > QUIET
        share = min(1.0, float(loud.sum()) * step / len(heard))
        if share < 0.3:
            return False
        since = self.ms(start) - SPOKEN_MS
        spoken = " ".join(word for at, word in self._spoken if since <= at)
        return is_echo(text, spoken, share, resemblance(heard, said))

    def rest(self) -> None:
        """No sound comes any more, for now (a page that paused) or for good: end the line and the turn."""
        line = self.lines.open
        self.lines.open = None
        if line is not None:
            line.ended = True
            self._voiced_until = line.end
            self.waiting.append(line)
            if not line.asked:
                self._want(line, whole=True)
        self._resting = True
        self._settle()

    def finish(self) -> None:
        """Take no more sound: the caller hung up. What he said last is still transcribed."""
        self._closing = True
        self.voice.close()
        self.rest()

    @property
    def finished(self) -> bool:
        """Whether nothing of the call is left to do."""
        return self._closing and not self.waiting


# ------------------------------------------------------------------------------------------------- moonshine


def load_moonshine() -> tuple[Callable[[], Voice], Transcribe]:
    """Return what makes voice detectors, and what transcribes. Raises ImportError without them."""
    from moonshine_voice import ModelArch  # noqa: PLC0415 - only these processes need it
    from moonshine_voice.transcriber import Transcriber  # noqa: PLC0415

    # The window is half the package's own: an end is noticed 0.1 s sooner; lines bridge the gaps.
    activity = Transcriber(
        str(folder()),
        ModelArch.TINY,
        options={
            "skip_transcription": "true",
            "return_audio_data": "false",
            "transcription_interval": "0.05",
            "vad_window_duration": "0.25",
        },
    )
    return lambda: Silero(activity), Tiny().text


class Silero:
    """Voice activity by the Silero model that moonshine-voice carries."""

    RENEWED = 30 * RATE
    """A stream keeps all its lines; in a silence this long after its start it is replaced."""

    def __init__(self, activity: Any) -> None:
        self._activity = activity
        self._stream: Any = None
        self._began = self._now = 0
        self._last = (False, 0, 0)
        self._renew()

    def _renew(self) -> None:
        self.close()
        self._stream = self._activity.create_stream(update_interval=1e9)
        self._stream.start()
        self._began = self._now

    def take(self, sound: Sound) -> tuple[bool, int, int]:
        """Take FRAME samples; return whether there is voice, and the last stretch."""
        self._now += len(sound)
        self._stream.add_audio(sound.tolist(), RATE)
        lines = self._stream.update_transcription(0).lines
        if lines:
            line = lines[-1]
            start = self._began + int(line.start_time * RATE)
            self._last = (not line.is_complete, start, start + int(line.duration * RATE))
        if not self._last[0] and self._now - self._began > self.RENEWED:
            self._renew()
        return self._last

    def close(self) -> None:
        """Free the stream."""
        if self._stream is not None:
            self._stream.stop()
            self._stream.close()
            self._stream = None


# --------------------------------------------------------------------------------------------------- process


class Worker:
    """Takes messages from a socket and answers on it."""

    def __init__(
        self, connection: socket.socket, voices: Callable[[], Voice], transcribe: Transcribe
    ) -> None:
        self._connection = connection
        self._voices = voices
        self._transcribe = transcribe
        self._callers: dict[int, Caller] = {}
        self._pending = Pending()
        self._wake = threading.Condition()
        """Guards all of the above, but for the socket."""
        self._sending = threading.Lock()
        self._busy_since: float | None = None
        self._ending = False

    def run(self) -> None:
        """Serve until the other side closes."""
        thread = threading.Thread(target=self._transcribing, name="transcriber", daemon=True)
        thread.start()
        self._emit(0, {"type": "ready"})
        try:
            with self._connection.makefile("rb", buffering=1 << 16) as messages:
                while len(head := messages.read(HEADER.size)) == HEADER.size:
                    length, kind, call = HEADER.unpack(head)
                    self._take(kind, call, messages.read(length))
        except ConnectionError:
            pass
        with self._wake:
            self._ending = True
            self._wake.notify()
        thread.join(5)

    def _take(self, kind: int, call: int, data: bytes) -> None:
        with self._wake:
            caller = self._callers.get(call)
            if kind == OPEN and caller is None:
                self._callers[call] = Caller(call, self._voices(), self._emit, self._ask)
            elif kind == PING:
                now = time.monotonic()
                busy = 0.0 if self._busy_since is None else now - self._busy_since
                lag = max(now - STAMP.unpack(data)[0], self._pending.lag(now))
                self._emit(0, {"type": "lag", "seconds": round(lag, 3), "busy": round(busy, 3)})
                for other in self._callers.values():
                    if now - other.heard_at > REST_S and not other.finished:
                        other.rest()
            elif caller is None:
                return
            elif kind == HEAR:
                caller.hear(STAMP.unpack_from(data)[0], sound_of(data[STAMP.size :]))
            elif kind == SAY:
                caller.say(sound_of(data) if data else None)
            elif kind == TELL:
                caller.tell(STAMP.unpack_from(data)[0], data[STAMP.size :].decode(errors="replace"))
            elif kind == CLOSE:
                caller.finish()
                self._let_go(caller)

    def _let_go(self, caller: Caller) -> None:
        if caller.finished:
            del self._callers[caller.number]
            self._emit(caller.number, {"type": "closed"})

    def _ask(self, job: Job) -> None:
        self._pending.put(job)
        self._wake.notify()

    def _transcribing(self) -> None:
        while True:
            with self._wake:
                job = None
                while not self._ending and (job := self._pending.get(time.monotonic())) is None:
                    self._wake.wait(self._pending.wait(time.monotonic()))
                if job is None:
                    return
                self._busy_since = began = time.monotonic()
            text = self._transcribe(job.sound)
            with self._wake:
                now = time.monotonic()
                self._busy_since = None
                self._pending.done(job, now - began, now)
                caller = self._callers.get(job.call)
                if caller is not None:
                    caller.heard_as(job, text)
                    self._let_go(caller)

    def _emit(self, call: int, event: dict[str, Any]) -> None:
        data = json.dumps(event).encode()
        with self._sending, contextlib.suppress(ConnectionError):
            self._connection.sendall(HEADER.pack(len(data), 0, call) + data)


def sound_of(data: bytes) -> Sound:
    """Return int16 samples as float32 from -1 to 1."""
    return np.frombuffer(data, dtype="<i2").astype(np.float32) * np.float32(2**-15)


def main() -> None:
    """Run the process; a fault is told by its name, never with what was said."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Whatever the engine does comes first; where a sandbox forbids stepping back, words are still written.
    with contextlib.suppress(PermissionError):
        os.nice(10)
    with connection:
        try:
            voices, transcribe = load_moonshine()
            worker = Worker(connection, voices, transcribe)
        except Exception as error:
            data = json.dumps({"type": "broken", "reason": f"{type(error).__name__}: {error}"[:300]}).encode()
            connection.sendall(HEADER.pack(len(data), 0, 0) + data)
            sys.exit(3)
        worker.run()
    # Not sys.exit: a transcription that hangs must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
