"""`hotline ask`, `run`, `notify`: what the operator types, against the real application on a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import TOKENS, serving
from .people import Inbox, ntfy
from .test_cli import typed
from .workshop import Workshop, workshop


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with ntfy() as made:
        yield made


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path / "shop") as made:
        yield made


@pytest.fixture
async def port(make_app: Any, inbox: Inbox, shop: Workshop) -> AsyncIterator[int]:
    url = f"ntfy://127.0.0.1:{inbox.port}/hotline"
    async with serving(make_app(**TOKENS, notify_urls=url, agent_socket=str(shop.socket))) as made:
        yield made


async def test_ask_prints_the_answer_alone(port: int, inbox: Inbox) -> None:
    asking = asyncio.create_task(typed(port, "ask", "Delete it?", "--context", "12 GB", "--choice", "yes"))
    message = await inbox.message()
    assert "Delete it?\n- yes" in message["message"]
    [question] = json.loads((await typed(port, "--json", "questions", "--state", "open")).stdout)
    assert question["context"] == "12 GB"
    again = await typed(port, "ask", "Delete it?", "--context", "12 GB", "--choice", "yes", "--no-wait")
    assert (again.exit_code, json.loads((await typed(port, "--json", "questions")).stdout)) == (3, [question])
    await answered(port, question["id"], "Yes, all.")
    done = await asyncio.wait_for(asking, 20)
    assert (done.exit_code, done.stdout) == (0, "Yes, all.\n")
    assert "answered" in (await typed(port, "questions")).stdout


async def answered(port: int, question: str, text: str) -> None:
    import httpx

    from .conftest import OPERATOR

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        path = f"/api/questions/{question}/answer"
        key = {"Authorization": f"Bearer {OPERATOR}"}
        assert (await client.post(path, json={"text": text}, headers=key)).status_code == 200


async def test_run_prints_what_comes_of_it(port: int, shop: Workshop) -> None:
    shop.plan({"say": "All clean."})
    done = await typed(port, "run", "Clean up.", "--key", "nightly")
    assert (done.exit_code, done.stdout) == (0, "All clean.\n")
    [made] = json.loads((await typed(port, "--json", "executions")).stdout)
    assert "Clean up." in (await typed(port, "executions")).stdout
    whole = (await typed(port, "executions", made["id"])).stdout
    assert "--- told 1, attempts 1\nClean up." in whole
    assert "--- said\nAll clean." in whole
    assert "is completed" in (await typed(port, "cancel", made["id"])).stdout


async def test_run_ends_with_1_when_it_failed(port: int, shop: Workshop) -> None:
    shop.plan({"say": "no", "status": 3})
    done = await typed(port, "run", "Clean up.")
    assert done.exit_code == 1
    assert "ended with status 3" in done.stdout


async def test_notify_tests_every_service_and_lists_what_became_of_messages(port: int, inbox: Inbox) -> None:
    tried = await typed(port, "notify", "--test")
    assert (tried.exit_code, tried.stdout) == (0, "ntfy: sent\n")
    assert inbox.messages[0]["title"] == "A test of your Hotline's messages"
    await typed(port, "ask", "Now?", "--no-wait")
    await inbox.message(1)
    while "delivered" not in (listed := (await typed(port, "notify")).stdout):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert "ntfy" in listed


async def test_a_test_that_nobody_takes_ends_with_1(port: int, inbox: Inbox) -> None:
    from aiohttp import web

    inbox.answer = lambda _: web.json_response({"error": "forbidden"}, status=403)
    tried = await typed(port, "notify", "--test")
    assert tried.exit_code == 1
    assert "ntfy: " in tried.stdout
    assert "docs/notifications.md" in tried.stderr
