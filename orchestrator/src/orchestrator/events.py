"""What a page is told while it waits and talks: Server-Sent Events, with replay after a broken connection.

A `Log` keeps what was said to one call. Of events that only tell a state (``waiting``, ``ready``) the last is
kept: an older one is no longer true. Numbers begin with a mark of this process, so that a page which comes
back after a restart gets everything again instead of nothing.
(https://html.spec.whatwg.org/multipage/server-sent-events.html)
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse

KEPT = 500
SIGN_OF_LIFE_S = 15.0
STATES = frozenset({"waiting", "ready", "began"})
BOOT = secrets.token_hex(3)


@dataclass(eq=False)
class Log:
    """The events of one call. ``close`` after the last."""

    said: deque[tuple[int, str, Mapping[str, Any]]] = field(default_factory=lambda: deque(maxlen=KEPT))
    number: int = 0
    closed: bool = False
    _wake: set[asyncio.Future[None]] = field(default_factory=set)

    def say(self, kind: str, content: Mapping[str, Any]) -> None:
        """Add an event and wake who listens."""
        self.number += 1
        if kind in STATES:
            for event in [event for event in self.said if event[1] in STATES]:
                self.said.remove(event)
        self.said.append((self.number, kind, content))
        self._rouse()

    def close(self) -> None:
        """End: who listens gets what is left, and that is all."""
        self.closed = True
        self._rouse()

    def _rouse(self) -> None:
        for future in self._wake:
            if not future.done():
                future.set_result(None)
        self._wake.clear()

    async def more(self, after: int) -> None:
        """Wait until there is something after number ``after``, or SIGN_OF_LIFE_S have passed."""
        if self.number > after or self.closed:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wake.add(future)
        try:
            await asyncio.wait([future], timeout=SIGN_OF_LIFE_S)
        finally:
            self._wake.discard(future)


def after_of(header: str | None) -> int:
    """Return the number that a Last-Event-ID stands for; 0, which is everything, for another process's."""
    boot, _, number = (header or "").partition("-")
    return int(number) if boot == BOOT and number.isascii() and number.isdigit() else 0


def written(number: int, kind: str, content: Mapping[str, Any]) -> bytes:
    """Return one event as it is sent. JSON has no line breaks of its own, so nothing can add a field."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"id: {BOOT}-{number}\nevent: {kind}\ndata: {text}\n\n".encode()


async def lines(
    log: Log, after: int, opened: Callable[[], None], closed: Callable[[], None]
) -> AsyncIterator[bytes]:
    """Yield what was said after ``after``, then what comes, until the log is closed."""
    opened()
    try:
        yield b": here\n\n"
        while True:
            fresh = [event for event in log.said if event[0] > after]
            if fresh:
                after = fresh[-1][0]
                yield b"".join(written(*event) for event in fresh)
            elif log.closed:
                return
            else:
                before = log.number
                await log.more(after)
                if log.number == before and not log.closed:
                    yield b": here\n\n"
    finally:
        closed()


def stream(
    log: Log, last_id: str | None, opened: Callable[[], None], closed: Callable[[], None]
) -> StreamingResponse:
    """Answer with a log's events. ``opened`` and ``closed`` are called when the page is there and gone."""
    return StreamingResponse(
        lines(log, after_of(last_id), opened, closed),
        media_type="text/event-stream",
        # nginx would collect them otherwise.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
