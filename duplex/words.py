"""What is said on a call, as text: Moshi's pieces joined to sentences here, the caller's words from a
transcriber.

A ``Transcriber`` hears calls and tells events. The default one, ``Moonshine``, keeps worker processes
(``listen.py``) that many calls share. Nothing in the way of the audio waits for it: what a worker does not
take at once is dropped, and a call whose words fall behind or whose worker dies is told ``words``
``available: false`` until they are back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from duplex.listen import CLOSE, HEADER, HEAR, OPEN, PING, SAY, STAMP, TELL, clean

Sound = NDArray[np.float32]
Tell = Callable[[dict[str, Any]], None]
"""Takes ``transcript``, ``turn_end`` and ``words`` events, as the page gets them."""

SENTENCE = 300
"""Characters after which a sentence of Moshi's is ended at the next word."""
SENTENCE_SILENCE_MS, STOP_SILENCE_MS = 1200, 320
"""Silence that ends a sentence; one that ends as sentences do."""
WAITING_BYTES = 1 << 20
"""What may wait on the way to a worker."""
TICK_S, PING_S = 0.25, 0.5
BEHIND_S, CAUGHT_UP_S = 2.5, 0.5
"""Lag from which words are unavailable, and below which they come back."""
HOLD_S = 5.0
"""Not sooner than this."""
HUNG_S = 20.0
"""A worker that is busy with one line, or does not answer, for this long is ended."""
RESTART_S, RESTART_MOST_S, STEADY_S = 0.5, 30.0, 60.0
"""Pause before a worker is started again; doubled up to the second while it does not live the third."""


class Sentences:
    """Moshi's pieces of text as transcript events."""

    def __init__(self) -> None:
        self._text = ""
        self._start_ms = self._end_ms = 0

    def take(self, text: str, at_ms: float) -> list[dict[str, Any]]:
        """Take what the frame at ``at_ms`` brought, often nothing; return what there is to tell."""
        events = []
        stopped = self._text.rstrip().rstrip("\"')]\u201d\u2019").endswith((".", "!", "?", "\u2026"))
        if not text:
            silence = at_ms - self._end_ms
            if self._text and silence > (STOP_SILENCE_MS if stopped else SENTENCE_SILENCE_MS):
                events += self.end()
            return events
        if text[0].isspace() and (stopped or len(self._text) > SENTENCE):
            events += self.end()
        if not self._text:
            self._start_ms = round(at_ms)
        self._text = (self._text + text)[: 4 * SENTENCE]
        self._end_ms = round(at_ms) + 80
        return events + self._event(final=False)

    def end(self) -> list[dict[str, Any]]:
        """Return the sentence as it is, as a finished one."""
        events = self._event(final=True)
        self._text = ""
        return events

    def _event(self, final: bool) -> list[dict[str, Any]]:
        text = clean(self._text)
        if not text:
            return []
        start, end = self._start_ms, self._end_ms
        return [
            {
                "type": "transcript",
                "who": "moshi",
                "text": text,
                "final": final,
                "start_ms": start,
                "end_ms": end,
            }
        ]


class Hearing(Protocol):
    """One call's way to words. No method waits or raises."""

    available: bool
    reason: str
    """Why not: starting, behind, failed."""

    def hear(self, pcm: Sound, at_ms: float) -> None:
        """Take a frame (1920,) of the caller that came at ``at_ms`` on the call's clock."""

    def say(self, pcm: Sound | None) -> None:
        """Take the frame (1920,) that Moshi answered with, None for silence: its echo is not the caller's
        voice.
        """

    def tell(self, text: str, at_ms: float) -> None:
        """Take what Moshi said as text, for the same reason."""

    def close(self) -> None:
        """The call has ended. What was heard may still be told."""


