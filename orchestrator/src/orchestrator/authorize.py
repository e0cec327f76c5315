"""From where may one call, and which engine is free? entrance.py asks this before every upgrade.

Deciding is pure: `decide` goes from what is known to an answer. Between an answer and the moment at which the
call shows in the kernel's table of sockets there is a gap of a few milliseconds; `Ledger` remembers the
answers given, so that two callers of the same instant do not get the same engine. An answer is remembered for
`RESERVED_S` at most, and only until its connection is seen: whoever asks while it is open is neither refused
for a call that never came nor sent to an engine that is about to be taken, but waits until it is clear.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orchestrator.engines import Caller, Condition, Engine
from orchestrator.line import Seen
from orchestrator.refusal import Refusal
from orchestrator.settings import DEFAULT_PORTS, Settings, host_of

RESERVED_S = (
    2.0  # nginx connects to an engine on its own machine within milliseconds, or fails within one second
)
UNCLEAR_S = RESERVED_S + 0.5  # until a look that began after a reservation's end has been made
LOOK_AGAIN_S = 0.02


def origin_of(text: str) -> tuple[str, str, int] | None:
    """Take an Origin header apart into scheme, host and port; None for ``null`` and for garbage."""
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
        if scheme not in DEFAULT_PORTS or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            return None
        return scheme, host_of(host), port or DEFAULT_PORTS[scheme]
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Say whether a host is the browser's own machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True)
class Doors:
    """The origins from which the page may call."""

    origins: frozenset[tuple[str, str, int]]
    loopback: bool

    @classmethod
    def of(cls, settings: Settings) -> Doors:
        """Make them from the line's URL and its further names.

        A further name is reached through the URL's port or, past a gateway that maps ports, through the
        line's own. An open line listens on loopback and is reached through a tunnel, whose near end may have
        any port: a page that the browser's own machine served is let in.
        """
        scheme, host, port = origin_of(settings.moshi_url) or ("https", "localhost", settings.line_port)
        names = {host, *settings.line_names}
        ports = {port, settings.line_port}
        return cls(
            frozenset((scheme, name, number) for name in names for number in ports),
            loopback=settings.line_access == "open",
        )

    def admit(self, origin: str | None) -> bool:
        """Say whether a caller with this Origin header may come in; None is a caller that is no browser."""
        if origin is None:
            return True  # only browsers are tricked into calling; who may, the line's access decides
        parts = origin_of(origin)
        return parts is not None and (parts in self.origins or (self.loopback and is_loopback(parts[1])))


@dataclass(frozen=True)
class Seat:
    """What the ledger knows of one engine: who talks with it, and until when its answers are remembered."""

    callers: frozenset[Caller] = frozenset()
    reserved_until: tuple[float, ...] = ()  # in seconds of the ledger's clock, oldest first
    granted_at: int = 0  # the number of the last answer that named it

    @property
    def taken(self) -> int:
        """How many conversations it carries or is about to carry."""
        return len(self.callers) + len(self.reserved_until)

    def seen(self, callers: frozenset[Caller], now: float) -> Seat:
        """Look again: a new caller settles the oldest reservation, time ends the others."""
        arrived = len(callers - self.callers)
        return Seat(callers, tuple(t for t in self.reserved_until[arrived:] if t > now), self.granted_at)


@dataclass(frozen=True)
class Granted:
    """The caller may speak to this engine."""

    engine: int


@dataclass(frozen=True)
class Refused:
    """The caller may not, or not now."""

    refusal: Refusal


@dataclass(frozen=True)
class Unclear:
    """An engine may turn out to be free: it is reserved until then, and no connection came of it yet."""

    until: float


Decision = Granted | Refused | Unclear


def decide(
    *, admitted: bool, engines: Sequence[Engine], seats: Mapping[int, Seat], held: int = 0
) -> Decision:
    """Decide about one caller; ``held`` slots are kept for others who were called.

    Engines are filled evenly: the emptiest gets the call, among equals the one whose last call is longest
    ago.
    """
    if not admitted:
        return Refused(Refusal.NOT_ALLOWED)
    ready = [engine for engine in engines if engine.condition is Condition.READY]
    free = [engine for engine in ready if seats[engine.number].taken < engine.conversations]
    spare = sum(engine.conversations - seats[engine.number].taken for engine in free)
    if free and spare > held:
        best = min(free, key=lambda e: (seats[e.number].taken, seats[e.number].granted_at, e.number))
        return Granted(best.number)
    unclear = [
        seat.reserved_until[0]
        for engine in ready
        if len((seat := seats[engine.number]).callers) < engine.conversations and seat.reserved_until
    ]
    if unclear and not free:
        return Unclear(min(unclear))
    if ready:
        return Refused(Refusal.LINE_FULL)
    if any(engine.condition is Condition.STARTING for engine in engines):
        return Refused(Refusal.STARTING)
    return Refused(Refusal.LINE_DOWN)


@dataclass
class Ledger:
    """The answers given and not settled yet. One per process, used by one event loop."""

    seats: dict[int, Seat] = field(default_factory=dict)
    answers: int = 0

    def see(self, engines: Sequence[Engine], now: float) -> None:
        """Compare the answers given with what the engines carry now."""
        for engine in engines:
            self.seats[engine.number] = self.seats.get(engine.number, Seat()).seen(engine.callers, now)

    def ask(
        self,
        *,
        admitted: bool,
        engines: Sequence[Engine],
        now: float,
        held: int = 0,
        seen_at: float | None = None,
    ) -> Decision:
        """Decide about one caller at this moment, and remember the answer.

        ``seen_at`` is when the engines were looked at, if not now. A reservation ends with a look that would
        have shown its connection, not before: so however old a look is, no slot is given twice.
        """
        self.see(engines, now if seen_at is None else seen_at)
        decision = decide(admitted=admitted, engines=engines, seats=self.seats, held=held)
        if isinstance(decision, Granted):
            self.answers += 1
            seat = self.seats[decision.engine]
            self.seats[decision.engine] = Seat(
                seat.callers, (*seat.reserved_until, now + RESERVED_S), self.answers
            )
        return decision


async def answer(
    ledger: Ledger,
    *,
    admitted: bool,
    look: Callable[[], Awaitable[Seen]],
    clock: Callable[[], float],
    held: Callable[[], int] = lambda: 0,
) -> Granted | Refused:
    """Decide about one caller, and wait while it is unclear; at most UNCLEAR_S, however many others ask.

    What was seen is remembered without a pause after the look, so no other caller comes in between.
    """
    last = clock() + UNCLEAR_S
    while True:
        seen = await look()
        now = clock()
        decision = ledger.ask(admitted=admitted, engines=seen.engines, now=now, held=held(), seen_at=seen.at)
        if not isinstance(decision, Unclear):
            return decision
        if now >= last:
            return Refused(Refusal.LINE_FULL)
        await asyncio.sleep(max(0.001, min(LOOK_AGAIN_S, decision.until - now)))
