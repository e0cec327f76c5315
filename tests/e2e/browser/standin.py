"""A line without a host: the built page under its strict headers, and an engine that echoes, in this process.

It speaks the engine's side of Moshi's protocol as moshi.server does (handshake when the conversation begins,
one frame of 80 ms out per frame in except for the first, two pages of 40 ms per frame, words as text pieces),
decodes what it hears so that a test can tell a voice from silence, and misbehaves on request. With `duplex`
it speaks metadata too, and keeps a conversation that broke. The orchestrator's side is desk.py.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sphn
from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler
from numpy.typing import NDArray

from tests.e2e.browser.desk import Desk

REPOSITORY = Path(__file__).parents[3]
HANDSHAKE, AUDIO, TEXT, _, METADATA, ERROR = range(6)
SAMPLE_RATE = 24_000
FRAME = 1920
SILENCE = 0.003

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""At least as strict as the line's own: what runs under this runs under that (test_trouble.py checks it)."""

TYPES = {".webmanifest": "application/manifest+json", ".wasm": "application/wasm"}

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self)",
    "Cross-Origin-Opener-Policy": "same-origin",
}

WORDS = (
    " Hello",
    ",",
    " I",
    " am",
    " only",
    " an",
    " echo",
    ".",
    " ",
    "<0xF0>",
    "<0x9F>",
    "<0x99>",
    "<0x82>",
)


@dataclass
class Heard:
    """What the engine got in one conversation."""

    pages: int = 0
    samples: int = 0
    voiced: int = 0
    """Samples in frames that are louder than silence."""
    open: bool = True
    closed_with: int | None = None
    """Close code of the latest connection, as the page gave it."""
    connections: int = 1
    began: float = field(default_factory=time.monotonic)
    hello: bool = False

    @property
    def voiced_ms(self) -> float:
        """Voice, in ms."""
        return self.voiced * 1000 / SAMPLE_RATE

    @property
    def ms(self) -> float:
        """Voice and silence, in ms."""
        return self.samples * 1000 / SAMPLE_RATE


