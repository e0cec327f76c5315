"""A question to a person: asked once, settled once, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from orchestrator.asks import Ask
from orchestrator.messages import Texts
from orchestrator.outbox import Outbox, Rules
from orchestrator.questions import OPEN_AT_MOST, Questions, SettledError, TooManyError, UnknownError
from orchestrator.senders import Log
from orchestrator.storage import Storage, now

from orchestrator import scopes, tables

from .conftest import asking

AGENT, OPERATOR = "a" * 40, "o" * 40


class NoLinks:
    async def mint(self, **_: Any) -> tuple[str, str]:
        return "link", "https://line.example.org:8998/#t=" + "x" * 43

    async def revoke(self, link_id: str) -> None:
        pass


class Calendar:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def questions(storage: Storage, calendar: Calendar) -> Questions:
    outbox = Outbox(
        storage, [Log()], Texts(ZoneInfo("UTC")), NoLinks(), Rules(), line="https://x", clock=calendar
    )
    return Questions(storage, outbox, timeout=timedelta(days=7), clock=calendar)


ASK = Ask(question="Delete it?", context="12 GB", choices=("yes", "no"), deadline_minutes=60)


async def ask(questions: Questions, wanted: Ask = ASK, **more: Any) -> tables.Question:
    return await questions.ask(wanted, asked_by="agent", **more)


async def test_a_question_is_kept_and_found(questions: Questions, calendar: Calendar) -> None:
    made = await ask(questions)
    found = await questions.get(made.id)
    assert (found.question, found.context, found.choices, found.state) == (
        "Delete it?",
        "12 GB",
        ["yes", "no"],
        "open",
    )
    assert found.deadline == calendar.now + timedelta(minutes=60)
    with pytest.raises(UnknownError):
        await questions.get("no such question")


async def test_without_a_deadline_it_waits_as_long_as_the_line_says(
    questions: Questions, calendar: Calendar
) -> None:
    made = await ask(questions, Ask(question="Now?"))
    assert made.deadline == calendar.now + timedelta(days=7)


async def test_an_answer_is_taken_once(questions: Questions) -> None:
    made = await ask(questions)
    answered = await questions.answer(made.id, "Yes, but keep May.", "press-1")
    assert (answered.state, answered.answer) == ("answered", "Yes, but keep May.")
    # The press that is sent again, since its answer was lost, is the same press.
    assert (await questions.answer(made.id, "Yes, but keep May.", "press-1")).answer == "Yes, but keep May."
    for text, key in (("No!", "press-2"), ("No!", "press-1"), ("Yes, but keep May.", None)):
        with pytest.raises(SettledError) as late:
            await questions.answer(made.id, text, key)
        assert late.value.question.answer == "Yes, but keep May."
    with pytest.raises(SettledError):
        await questions.decline(made.id)


async def test_of_many_answers_at_once_one_is_taken(questions: Questions) -> None:
    made = await ask(questions)
    outcomes = await asyncio.gather(
        *(questions.answer(made.id, f"answer {n}", f"press-{n}") for n in range(20)), return_exceptions=True
    )
    taken = [outcome for outcome in outcomes if isinstance(outcome, tables.Question)]
    assert len(taken) == 1
    assert all(isinstance(outcome, SettledError) for outcome in outcomes if outcome not in taken)
    assert (await questions.get(made.id)).answer == taken[0].answer


async def test_declined_is_an_end_too(questions: Questions) -> None:
    made = await ask(questions)
    assert (await questions.decline(made.id)).state == "declined"
    assert (await questions.decline(made.id)).state == "declined"
    with pytest.raises(SettledError):
        await questions.answer(made.id, "Yes")


async def test_past_its_deadline_it_is_expired_whoever_looks_first(
    questions: Questions, calendar: Calendar
) -> None:
    seen, answered, swept = [await ask(questions, key=key) for key in "abc"]
    calendar.now += timedelta(minutes=60)
    assert (await questions.get(seen.id)).state == "expired"
    with pytest.raises(SettledError) as late:
        await questions.answer(answered.id, "Yes")
    assert late.value.question.state == "expired"
    assert await questions.expire() == 1
    assert (await questions.get(swept.id)).state == "expired"
    assert await questions.expire() == 0


async def test_asked_again_in_the_same_words_it_is_the_same_question(questions: Questions) -> None:
    first = await ask(questions)
    assert (await ask(questions)).id == first.id
    await questions.answer(first.id, "Yes")
    # The agent that was cut off before it got the answer gets it now.
    again = await ask(questions)
    assert (again.id, again.answer) == (first.id, "Yes")
    await questions.handed_over(again)
    # Once it has it, the same words are about something else.
    assert (await ask(questions)).id != first.id
    assert (await ask(questions, Ask(question="Delete it?", context="13 GB"))).id != first.id


async def test_under_the_askers_own_key_it_is_the_same_question_for_ever(questions: Questions) -> None:
    first = await ask(questions, key="deploy-7")
    await questions.handed_over(await questions.answer(first.id, "Yes"))
    assert (await ask(questions, key="deploy-7")).answer == "Yes"
    assert (await ask(questions, key="deploy-8")).id != first.id
    other = await questions.ask(ASK, asked_by="operator", key="deploy-7")
    assert other.id != first.id


async def test_asked_many_times_at_once_it_is_one_question(questions: Questions) -> None:
    made = await asyncio.gather(*(ask(questions) for _ in range(20)))
    assert len({row.id for row in made}) == 1


async def test_an_agent_that_asks_in_a_loop_is_stopped(questions: Questions) -> None:
    for number in range(OPEN_AT_MOST):
        await ask(questions, key=str(number))
    with pytest.raises(TooManyError):
        await ask(questions, key="one more")
    await questions.decline((await ask(questions, key="0")).id)
    await ask(questions, key="one more")


async def test_who_waits_is_told_at_once(questions: Questions) -> None:
    made = await ask(questions)
    waiting = [asyncio.create_task(questions.wait(made.id, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    await questions.answer(made.id, "Yes")
    assert [row.answer for row in await asyncio.wait_for(asyncio.gather(*waiting), 3)] == ["Yes"] * 3


async def test_who_has_waited_long_enough_is_told_that_it_is_open(questions: Questions) -> None:
    made = await ask(questions)
    assert (await questions.wait(made.id, 0)).state == "open"
    assert (await questions.wait(made.id, 0.05)).state == "open"


async def test_who_waits_learns_that_the_deadline_passed(questions: Questions, calendar: Calendar) -> None:
    made = await ask(questions)
    waiting = asyncio.create_task(questions.wait(made.id, 60))
    await asyncio.sleep(0)
    calendar.now += timedelta(hours=2)
    await questions.expire()
    assert (await asyncio.wait_for(waiting, 3)).state == "expired"


# ------------------------------------------------------------------------------------------- the addresses


@pytest.fixture
async def client(make_app: Any, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(
        database_url=database_url, orchestrator_agent_token=AGENT, orchestrator_operator_token=OPERATOR
    )
    async with asking(app) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def session_for(database_url: str, question_id: str) -> str:
    """A session key as redeeming a link for this question makes it."""
    key, until = scopes.new_key(), now() + timedelta(hours=1)
    storage = Storage(database_url)
    async with storage.writing() as session:
        session.add(
            tables.Link(
                id=f"link-{question_id}",
                token_hash=scopes.hash_of(scopes.new_key()),
                purpose="answer",
                question_id=question_id,
                made_by="agent",
                made_at=now(),
                expires_at=until,
                uses=1,
                uses_left=0,
            )
        )
        await session.flush()
        session.add(
            tables.Session(
                id=f"session-{question_id}",
                key_hash=scopes.hash_of(key),
                link_id=f"link-{question_id}",
                made_at=now(),
                expires_at=until,
            )
        )
    await storage.close()
    return key


async def test_an_agent_asks_the_person_answers_the_agent_reads(
    client: httpx.AsyncClient, database_url: str
) -> None:
    asked = await client.post("/api/questions", json={"question": "Delete it?"}, headers=bearer(AGENT))
    assert asked.status_code == 201
    path = f"/api/questions/{asked.json()['id']}"
    person = bearer(await session_for(database_url, asked.json()["id"]))
    assert (await client.get(path, headers=person)).json()["question"] == "Delete it?"
    waiting = asyncio.create_task(client.get(f"{path}?wait_s=20", headers=bearer(AGENT)))
    given = {"text": "Yes, <b>all</b> of it.", "idempotency_key": "press-1"}
    for _ in range(2):
        assert (await client.post(f"{path}/answer", json=given, headers=person)).status_code == 200
    assert (await waiting).json()["answer"] == "Yes, <b>all</b> of it."
    late = await client.post(f"{path}/answer", json={"text": "No"}, headers=person)
    assert (late.status_code, late.json()["code"]) == (409, "already_answered")
    listed = (await client.get("/api/questions?state=answered", headers=bearer(OPERATOR))).json()
    assert [row["id"] for row in listed] == [asked.json()["id"]]


async def test_who_may_do_what(client: httpx.AsyncClient, database_url: str) -> None:
    ids = [
        (await client.post("/api/questions", json={"question": text}, headers=bearer(AGENT))).json()["id"]
        for text in ("mine?", "another's?")
    ]
    person = bearer(await session_for(database_url, ids[0]))
    say = {"text": "Yes"}

    async def code(method: str, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, str]:
        got = await client.request(method, f"/api/questions{path}", json=body, headers=headers)
        return got.status_code, got.json().get("code", "") if isinstance(got.json(), dict) else ""

    assert await code("GET", f"/{ids[1]}", person) == (404, "not_found")
    assert await code("POST", f"/{ids[1]}/answer", person, say) == (404, "not_found")
    assert await code("GET", "/unknown", bearer(AGENT)) == (404, "not_found")
    assert await code("POST", f"/{ids[0]}/answer", bearer(AGENT), say) == (403, "wrong_scope")
    assert await code("POST", "", person, {"question": "?"}) == (403, "wrong_scope")
    assert await code("GET", "", person) == (403, "wrong_scope")
    assert await code("GET", f"/{ids[0]}", bearer("x" * 43)) == (401, "wrong_key")
    assert await code("GET", f"/{ids[0]}", {}) == (404, "not_found")  # an open line: a caller without a link
    assert await code("POST", "", {}, {"question": "?"}) == (401, "no_key")
    assert await code("POST", f"/{ids[0]}/decline", bearer(OPERATOR)) == (200, "")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"question": ""},
        {"question": "\x00\x07"},
        {"question": "x" * 2001},
        {"question": "x", "choices": ["a"] * 13},
        {"question": "x", "deadline_minutes": 0},
        {"question": "x", "deadline_minutes": 10**9},
        {"question": "x", "unknown": True},
        {"question": ["x"]},
    ],
)
async def test_what_cannot_be_asked_is_refused(make_app: Any, body: Any) -> None:
    async with asking(make_app(orchestrator_agent_token=AGENT)) as client:
        got = await client.post("/api/questions", json=body, headers=bearer(AGENT))
    assert (got.status_code, got.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": "\x1b[0m"}, {"text": "x" * 16001}, {"text": 1}])
async def test_what_is_no_answer_is_refused(make_app: Any, body: Any) -> None:
    async with asking(make_app(orchestrator_operator_token=OPERATOR)) as client:
        asked = await client.post("/api/questions", json={"question": "?"}, headers=bearer(OPERATOR))
        path = f"/api/questions/{asked.json()['id']}/answer"
        got = await client.post(path, json=body, headers=bearer(OPERATOR))
    assert (got.status_code, got.json()["code"]) == (422, "invalid_request")
