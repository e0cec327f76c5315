"""The thread that owns the engine: work-conserving, continuous batching.

A step starts as soon as a frame waits and the last step is done, and takes one frame of every conversation
that has one. Nothing waits for a tick or for company. While a step runs, frames gather for the next one: the
more callers, the fuller the batches, by themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from duplex.engine import Answer, Sound

T = TypeVar("T")

BEHIND = 5
"""Frames that may wait, 400 ms. With more a conversation catches up."""
CAUGHT_UP = 2
"""Frames that stay when it does: the newest."""


class Stepper(Protocol):
    """What the thread needs of an engine."""

    def step(self, frames: list[tuple[int, Sound]]) -> list[Answer]:
        """Take conversations one frame further."""


@dataclass
class Ear:
    """What a conversation has heard and the engine has not: at most BEHIND frames, with when they came."""

    slot: int
    frames: deque[tuple[Sound, float]] = field(default_factory=deque)
    dropped: int = 0
    closed: bool = False


@dataclass(frozen=True)
class Stepped:
    """One step, as the event loop learns of it."""

    answers: list[tuple[Ear, Answer, float]]
    """Whose, what, and when the frame had come (time.monotonic())."""
    seconds: float
    waiting: int
    """Conversations whose next frame waited already when the step ended."""


class Conductor(threading.Thread):
    """Owns an engine that ``build`` makes inside the thread; hands what it made to an asyncio loop."""

    def __init__(
        self,
        build: Callable[[], Stepper],
        loop: asyncio.AbstractEventLoop,
        stepped: Callable[[Stepped], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._build = build
        self._loop = loop
        self._stepped = stepped
        self._failed = failed
        self._wake = threading.Condition()
        self._ears: dict[int, Ear] = {}
        self._ready: dict[int, Ear] = {}  # ordered: who waits longest comes first
        self._orders: deque[tuple[Callable[[Any], Any], asyncio.Future[Any]]] = deque()
        self._stopping = False
        self.engine: Any = None

    # ------------------------------------------------------------------------------- called by the event loop

    def do(self, order: Callable[[Any], T]) -> asyncio.Future[T]:
        """Have the thread call ``order(engine)`` between two steps."""
        future: asyncio.Future[T] = self._loop.create_future()
        with self._wake:
            self._orders.append((order, future))
            self._wake.notify()
        return future

    def hear(self, ear: Ear, pcm: Sound, came: float) -> int:
        """Give a conversation a frame; return how many of its oldest ones were dropped to keep it in the
        present.
        """
        dropped = 0
        with self._wake:
            if ear.closed:
                return 0
            ear.frames.append((pcm, came))
            if len(ear.frames) > BEHIND:
                while len(ear.frames) > CAUGHT_UP:
                    ear.frames.popleft()
                    dropped += 1
                ear.dropped += dropped
            self._ready.setdefault(ear.slot, ear)
            self._wake.notify()
        return dropped

    def forget(self, ear: Ear) -> None:
        """Drop what a conversation has heard; nothing more of it is stepped."""
        with self._wake:
            ear.closed = True
            ear.frames.clear()
            if self._ready.get(ear.slot) is ear:
                del self._ready[ear.slot]

    def stop(self) -> None:
        """End the thread after the step that runs."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    # ------------------------------------------------------------------------------------------ in the thread

    def run(self) -> None:
        """Build the engine, then step while there is something to step."""
        try:
            self.engine = self._build()
            while self._once():
                pass
        except BaseException as error:
            self._tell(self._failed, error)

    def _tell(self, what: Callable[[Any], None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, argument)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            self._stopping = True

    def _once(self) -> bool:
        with self._wake:
            while not (self._ready or self._orders or self._stopping):
                self._wake.wait()
            if self._stopping:
                return False
            orders = list(self._orders)
            self._orders.clear()
        for order, future in orders:
            self._obey(order, future)
        with self._wake:
            batch = []
            for slot, ear in list(self._ready.items()):
                pcm, came = ear.frames.popleft()
                batch.append((ear, pcm, came))
                del self._ready[slot]
                if ear.frames:
                    self._ready[slot] = ear
        if batch:
            started = time.monotonic()
            answers = self.engine.step([(ear.slot, pcm) for ear, pcm, _ in batch])
            pairs = [(ear, answer, came) for (ear, _, came), answer in zip(batch, answers, strict=True)]
            self._tell(self._stepped, Stepped(pairs, time.monotonic() - started, len(self._ready)))
        return True

    def _obey(self, order: Callable[[Any], Any], future: asyncio.Future[Any]) -> None:
        def settle(result: Any, error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        result, failure = None, None
        try:
            result = order(self.engine)
        except LookupError as error:  # NoRoom: an answer; anything else means that the engine is gone
            failure = error
        self._tell(lambda _: settle(result, failure), None)
