"""Opus in processes of its own: sphn holds the interpreter's lock while it works, and a step must never wait
for that. (For one or two calls it may: they are quicker without the way to a worker and back.)

A worker serves some calls over a socket pair, in order: requests go in, replies come back. ``python -m
duplex.opus FD`` is a worker; ``Codecs`` keeps them and gives every call a ``Codec``.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
FRAME = 1920
HEADER = struct.Struct("<IBI")  # length of what follows, operation, call
OPEN, DECODE, ENCODE, CLOSE = range(4)
LONGEST = 64 * 1024 * 1024


class CodecError(Exception):
    """Audio cannot be handled for this call."""


class BadAudio(CodecError):  # noqa: N818 - what the caller sent, not a fault of ours
    """The bytes are no Ogg/Opus stream."""


class CodecDied(CodecError):  # noqa: N818 - what happened to it
    """The worker of this call ended; the call has to be made again."""


# ----------------------------------------------------------------------------------------------------- worker


class Stream:
    """One call's decoder and encoder."""

    def __init__(self) -> None:
        import sphn  # noqa: PLC0415 - only workers need it

        self.reader: Any = sphn.OpusStreamReader(SAMPLE_RATE)
        self.writer: Any = sphn.OpusStreamWriter(SAMPLE_RATE)
        self.rest: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def decode(self, data: bytes) -> bytes:
        """Return whole frames of float32; what is left waits for the next bytes."""
        new = np.asarray(self.reader.append_bytes(data), dtype=np.float32).reshape(-1)
        pcm: NDArray[np.float32] = np.concatenate((self.rest, new))
        whole = len(pcm) // FRAME * FRAME
        self.rest = pcm[whole:]
        # What a decoder makes of broken packets may be anything; a number that is none would stay in the
        # model.
        return np.clip(np.nan_to_num(pcm[:whole]), -1.0, 1.0).astype(np.float32).tobytes()

    def encode(self, data: bytes) -> bytes:
        """Return the Ogg pages that are complete after these samples."""
        return bytes(self.writer.append_pcm(np.frombuffer(data, dtype=np.float32)))


def work(connection: socket.socket) -> None:
    """Serve requests until the other side closes. A reply is a header, one byte (0 fine, 1 bad audio), the
    result.
    """
    streams: dict[int, Stream] = {}
    with connection, connection.makefile("rb") as requests:
        while len(head := requests.read(HEADER.size)) == HEADER.size:
            length, operation, call = HEADER.unpack(head)
            data = requests.read(length)
            if operation == OPEN:
                streams[call] = Stream()
                continue
            if operation == CLOSE:
                streams.pop(call, None)
                continue
            try:
                stream = streams[call]
                result = b"\0" + (stream.decode(data) if operation == DECODE else stream.encode(data))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                result = b"\1" + f"{type(error).__name__}: {error}".encode()[:300]
            connection.sendall(HEADER.pack(len(result), operation, call) + result)


# ----------------------------------------------------------------------------------------------------- parent


def start_worker() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a worker; return its process and our end of the connection."""
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        return subprocess.Popen([sys.executable, "-m", "duplex.opus", str(number)], pass_fds=[number]), ours


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    reading: asyncio.Task[None] | None = None
    waiting: deque[asyncio.Future[bytes]] = field(default_factory=deque)
    calls: int = 0
    dead: bool = False


class Codec(Protocol):
    """One call's audio: Opus to frames and back."""

    parts: int
    """Pieces in which a frame is best encoded."""

    async def decode(self, data: bytes) -> list[NDArray[np.float32]]:
        """Return the frames (1920,) that are complete with these bytes. Raises BadAudio, CodecDied."""

    async def encode(self, pcm: NDArray[np.float32]) -> bytes:
        """Return Ogg pages for a frame or a part of one; sometimes none, sometimes more. Raises CodecDied."""

    def close(self) -> None:
        """Forget the call; may be called twice."""


