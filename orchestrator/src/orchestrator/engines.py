"""Which engines there are, and in what state.

moshi.server says nothing of itself and is seen from outside: the kernel's table of TCP sockets
(``/proc/net/tcp`` and ``tcp6``) says whether an engine's port is open and who is connected to it. duplex says
at ``/status``, on a port of its own, how many conversations it carries and which (`Told`). The unit of either
leaves two files in ``/var/lib/hotline/moshi/N``: ``phase.json`` says how far it is, ``failure.json`` why
it failed and how often; the second goes away once the engine is ready again.

The table is documented in https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html; its addresses
are words of 32 bits in the byte order of the machine (little-endian on everything that Hotline runs on).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

ESTABLISHED = 0x01
CLOSE_WAIT = 0x08  # the caller is gone and the engine has not noticed: it still talks to nobody else
LISTEN = 0x0A
STATE_FILE_BYTES = 64 * 1024


class SocketsUnreadableError(Exception):
    """The kernel's table cannot be read; the text says why and what mends it."""


class Peer(NamedTuple):
    """The far end of a connection."""

    address: str
    port: int


Caller = Peer | str
"""Whom an engine talks with: the far end of a connection, or the id of a call."""


class Socket(NamedTuple):
    """One row of the kernel's table."""

    address: str
    port: int
    peer: Peer
    state: int


@dataclass(frozen=True)
class Sockets:
    """Who listens and who is connected, by local port."""

    listening: frozenset[int] = frozenset()
    peers: Mapping[int, frozenset[Peer]] = field(default_factory=dict)


def address_of(words: str) -> str:
    """Return the address that the kernel writes as 8 (IPv4) or 32 (IPv6) hexadecimal digits.

    Raises ValueError when they are neither.
    """
    if len(words) not in (8, 32):
        raise ValueError("an address has 8 or 32 digits")
    swapped = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
    return ipaddress.ip_address(swapped).compressed


def parse_sockets(table: str) -> list[Socket]:
    """Read the text of ``/proc/net/tcp`` or ``tcp6``. Rows that are not a socket's are passed over.

    Raises ValueError when the text does not begin with the table's heading.
    """
    lines = table.splitlines()
    if not lines or "local_address" not in lines[0]:
        raise ValueError("it does not begin with the heading of the kernel's table of sockets")
    sockets = []
    for line in lines[1:]:
        words = line.split()
        try:
            (here, here_port), (there, there_port) = words[1].split(":"), words[2].split(":")
            peer = Peer(address_of(there), int(there_port, 16))
            sockets.append(Socket(address_of(here), int(here_port, 16), peer, int(words[3], 16)))
        except (IndexError, ValueError):
            continue
    return sockets


def rows_of(table: str, ports: Iterable[int]) -> str:
    """Return the heading and the rows whose local port is one of ``ports``.

    A line with a thousand pages open has thousands of rows; taking each apart would cost more than all else
    that an answer needs.
    """
    wanted = "|".join(f"{port:04X}" for port in ports)
    heading, _, rest = table.partition("\n")
    found = re.findall(rf"^ *\d+: [0-9A-F]+:(?:{wanted}) .*$", rest, re.MULTILINE)
    return "\n".join([heading, *found])


def sockets_on(
    ports: Iterable[int], rows: Iterable[Socket], *, own_ports: frozenset[int] = frozenset()
) -> Sockets:
    """Pick what concerns ``ports``. Connections from ``own_ports`` are our own look-ins, not callers."""
    wanted = frozenset(ports)
    listening: set[int] = set()
    peers: dict[int, set[Peer]] = {port: set() for port in wanted}
    for row in rows:
        if row.port not in wanted:
            continue
        if row.state == LISTEN:
            listening.add(row.port)
        elif row.state in (ESTABLISHED, CLOSE_WAIT) and row.peer.port not in own_ports:
            peers[row.port].add(row.peer)
    return Sockets(frozenset(listening), {port: frozenset(found) for port, found in peers.items()})