@dataclass
class Line:
    """The line, as a test sees it and meddles with it."""

    url: str = ""
    conversations: list[Heard] = field(default_factory=list)
    refusal: tuple[str, str, int] | None = None
    """(code, message, close code): what callers are told, as kind 5."""
    handshake: bool = True
    hang: bool = False
    """Read on and say nothing: an engine that died inside."""
    stalled_until: float = 0.0
    tone: float | None = None
    """Answer with this tone, in Hz, instead of what was heard."""
    garbage: bool = False
    """Answer with bytes that are no Ogg."""
    authority: str | None = None
    version: str | None = "0.0+standin"
    health: int = 200
    words: tuple[str, ...] = WORDS
    duplex: bool = False
    """Speak metadata to a page that says hello, and keep a broken conversation for its call."""
    forgetful: bool = False
    """Do not keep it: the engine was killed, or the grace is over."""
    metadata: list[dict[str, object]] = field(default_factory=list)
    """What a page that says hello is told after its welcome."""
    desk: Desk = field(default_factory=Desk)
    held: dict[str, Heard] = field(default_factory=dict)
    """Conversations by call."""
    requests: list[str] = field(default_factory=list)
    _transports: set[asyncio.Transport] = field(default_factory=set)
    _sockets: set[web.WebSocketResponse] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def heard(self) -> Heard:
        """The latest conversation."""
        return self.conversations[-1]

    def refuse_for(self, seconds: float, code: str, message: str) -> None:
        """Refuse every caller for a while, as a line whose engine is on its way up."""
        assert self._loop is not None
        self.refusal = (code, message, 1013)
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, setattr, self, "refusal", None)

    def stall(self, seconds: float) -> None:
        """Hold back everything for a while, then send it at once: what a lost packet does to TCP."""
        self.stalled_until = time.monotonic() + seconds

    def kill(self) -> None:
        """Cut every conversation as a killed engine does: no close frame."""
        assert self._loop is not None
        for transport in tuple(self._transports):
            self._loop.call_soon_threadsafe(transport.abort)

    def tell(self, **metadata: object) -> None:
        """Say this to every page that said hello."""
        message = bytes([METADATA]) + json.dumps(metadata).encode()
        assert self._loop is not None
        for socket in tuple(self._sockets):
            asyncio.run_coroutine_threadsafe(socket.send_bytes(message), self._loop).result(5)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """The engine's side of one conversation."""
        call = self.desk.admit(request.query.get("ticket"))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if isinstance(call, web.Response):
            body = {"code": "not_allowed", "message": "This call needs a ticket."}
            await socket.send_bytes(bytes([ERROR]) + json.dumps(body).encode())
            await socket.close(code=1008)
            return socket
        if self.refusal is not None:
            code, message, close = self.refusal
            body = json.dumps({"code": code, "message": message}).encode()
            await socket.send_bytes(bytes([ERROR]) + body)
            await socket.close(code=close)
            return socket
        if not self.handshake:
            async for _ in socket:
                pass
            return socket
        assert isinstance(request.transport, asyncio.Transport)
        self._transports.add(request.transport)
        old = self.held.get(call or "")
        if self.duplex and old is not None and not self.forgetful:
            heard = old
            heard.open, heard.hello, heard.connections = True, False, heard.connections + 1
        else:
            heard = Heard()
            self.conversations.append(heard)
        if call is not None:
            self.held[call] = heard
        try:
            await socket.send_bytes(bytes([HANDSHAKE]))
            await self._echo(socket, heard)
        finally:
            heard.open = False
            heard.closed_with = socket.close_code
            self._transports.discard(request.transport)
            self._sockets.discard(socket)
            if heard.closed_with == 1000 and call is not None:
                self.held.pop(call, None)
        return socket

    async def _hello(self, socket: web.WebSocketResponse, heard: Heard) -> None:
        heard.hello = True
        self._sockets.add(socket)
        age = round(time.monotonic() - heard.began, 1)
        welcome = {"type": "welcome", "engine": "duplex", "call": "of the stand-in", "age_s": age}
        for told in (welcome, {"type": "status", "turnaround_ms": 21.5, "lag_ms": 0}, *self.metadata):
            await socket.send_bytes(bytes([METADATA]) + json.dumps(told).encode())

    async def _echo(self, socket: web.WebSocketResponse, heard: Heard) -> None:
        reader = sphn.OpusStreamReader(SAMPLE_RATE)
        writer = sphn.OpusStreamWriter(SAMPLE_RATE)
        pending: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        frames = 0
        async for message in socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            if message.data[0] == METADATA and self.duplex and not heard.hello:
                await self._hello(socket, heard)
            if message.data[0] != AUDIO:
                continue
            heard.pages += 1
            pcm = reader.append_bytes(message.data[1:])
            pending = np.concatenate((pending, pcm))
            while len(pending) >= FRAME:
                frame, pending = pending[:FRAME], pending[FRAME:]
                heard.samples += FRAME
                heard.voiced += FRAME if float(np.sqrt(np.mean(frame**2))) > SILENCE else 0
                frames += 1
                if frames == 1 or self.hang:
                    continue
                await asyncio.sleep(max(0.0, self.stalled_until - time.monotonic()))
                if self.tone is not None:
                    at = np.arange(frames * FRAME, (frames + 1) * FRAME) / SAMPLE_RATE
                    frame = (0.2 * np.sin(2 * np.pi * self.tone * at)).astype(np.float32)
                pages = b"this is no Ogg page" if self.garbage else writer.append_pcm(frame)
                if pages:
                    await socket.send_bytes(bytes([AUDIO]) + pages)
                if frames % 3 == 0 and frames // 3 <= len(self.words):
                    piece = self.words[frames // 3 - 1]
                    await socket.send_bytes(bytes([TEXT]) + piece.encode())


def _application(line: Line, page: Path) -> web.Application:
    @web.middleware
    async def headers(request: web.Request, handler: Handler) -> web.StreamResponse:
        line.requests.append(request.path_qs)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def health(_: web.Request) -> web.Response:
        body: dict[str, object] = {
            "status": "ok" if line.health == 200 else "unhealthy",
            "version": line.version,
            "reasons": [],
        }
        return web.json_response(body, status=line.health)

    async def startup(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "configuration": "stand-in"})

    async def deployed(_: web.Request) -> web.Response:
        return web.json_response({"version": line.version, "authority": line.authority})

    async def authority(_: web.Request) -> web.Response:
        return web.Response(text="-----BEGIN CERTIFICATE-----\n", content_type="application/x-pem-file")

    async def file(request: web.Request) -> web.StreamResponse:
        path = (page / (request.match_info["path"] or "index.html")).resolve()
        if not path.is_relative_to(page) or not path.is_file():
            raise web.HTTPNotFound
        kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        compressed = path.with_name(f"{path.name}.gz")
        if compressed.exists() and "gzip" in request.headers.get("Accept-Encoding", ""):
            zipped = {"Content-Encoding": "gzip"}
            return web.Response(body=compressed.read_bytes(), content_type=kind, headers=zipped)
        return web.Response(body=path.read_bytes(), content_type=kind)

    application = web.Application(middlewares=[headers])
    application.router.add_get("/api/chat", line.chat)
    application.router.add_get("/health", health)
    application.router.add_get("/health/startup", startup)
    application.router.add_get("/line.json", deployed)
    application.router.add_get("/hotline-ca.pem", authority)
    application.router.add_routes(line.desk.routes())
    application.router.add_get("/{path:.*}", file)
    return application


def built_page() -> Path:
    """The page that the role voice_client ships, built as it does it."""
    builder = REPOSITORY / "roles/voice_client/files/build_page.py"
    built = subprocess.run(
        [sys.executable, builder, "--sources", REPOSITORY / "client", "--builds", REPOSITORY / ".cache/page"],
        check=True,
        stdout=subprocess.PIPE,
    )
    return Path(json.loads(built.stdout)["folder"])


@contextmanager
def running(page: Path, host: str = "127.0.0.1", port: int = 0, line: Line | None = None) -> Iterator[Line]:
    """Run the line in a thread; `page` is the folder of the built page. Port 0: any free one.

    http on loopback is a secure context: the browser gives the microphone.
    """
    line = line or Line()
    loop = asyncio.new_event_loop()
    line.desk._loop = loop
    runner = web.AppRunner(_application(line, page.resolve()), access_log=None, shutdown_timeout=0.2)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        return f"http://{runner.addresses[0][0]}:{runner.addresses[0][1]}"

    line._loop = loop
    thread = threading.Thread(target=loop.run_forever, name="stand-in line")
    thread.start()
    try:
        line.url = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield line
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
