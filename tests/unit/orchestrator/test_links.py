"""Links: what opens, once how often, and what does not."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from orchestrator.app import create_app
from orchestrator.line import Surroundings
from orchestrator.links import INVALID, Wish, mint, redeem, revoke
from orchestrator.scopes import hash_of, new_key, session_of
from orchestrator.storage import Storage, now
from pydantic import ValidationError
from sqlalchemy import update

from orchestrator import tables

from .conftest import AGENT, OPERATOR, TOKENS, Kernel, asking, bearer, settings

LINE = "https://line.example.org:8998"


@pytest.fixture
def closed(surroundings: Surroundings, database_url: str) -> Any:
    """A line that links open."""
    given = {"database_url": database_url, "line_access": "links"} | TOKENS
    return create_app(settings(**given), surroundings)


def token_of(url: str) -> str:
    base, _, token = url.partition("/#t=")
    assert base == LINE
    assert len(token) == 43  # 256 bits
    return token


async def test_a_link_opens_as_often_as_it_may_and_then_never_again(storage: Storage) -> None:
    token = token_of((await mint(storage, LINE, Wish(uses=3), "operator")).url)
    opened = await asyncio.gather(*(redeem(storage, token) for _ in range(10)))
    keys = {one.key for one in opened if one is not None}
    assert len(keys) == 3
    for key in keys:
        assert await session_of(storage, hash_of(key)) is not None


async def test_neither_token_nor_key_is_kept(storage: Storage) -> None:
    token = token_of((await mint(storage, LINE, Wish(), "operator")).url)
    opened = await redeem(storage, token)
    assert opened is not None
    async with storage.reading() as session:
        for table in tables.Table.metadata.sorted_tables:
            kept = repr((await session.execute(table.select())).all())
            assert token not in kept
            assert opened.key not in kept


async def test_a_revoked_link_ends_its_sessions(storage: Storage) -> None:
    made = await mint(storage, LINE, Wish(), "operator")
    opened = await redeem(storage, token_of(made.url))
    assert opened is not None
    assert await revoke(storage, made.id)
    assert await session_of(storage, hash_of(opened.key)) is None
    assert await redeem(storage, token_of(made.url)) is None
    assert await revoke(storage, made.id)  # again is no error
    assert not await revoke(storage, "link_none")


async def test_all_that_opens_nothing_gets_the_same_answer(closed: Any, storage: Storage) -> None:
    made = {
        name: await mint(storage, LINE, Wish(uses=1), "operator") for name in ("spent", "revoked", "expired")
    }
    await redeem(storage, token_of(made["spent"].url))
    await revoke(storage, made["revoked"].id)
    async with storage.writing() as session:
        past = update(tables.Link).where(tables.Link.id == made["expired"].id)
        await session.execute(past.values(expires_at=now() - timedelta(seconds=1)))
    tokens = [token_of(one.url) for one in made.values()]
    tokens += [new_key(), "", "x", tokens[0][:-1], "\0", "ü" * 43]
    async with asking(closed) as client:
        answers = [await client.post("/api/links/redeem", json={"token": token}) for token in tokens]
    assert {answer.status_code for answer in answers} == {404}
    assert {answer.text for answer in answers} == {answers[0].text}
    assert answers[0].json()["code"] == "link_invalid"
    assert answers[0].json()["detail"] == INVALID
    assert answers[0].headers["content-type"] == "application/problem+json"


async def test_who_guesses_is_slowed_down_and_who_is_right_elsewhere_is_not(
    closed: Any, storage: Storage
) -> None:
    good = token_of((await mint(storage, LINE, Wish(), "operator")).url)
    async with asking(closed) as client:
        answers = [
            (await client.post("/api/links/redeem", json={"token": new_key()})).status_code for _ in range(25)
        ]
        assert (answers.count(404), answers.count(429)) == (20, 5)
        slowed = await client.post("/api/links/redeem", json={"token": good})
        assert (slowed.status_code, slowed.json()["code"]) == (429, "too_many_failures")
        assert int(slowed.headers["retry-after"]) <= 62


async def test_the_operator_makes_lists_and_revokes(closed: Any) -> None:
    async with asking(closed) as client:
        operator = bearer(OPERATOR)
        made = await client.post("/api/links", json={"uses": 2, "note": "for Ada"}, headers=operator)
        assert made.status_code == 201
        assert set(made.json()) == {"id", "url", "expires_at", "uses"}
        week = datetime.fromisoformat(made.json()["expires_at"]) - now()
        assert timedelta(days=6, hours=23) < week <= timedelta(days=7)
        opened = await client.post("/api/links/redeem", json={"token": token_of(made.json()["url"])})
        assert opened.json()["purpose"] == "talk"
        [listed] = (await client.get("/api/links", headers=operator)).json()
        assert (listed["note"], listed["uses"], listed["uses_left"], listed["state"]) == (
            "for Ada",
            2,
            1,
            "open",
        )
        assert token_of(made.json()["url"]) not in str(listed)
        gone = await client.delete(f"/api/links/{listed['id']}", headers=operator)
        assert gone.status_code == 204
        [listed] = (await client.get("/api/links", headers=operator)).json()
        assert listed["state"] == "revoked"
        unknown = await client.delete("/api/links/link_none", headers=operator)
        assert (unknown.status_code, unknown.json()["code"]) == (404, "link_unknown")


async def test_an_agent_makes_links_to_its_questions_only(closed: Any) -> None:
    async with asking(closed) as client:
        talk = await client.post("/api/links", json={}, headers=bearer(AGENT))
        answer = await client.post(
            "/api/links", json={"purpose": "answer", "question_id": "q1"}, headers=bearer(AGENT)
        )
        listed = await client.get("/api/links", headers=bearer(AGENT))
    assert (talk.status_code, answer.status_code, listed.status_code) == (403, 201, 403)


@pytest.mark.parametrize(
    "wish",
    [
        {"purpose": "answer"},
        {"purpose": "view"},
        {"purpose": "talk", "question_id": "q"},
        {"purpose": "talk", "execution_id": "e"},
        {"uses": 0},
        {"expires_in_s": 1},
        {"note": "x" * 201},
        {"note": "two\nlines"},
        {"note": "\x1b[31m"},
        {"purpose": "answer", "question_id": "../x"},
        {"purpose": "everything"},
        {"unknown": 1},
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Wish.model_validate(wish)


async def test_revoking_a_link_ends_the_calls_that_wait_with_it(closed: Any, kernel: Kernel) -> None:
    async with asking(closed) as client:
        made = (await client.post("/api/links", json={}, headers=bearer(OPERATOR))).json()
        key = (await client.post("/api/links/redeem", json={"token": token_of(made["url"])})).json()["key"]
        call = (await client.post("/api/calls", headers=bearer(key))).json()
        assert call["state"] == "waiting"
        await client.delete(f"/api/links/{made['id']}", headers=bearer(OPERATOR))
        assert (await client.post("/api/calls", headers=bearer(key))).status_code == 401
        record = await client.get(f"/api/calls/{call['id']}", headers=bearer(OPERATOR))
        assert (record.json()["state"], record.json()["reason"]) == ("ended", "revoked")