class Transcriber(Protocol):
    """Hears the callers of an engine."""

    async def start(self) -> None:
        """Start what it needs; words may come later."""

    def open(self, tell: Tell) -> Hearing:
        """Hear a new call; its events go to ``tell``, in the event loop."""

    def status(self) -> dict[str, Any]:
        """Return ``engine``, ``workers``, ``lag_s``, ``unavailable`` calls, ``lost_frames``, ``restarts``."""

    async def stop(self) -> None:
        """End everything that was started."""


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    started: float
    calls: dict[int, _Hearing] = field(default_factory=dict)
    """Those that ended and still have words to come are among them."""
    ready: bool = False
    behind_since: float | None = None
    lag: float = 0.0
    pinged: float = 0.0
    answered: bool = True
    reading: asyncio.Task[None] | None = None

    def send(self, kind: int, call: int, data: bytes = b"") -> None:
        self.writer.write(HEADER.pack(len(data), kind, call) + data)

    @property
    def full(self) -> bool:
        return self.writer.transport.get_write_buffer_size() > WAITING_BYTES

    @property
    def load(self) -> int:
        return sum(not hearing.closed for hearing in self.calls.values())


class _Hearing:
    def __init__(self, home: Moonshine, tell: Tell) -> None:
        self._home, self.emit = home, tell
        self.worker: _Worker | None = None
        self.number = 0
        self.available, self.reason = True, ""
        self.closed = False

    def hear(self, pcm: Sound, at_ms: float) -> None:
        self._send(HEAR, lambda: STAMP.pack(at_ms) + _int16(pcm))

    def say(self, pcm: Sound | None) -> None:
        self._send(SAY, lambda: b"" if pcm is None else _int16(pcm))

    def tell(self, text: str, at_ms: float) -> None:
        self._send(TELL, lambda: STAMP.pack(at_ms) + text.encode(errors="replace")[:400])

    def _send(self, kind: int, data: Callable[[], bytes]) -> None:
        worker = self.worker
        if worker is not None and worker.full:
            self._home.fell_behind(worker)
            worker = None
        if worker is None:
            self._home.lost_frames += kind == HEAR
            return
        worker.send(kind, self.number, data())

    def close(self) -> None:
        self.closed = True
        self._home.leave(self)

    def change(self, available: bool, reason: str = "") -> None:
        if self.closed or (available, reason) == (self.available, self.reason):
            return
        self.available, self.reason = available, reason
        self.emit({"type": "words", "available": available, **({} if available else {"reason": reason})})


def _int16(pcm: Sound) -> bytes:
    return bytes((pcm * 32767).astype("<i2").tobytes())


def start_worker() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a worker; return its process and our end of the connection. What it or its libraries print is
    thrown away: it could be what somebody said.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        command = [sys.executable, "-m", "duplex.listen", str(number)]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, pass_fds=[number], stdin=quiet, stdout=quiet, stderr=quiet), ours


