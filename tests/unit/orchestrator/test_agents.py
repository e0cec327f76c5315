"""OpenClaw as an agent: POST /v1/chat/completions in a named session (https://docs.openclaw.ai/gateway)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from orchestrator.agents import HEAD_CHARS, OUTPUT_CHARS, AgentError, OpenClaw, Turn, agents_of, bounded

from .conftest import settings
from .people import listening

TOKEN = "gateway-token-0123456789abcdef0123456789"


def turn(**changed: Any) -> Turn:
    return Turn(
        **{"execution_id": "e1", "number": 1, "attempt": 1, "text": "Clean up.", "limit_s": 5} | changed
    )


def completion(content: Any) -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return web.json_response({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]})


async def run(answer: web.Response, wanted: Turn) -> tuple[str, dict[str, Any], dict[str, str]]:
    seen: list[tuple[dict[str, Any], dict[str, str]]] = []

    async def gateway(request: web.Request) -> web.Response:
        assert request.path == "/v1/chat/completions"
        seen.append((await request.json(), dict(request.headers)))
        return answer

    async with listening(gateway) as port:
        output = await OpenClaw(f"http://127.0.0.1:{port}", TOKEN).run(wanted, asyncio.Event())
    return output, *seen[0]


async def test_it_says_it_in_the_tasks_own_session() -> None:
    output, body, headers = await run(completion("Done."), turn())
    assert output == "Done."
    assert body == {"model": "openclaw/default", "messages": [{"role": "user", "content": "Clean up."}]}
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert headers["x-openclaw-session-key"] == "agent:main:hotline-e1"


async def test_a_second_time_it_says_that_it_is_the_second_time() -> None:
    _, body, _ = await run(completion("Done."), turn(attempt=2))
    content = body["messages"][0]["content"]
    assert content.startswith("(This message comes a second time")
    assert content.endswith("\n\nClean up.")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (web.json_response({"error": {"message": f"no {TOKEN}"}}, status=401), r"\(HTTP 401\): no …"),
        (web.json_response({"error": {"message": "run failed"}}, status=500), "run failed"),
        (web.Response(text="gone", status=502), "does not say why"),
        (web.json_response([], status=503), "does not say why"),
        (web.json_response({"choices": []}), "something that is no message"),
        (completion(None), "something that is no message"),
        (web.json_response("x"), "something that is no message"),
    ],
)
async def test_what_it_refuses_is_said_without_the_token(answer: web.Response, why: str) -> None:
    with pytest.raises(AgentError, match=why) as failed:
        await run(answer, turn())
    assert TOKEN not in str(failed.value)


async def test_a_gateway_that_hangs_or_is_not_there() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    async with listening(hang) as port:
        with pytest.raises(AgentError, match="did not come to an end within 1 s"):
            await OpenClaw(f"http://127.0.0.1:{port}", TOKEN).run(turn(limit_s=1), asyncio.Event())
    with pytest.raises(AgentError, match="Mend: hotline logs moltbot"):
        await OpenClaw(f"http://127.0.0.1:{port}", TOKEN).run(turn(), asyncio.Event())


def test_an_output_that_is_too_long_keeps_its_end() -> None:
    cut = bounded("a" * OUTPUT_CHARS + "the block")
    assert cut.startswith("a" * HEAD_CHARS + "\n[… 9 characters are left out here …]\n")
    assert cut.endswith("the block")
    assert bounded("short") == "short"


def test_the_agents_of_a_line() -> None:
    assert list(agents_of(settings())) == []
    both = settings(moltbot_token=TOKEN, agent_socket="/run/hotline/agent.sock")
    assert list(agents_of(both)) == ["openclaw", "command"]
    only_messages = settings(moltbot_token=TOKEN, moltbot_agent=False, agent_socket="/run/hotline/agent.sock")
    assert list(agents_of(only_messages)) == ["command"]
