"""A call from the wish for it to its record, with engines that come, go and lie."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from orchestrator.app import create_app
from orchestrator.engines import Engine, Told
from orchestrator.events import BOOT, Log, after_of, lines
from orchestrator.line import Line, Surroundings
from orchestrator.scopes import Identity, Scope
from orchestrator.storage import Storage
from orchestrator.switchboard import CONNECTING_S, LEFT_S, Call, State, Switchboard, latency_of
from orchestrator.tickets import TICKET_S, Tickets
from orchestrator.waiting import CALLED_S

from orchestrator import records

from .conftest import OPERATOR, TOKENS, Clock, Kernel, asking, bearer, settings

ANYBODY = Identity(Scope.CALLER)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def around(surroundings: Surroundings, clock: Clock) -> Surroundings:
    """Surroundings in which time passes only when told to."""
    return replace(surroundings, clock=clock)


@asynccontextmanager
async def board(around: Surroundings, storage: Storage, **changed: Any) -> AsyncIterator[Switchboard]:
    """A switchboard that looks only when told to."""
    made = Switchboard(Line(settings(**changed), around), storage)
    await made.start()
    for task in made._tasks:
        task.cancel()
    try:
        yield made
    finally:
        await made.stop()


def duplex(
    number: int = 0, *, slots: int = 1, calls: set[str] = frozenset(), silence: str = "", up: bool = True
) -> Engine:  # type: ignore[assignment]
    """An engine that says what it carries."""
    return Engine(number, 8999 + number, up, told=Told(True, False, slots, frozenset(calls), silence))


async def ask(switchboard: Switchboard, question: str | None = None) -> Call:
    return await switchboard.ask(ANYBODY, question)


def kinds(call: Call) -> list[str]:
    return [kind for _, kind, _ in call.log.said]


# ----------------------------------------------------------------------------------------- waiting and coming


async def test_a_free_line_calls_at_once_and_a_full_one_lets_wait(
    around: Any, storage: Storage, kernel: Kernel
) -> None:
    kernel.listen(8999)
    async with board(around, storage) as b:
        first, second, third = [await ask(b) for _ in range(3)]
        assert [c.state for c in (first, second, third)] == [State.CALLED, State.WAITING, State.WAITING]
        assert (second.told, third.told) == ((1, 180), (2, 360))


async def test_several_engines_are_filled_evenly(around: Any, storage: Storage, kernel: Kernel) -> None:
    kernel.listen(8999, 9000, 9001)
    async with board(around, storage, line_engines="0,1,2") as b:
        calls = [await ask(b) for _ in range(4)]
        assert [c.state for c in calls] == [State.CALLED] * 3 + [State.WAITING]
        chosen = [(await b.connect(c, "page", None))[0].engine for c in calls[:3]]
        assert sorted(filter(lambda n: n is not None, chosen)) == [0, 1, 2]


async def test_a_call_from_ring_to_record(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock
) -> None:
    kernel.listen(8999)
    async with board(around, storage) as b:
        call, waits = await ask(b), await ask(b)
        ticket = b.tickets.issue(call.id)
        assert b.by_ticket(ticket.word) is call
        assert b.by_ticket(ticket.word) is None  # once
        await b.connect(call, "page", None)
        far = kernel.connect(8999)
        await b.look()
        assert call.state is State.TALKING
        assert waits.state is State.WAITING
        kernel.hang_up(far)
        await b.look()
        assert (call.state, call.reason) == (State.ENDED, "hung_up")
        await b.look()
        assert waits.state is State.CALLED
        assert kinds(waits) == ["ready"]  # of states only the last is true
    [row] = [row for row in await all_calls(storage) if row.id == call.id]
    assert (row.state, row.engine, row.reason, row.voice) == ("ended", 0, "hung_up", "moshiko")
    assert row.asked_at <= row.called_at <= row.began_at <= row.ended_at


async def all_calls(storage: Storage) -> Any:
    from sqlalchemy import select

    from orchestrator import tables

    async with storage.reading() as session:
        return list((await session.execute(select(tables.Call).order_by(tables.Call.asked_at))).scalars())


async def test_who_does_not_come_is_passed_over_and_called_again(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock
) -> None:
    kernel.listen(8999)
    async with board(around, storage) as b:
        asleep, other = await ask(b), await ask(b)
        asleep.listeners = other.listeners = 1
        clock.now += CALLED_S + 0.1
        await b.look()
        assert (asleep.state, other.state) == (State.WAITING, State.CALLED)
        assert asleep.told == (1, 180)  # it keeps its place
        clock.now += 2 * CALLED_S
        await b.look()
        await b.look()
        assert (asleep.state, other.state) == (State.CALLED, State.WAITING)


@pytest.mark.parametrize("sleeps", ["passed over", "gone"])
async def test_who_sleeps_does_not_stand_in_the_way_of_who_asks(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock, sleeps: str
) -> None:
    async with board(around, storage) as b:
        asleep = await ask(b)
        if sleeps == "passed over":
            kernel.listen(8999)
            await b.look()
            asleep.listeners = 1
            clock.now += CALLED_S + 0.1
            await b.look()
        else:
            clock.now += 60
            kernel.listen(8999)
        assert asleep.state is State.WAITING
        assert (await ask(b)).state is State.CALLED  # at once, with the answer


async def test_a_page_that_went_away_keeps_its_place_for_a_while(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock
) -> None:
    async with board(around, storage) as b:
        gone = await ask(b)
        clock.now += 60
        kernel.listen(8999)
        await b.look()
        assert gone.state is State.WAITING  # nobody would hear the ringing
        gone.listeners = 1
        await b.look()
        assert gone.state is State.CALLED
        left = await ask(b)
        clock.now += LEFT_S + 1
        await b.look()
        assert (left.state, left.reason) == (State.ENDED, "left")


async def test_patience_has_an_end(around: Any, storage: Storage, clock: Clock) -> None:
    async with board(around, storage, queue_patience_s=60) as b:
        call = await ask(b)
        call.listeners = 1
        clock.now += 61
        await b.look()
        assert (call.state, call.reason) == (State.ENDED, "no_patience")
        assert kinds(call)[-1] == "ended"


async def test_who_answers_a_question_is_called_first(around: Any, storage: Storage, kernel: Kernel) -> None:
    async with board(around, storage) as b:
        talks, answers = await ask(b), await ask(b, "q1")
        assert answers.told == (1, None)
        kernel.listen(8999)
        await b.look()
        assert (talks.state, answers.state) == (State.WAITING, State.CALLED)


async def test_a_page_that_is_loaded_again_has_its_place_still(around: Any, storage: Storage) -> None:
    async with board(around, storage) as b:
        who = Identity(Scope.CALLER, session_id=None)
        assert await b.ask(who, None) is not await b.ask(who, None)
    # With a session it is the same call; see test_a_session_waits_once.


async def test_a_newcomer_does_not_get_a_slot_that_others_wait_for(
    around: Any, storage: Storage, kernel: Kernel
) -> None:
    kernel.listen(8999)
    async with board(around, storage) as b:
        await ask(b)  # called: the slot is his
        _, decision = await b.connect(None, "open", None)
        assert "line_full" in str(decision)


# --------------------------------------------------------------------- what engines say, and what they do not


async def test_a_call_lasts_as_long_as_its_engine_carries_it(
    around: Any, storage: Storage, clock: Clock
) -> None:
    async with board(around, storage, moshi_engine="duplex") as b:
        call = await ask(b)
        b.settle([duplex()], clock.now)
        assert call.state is State.CALLED
        call.state, call.engine, call.until = State.CONNECTING, 0, clock.now + CONNECTING_S
        b.settle([duplex(calls={call.id})], clock.now)
        assert call.state is State.TALKING
        b.settle([duplex(silence="it hangs")], clock.now)
        assert call.state is State.TALKING  # nobody knows: nothing is concluded
        b.hear("ended", {"call": call.id, "reason": "idle", "at": 1.0})
        b.settle([duplex()], clock.now)
        assert (call.state, call.reason) == (State.ENDED, "idle")


async def test_an_end_that_nobody_told_is_an_end(around: Any, storage: Storage, clock: Clock) -> None:
    async with board(around, storage, moshi_engine="duplex") as b:
        lost, killed = await ask(b), await ask(b)
        for number, call in enumerate((lost, killed)):
            call.state, call.engine = State.CONNECTING, number
        b.settle([duplex(0, calls={lost.id}), duplex(1, calls={killed.id})], clock.now)
        for _ in range(2):
            b.settle([duplex(0), duplex(1, up=False)], clock.now)
            clock.now += 2
        assert (lost.state, lost.reason) == (State.ENDED, "hung_up")
        assert (killed.state, killed.reason) == (State.ENDED, "engine_lost")


async def test_a_broken_call_gets_its_engine_back_even_when_the_line_is_full(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock
) -> None:
    kernel.listen(8999)
    async with board(around, storage, moshi_engine="duplex") as b:
        call = await ask(b)
        call.state, call.engine = State.TALKING, 0
        b.line.told[0] = (clock.now + 1, Told(True, False, 1, frozenset({call.id})))
        _, decision = await b.connect(call, "page", None)
        assert "engine=0" in str(decision)


async def test_both_sides_are_written_down(around: Any, storage: Storage, clock: Clock) -> None:
    async with board(around, storage, moshi_engine="duplex") as b:
        call = await ask(b)
        call.state, call.engine = State.CONNECTING, 0
        b.settle([duplex(calls={call.id})], clock.now)
        begun = call.began_at.timestamp() if call.began_at else 0
        for at, text in ((1, " Hel"), (1.1, "lo"), (1.2, " there."), (9, " Well?")):
            b.hear("text", {"call": call.id, "text": text, "at": begun + at})
        said = {"who": "caller", "text": "Hi!", "final": True, "start_ms": 2000, "end_ms": 2500}
        b.hear("transcript", {"call": call.id, "at": begun + 3} | said)
        b.hear(
            "transcript", {"call": call.id, "at": begun + 3, "who": "caller", "text": "Hi", "final": False}
        )
        b.hear("text", {"call": "another", "text": "lost", "at": begun + 3})
        await b.hang_up(call, "operator")
        b._end(call, "operator")
    kept = await records.transcript(storage, call.id)
    assert [(one.who, one.text) for one in kept] == [
        ("moshi", "Hello there."),
        ("caller", "Hi!"),
        ("moshi", "Well?"),
    ]
    assert (kept[0].start_ms, kept[0].end_ms) == (1000, 1200)


@pytest.mark.parametrize(("status", "reason"), [(202, "operator"), (500, "hung_up")])
async def test_who_ended_a_call_first_is_its_reason(
    around: Any, storage: Storage, clock: Clock, status: int, reason: str
) -> None:
    async with board(around, storage, moshi_engine="duplex") as b:
        call = await ask(b)
        call.state, call.engine = State.TALKING, 0
        answers = iter([status, 202])
        await b._http.aclose()
        b._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(next(answers))))
        assert await b.hang_up(call, "operator") is (status == 202)
        await b.hang_up(call, "hung_up")  # the page, which was told, gives its place back
        b.settle([duplex(calls=set())], clock.now)
        assert (call.state, call.reason) == (State.ENDED, reason)


async def test_no_words_are_kept_where_none_are_to_be(around: Any, storage: Storage) -> None:
    async with board(around, storage, transcript_retention_days=0) as b:
        call = await ask(b)
        b.hear("transcript", {"call": call.id, "at": 1.0, "who": "caller", "text": "Hi!", "final": True})
    assert await records.transcript(storage, call.id) == []


def test_latency_is_summed_up() -> None:
    assert latency_of([], {}) is None
    summed = latency_of([float(n) for n in range(100)], {"heard": 2})
    assert summed == {
        "turnaround_ms": {"p50": 50.0, "p95": 95.0, "p99": 99.0},
        "dropped": {"heard": 2},
        "samples": 100,
    }


# ---------------------------------------------------------------------------------------- coming back to life


async def test_a_restart_keeps_the_queue_and_finds_the_calls(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock
) -> None:
    kernel.listen(8999)
    async with board(around, storage) as b:
        talks, waits, waits_too = [await ask(b) for _ in range(3)]
        await b.connect(talks, "page", None)
        far = kernel.connect(8999)
        await b.look()
        await b.records.saved(talks.facts())
    async with board(around, storage) as b:
        assert [c.id for c in b.calls.values()] == [talks.id, waits.id, waits_too.id]
        await b.look()
        states = [b.calls[c.id].state for c in (talks, waits, waits_too)]
        assert states == [State.TALKING, State.WAITING, State.WAITING]
        kernel.hang_up(far)
        await b.look()
        await b.look()
        states = [b.calls[c.id].state for c in (talks, waits, waits_too)]
        assert states == [State.ENDED, State.CALLED, State.WAITING]


async def test_a_call_that_was_let_in_just_before_a_kill_goes_on(around: Any, storage: Storage) -> None:
    async with board(around, storage) as b:
        call = await ask(b)  # all that was written down: it waits
    async with board(around, storage) as b:
        found = b.calls[call.id]
        assert found.state is State.WAITING
        b.settle([duplex(1, slots=2, calls={call.id})], b.clock())
        assert (found.state, found.engine, kinds(found)[-1]) == (State.TALKING, 1, "began")


async def test_a_call_that_ended_while_nobody_looked_has_ended(
    around: Any, storage: Storage, kernel: Kernel, clock: Clock
) -> None:
    kernel.listen(8999)
    async with board(around, storage) as b:
        call = await ask(b)
        await b.connect(call, "page", None)
        far = kernel.connect(8999)
        await b.look()
    kernel.hang_up(far)
    async with board(around, storage) as b:
        clock.now += CONNECTING_S + 1
        await b.look()
        found = b.calls[call.id]
        assert (found.state, found.reason) == (State.ENDED, "lost")


# ------------------------------------------------------------------------------------------- through the door


@pytest.fixture
def closed(surroundings: Surroundings, sqlite_url: str) -> Any:
    given = {"database_url": sqlite_url, "line_access": "links"} | TOKENS
    return create_app(settings(**given), surroundings)


async def a_key(client: httpx.AsyncClient) -> str:
    made = (await client.post("/api/links", json={}, headers=bearer(OPERATOR))).json()
    opened = await client.post("/api/links/redeem", json={"token": made["url"].partition("#t=")[2]})
    return str(opened.json()["key"])


def chat(ticket: str) -> dict[str, str]:
    return {"X-Original-URI": f"/api/chat?ticket={ticket}", "Origin": "https://line.example.org:8998"}


async def test_a_line_with_links_opens_to_a_ticket_once(closed: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with asking(closed) as client:
        key = await a_key(client)
        refused = await client.get("/internal/authorize")
        assert (refused.status_code, refused.headers["x-refusal"]) == (403, "link_needed")
        call = (await client.post("/api/calls", headers=bearer(key))).json()
        assert call["state"] == "ready"
        let_in = await client.get("/internal/authorize", headers=chat(call["ticket"]))
        assert let_in.status_code == 204
        assert (let_in.headers["x-engine"], let_in.headers["x-call-id"]) == ("moshi_0", call["id"])
        again = await client.get("/internal/authorize", headers=chat(call["ticket"]))
        assert (again.status_code, again.headers["x-refusal"]) == (403, "ticket_invalid")


async def test_a_ticket_does_not_open_for_a_page_from_elsewhere(closed: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with asking(closed) as client:
        call = (await client.post("/api/calls", headers=bearer(await a_key(client)))).json()
        foreign = chat(call["ticket"]) | {"Origin": "https://evil.example"}
        assert (await client.get("/internal/authorize", headers=foreign)).headers[
            "x-refusal"
        ] == "not_allowed"


@pytest.mark.parametrize("token", ["key", OPERATOR])
async def test_a_native_client_gets_in_with_its_key(closed: Any, kernel: Kernel, token: str) -> None:
    kernel.listen(8999)
    async with asking(closed) as client:
        given = await a_key(client) if token == "key" else token
        let_in = await client.get("/internal/authorize", headers=bearer(given))
        assert let_in.status_code == 204
        wrong = await client.get("/internal/authorize", headers=bearer(given[:-1] + "~"))
        assert wrong.headers["x-refusal"] == "link_needed"


async def test_hotline_ticket_lets_moshis_own_client_in_once(closed: Any, kernel: Kernel) -> None:
    """kyutai's client appends /api/chat to its --url, query or not."""
    kernel.listen(8999)
    async with asking(closed) as client:
        made = (await client.post("/api/tickets", headers=bearer(OPERATOR))).json()
        assert made["url"].startswith("wss://line.example.org:8998/api/chat?ticket=")
        uri = (made["url"] + "/api/chat").removeprefix("wss://line.example.org:8998")
        answers = [
            (await client.get("/internal/authorize", headers={"X-Original-URI": uri})).status_code
            for _ in range(2)
        ]
        assert answers == [204, 403]


