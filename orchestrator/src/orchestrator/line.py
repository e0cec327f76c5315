"""The line as this program sees it: its settings, and what surrounds the process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.engines import Engine, EngineFiles, read_files, read_sockets, sockets_on
from orchestrator.settings import Settings

FILES_S = 1.0  # a disk that hangs must not hold up a caller


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
    """One line. ``looking_in`` holds the local ports of this program's own connections to engines."""

    settings: Settings
    surroundings: Surroundings
    looking_in: set[int] = field(default_factory=set)

    @contextmanager
    def looks_in_from(self, port: int) -> Iterator[None]:
        """Keep a connection of our own from being taken for a caller's."""
        self.looking_in.add(port)
        try:
            yield
        finally:
            self.looking_in.discard(port)

    def engines(self, files: Mapping[int, EngineFiles]) -> list[Engine]:
        """Look at every engine's sockets now, in about 0.1 ms. Raises SocketsUnreadableError."""
        ports = self.settings.engine_ports()
        sockets = sockets_on(
            ports.values(), read_sockets(self.surroundings.proc_net), own_ports=frozenset(self.looking_in)
        )
        return [
            Engine(
                number=number,
                port=port,
                listening=port in sockets.listening,
                peers=sockets.peers[port],
                files=files.get(number, EngineFiles()),
                max_failures=self.settings.max_moshi_failures,
            )
            for number, port in ports.items()
        ]

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
