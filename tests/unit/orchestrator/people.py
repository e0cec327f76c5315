"""Services that reach a person, as real servers on loopback that follow the real ones' documentation."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

LINK = re.compile(r"https://\S+/#t=([\w-]{43})")


@dataclass
class Inbox:
    """What reached the person, and how the service behaves."""

    port: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], web.Response] | None = None
    hangs: bool = False
    tries: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def message(self, number: int = 0) -> dict[str, Any]:
        """Wait until this many messages more than `number` have arrived; return that one."""
        while len(self.messages) <= number:
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), 20)
        return self.messages[number]

    @staticmethod
    def token_in(text: str) -> str:
        """The token of the link in a message."""
        found = LINK.search(text)
        assert found, text
        return found.group(1)


@asynccontextmanager
async def ntfy() -> AsyncIterator[Inbox]:
    """ntfy: publishing as JSON (https://docs.ntfy.sh/publish/#publish-as-json)."""
    inbox = Inbox()

    async def publish(request: web.Request) -> web.StreamResponse:
        inbox.tries += 1
        if inbox.hangs:
            await asyncio.sleep(3600)
        said = json.loads(await request.read())
        if inbox.answer is not None:
            return inbox.answer(said)
        if request.path != "/" or not said.get("topic"):
            return web.json_response(
                {"code": 40009, "http": 400, "error": "invalid topic: path invalid"}, status=400
            )
        inbox.messages.append(said)
        inbox.arrived.set()
        return web.json_response(
            {"id": f"m{inbox.tries:011}", "time": 1700000000, "event": "message", **said}
        )

    async with listening(publish) as port:
        inbox.port = port
        yield inbox


SENT = {
    "ok": True,
    "result": {
        "content": [{"type": "text", "text": "{}"}],
        "details": {"channel": "whatsapp", "deliveryStatus": "sent", "result": {"messageId": "3EB0"}},
    },
}


@asynccontextmanager
async def openclaw(token: str) -> AsyncIterator[Inbox]:
    """OpenClaw 2026.9.6: POST /tools/invoke with the message tool (https://docs.openclaw.ai/gateway)."""
    inbox = Inbox()

    async def invoke(request: web.Request) -> web.StreamResponse:
        inbox.tries += 1
        if inbox.hangs:
            await asyncio.sleep(3600)
        if request.headers.get("Authorization") != f"Bearer {token}":
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        said = await request.json()
        assert request.path == "/tools/invoke"
        assert said["tool"] == "message"
        if inbox.answer is not None:
            return inbox.answer(said)
        inbox.messages.append(said)
        inbox.arrived.set()
        return web.json_response(SENT)

    async with listening(invoke) as port:
        inbox.port = port
        yield inbox


@asynccontextmanager
async def listening(handler: Callable[[web.Request], Any]) -> AsyncIterator[int]:
    """Serve every address of a free port of loopback with one handler."""
    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