async def test_a_session_waits_once_and_comes_back_to_its_call(closed: Any) -> None:
    async with asking(closed) as client:
        key = await a_key(client)
        first, again = [(await client.post("/api/calls", headers=bearer(key))).json() for _ in range(2)]
        assert first["id"] == again["id"]
        assert (first["state"], first["position"]) == ("waiting", 1)
        early = await client.post(f"/api/calls/{first['id']}/ticket", headers=bearer(key))
        assert (early.status_code, early.json()["code"]) == (409, "call_waiting")
        await client.delete(f"/api/calls/{first['id']}", headers=bearer(key))
        over = await client.post(f"/api/calls/{first['id']}/ticket", headers=bearer(key))
        assert (over.status_code, over.json()["code"]) == (409, "call_over")


async def test_a_call_is_its_callers_and_the_operators(closed: Any) -> None:
    async with asking(closed) as client:
        mine, other = await a_key(client), await a_key(client)
        call = (await client.post("/api/calls", headers=bearer(mine))).json()
        path = f"/api/calls/{call['id']}"
        for method, address in (
            ("GET", path),
            ("DELETE", path),
            ("POST", path + "/ticket"),
            ("GET", path + "/events"),
        ):
            refused = await client.request(method, address, headers=bearer(other))
            assert (refused.status_code, refused.json()["code"]) == (404, "call_unknown"), address
        assert (await client.get(path, headers=bearer(mine))).json()["state"] == "waiting"
        assert (await client.get("/api/calls", headers=bearer(mine))).status_code == 403
        [listed] = (await client.get("/api/calls", headers=bearer(OPERATOR))).json()
        assert listed["id"] == call["id"]
        early = await client.delete(path + "/record", headers=bearer(OPERATOR))
        assert (early.status_code, early.json()["code"]) == (409, "call_going_on")
        assert (await client.delete(path, headers=bearer(OPERATOR))).status_code == 204
        await asyncio.sleep(0.1)
        assert (await client.delete(path + "/record", headers=bearer(OPERATOR))).status_code == 204
        assert (await client.get(path, headers=bearer(OPERATOR))).status_code == 404