def read_sockets(proc_net: Path, ports: Iterable[int]) -> list[Socket]:
    """Read what the kernel's tables below ``proc_net`` (``/proc/net``) say about local ``ports``.

    Raises SocketsUnreadableError. A machine without IPv6 has no ``tcp6``; that is no error.
    """
    rows = []
    for name in ("tcp", "tcp6"):
        path = proc_net / name
        try:
            rows += parse_sockets(rows_of(path.read_text(encoding="ascii", errors="replace"), ports))
        except FileNotFoundError:
            if name == "tcp":
                raise SocketsUnreadableError(
                    f"{path} is not there, so nobody can tell which engine is free. "
                    "Mend: the orchestrator's unit must not set ProcSubset=pid"
                ) from None
        except (OSError, ValueError) as error:
            raise SocketsUnreadableError(
                f"{path} cannot be read ({error}), so nobody can tell which engine is free. "
                "Mend: restart the orchestrator; if it stays so, report it with the first lines of that file"
            ) from None
    return rows


class Measured(NamedTuple):
    """What a duplex engine measured of one call."""

    turnaround_ms: float
    """Of the last frame: from its arrival to the answer's leaving."""
    dropped: Mapping[str, int]
    """Frames of audio that were lost since the call began, heard and said."""


@dataclass(frozen=True)
class Told:
    """What a duplex engine said about itself at ``/status``; ``silence`` is why it said nothing."""

    ready: bool = False
    draining: bool = False
    slots: int = 0
    """How many conversations it carries."""
    calls: frozenset[str] = frozenset()
    """Ids of those it carries, with the broken ones that it keeps for their grace."""
    silence: str = ""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """By call."""


def measured_in(call: Mapping[str, Any]) -> Measured:
    """Read what ``/status`` says about one call."""
    dropped = call.get("dropped") or {}
    return Measured(float(call.get("turnaround_ms", 0.0)), {str(k): int(v) for k, v in dropped.items()})


