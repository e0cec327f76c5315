"""An engine that answers every frame at once, for tests and for measuring what stands in front of an engine.

It speaks the engine's side of Moshi's protocol (DESIGN.md: kind 0 handshake, 1 audio, 2 text, 5 error) and
costs next to nothing: by default it sends back the very bytes it got, so a caller hears himself and no Opus
is decoded or encoded. What is then measured is the way to the engine (nginx, TLS, the network), no model.

`Behaviour` makes it misbehave in every way an engine was seen to misbehave, with the truth written down in a
`Diary`, so that tests can hold what the caller measured against what really happened.

    python -m caller.echo --port 8999                                         # in the place of moshi@0
    python -m caller.echo --port 8999 --lag 1 --delay-ms 22 --conversations 1 # with moshi.server's manners
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import WSCloseCode, WSMsgType, web

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)


@dataclass(frozen=True)
class Behaviour:
    """What the engine does. The default is to answer everything at once, for any number of callers.

    Input messages and answers are counted from 0, per conversation.
    """

    conversations: int | None = None
    """Callers that are talked with at the same time; one more gets its 101 and then silence, as moshi.server
    does it. None: no limit."""
    lag: int = 0
    """Frames heard before the first answer. moshi.server: 1, the model's acoustic delay."""
    latency_s: float | Callable[[int], float] = 0.0
    """Seconds from an input message to its answer, or a function from the input's number to seconds. Frames
    overlap: this is a long wire."""
    compute_s: float = 0.0
    """Seconds of work per frame, one frame after the other: this is a slow engine."""
    answers: Sequence[bytes] | None = None
    """Ogg/Opus messages to answer with, in order, instead of the caller's own bytes."""
    say: Sequence[str] = ()
    """Text pieces, one after each answer until there are no more."""
    skip: frozenset[int] = frozenset()
    """Inputs that are never answered: the engine did not make the frame."""
    lose: frozenset[int] = frozenset()
    """Answers that are made and then lost, so that the stream has a hole."""
    handshake: bool = True
    """False: the upgrade succeeds and not a byte follows."""
    handshake_delay_s: float = 0.0
    status: int | None = None
    """Refuse the upgrade with this HTTP status."""
    link: str | None = None
    """The token of the only link: it is redeemed for a key, and nobody calls without that."""
    problem: dict[str, object] | None = None
    """Body of that refusal, as RFC 9457 problem JSON."""
    refuse: tuple[str, str] | None = None
    """Kind 5 (code, message) instead of the handshake, then close with `close_code`."""
    hang_after: int | None = None
    """Read on, but answer nothing from this input on."""
    garbage_at: int | None = None
    """Answer this input with bytes that are not Ogg."""
    close_after: int | None = None
    """Close with `close_code` when this input arrives."""
    error_after: tuple[int, str, str] | None = None
    """(input, code, message): send kind 5 when this input arrives, then close with `close_code`."""
    abort_after: int | None = None
    """Cut the connection without a close frame when this input arrives: what a killed engine leaves."""
    close_code: int = WSCloseCode.OK


@dataclass
class Exchange:
    """One answer as the engine saw it; times are time.monotonic() of this process."""

    input: int
    answer: int
    heard_at: float
    due_at: float
    """When it was ready to be sent."""


@dataclass
class Diary:
    """What really happened, in order, over all conversations."""

    exchanges: list[Exchange] = field(default_factory=list)
    heard: int = 0
    metadata: list[bytes] = field(default_factory=list)


@dataclass
class _Conversation:
    """One caller's answers on their way out, in order, each no earlier than its time."""

    socket: web.WebSocketResponse
    behaviour: Behaviour
    diary: Diary
    outgoing: asyncio.Queue[tuple[float, int, float, bytes]] = field(default_factory=asyncio.Queue)
    held: list[bytes] = field(default_factory=list)
    heard: int = 0
    made: int = 0
    busy_until: float = 0.0
    said: int = 0

    async def send(self) -> None:
        while True:
            due, number, heard_at, payload = await self.outgoing.get()
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            answer = self.made
            self.made += 1
            if answer in self.behaviour.lose:
                continue
            await self.socket.send_bytes(bytes([AUDIO]) + payload)
            self.diary.exchanges.append(Exchange(number, answer, heard_at, due))
            if self.said < len(self.behaviour.say):
                await self.socket.send_bytes(bytes([TEXT]) + self.behaviour.say[self.said].encode())
                self.said += 1

    def hear(self, payload: bytes) -> None:
        """Take one audio message and put its answer, if it gets one, in line."""
        behaviour = self.behaviour
        number = self.heard
        self.heard += 1
        self.diary.heard += 1
        now = time.monotonic()
        if number in behaviour.skip or (behaviour.hang_after is not None and number >= behaviour.hang_after):
            return
        self.held.append(payload)
        if len(self.held) <= behaviour.lag:
            return
        answer = self.held.pop(0)
        if behaviour.answers is not None:
            produced = self.made + self.outgoing.qsize()
            if produced >= len(behaviour.answers):
                return
            answer = behaviour.answers[produced]
        if number == behaviour.garbage_at:
            answer = b"this is no Ogg page"
        latency = behaviour.latency_s(number) if callable(behaviour.latency_s) else behaviour.latency_s
        self.busy_until = max(now, self.busy_until) + behaviour.compute_s
        self.outgoing.put_nowait((self.busy_until + latency, number, now, answer))


