"""Whether a node is to be given back now. Pure; rental.app asks and acts."""

from __future__ import annotations

from rental.ledger import Entry


def due(entry: Entry, now: float, idle_s: float | None) -> str:
    """Why this node is to be given back, if it is; `now` by the provider's clock, `idle_s` None: unknown."""
    if entry.ends_at and now >= entry.ends_at:
        return f"its time is up ({(entry.ends_at - entry.created) / 3600:.3g} h)"
    if entry.idle_minutes and idle_s is not None and idle_s >= entry.idle_minutes * 60:
        return f"nobody called for {idle_s / 60:.0f} minutes (it was to be {entry.idle_minutes})"
    return ""


def remaining(entry: Entry, now: float) -> str:
    """How long it may still run, for a table."""
    if not entry.ends_at:
        return f"idle {entry.idle_minutes} min" if entry.idle_minutes else "when released"
    left = entry.ends_at - now
    text = f"in {left / 3600:.1f} h" if left > 0 else "overdue"
    return text + (f" or idle {entry.idle_minutes} min" if entry.idle_minutes else "")