class Near:
    """A codec in this very process: for a call or two quicker than any worker, four switches of process per
    frame.
    """

    parts = 2
    """Opus packets here last 40 ms: the first can leave before the second is encoded, 1 ms sooner."""

    def __init__(self, closed: Callable[[], None]) -> None:
        self._stream = Stream()
        self._closed: Callable[[], None] | None = closed

    def _run(self, operation: Callable[[bytes], bytes], data: bytes) -> bytes:
        if self._closed is None:
            raise CodecDied("the call has ended")
        try:
            return operation(data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise BadAudio(f"{type(error).__name__}: {error}"[:300]) from None

    async def decode(self, data: bytes) -> list[NDArray[np.float32]]:
        """Return the frames that are complete with these bytes. Raises BadAudio."""
        pcm = np.frombuffer(self._run(self._stream.decode, data), dtype=np.float32)
        return list(pcm.reshape(-1, FRAME))

    async def encode(self, pcm: NDArray[np.float32]) -> bytes:
        """Return Ogg pages for a frame or a half of one."""
        return self._run(self._stream.encode, pcm.tobytes())

    def close(self) -> None:
        """Forget the call; may be called twice."""
        if self._closed is not None:
            self._closed()
            self._closed = None


class Far:
    """A codec in a worker process. Requests are answered in the order they were made."""

    parts = 1

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker = worker
        self._number = number
        self._open = True
        worker.calls += 1
        worker.writer.write(HEADER.pack(0, OPEN, number))

    async def decode(self, data: bytes) -> list[NDArray[np.float32]]:
        """Return the frames (1920,) that are complete with these bytes. Raises BadAudio, CodecDied."""
        pcm = np.frombuffer(await self._ask(DECODE, data), dtype=np.float32)
        return list(pcm.reshape(-1, FRAME))

    async def encode(self, pcm: NDArray[np.float32]) -> bytes:
        """Return Ogg pages for a frame or a part of one; sometimes none, sometimes more. Raises CodecDied."""
        return await self._ask(ENCODE, pcm.tobytes())

    async def _ask(self, operation: int, data: bytes) -> bytes:
        worker = self._worker
        if worker.dead or not self._open:
            raise CodecDied("the audio worker of this call has ended")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        worker.waiting.append(answer)
        try:
            worker.writer.write(HEADER.pack(len(data), operation, self._number) + data)
            await worker.writer.drain()
        except ConnectionError:
            raise CodecDied("the audio worker of this call has ended") from None
        result = await answer
        if result[:1] != b"\0":
            raise BadAudio(result[1:].decode(errors="replace"))
        return result[1:]

    def close(self) -> None:
        """Forget the call; may be called twice."""
        if self._open:
            self._open = False
            self._worker.calls -= 1
            if not self._worker.dead:
                self._worker.writer.write(HEADER.pack(0, CLOSE, self._number))


class Codecs:
    """The workers, and room for ``near`` calls in this process. A worker that ends takes its own calls with
    it.
    """

    def __init__(self, workers: int, near: int = 0) -> None:
        self.size = workers
        self._near = near
        self._workers: list[_Worker] = []
        self._calls = 0
        self._closing = False

    async def start(self) -> None:
        """Start the workers."""
        for _ in range(self.size):
            await self._add()

    async def _add(self) -> None:
        process, ours = start_worker()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = _Worker(process, writer)
        worker.reading = asyncio.create_task(self._read(worker, reader))
        self._workers.append(worker)

    async def _read(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                result = await reader.readexactly(length)
                answer = worker.waiting.popleft()
                if not answer.done():
                    answer.set_result(result)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        worker.dead = True
        for answer in worker.waiting:
            if not answer.done():
                answer.set_exception(CodecDied("the audio worker of this call has ended"))
        worker.writer.close()
        if worker in self._workers:
            self._workers.remove(worker)
        worker.process.kill()
        worker.process.wait()
        if not self._closing:
            await self._add()

    def open(self) -> Codec:
        """Return a codec for a new call: near, or in the worker that has the fewest. Raises CodecDied without
        any.
        """
        if self._near:
            self._near -= 1
            return Near(self._came_back)
        if not self._workers:
            raise CodecDied("no audio worker is running")
        self._calls = (self._calls + 1) & 0xFFFFFFFF
        return Far(min(self._workers, key=lambda worker: worker.calls), self._calls)

    def _came_back(self) -> None:
        self._near += 1

    async def stop(self) -> None:
        """End the workers."""
        self._closing = True
        workers = list(self._workers)
        for worker in workers:
            worker.writer.close()
        await asyncio.gather(
            *(worker.reading for worker in workers if worker.reading), return_exceptions=True
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work(socket.socket(fileno=int(sys.argv[1])))
