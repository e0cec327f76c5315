"""kill -9 of the orchestrator, and death of the engine, at every step of a call: no slot is lost.

Real processes and real sockets: the orchestrator as systemd starts it, and a stand-in for moshi.server that
holds a connection for as long as its caller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from .conftest import OPERATOR, bearer
from .test_main import SOURCES, environment, free_port

STEPS = ["asked", "let in", "talking", "hung up"]


class Process:
    """The orchestrator on a port of its own; ``start`` it again after a kill."""

    def __init__(self, database: str, engine: int, **more: str) -> None:
        self.port = free_port()
        self.environment = environment(
            MOSHI_URL="https://line.example.org:8998",
            LINE_ACCESS="open",
            LINE_ORCHESTRATOR_PORT=str(self.port),
            LINE_ENGINE_PORT=str(engine),
            DATABASE_URL=database,
            ORCHESTRATOR_OPERATOR_TOKEN=OPERATOR,
            **more,
        )
        self.running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "orchestrator",
            env=self.environment,
            cwd=SOURCES,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await self.ask("GET", "/api/line")
                    return
                assert self.running.returncode is None
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        assert self.running is not None
        self.running.send_signal(signal.SIGKILL)
        await self.running.wait()

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=10) as client:
            return await client.request(method, path, **more)

    async def a_call_gets_through(self) -> str:
        """Ask until a call is let in; every wait is bounded, so a lost slot fails the test."""
        async with asyncio.timeout(30):
            while True:
                call = (await self.ask("POST", "/api/calls")).json()
                if call["state"] == "ready":
                    uri = {"X-Original-URI": f"/api/chat?ticket={call['ticket']}"}
                    if (await self.ask("GET", "/internal/authorize", headers=uri)).status_code == 204:
                        return str(call["id"])
                await self.ask("DELETE", f"/api/calls/{call['id']}")
                await asyncio.sleep(0.1)


@asynccontextmanager
async def an_engine(port: int) -> AsyncIterator[asyncio.Server]:
    """Hold every connection until its caller closes it, as moshi.server does."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", port)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
async def line(sqlite_url: str) -> AsyncIterator[tuple[Process, int]]:
    engine = free_port()
    process = Process(sqlite_url, engine)
    await process.start()
    yield process, engine
    await process.kill()


@pytest.mark.parametrize("step", STEPS)
async def test_the_orchestrator_killed_loses_no_slot(line: tuple[Process, int], step: str) -> None:
    process, port = line
    async with an_engine(port):
        call = (await process.ask("POST", "/api/calls")).json()
        assert call["state"] == "ready"
        caller = None
        if step != "asked":
            uri = {"X-Original-URI": f"/api/chat?ticket={call['ticket']}"}
            assert (await process.ask("GET", "/internal/authorize", headers=uri)).status_code == 204
        if step in ("talking", "hung up"):
            caller = socket.create_connection(("127.0.0.1", port))
            await until_state(process, call["id"], "talking")
        await process.kill()
        if caller is not None and step == "hung up":
            caller.close()
        await process.start()
        if step == "talking" and caller is not None:
            await until_state(process, call["id"], "talking")  # it goes on, and nobody else gets its engine
            other = (await process.ask("POST", "/api/calls")).json()
            assert other["state"] == "waiting"
            await process.ask("DELETE", f"/api/calls/{other['id']}")
            caller.close()
        elif step == "asked":
            await process.ask("DELETE", f"/api/calls/{call['id']}")
        assert await process.a_call_gets_through() != call["id"] or step == "let in"


@pytest.mark.parametrize("step", ["asked", "let in", "talking"])
async def test_the_engine_lost_loses_no_slot(line: tuple[Process, int], step: str) -> None:
    process, port = line
    async with an_engine(port) as engine:
        call = (await process.ask("POST", "/api/calls")).json()
        caller = None
        if step != "asked":
            uri = {"X-Original-URI": f"/api/chat?ticket={call['ticket']}"}
            assert (await process.ask("GET", "/internal/authorize", headers=uri)).status_code == 204
        if step == "talking":
            caller = socket.create_connection(("127.0.0.1", port))
            await until_state(process, call["id"], "talking")
        engine.close()
        if caller is not None:
            caller.close()
            await until_state(process, call["id"], "ended")
    async with an_engine(port):
        if step == "asked":
            await process.ask("DELETE", f"/api/calls/{call['id']}")
        await process.a_call_gets_through()


async def until_state(process: Process, call: str, state: str) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await process.ask("GET", f"/api/calls/{call}", headers=bearer(OPERATOR))
            if found.status_code == 200 and found.json()["state"] == state:
                return
            await asyncio.sleep(0.05)
