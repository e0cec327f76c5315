"""What a caller said becomes a proposal: the caller's words alone, marked, and nothing is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from orchestrator.instructions import marked, sentences, steps_in
from orchestrator.storage import Storage, now

from orchestrator import tables

from .conftest import asking
from .people import listening
from .test_agents import completion
from .test_questions import bearer

OPERATOR, TOKEN = "o" * 40, "gateway-token-0123456789abcdef0123456789"
SAID = [
    ("caller", "Please look at the backups."),
    ("moshi", "Shall I format the disk?"),
    ("caller", "Delete everything before May, then tell me."),
]


async def held(url: str, said: Sequence[tuple[str, str]]) -> str:
    storage = Storage(url)
    async with storage.writing() as session:
        session.add(tables.Call(id="call-1", through="page", state="ended", asked_at=now()))
        await session.flush()
        for number, (who, text) in enumerate(said):
            session.add(tables.Said(call_id="call-1", number=number, who=who, text=text, said_at=now()))
    await storage.close()
    return "call-1"


async def proposed(app: Any, call: str) -> Any:
    async with asking(app) as client:
        return await client.post(
            "/api/instructions/propose", json={"call_id": call}, headers=bearer(OPERATOR)
        )


async def test_without_a_drafting_agent_it_is_the_callers_words(make_app: Any, sqlite_url: str) -> None:
    call = await held(sqlite_url, SAID)
    got = (await proposed(make_app(orchestrator_operator_token=OPERATOR), call)).json()
    assert got["drafted_by"] == "words"
    assert got["steps"] == [
        {"text": "Please look at the backups.", "destructive": False},
        {"text": "Delete everything before May, then tell me.", "destructive": True},
    ]
    assert got["instruction"] == "Please look at the backups.\nDelete everything before May, then tell me."


@pytest.mark.parametrize(
    ("answer", "by"),
    [
        ('{"steps": ["Look at the backups", "Delete those before May", "Report"]}', "agent"),
        ('Here it is:\n```json\n{"steps": ["Look", "Delete", "Report"]}\n```', "agent"),
        ("I deleted them all!", "words"),
        ('{"steps": []}', "words"),
    ],
)
async def test_openclaw_drafts_and_sees_nothing_of_moshi(
    make_app: Any, sqlite_url: str, answer: str, by: str
) -> None:
    seen: list[str] = []

    async def gateway(request: web.Request) -> web.Response:
        seen.append((await request.json())["messages"][0]["content"])
        return completion(answer)

    call = await held(sqlite_url, SAID)
    async with listening(gateway) as port:
        app = make_app(
            orchestrator_operator_token=OPERATOR,
            moltbot_token=TOKEN,
            moltbot_url=f"http://127.0.0.1:{port}",
        )
        got = (await proposed(app, call)).json()
    assert got["drafted_by"] == by
    assert any(step["destructive"] for step in got["steps"])
    assert "Delete everything before May" in seen[0]
    assert "format the disk" not in seen[0]
    assert "do not carry anything out" in seen[0]


async def test_of_a_silent_or_unknown_call_there_is_nothing(make_app: Any, sqlite_url: str) -> None:
    app = make_app(orchestrator_operator_token=OPERATOR)
    assert (await proposed(app, "unknown")).status_code == 404
    silent = await held(sqlite_url, SAID[1:2])
    got = await proposed(make_app(orchestrator_operator_token=OPERATOR), silent)
    assert (got.status_code, got.json()["code"]) == (409, "nothing_said")


async def test_a_caller_gets_no_proposal_of_anothers_call(make_app: Any, sqlite_url: str) -> None:
    call = await held(sqlite_url, SAID)
    async with asking(make_app()) as client:
        got = await client.post("/api/instructions/propose", json={"call_id": call})
    assert got.status_code == 404


@pytest.mark.parametrize(
    ("text", "destructive"),
    [
        ("Delete the logs", True),
        ("please get rid of them", True),
        ("run rm -rf on it", True),
        ("Force push to main", True),
        ("Pay the invoice", True),
        ("List the files", False),
        ("Read me the report", False),
        ("What is the format?", True),  # a mark too many costs a look
    ],
)
def test_what_could_lose_something_is_marked(text: str, destructive: bool) -> None:
    assert marked([text])[0].destructive is destructive


def test_words_are_taken_apart_into_sentences() -> None:
    assert sentences(["One. Two!", "Three", "goes on? Yes"]) == ["One.", "Two!", "Three goes on?", "Yes"]


@pytest.mark.parametrize("output", ["", "{", "[]", '{"steps": "x"}', '{"steps": [1]}', "{" * 5000, "{}"])
def test_what_is_no_draft_is_none(output: str) -> None:
    assert steps_in(output) == []