class Moonshine:
    """moonshine-voice in worker processes of the lowest priority."""

    def __init__(
        self,
        workers: int,
        start: Callable[[], tuple[subprocess.Popen[bytes], socket.socket]] = start_worker,
    ) -> None:
        self.size = workers
        self._start = start
        self._workers: list[_Worker] = []
        self._homeless: list[_Hearing] = []
        self._numbers = 0
        self._starts = 0
        self._pause = RESTART_S
        self._closing = False
        self._watching: asyncio.Task[None] | None = None
        self._restarting: set[asyncio.Task[None]] = set()
        self.lost_frames = 0
        self.restarts = 0
        self.reason = ""
        """What a worker said that cannot start."""

    async def start(self) -> None:
        """Start the workers; they get ready while calls are taken."""
        for _ in range(self.size):
            await self._add()
        self._watching = asyncio.create_task(self._watch())

    async def _add(self) -> None:
        process, ours = self._start()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = _Worker(process, writer, time.monotonic())
        worker.reading = asyncio.create_task(self._read(worker, reader))
        self._workers.append(worker)

    # -------------------------------------------------------------------------------------------------- calls

    def open(self, tell: Tell) -> Hearing:
        """Hear a new call in the worker that has the fewest."""
        hearing = _Hearing(self, tell)
        self._homeless.append(hearing)
        if not self._place(hearing):
            hearing.change(False, "starting")
        return hearing

    def leave(self, hearing: _Hearing) -> None:
        """A call has ended."""
        if hearing in self._homeless:
            self._homeless.remove(hearing)
        if hearing.worker is not None:
            hearing.worker.send(CLOSE, hearing.number)
            hearing.worker = None

    def _place(self, hearing: _Hearing) -> bool:
        able = [worker for worker in self._workers if worker.ready and worker.behind_since is None]
        if not able:
            return False
        worker = min(able, key=lambda worker: worker.load)
        self._homeless.remove(hearing)
        self._numbers = self._numbers % 0xFFFFFFFF + 1
        hearing.worker, hearing.number = worker, self._numbers
        worker.calls[hearing.number] = hearing
        worker.send(OPEN, hearing.number)
        hearing.change(True)
        return True

    def _evict(self, worker: _Worker, reason: str, alive: bool) -> None:
        """Take its calls from a worker."""
        for number, hearing in list(worker.calls.items()):
            if hearing.closed:
                continue
            if alive:
                worker.send(CLOSE, number)
            del worker.calls[number]
            hearing.worker = None
            self._homeless.append(hearing)
            hearing.change(False, reason)

    def fell_behind(self, worker: _Worker) -> None:
        """Stop hearing the calls of a worker that cannot keep up."""
        if worker.behind_since is None:
            worker.behind_since = time.monotonic()
            self._evict(worker, "behind", alive=True)

    # ------------------------------------------------------------------------------------------------ workers

    async def _read(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length, _, number = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._take(worker, number, json.loads(await reader.readexactly(length)))
        self._workers.remove(worker)
        worker.writer.close()
        worker.process.kill()
        worker.process.wait()
        self._evict(worker, "failed", alive=False)
        worker.calls.clear()
        if not self._closing:
            self.restarts += 1
            steady = time.monotonic() - worker.started > STEADY_S
            self._pause = RESTART_S if steady else min(RESTART_MOST_S, self._pause * 2)
            task = asyncio.create_task(self._again(self._pause / 2))
            self._restarting.add(task)
            task.add_done_callback(self._restarting.discard)

    async def _again(self, pause: float) -> None:
        await asyncio.sleep(pause)
        await self._add()

    def _take(self, worker: _Worker, number: int, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "ready":
            worker.ready = True
            self.reason = ""
            for hearing in list(self._homeless):
                if hearing.reason != "behind":
                    self._place(hearing)
        elif kind == "broken":
            self.reason = event["reason"]
        elif kind == "lag":
            worker.answered = True
            worker.lag = event["seconds"]
            if event["busy"] > HUNG_S:
                worker.process.kill()
            elif worker.lag > BEHIND_S:
                self.fell_behind(worker)
            elif (
                worker.behind_since is not None
                and worker.lag < CAUGHT_UP_S
                and time.monotonic() - worker.behind_since > HOLD_S
            ):
                worker.behind_since = None
        elif kind == "closed":
            worker.calls.pop(number, None)
        elif (known := worker.calls.get(number)) is not None:
            known.emit(event)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for worker in self._workers:
                if not worker.ready:
                    continue
                waited = now - worker.pinged
                if worker.answered and waited >= PING_S:
                    worker.answered, worker.pinged = False, now
                    worker.send(PING, 0, STAMP.pack(now))
                elif not worker.answered and waited > HUNG_S:
                    worker.process.kill()
                elif not worker.answered and waited > BEHIND_S:
                    worker.lag = waited
                    self.fell_behind(worker)
            if self._homeless:
                self._place(
                    self._homeless[0]
                )  # one at a time: what was too much at once may be too much again

    def status(self) -> dict[str, Any]:
        """Return how it does."""
        return {
            "engine": "moonshine",
            "workers": sum(worker.ready for worker in self._workers),
            "lag_s": max((worker.lag for worker in self._workers), default=0.0),
            "unavailable": len(self._homeless),
            "lost_frames": self.lost_frames,
            "restarts": self.restarts,
            **({"reason": self.reason} if self.reason else {}),
        }

    async def stop(self) -> None:
        """End the workers."""
        self._closing = True
        for task in (self._watching, *self._restarting):
            if task is not None:
                task.cancel()
        workers = list(self._workers)
        for worker in workers:
            worker.process.kill()
        await asyncio.gather(
            *(worker.reading for worker in workers if worker.reading), return_exceptions=True
        )
