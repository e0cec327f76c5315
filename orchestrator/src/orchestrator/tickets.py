"""Tickets: a WebSocket cannot carry a key, so it is opened with one of these in the query.

A ticket is 256 random bits, good for one upgrade within 30 s, for one call. They live in this process's
memory and nowhere else: one process answers for a line, a ticket is used within the second, and whoever
still has one when the orchestrator is restarted asks for another with the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.scopes import hash_of, new_key
from orchestrator.storage import now

TICKET_S = 30.0


@dataclass(frozen=True)
class Ticket:
    """A ticket as its owner sees it."""

    word: str
    expires_at: datetime


@dataclass
class Tickets:
    """The tickets that are out. A call has one at most: a new one ends the one before."""

    clock: Callable[[], float]
    _out: dict[bytes, tuple[str, float]] = field(default_factory=dict)
    _of: dict[str, bytes] = field(default_factory=dict)

    def issue(self, call_id: str) -> Ticket:
        """Make a ticket for a call."""
        self.forget(call_id)
        word = new_key()
        hashed = hash_of(word)
        self._out[hashed] = (call_id, self.clock() + TICKET_S)
        self._of[call_id] = hashed
        return Ticket(word, now() + timedelta(seconds=TICKET_S))

    def take(self, word: str) -> str | None:
        """Return the call that a ticket is for, and spend it; None when it is for none."""
        call_id, until = self._out.pop(hash_of(word), ("", 0.0))
        if not call_id:
            return None
        del self._of[call_id]
        return call_id if self.clock() <= until else None

    def forget(self, call_id: str) -> None:
        """End the ticket of a call, if one is out."""
        hashed = self._of.pop(call_id, None)
        if hashed is not None:
            del self._out[hashed]
