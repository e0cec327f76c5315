"""The line as this program sees it: its settings, and what surrounds the process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.engines import Engine, EngineFiles, Told, read_files, read_sockets, sockets_on, told_in
from orchestrator.probes import ProbeError, http_object
from orchestrator.settings import Settings

FILES_S = 1.0  # a disk that hangs must not hold up a caller
TELLING_S = 1.0  # nor an engine that does not answer
TOLD_S = 0.1  # what was told this short a time ago is not asked again
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


@dataclass
class Line:
    """One line. ``looking_in`` holds the local ports of this program's own connections to engines.

    ``told`` has what each engine that tells about itself said last, and when it was asked.
    """

    settings: Settings
    surroundings: Surroundings
    looking_in: set[int] = field(default_factory=set)
    told: dict[int, tuple[float, Told]] = field(default_factory=dict)

    @contextmanager
    def looks_in_from(self, port: int) -> Iterator[None]:
        """Keep a connection of our own from being taken for a caller's."""
        self.looking_in.add(port)
        try:
            yield
        finally:
            self.looking_in.discard(port)

    def engines(self, files: Mapping[int, EngineFiles]) -> list[Engine]:
        """Look at every engine's sockets now, in about 0.1 ms. Raises SocketsUnreadableError.

        What engines tell about themselves is as old as the last `ask`.
        """
        ports = self.settings.engine_ports()
        sockets = sockets_on(
            ports.values(),
            read_sockets(self.surroundings.proc_net, ports.values()),
            own_ports=frozenset(self.looking_in),
        )
        return [
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
        ]

    @property
    def tells(self) -> bool:
        """Whether the engines of this line tell about themselves."""
        return self.settings.moshi_engine == "duplex"

    async def look(self, files: Mapping[int, EngineFiles]) -> list[Engine]:
        """Have the engines say how they are, if they do, and look at them. Raises SocketsUnreadableError."""
        if self.tells:
            await asyncio.gather(*(self.ask(e.number) for e in self.engines(files) if e.listening))
        return self.engines(files)

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

    async def files_if_silent(self) -> Mapping[int, EngineFiles]:
        """Read the engines' notes when none of them answers; with one that answers they do not matter."""
        if any(engine.listening for engine in self.engines({})):
            return {}
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.read_files), FILES_S)
        except asyncio.TimeoutError:
            return {}