async def test_an_open_line_needs_no_key_for_a_call(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with asking(make_app()) as client:
        about = (await client.get("/api/line")).json()
        assert about["access"] == "open"
        assert about["transcript"] == {"kept": True, "days": 30}
        assert about["tasks"] is False, "no agent is set up"
        call = (await client.post("/api/calls", json={})).json()
        assert (await client.get("/internal/authorize", headers=chat(call["ticket"]))).status_code == 204
        foreign = await client.post("/api/calls", headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403


async def test_the_events_of_a_call_are_streamed_and_replayed(closed: Any) -> None:
    async with asking(closed) as client:
        key = await a_key(client)
        call = (await client.post("/api/calls", headers=bearer(key))).json()
        path = f"/api/calls/{call['id']}"
        await client.delete(path, headers=bearer(key))
        streamed = await client.get(path + "/events", headers=bearer(key))
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.headers["x-accel-buffering"] == "no"
        events = [block.split("\n") for block in streamed.text.split("\n\n") if "data: " in block]
        assert [block[1] for block in events] == ["event: waiting", "event: ended"]
        assert json.loads(events[1][2].removeprefix("data: ")) == {"reason": "hung_up"}
        after = events[0][0].removeprefix("id: ")
        again = await client.get(path + "/events", headers=bearer(key) | {"Last-Event-ID": after})
        assert "event: waiting" not in again.text
        assert "event: ended" in again.text


async def test_whoever_follows_events_is_let_go_before_the_end(closed: Any) -> None:
    """Otherwise uvicorn would wait five seconds for the stream, and then cut it off with an error."""
    async with asking(closed) as client:
        key = await a_key(client)
        call = (await client.post("/api/calls", headers=bearer(key))).json()
        follows = asyncio.create_task(client.get(f"/api/calls/{call['id']}/events", headers=bearer(key)))
        await asyncio.sleep(0.1)
        assert not follows.done()
        closed.state.goodbye()
        assert "event: waiting" in (await asyncio.wait_for(follows, 5)).text


async def test_the_interface_is_described_to_the_operator_only(closed: Any) -> None:
    async with asking(closed) as client:
        assert (await client.get("/api/openapi.json")).status_code == 401
        assert (await client.get("/openapi.json")).status_code == 404
        described = await client.get("/api/openapi.json", headers=bearer(OPERATOR))
        assert "/api/calls/{call_id}/events" in described.json()["paths"]


# -------------------------------------------------------------------------------------------- tickets, events


def test_a_ticket_is_good_for_thirty_seconds(clock: Clock) -> None:
    tickets = Tickets(clock)
    word = tickets.issue("c").word
    clock.now += TICKET_S + 0.1
    assert tickets.take(word) is None
    first, second = tickets.issue("c").word, tickets.issue("c").word
    assert tickets.take(first) is None  # a new one ends the one before
    assert tickets.take(second) == "c"
    assert tickets._out == tickets._of == {}


@pytest.mark.parametrize(
    ("header", "after"),
    [(None, 0), ("", 0), ("7", 0), (f"{BOOT}-7", 7), (f"{BOOT}-x", 0), (f"{BOOT}-", 0), ("other-7", 0)],
    ids=["none", "empty", "no start", "this start", "no number", "nothing after it", "another start"],
)
def test_where_a_stream_goes_on(header: str | None, after: int) -> None:
    assert after_of(header) == after


async def test_an_event_cannot_smuggle_in_another() -> None:
    log, counted = Log(), [0]
    log.say("transcript", {"text": "a\n\nevent: ended\ndata: {}"})
    log.close()
    sent = b"".join(
        [part async for part in lines(log, 0, lambda: counted.append(1), lambda: counted.append(-1))]
    )
    assert sent.count(b"\nevent: ") == 1
    assert counted == [0, 1, -1]
