"""What agents call, by the official client of the Model Context Protocol over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult
from orchestrator.storage import Storage, now
from orchestrator.tools import minutes_until

from orchestrator import tables

from .conftest import serving
from .people import Inbox, ntfy

AGENT, OPERATOR = "a" * 40, "o" * 40


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with ntfy() as made:
        yield made


@pytest.fixture
async def port(make_app: Any, inbox: Inbox) -> AsyncIterator[int]:
    app = make_app(
        orchestrator_agent_token=AGENT,
        orchestrator_operator_token=OPERATOR,
        notify_urls=f"ntfy://127.0.0.1:{inbox.port}/hotline",
    )
    async with serving(app) as made:
        yield made


@asynccontextmanager
async def agent(port: int, token: str = AGENT, mode: str = "auto") -> AsyncIterator[Client]:
    """An agent, as docs/agents.md shows it."""
    async with httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {token}"}, timeout=httpx2.Timeout(30, read=300)
    ) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


def content(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


async def as_operator(port: int, method: str, path: str, body: Any = None) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        return await client.request(method, path, json=body, headers={"Authorization": f"Bearer {OPERATOR}"})


async def question_id(port: int) -> str:
    """The newest open question's id, once there is one."""
    while True:
        rows = (await as_operator(port, "GET", "/api/questions?state=open")).json()
        if rows:
            return str(rows[0]["id"])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_agent_sees_the_tools(port: int, mode: str) -> None:
    async with agent(port, mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {
        *("ask_by_voice", "check_answer", "notify"),
        *("list_calls", "get_transcript", "line_health"),
    }
    asked = tools["ask_by_voice"].input_schema
    assert asked["required"] == ["question"]
    assert set(asked["properties"]) == {"question", "context", "choices", "deadline", "wait_minutes", "key"}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_it_asks_the_person_is_told_and_it_gets_exactly_the_answer(
    port: int, inbox: Inbox, mode: str
) -> None:
    said = 'Yes, but keep "May" <b>äöü</b>.\nNothing else.'
    async with agent(port, mode=mode) as client:
        waiting = asyncio.create_task(
            client.call_tool(
                "ask_by_voice",
                {"question": "Delete it?", "context": "12 GB", "choices": ["yes", "no"], "deadline": 30},
            )
        )
        message = await inbox.message()
        assert message["title"] == "Your agent has a question for you"
        assert len(inbox.token_in(message["message"])) == 43
        asked = await question_id(port)
        await as_operator(port, "POST", f"/api/questions/{asked}/answer", {"text": said})
        outcome = content(await asyncio.wait_for(waiting, 10))
    assert (outcome["id"], outcome["state"], outcome["answer"]) == (asked, "answered", said)
    assert len(inbox.messages) == 1


async def test_who_is_cut_off_asks_again_and_gets_the_answer(port: int, inbox: Inbox) -> None:
    wanted = {"question": "Delete it?", "context": "12 GB"}
    async with agent(port) as client:
        waiting = asyncio.create_task(client.call_tool("ask_by_voice", wanted))
        asked = await question_id(port)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    await as_operator(port, "POST", f"/api/questions/{asked}/answer", {"text": "Yes"})
    async with agent(port) as client:
        outcome = content(await client.call_tool("ask_by_voice", wanted))
    assert (outcome["id"], outcome["answer"]) == (asked, "Yes")
    assert len(inbox.messages) <= 1


async def test_who_does_not_want_to_wait_looks_later(port: int) -> None:
    async with agent(port) as client:
        asked = content(await client.call_tool("ask_by_voice", {"question": "Now?", "wait_minutes": 0}))
        assert (asked["state"], asked["answer"]) == ("open", None)
        assert "check_answer" in asked["next"]
        looked = content(await client.call_tool("check_answer", {"id": asked["id"]}))
        assert looked["state"] == "open"
        waiting = asyncio.create_task(
            client.call_tool("check_answer", {"id": asked["id"], "wait_minutes": 5})
        )
        await as_operator(port, "POST", f"/api/questions/{asked['id']}/decline")
        assert content(await asyncio.wait_for(waiting, 10))["state"] == "declined"


async def test_a_waiting_agent_sees_signs_of_life(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tools.SIGN_S", 0.05)
    seen: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with agent(port) as client:
        await client.call_tool(
            "ask_by_voice",
            {"question": "Now?", "wait_minutes": 0.01},
            progress_callback=progressed,
        )
    assert len(seen) >= 2
    assert seen == sorted(seen)


async def test_it_tells_the_person_something(port: int, inbox: Inbox) -> None:
    async with agent(port) as client:
        said = {"text": "Deployed.\x1b[0m", "link": "https://ci.example/7"}
        assert content(await client.call_tool("notify", said))["accepted"] is True
        message = await inbox.message()
        assert message["message"] == "Deployed.\n\nhttps://ci.example/7"
        assert content(await client.call_tool("notify", said))["accepted"] is False
    assert len(inbox.messages) == 1


async def test_it_reads_calls_and_what_was_said(port: int, sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    async with storage.writing() as session:
        session.add(tables.Call(id="call-1", through="page", state="ended", asked_at=now()))
        await session.flush()
        for number, (who, text) in enumerate([("caller", "Please clean up."), ("moshi", "Sure!")]):
            session.add(tables.Said(call_id="call-1", number=number, who=who, text=text, said_at=now()))
    await storage.close()
    async with agent(port) as client:
        calls = content(await client.call_tool("list_calls", {}))["result"]
        assert [call["id"] for call in calls] == ["call-1"]
        said = content(await client.call_tool("get_transcript", {"call_id": "call-1"}))
        assert [(line["who"], line["text"]) for line in said["lines"]] == [
            ("caller", "Please clean up."),
            ("moshi", "Sure!"),
        ]


async def test_it_sees_how_the_line_is(port: int) -> None:
    async with agent(port) as client:
        found = content(await client.call_tool("line_health", {}))
    assert found["status"] == "unhealthy"
    assert any("moshi@0" in reason and "Mend: " in reason for reason in found["reasons"])


@pytest.mark.parametrize(
    ("tool", "arguments", "why"),
    [
        ("ask_by_voice", {"question": " "}, "question: String should have at least 1 character"),
        ("ask_by_voice", {"question": "x" * 2001}, "question: String should have at most 2000"),
        ("ask_by_voice", {"question": "x", "choices": [""]}, "choices.0: String should have at least 1"),
        ("ask_by_voice", {"question": "x", "deadline": 0}, "deadline_minutes: Input should be greater"),
        ("ask_by_voice", {"question": "x", "deadline": "soon"}, "minutes from now, or a moment"),
        ("ask_by_voice", {"question": "x", "deadline": "2020-01-01T00:00:00Z"}, "has passed already"),
        ("ask_by_voice", {}, "question"),
        ("check_answer", {"id": "unknown"}, "no question with this id"),
        ("notify", {"text": ""}, "text must have"),
        ("notify", {"text": "x", "link": "javascript:alert(1)"}, "link must be an http"),
        ("notify", {"text": "x", "link": "https://a b"}, "link must not contain spaces"),
        ("get_transcript", {"call_id": "unknown"}, "no call with this id"),
    ],
)
async def test_what_an_agent_gets_wrong_is_said(port: int, tool: str, arguments: Any, why: str) -> None:
    async with agent(port) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert why in str(result.content)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "no_key"),
        ({"Authorization": "Bearer " + "x" * 40}, 401, "wrong_key"),
        ({"Authorization": f"Bearer {OPERATOR}"}, 403, "wrong_scope"),
        ({"Authorization": f"Bearer {AGENT}", "Origin": "https://evil.example"}, 403, "not_allowed"),
    ],
)
async def test_nobody_but_an_agent_gets_in(
    port: int, headers: dict[str, str], status: int, code: str
) -> None:
    async with httpx.AsyncClient() as client:
        for method in ("POST", "GET", "DELETE"):
            got = await client.request(method, f"http://127.0.0.1:{port}/mcp", headers=headers)
            assert (got.status_code, got.json()["code"]) == (status, code)


async def test_garbage_is_answered(port: int) -> None:
    headers = {
        "Authorization": f"Bearer {AGENT}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
        for body in (b"", b"{", b"[]", json.dumps({"jsonrpc": "2.0"}).encode(), b"\xff" * 100):
            assert 400 <= (await client.post("/mcp", content=body)).status_code < 500
        assert (await client.post("/mcp", content=b"x" * 70_000)).status_code == 413


NOON = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("deadline", "minutes"),
    [
        (None, None),
        (90, 90),
        ("90", 90),
        ("2026-11-24T13:30:00Z", 90),
        ("2026-11-24T14:30:00+01:00", 90),
        ("2026-11-24T12:00:10Z", 1),
    ],
)
def test_a_deadline_is_minutes_or_a_moment(deadline: Any, minutes: int | None) -> None:
    assert minutes_until(deadline, NOON) == minutes


def test_a_moment_needs_its_zone() -> None:
    with pytest.raises(ValueError, match="needs its zone"):
        minutes_until("2026-11-24T13:30:00", NOON)
