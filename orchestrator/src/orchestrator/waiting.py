"""Who is next? First come, first served; who answers a question goes before who only talks.

Pure: from what is known about those who wait to who is called and what they are told. A caller whose page
fell asleep keeps his place: he is passed over while nobody listens for him, and when he was called and did
not come, those behind him get their chance before he is called again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

CALLED_S = 10.0
"""How long a slot is kept for who was called."""
ANSWERS_FIRST = 1
"""The priority of a caller who answers a question."""
USUAL_CALL_S = 180.0
"""How long a call lasts while none has ended yet."""
REMEMBERED = 30
"""Calls whose length is averaged."""


@dataclass(frozen=True)
class Waiting:
    """One who waits."""

    id: str
    priority: int
    number: int
    """In the order of asking."""
    listens: bool
    """His page is there, as far as one can tell: it would hear that it is called."""
    missed: int = 0
    """How often he was called and did not come."""
    not_before: float = 0.0
    """When he may be called again."""


def line_up(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Put them into the order in which they are called."""
    return sorted(waiting, key=lambda one: (-one.priority, one.number))


def next_to_call(queue: Sequence[Waiting], free: int, now: float) -> list[Waiting]:
    """Return who is called now that ``free`` slots are there for those who wait."""
    ready = [one for one in queue if one.listens and one.not_before <= now]
    return ready[: max(0, free)]


def again_after(missed: int) -> float:
    """Return for how many seconds one who did not come is passed over: others must be able to come first."""
    return CALLED_S * float(2 ** min(missed, 5))


def positions(queue: Sequence[Waiting]) -> dict[str, int]:
    """Return everybody's position, from 1. Those whose page is not there do not make others wait longer."""
    found, ahead = {}, 0
    for one in queue:
        found[one.id] = ahead + 1
        if one.listens:
            ahead += 1
    return found


def estimate_s(position: int, slots: int, lengths: Collection[float]) -> int | None:
    """Guess after how many seconds the one at ``position`` is called; None while there is no slot at all.

    Slots that hold calls of the same length end evenly spread over it, so each place takes length / slots.
    """
    if slots < 1:
        return None
    usual = fmean(lengths) if lengths else USUAL_CALL_S
    return max(1, round(position * usual / slots))
