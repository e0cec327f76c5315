"""Who may do what: keys and tokens, in every combination."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi import Depends
from orchestrator.app import create_app
from orchestrator.line import Surroundings
from orchestrator.scopes import Identity, Keys, Scope, bearer_of, hash_of, new_key, require
from orchestrator.storage import Storage, now

from orchestrator import tables

from .conftest import AGENT, OPERATOR, TOKENS, asking, settings


@pytest.fixture
def doors(surroundings: Surroundings, database_url: str) -> Any:
    """An application with one address per scope, and one for two of them."""

    def made(**changed: Any) -> Any:
        app = create_app(settings(**{"database_url": database_url} | TOKENS | changed), surroundings)
        for path, scopes in {
            "/caller": [Scope.CALLER],
            "/agent": [Scope.AGENT],
            "/operator": [Scope.OPERATOR],
            "/both": [Scope.AGENT, Scope.OPERATOR],
        }.items():

            def answer(who: Identity = Depends(require(*scopes))) -> str:  # noqa: B008
                return who.scope.value

            app.add_api_route(path, answer)
        return app

    return made


async def a_session(storage: Storage, **changed: Any) -> str:
    key, moment = new_key(), now()
    async with storage.writing() as session:
        session.add(
            tables.Link(
                id="l",
                token_hash=b"t",
                purpose="answer",
                question_id="q",
                made_by="agent",
                made_at=moment,
                expires_at=moment,
                uses=1,
                uses_left=0,
            )
        )
        await session.flush()
        given = {"made_at": moment, "expires_at": moment + timedelta(hours=1)} | changed
        session.add(tables.Session(id="s", key_hash=hash_of(key), link_id="l", **given))
    return key


async def statuses(app: Any, **headers: str) -> dict[str, int]:
    async with asking(app) as client:
        return {
            path: (await client.get(path, headers=headers)).status_code
            for path in ("/caller", "/agent", "/operator", "/both")
        }


@pytest.mark.parametrize(
    ("token", "opens"),
    [
        (OPERATOR, {"/operator", "/both"}),
        (AGENT, {"/agent", "/both"}),
        ("x" * 43, set()),
        (OPERATOR[1:], set()),
    ],
)
async def test_a_token_opens_its_own_scope_and_no_other(doors: Any, token: str, opens: set[str]) -> None:
    found = await statuses(doors(), authorization=f"Bearer {token}")
    assert {path for path, status in found.items() if status == 200} == opens
    assert set(found.values()) <= {200, 401, 403}


async def test_a_session_key_opens_what_is_the_callers(doors: Any, storage: Storage) -> None:
    key = await a_session(storage)
    assert await statuses(doors(), authorization=f"Bearer {key}") == {
        "/caller": 200,
        "/agent": 403,
        "/operator": 403,
        "/both": 403,
    }


@pytest.mark.parametrize("changed", [{"revoked_at": now()}, {"expires_at": now() - timedelta(seconds=1)}])
async def test_a_session_that_is_over_opens_nothing(doors: Any, storage: Storage, changed: Any) -> None:
    key = await a_session(storage, **changed)
    assert set((await statuses(doors(), authorization=f"Bearer {key}")).values()) == {401}


async def test_an_open_line_takes_callers_without_a_key(doors: Any) -> None:
    assert await statuses(doors()) == {"/caller": 200, "/agent": 401, "/operator": 401, "/both": 401}


async def test_tokens_that_are_unset_are_closed_doors(doors: Any) -> None:
    app = doors(orchestrator_operator_token="", orchestrator_agent_token="")
    for given in ("", "Bearer ", "Bearer", f"Bearer {OPERATOR}", "Basic Og=="):
        found = await statuses(app, authorization=given)
        assert {found["/agent"], found["/operator"]} == {401}, given


async def test_a_page_from_elsewhere_gets_nothing(doors: Any) -> None:
    found = await statuses(doors(), origin="https://evil.example", authorization=f"Bearer {OPERATOR}")
    assert set(found.values()) == {403}


async def test_refusals_say_what_to_do(doors: Any) -> None:
    async with asking(doors()) as client:
        no_key = await client.get("/operator")
        wrong_key = await client.get("/operator", headers={"authorization": "Bearer x"})
        wrong_scope = await client.get("/operator", headers={"authorization": f"Bearer {AGENT}"})
    assert [r.json()["code"] for r in (no_key, wrong_key, wrong_scope)] == [
        "no_key",
        "wrong_key",
        "wrong_scope",
    ]
    assert no_key.headers["www-authenticate"] == "Bearer"
    assert "opening a link" in no_key.json()["detail"]
    assert "scope agent, and the address is for operator" in wrong_scope.json()["detail"]
    assert AGENT not in wrong_scope.text


@pytest.mark.parametrize(
    ("header", "key"),
    [(None, None), ("", None), ("Bearer", None), ("Bearer  x ", "x"), ("bearer x", "x"), ("Basic x", None)],
)
def test_a_key_is_read_from_its_header(header: str | None, key: str | None) -> None:
    assert bearer_of(header) == key


def test_keys_are_compared_as_hashes() -> None:
    keys = Keys.of(settings(orchestrator_operator_token=OPERATOR))
    assert keys.operator == hash_of(OPERATOR)
    assert OPERATOR not in repr(keys)
    assert keys.scope_of(b"\0" * 32) is None  # what an unset token is compared with opens nothing
