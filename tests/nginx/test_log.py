"""What is written down about a call, and what must not be."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp


async def log_with(line, words: str) -> str:
    for _ in range(40):
        found = [entry for entry in line.logs().splitlines() if words in entry]
        if found:
            return found[-1]
        await asyncio.sleep(0.05)
    raise AssertionError(f"nothing about {words!r} in the log")


async def test_a_call_can_be_followed_by_its_number(line, host, caller):
    host.orchestrator.call = "11111111-2222-3333-4444-555555555555"
    call = await caller.call(line, "?ticket=x")
    await call.receive_bytes()
    await call.close()
    entry = await log_with(line, host.orchestrator.call)
    assert '"GET /api/chat HTTP/1.1" 101' in entry
    assert "engine=moshi_0" in entry
    assert entry.startswith("127.0.0.1 ")


async def test_a_refusal_leaves_its_reason(line, host, caller):
    host.orchestrator.refuse = (403, "not_allowed")
    call = await caller.call(line)
    await call.receive_bytes()
    await call.close()
    assert '"GET /api/chat HTTP/1.1" 101' in await log_with(line, "refusal=not_allowed")


async def test_no_log_holds_what_stands_in_a_query(line, host, caller):
    """On every road, also those on which something breaks and nginx writes an error."""
    secret = "SECRET5f1c"
    query = f"?ticket={secret}"
    for path in (
        "/",
        "/nowhere",
        "/assets/x.js",
        "/api/x",
        "/mcp",
        "/health",
        "/internal/authorize",
        "/api/chat",
        "/hotline-ca.pem",
    ):
        await caller.ask(line, path + query)
        await caller.ask(line, path + query, "POST", data=b"x" * 2_000_000)
    await caller.ask(line, "/x" + query, scheme="http")
    await caller.ask(line, "/api/" + "x" * 9000 + query)
    await caller.ask(line, "/", headers={"Referer": f"https://x/{query}"})

    first = await caller.call(line, query)
    second = await caller.call(line, query)
    await second.receive_bytes()
    await first.close()
    await second.close()
    for status, code in ((403, "not_allowed"), (503, "line_full"), (418, "x")):
        host.orchestrator.refuse = (status, code)
        await (await caller.call(line, query)).close()
    host.orchestrator.refuse = None
    host.orchestrator.engine = "elsewhere"
    await (await caller.call(line, query)).close()
    host.orchestrator.engine = "moshi_1"
    await host.down("engine1")
    await (await caller.call(line, query)).close()
    host.orchestrator.engine = "moshi_0"
    await host.freed(within_s=2)
    dying = await caller.call(line, query)
    await dying.receive_bytes()
    await host.down("engine0")
    await dying.close()
    await host.down("orchestrator")
    for path in ("/api/x", "/mcp", "/api/chat"):
        await caller.ask(line, path + query)
    with contextlib.suppress(aiohttp.WSServerHandshakeError):
        await caller.call(line, query)
    silent = await asyncio.open_connection(
        "127.0.0.1", line.port, ssl=line.trust(), server_hostname="localhost"
    )
    silent[1].write(f"GET /api/chat{query} HTTP/9\r\n\r\n".encode())
    await asyncio.sleep(1)
    silent[1].close()
    logs = line.logs()
    assert '"GET /api/chat HTTP/1.1"' in logs
    assert secret not in logs
    assert "ticket" not in logs


async def test_nobody_can_write_lines_of_his_own_into_the_log(line, caller):
    await caller.ask(line, "/a%0a6.6.6.6%20%22GET%20/forged", headers={"X-Forwarded-For": "x\ty"})
    assert "\n6.6.6.6" not in line.logs()