def told_in(status: Mapping[str, Any]) -> Told:
    """Read an answer of ``/status``. Raises ValueError when it is none."""
    try:
        return Told(
            ready=status["ready"] is True,
            draining=status["draining"] is True,
            slots=int(status["slots"]),
            calls=frozenset(str(call["id"]) for call in status["calls"]),
            measured={str(call["id"]): measured_in(call) for call in status["calls"]},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is not duplex's /status: {type(error).__name__} {error}") from None


class Condition(Enum):
    """What an engine is good for."""

    READY = "ready"  # its port is open, and it does not say otherwise
    SILENT = "silent"  # its port is open, but it does not say how it is
    STARTING = "starting"  # waiting helps
    BROKEN = "broken"  # the circuit breaker is open: waiting does not help
    ABSENT = "absent"  # it was never started, or stopped on purpose


@dataclass(frozen=True)
class Phase:
    """How far an engine has come: fetching, loading, ready, failed or stopped, in its own words."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Failure:
    """Why an engine failed the last time, and how often it did in a row.

    ``open`` says whether the circuit breaker is; None when the engine's unit did not say.
    """

    reason: str
    detail: str = ""
    failures: int = 1
    open: bool | None = None


@dataclass(frozen=True)
class EngineFiles:
    """What an engine's unit wrote down; ``trouble`` says which file is there and cannot be read."""

    phase: Phase | None = None
    failure: Failure | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Engine:
    """One engine, seen from outside."""

    number: int
    port: int
    listening: bool
    peers: frozenset[Peer] = frozenset()
    files: EngineFiles = EngineFiles()
    max_failures: int = 3
    told: Told | None = None
    """None of an engine that tells nothing."""

    @property
    def callers(self) -> frozenset[Caller]:
        """Who talks with it: calls that it names, or connections of one that names none."""
        return self.peers if self.told is None else self.told.calls

    @property
    def conversations(self) -> int:
        """How many it carries at a time."""
        return 1 if self.told is None else self.told.slots

    @property
    def name(self) -> str:
        """The name of its unit."""
        return f"moshi@{self.number}"

    @property
    def upstream(self) -> str:
        """The name by which nginx knows it."""
        return f"moshi_{self.number}"

    @property
    def condition(self) -> Condition:
        """An open port says more than any file: it opens after the warm-up, and a dead engine has none."""
        if self.listening and self.told is not None:
            if self.told.silence:
                return Condition.SILENT
            return Condition.READY if self.told.ready else Condition.STARTING
        if self.listening:
            return Condition.READY
        failure, phase = self.files.failure, self.files.phase
        if phase is not None and phase.name in ("failed", "stopped"):
            return Condition.BROKEN if phase.name == "failed" else Condition.ABSENT
        if failure is not None:
            opened = failure.failures >= self.max_failures if failure.open is None else failure.open
            return Condition.BROKEN if opened else Condition.STARTING
        return Condition.ABSENT if phase is None else Condition.STARTING


# What mends a failure whose unit left no sentence of its own.
MENDS = {
    "cuda_out_of_memory": "free the GPU's memory or set moshi_quantization: q8",
    "cuda_error": "look at nvidia-smi and dmesg; a reboot brings back a GPU that fell off the bus",
    "segmentation_fault": "look at hotline logs {unit} and dmesg",
    "killed": "look at dmesg; if the kernel killed it for memory, the machine has too little",
    "missing_weights": "run site.yml again, which fetches what is missing",
    "unsupported_model": "set moshi_engine: moshi_server and run site.yml again",
    "bad_flag": "take the flag out of moshi_extra_args",
}


def sentence_of(engine: Engine) -> str:
    """Say in what state an engine is, and what mends it when it is not well."""
    phase, failure = engine.files.phase, engine.files.failure
    if engine.condition is Condition.READY:
        return f"{engine.name} is ready"
    if engine.listening and engine.told is not None:
        if engine.told.silence:
            return (
                f"{engine.name} does not say how it is: {engine.told.silence}. "
                f"Mend, if it stays so: hotline restart {engine.name}"
            )
        ending = engine.told.draining
        return f"{engine.name} {'is ending its calls and takes no new ones' if ending else 'starts'}"
    if engine.condition is Condition.ABSENT and phase is not None:
        return f"{engine.name} was stopped. Mend: hotline start {engine.name}, or run site.yml again"
    if engine.condition is Condition.ABSENT:
        trouble = f" ({engine.files.trouble})" if engine.files.trouble else ""
        return (
            f"{engine.name} does not run: nothing listens on port {engine.port}, it left no word{trouble}. "
            f"Mend: run site.yml again, or look at hotline logs {engine.name}"
        )
    if failure is not None:
        mend = MENDS.get(failure.reason, "look at hotline logs {unit}").format(unit=engine.name)
        detail = failure.detail.rstrip(". ") or f"Mend: {mend}"
        why = f"{failure.reason.replace('_', ' ')}. {detail}"
        if engine.condition is Condition.STARTING:
            return f"{engine.name} is started again after failure {failure.failures}, {why}"
        return (
            f"{engine.name} stays stopped after {failure.failures} failures, the last time for {why}. "
            "Once that is mended, run site.yml again"
        )
    if engine.condition is Condition.BROKEN:
        detail = f": {phase.detail.rstrip('. ')}" if phase and phase.detail else ""
        return f"{engine.name} stays stopped{detail}. Once that is mended, run site.yml again"
    if phase is None or phase.name == "ready":
        return f"{engine.name} has gone away and is being started again"
    doing = {"fetching": "fetches its weights", "loading": "loads its weights"}.get(phase.name, "starts")
    return f"{engine.name} {doing}{f' ({phase.detail})' if phase.detail else ''}"


def object_in(path: Path) -> Mapping[str, Any] | None:
    """Read a JSON object from a small file; None when there is no such file.

    Raises OSError when it cannot be read, ValueError when it holds something else.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(STATE_FILE_BYTES))
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - a wrong file, not a wrong call
    return found


def line_in(found: Mapping[str, Any], name: str) -> str:
    """Return a text of an engine's file as one line of bounded length."""
    return " ".join(str(found.get(name) or "").split())[:500]


def read_files(folder: Path) -> EngineFiles:
    """Read what the engine whose state lies in ``folder`` wrote down."""
    phase, failure, trouble = None, None, ""
    try:
        if (found := object_in(folder / "phase.json")) is not None:
            phase = Phase(line_in(found, "phase"), line_in(found, "detail"))
        if (found := object_in(folder / "failure.json")) is not None:
            times, opened = found.get("failures"), found.get("open")
            failure = Failure(
                line_in(found, "reason") or "other",
                line_in(found, "detail"),
                times if isinstance(times, int) and times > 0 else 1,
                opened if isinstance(opened, bool) else None,
            )
    except (OSError, ValueError, RecursionError) as error:
        trouble = f"its notes in {folder} cannot be read: {error}"
    return EngineFiles(phase, failure, trouble)
