"""A bad network between page and line: a TCP proxy that holds bytes back as lost packets and jitter do.

TCP loses nothing; what a lost packet costs there is a pause until it was sent again, and then all that is
behind it arrives at once. So losses are pauses here, and jitter is each piece's own delay, in order.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Network:
    """How bad it is; may be changed while it runs."""

    url: str = ""
    port: int = 0
    stall_s: float = 0.0
    """Length of a pause."""
    stall_every_s: float = 4.0
    jitter_s: float = 0.0
    """Longest delay of a piece; each has its own, evenly spread from nothing to this."""
    stalls: int = 0
    gone: bool = False
    """There is no network: nobody gets through."""
    _until: float = 0.0
    _random: random.Random = field(default_factory=lambda: random.Random(1))
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    def due(self, now: float) -> float:
        """When a piece that came now may go on, by time.monotonic()."""
        if self.stall_s and now > self._until + self.stall_every_s - self.stall_s:
            self._until = now + self.stall_s
            self.stalls += 1
        late = self._random.uniform(0, self.jitter_s)
        return max(now + late, self._until if self.stall_s else 0.0)

    def cut(self) -> None:
        """Take the network away, with every connection that there is. `gone = False` brings it back."""
        self.gone = True
        assert self._loop is not None
        for writer in tuple(self._open):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    def calm(self) -> None:
        """A good network again."""
        self.stall_s = self.jitter_s = 0.0


async def _pump(network: Network, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            due, piece = await waiting.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            target.write(piece)
            await target.drain()

    sending = asyncio.create_task(send())
    try:
        while piece := await source.read(65536):
            waiting.put_nowait((network.due(time.monotonic()), piece))
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await sending
        target.close()


@contextmanager
def shaped(url: str) -> Iterator[Network]:
    """Run the proxy in a thread, in front of the line at `url`."""
    network = Network()
    there = urlsplit(url)
    loop = network._loop = asyncio.new_event_loop()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if network.gone:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(there.hostname, there.port)
        network._open |= {writer, far_writer}
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                await asyncio.gather(_pump(network, reader, far_writer), _pump(network, far_reader, writer))
        finally:
            network._open -= {writer, far_writer}

    async def start() -> asyncio.Server:
        return await asyncio.start_server(connect, "127.0.0.1", 0)

    thread = threading.Thread(target=loop.run_forever, name="bad network")
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    network.port = server.sockets[0].getsockname()[1]
    network.url = f"{there.scheme}://127.0.0.1:{network.port}"
    try:
        yield network
    finally:

        def stop() -> None:
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.call_later(0.2, loop.stop)

        loop.call_soon_threadsafe(stop)
        thread.join(10)
        loop.close()
