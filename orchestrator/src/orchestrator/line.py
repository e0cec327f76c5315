"""The line as this program sees it: its settings, and what surrounds the process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.engines import (
    Engine,
    EngineFiles,
    SocketsUnreadableError,
    Told,
    read_files,
    read_sockets,
    sockets_on,
    told_in,
)
from orchestrator.probes import ProbeError, http_object
from orchestrator.settings import Settings

FILES_S = 1.0  # a disk that hangs must not hold up a caller
TELLING_S = 1.0  # nor an engine that does not answer
TOLD_S = 0.1  # what was told this short a time ago is not asked again
SHARED_S = 0.1  # nor is looked again for a caller, when others looked this short a time ago
NOT_ASKED = Told(silence="it was not asked yet")


def new_call_id() -> str:
    """Return an id that nobody can guess."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Surroundings:
    """What an answer depends on outside of this process; tests hand in others."""

    proc_net: Path = Path("/proc/net")
    state: Path = Path("/var/lib/hotline")
    nvidia_smi: str = "nvidia-smi"
    clock: Callable[[], float] = time.monotonic
    new_call_id: Callable[[], str] = new_call_id
    shared_s: float = SHARED_S


@dataclass(frozen=True)
class Seen:
    """The engines as they were at a moment of the clock, or after it: what was before it, is in here."""

    engines: Sequence[Engine]
    at: float


@dataclass
class Line:
    """One line. ``looking_in`` holds the local ports of this program's own connections to engines.

    ``told`` has what each engine that tells about itself said last, and when it was asked.

    Reading the kernel's table takes from 0.1 to 30 ms, by its size. It is read in a thread, once for all who
    want to know at the same time.
    """

    settings: Settings
    surroundings: Surroundings
    looking_in: set[int] = field(default_factory=set)
    told: dict[int, tuple[float, Told]] = field(default_factory=dict)
    _own: set[int] = field(default_factory=set)
    """Every port that was in ``looking_in`` since the reading began that goes on."""
    _seen: Seen | None = None
    _looking: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def looks_in_from(self, port: int) -> Iterator[None]:
        """Keep a connection of our own from being taken for a caller's."""
        self.looking_in.add(port)
        self._own.add(port)
        try:
            yield
        finally:
            self.looking_in.discard(port)

    @property
    def tells(self) -> bool:
        """Whether the engines of this line tell about themselves."""
        return self.settings.moshi_engine == "duplex"

    async def look(self) -> Seen:
        """See the engines as they are now: by a look that begins after this call, which many may share.

        Raises SocketsUnreadableError.
        """
        if self._looking is not None:
            with contextlib.suppress(SocketsUnreadableError):
                await asyncio.shield(self._looking)
        return await self._finish(self._begin())

    async def glance(self) -> Seen:
        """See the engines as they were at most SHARED_S ago.

        Who asks in the second half of that time has them looked at for those who come after, and does not
        wait. Raises SocketsUnreadableError.
        """
        shared, seen = self.surroundings.shared_s, self._seen
        age = self.surroundings.clock() - seen.at if seen is not None else math.inf
        if seen is None or age >= shared:
            return await self.look() if not shared else await self._finish(self._begin())
        if age >= shared / 2:
            self._begin()
        return seen

    def _begin(self) -> asyncio.Task[None]:
        """Begin a look, or return the one that goes on."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            # Whoever waits for it is told of its failure; it may be nobody.
            self._looking.add_done_callback(lambda look: look.cancelled() or look.exception())
        return self._looking

    async def stop(self) -> None:
        """Wait for a look that goes on."""
        if self._looking is not None:
            await asyncio.wait([self._looking])

    async def _finish(self, look: asyncio.Task[None]) -> Seen:
        await asyncio.shield(look)
        assert self._seen is not None  # noqa: S101 - for the type checker
        return self._seen

    async def _look(self) -> None:
        """Look at every engine's sockets, have the engines say how they are, if they do."""
        began = self.surroundings.clock()
        ports = self.settings.engine_ports()
        self._own = set(self.looking_in)
        rows = await asyncio.to_thread(read_sockets, self.surroundings.proc_net, ports.values())
        sockets = sockets_on(ports.values(), rows, own_ports=frozenset(self._own))
        # With one that answers, what engines wrote down does not matter.
        files = {} if sockets.listening else await self.files()
        if self.tells:
            await asyncio.gather(*(self.ask(n) for n, port in ports.items() if port in sockets.listening))
            told_at = [self.told[n][0] for n, port in ports.items() if port in sockets.listening]
            began = min([began, *told_at])
        self._seen = Seen(
            [
                Engine(
                    number=number,
                    port=port,
                    listening=port in sockets.listening,
                    peers=sockets.peers[port],
                    files=files.get(number, EngineFiles()),
                    max_failures=self.settings.max_moshi_failures,
                    told=self.told.get(number, (0.0, NOT_ASKED))[1] if self.tells else None,
                )
                for number, port in ports.items()
            ],
            began,
        )

    async def ask(self, number: int) -> None:
        """Have an engine say how it is, within TELLING_S.

        Of answers that cross, that to the last question counts.
        """
        now = self.surroundings.clock()
        if now - self.told.get(number, (-TOLD_S, NOT_ASKED))[0] < TOLD_S:
            return
        port = self.settings.line_status_port + number
        try:
            told = told_in(await asyncio.wait_for(http_object(port, "/status"), TELLING_S))
        except asyncio.TimeoutError:
            told = Told(silence=f"nothing answered on port {port} within {TELLING_S:g} s")
        except (ProbeError, ValueError) as error:
            told = Told(silence=str(error))
        if now >= self.told.get(number, (now, NOT_ASKED))[0]:
            self.told[number] = (now, told)

    def read_files(self) -> dict[int, EngineFiles]:
        """Read what every engine wrote down. Touches the disk: call it in a thread."""
        return {n: read_files(self.surroundings.state / "moshi" / str(n)) for n in self.settings.line_engines}

    async def files(self) -> Mapping[int, EngineFiles]:
        """Read the engines' notes; nothing when the disk hangs."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.read_files), FILES_S)
        except asyncio.TimeoutError:
            return {}