class EchoEngine:
    """The engine as an aiohttp application with one route, /api/chat."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.diary = Diary()
        limit = self.behaviour.conversations
        self._room = asyncio.Semaphore(limit) if limit is not None else None

    def application(self) -> web.Application:
        """Build the aiohttp application."""
        application = web.Application()
        application.router.add_get("/api/chat", self._chat)
        if self.behaviour.link is not None:
            application.router.add_post("/api/links/redeem", self._redeem)
        return application

    async def _redeem(self, request: web.Request) -> web.Response:
        """Answer as the orchestrator does (docs/api.md)."""
        token = (await request.json())["token"]
        if token != self.behaviour.link:
            return web.json_response(
                {"code": "link_invalid", "detail": "This link does not open anything (any more)."},
                status=404,
                content_type="application/problem+json",
            )
        return web.json_response({"key": f"key-for-{token}", "purpose": "talk"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        behaviour = self.behaviour
        link = behaviour.link
        if link is not None and request.headers.get("Authorization") != f"Bearer key-for-{link}":
            return web.Response(status=403)
        if behaviour.status is not None:
            if behaviour.problem is not None:
                return web.json_response(
                    behaviour.problem, status=behaviour.status, content_type="application/problem+json"
                )
            return web.Response(status=behaviour.status)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if behaviour.refuse is not None:
            await self._complain(socket, *behaviour.refuse)
            return socket
        if self._room is None:
            await self._converse(request, socket)
        else:
            async with self._room:
                await self._converse(request, socket)
        return socket

    async def _complain(self, socket: web.WebSocketResponse, code: str, message: str) -> None:
        body = json.dumps({"code": code, "message": message}).encode()
        await socket.send_bytes(bytes([ERROR]) + body)
        await socket.close(code=self.behaviour.close_code, message=code.encode())

    async def _converse(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        behaviour = self.behaviour
        if not behaviour.handshake:
            async for _ in socket:
                pass
            return
        await asyncio.sleep(behaviour.handshake_delay_s)
        if socket.closed:
            return
        await socket.send_bytes(bytes([HANDSHAKE]))
        conversation = _Conversation(socket, behaviour, self.diary)
        sender = asyncio.create_task(conversation.send())
        try:
            async for message in socket:
                if message.type is not WSMsgType.BINARY or not message.data:
                    continue
                kind, payload = message.data[0], message.data[1:]
                if kind == METADATA:
                    self.diary.metadata.append(payload)
                if kind != AUDIO:
                    continue
                number = conversation.heard
                if number == behaviour.close_after:
                    await socket.close(code=behaviour.close_code)
                    return
                if behaviour.error_after is not None and number == behaviour.error_after[0]:
                    await self._complain(socket, *behaviour.error_after[1:])
                    return
                if number == behaviour.abort_after:
                    if request.transport is not None:
                        request.transport.abort()
                    return
                conversation.hear(payload)
        finally:
            sender.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sender


@asynccontextmanager
async def running(
    behaviour: Behaviour | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[str, EchoEngine]]:
    """Run the engine inside this event loop; yields its URL and the engine. Port 0: any free one."""
    engine = EchoEngine(behaviour)
    runner = web.AppRunner(engine.application(), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        await site.start()
        bound = runner.addresses[0]
        yield f"{'ws' if tls is None else 'wss'}://{bound[0]}:{bound[1]}/api/chat", engine
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the engine until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m caller.echo", description="An engine that sends back what it hears."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8999)
    parser.add_argument(
        "--lag", type=int, default=0, help="frames heard before the first answer (moshi.server: 1)"
    )
    parser.add_argument("--delay-ms", type=float, default=0.0, help="wait this long before each answer")
    parser.add_argument("--conversations", type=int, help="further callers wait in silence (moshi.server: 1)")
    parser.add_argument("--say", default="", help="words to send as text, one with each answer")
    options = parser.parse_args(arguments)
    behaviour = Behaviour(
        conversations=options.conversations,
        lag=options.lag,
        latency_s=options.delay_ms / 1000,
        say=[f" {word}" for word in options.say.split()],
    )

    async def serve() -> None:
        async with running(behaviour, options.host, options.port) as (url, _):
            print(f"echo engine on {url}", flush=True)
            await asyncio.Event().wait()

    with suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
