"""Who may speak, and to which engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator.authorize import (
    RESERVED_S,
    Doors,
    Granted,
    Ledger,
    Refused,
    Unclear,
    answer,
    origin_of,
)
from orchestrator.engines import (
    Engine,
    EngineFiles,
    Failure,
    Peer,
    Phase,
    SocketsUnreadableError,
    Told,
    read_sockets,
)
from orchestrator.line import Line, Seen, Surroundings
from orchestrator.refusal import Refusal

from .conftest import Kernel, Notes, asking, settings

# ------------------------------------------------------------------------ origins


@pytest.mark.parametrize(
    ("origin", "parts"),
    [
        ("https://line.example.org", ("https", "line.example.org", 443)),
        ("http://line.example.org", ("http", "line.example.org", 80)),
        ("HTTPS://Line.Example.ORG:8998", ("https", "line.example.org", 8998)),
        ("https://[2001:DB8:0::1]:8998", ("https", "2001:db8::1", 8998)),
        ("https://10.0.0.7:8998", ("https", "10.0.0.7", 8998)),
        ("null", None),
        ("", None),
        ("line.example.org", None),
        ("file://", None),
        ("chrome-extension://abcdef", None),
        ("https://line.example.org/path", None),
        ("https://user@line.example.org", None),
        ("https://line.example.org:99999", None),
        ("https://line.example.org:x", None),
        ("https://[::1", None),
        ("https://a.example, https://b.example", None),
    ],
)
def test_an_origin_is_taken_apart(origin: str, parts: object) -> None:
    assert origin_of(origin) == parts


DOORS = Doors.of(settings())


@given(st.text() | st.from_regex(r"https?://[a-z.:\[\]0-9@/-]{0,40}", fullmatch=True))
def test_no_origin_makes_it_fail(text: str) -> None:
    assert DOORS.admit(text) is False or origin_of(text) is not None


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("https://line.example.org:8998", True),
        ("https://LINE.example.org:8998", True),
        (None, True),  # a program, not a browser
        ("https://localhost:8998", True),
        ("https://localhost:9000", True),  # the near end of a tunnel
        ("http://127.0.0.1:9000", True),
        ("https://[::1]:8998", True),
        ("https://voice.example.org:8998", True),
        ("https://10.0.0.7:8998", True),
        ("https://voice.example.org", False),
        ("http://line.example.org:8998", False),  # another scheme is another origin
        ("https://line.example.org", False),  # and so is another port
        ("https://evil.example", False),
        ("https://line.example.org.evil.example:8998", False),
        ("https://localhost.evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_page_calls_from_the_lines_own_address_or_this_machine(origin: str | None, admitted: bool) -> None:
    doors = Doors.of(settings(line_names="voice.example.org,10.0.0.7"))
    assert doors.admit(origin) is admitted


def test_a_gateway_that_maps_ports_is_in_the_url() -> None:
    """Vast: the line's own port is 8998, the world sees another one."""
    doors = Doors.of(settings(moshi_url="https://203.0.113.5:41234", line_names="line.example.org"))
    assert doors.admit("https://203.0.113.5:41234")
    assert doors.admit("https://line.example.org:41234")
    assert doors.admit("https://line.example.org:8998")
    assert not doors.admit("https://203.0.113.5:41235")


# ------------------------------------------------------------------------ deciding


def ready(number: int, *callers: int) -> Engine:
    return Engine(
        number, 8999 + number, listening=True, peers=frozenset(Peer("127.0.0.1", c) for c in callers)
    )


def telling(number: int, *calls: str, slots: int = 2, is_ready: bool = True) -> Engine:
    """An engine that says itself what it carries."""
    told = Told(ready=is_ready, slots=slots, calls=frozenset(calls))
    return Engine(number, 8999 + number, listening=True, told=told)


def seeing(engines: Sequence[Engine]) -> Callable[[], Awaitable[Seen]]:
    async def look() -> Seen:
        return Seen(engines, asyncio.get_running_loop().time())

    return look


def down(number: int, *, phase: str = "", failures: int = 0) -> Engine:
    files = EngineFiles(Phase(phase) if phase else None, Failure("other", "", failures) if failures else None)
    return Engine(number, 8999 + number, listening=False, files=files)


def ask(ledger: Ledger, engines: Sequence[Engine], now: float = 0.0, *, admitted: bool = True) -> Any:
    return ledger.ask(admitted=admitted, engines=engines, now=now)


@pytest.mark.parametrize(
    ("engines", "refusal"),
    [
        ([ready(0, 40000)], Refusal.LINE_FULL),
        ([telling(0, "a", "b")], Refusal.LINE_FULL),
        ([telling(0, is_ready=False)], Refusal.STARTING),
        ([Engine(0, 8999, listening=True, told=Told(silence="it hangs"))], Refusal.LINE_DOWN),
        ([ready(0, 40000), down(1, phase="loading")], Refusal.LINE_FULL),
        ([down(0, phase="loading")], Refusal.STARTING),
        ([down(0, phase="fetching"), down(1, failures=3)], Refusal.STARTING),
        ([down(0, failures=1)], Refusal.STARTING),
        ([down(0, failures=3)], Refusal.LINE_DOWN),
        ([down(0, phase="failed")], Refusal.LINE_DOWN),
        ([down(0, phase="stopped")], Refusal.LINE_DOWN),
        ([down(0)], Refusal.LINE_DOWN),
    ],
)
def test_why_a_call_is_refused(engines: list[Engine], refusal: Refusal) -> None:
    assert ask(Ledger(), engines) == Refused(refusal)


def test_who_is_not_admitted_learns_nothing_about_the_engines() -> None:
    assert ask(Ledger(), [ready(0)], admitted=False) == Refused(Refusal.NOT_ALLOWED)
    assert ask(Ledger(), [down(0)], admitted=False) == Refused(Refusal.NOT_ALLOWED)


def test_an_engine_that_is_down_is_passed_over() -> None:
    assert ask(Ledger(), [down(0, failures=3), ready(1)]) == Granted(1)


def test_two_callers_of_the_same_instant_get_different_engines() -> None:
    ledger, engines = Ledger(), [ready(0), ready(1)]
    assert [ask(ledger, engines), ask(ledger, engines)] == [Granted(0), Granted(1)]
    assert ask(ledger, engines) == Unclear(RESERVED_S)


def test_a_reservation_ends_when_its_call_is_seen() -> None:
    ledger = Ledger()
    assert ask(ledger, [ready(0)], 0.0) == Granted(0)
    assert ask(ledger, [ready(0, 40000)], 0.1) == Refused(Refusal.LINE_FULL)
    # The caller hangs up at once and calls again: nothing is left of the first answer.
    assert ask(ledger, [ready(0)], 0.2) == Granted(0)


def test_a_reservation_ends_by_itself_when_its_call_never_comes() -> None:
    ledger = Ledger()
    assert ask(ledger, [ready(0)], 0.0) == Granted(0)
    assert ask(ledger, [ready(0)], RESERVED_S - 0.01) == Unclear(RESERVED_S)
    assert ask(ledger, [ready(0)], RESERVED_S) == Granted(0)


def test_engines_are_filled_evenly() -> None:
    ledger = Ledger()
    engines = [telling(0, "a"), telling(1), telling(2, "b")]
    granted = [ask(ledger, engines, 0.0) for _ in range(4)]
    assert granted == [Granted(1), Granted(0), Granted(2), Granted(1)]


def test_among_equals_the_engine_called_longest_ago_is_next() -> None:
    ledger, engines = Ledger(), [ready(0), ready(1), ready(2)]
    granted = [ask(ledger, engines, now * 10.0) for now in range(6)]
    assert [decision.engine for decision in granted] == [0, 1, 2, 0, 1, 2]


def test_an_engine_with_room_for_many_is_filled_to_the_brim_and_no_further() -> None:
    ledger = Ledger()
    calls: list[str] = []
    for number in range(3):
        assert ask(ledger, [telling(0, *calls, slots=3)], float(number)) == Granted(0)
        calls.append(f"call-{number}")
    assert ask(ledger, [telling(0, *calls, slots=3)], 3.0) == Refused(Refusal.LINE_FULL)
    assert ask(ledger, [telling(0, *calls[1:], slots=3)], 4.0) == Granted(0)


@given(
    conversations=st.integers(1, 3),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["ask", "connect", "hang up", "never comes", "wait"]),
            st.integers(0, 2),
            st.integers(0, 12),
        ),
        max_size=60,
    ),
)
def test_no_engine_ever_gets_more_than_it_carries(
    conversations: int, steps: list[tuple[str, int, int]]
) -> None:
    """Whatever callers do, as long as nginx connects within the reservation's time or not at all."""
    ledger, now, ids = Ledger(), 0.0, (f"call-{number}" for number in count())
    connected: list[set[str]] = [set(), set(), set()]
    on_the_way: list[list[float]] = [[], [], []]

    def engines() -> list[Engine]:
        return [telling(number, *callers, slots=conversations) for number, callers in enumerate(connected)]

    for what, number, quarters in steps:
        if what == "ask":
            decision = ask(ledger, engines(), now)
            if isinstance(decision, Granted):
                on_the_way[decision.engine].append(now)
        elif what == "connect" and on_the_way[number]:
            if now - on_the_way[number].pop(0) < RESERVED_S:
                connected[number].add(next(ids))
        elif what == "hang up" and connected[number]:
            connected[number].pop()
        elif what == "wait":
            now += quarters / 4  # exact, so that both sides agree on when two seconds are over
        on_the_way = [[at for at in waiting if now - at < RESERVED_S] for waiting in on_the_way]
        for callers, waiting in zip(connected, on_the_way, strict=True):
            assert len(callers) + len(waiting) <= conversations


@given(
    conversations=st.integers(1, 2),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["look", "ask", "ask", "connect", "hang up", "never comes", "wait"]),
            st.integers(0, 1),
            st.integers(0, 12),
        ),
        max_size=60,
    ),
)
def test_no_engine_ever_gets_more_than_it_carries_however_old_the_look_is_that_callers_share(
    conversations: int, steps: list[tuple[str, int, int]]
) -> None:
    ledger, now, ids = Ledger(), 0.0, (f"call-{number}" for number in count())
    connected: list[set[str]] = [set(), set()]
    on_the_way: list[list[float]] = [[], []]

    def look() -> Seen:
        found = [telling(number, *callers, slots=conversations) for number, callers in enumerate(connected)]
        return Seen(found, now)

    seen = look()
    for what, number, quarters in steps:
        if what == "look":
            seen = look()
        elif what == "ask":
            decision = ledger.ask(admitted=True, engines=seen.engines, now=now, seen_at=seen.at)
            if isinstance(decision, Granted):
                on_the_way[decision.engine].append(now)
        elif what == "connect" and on_the_way[number]:
            if now - on_the_way[number].pop(0) < RESERVED_S:
                connected[number].add(next(ids))
        elif what == "hang up" and connected[number]:
            connected[number].pop()
        elif what == "wait":
            now += quarters / 4
        on_the_way = [[at for at in waiting if now - at < RESERVED_S] for waiting in on_the_way]
        for callers, waiting in zip(connected, on_the_way, strict=True):
            assert len(callers) + len(waiting) <= conversations
    # And none is lost: once all have hung up or stayed away, a look gives every slot again.
    connected, now = [set(), set()], now + RESERVED_S
    seen = look()
    decisions = [
        ledger.ask(admitted=True, engines=seen.engines, now=now, seen_at=seen.at)
        for _ in range(2 * conversations)
    ]
    assert all(isinstance(decision, Granted) for decision in decisions)


# ------------------------------------------------------------------------ looking


class SlowKernel:
    """Reads of the kernel's table that end when told to; counts them."""

    def __init__(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.now = 0, 100.0
        self.may_end = threading.Event()
        self.may_end.set()

        def slowly(*asked: Any) -> Any:
            self.reads += 1
            self.may_end.wait(10)
            return read_sockets(*asked)

        monkeypatch.setattr("orchestrator.line.read_sockets", slowly)
        line.surroundings = replace(line.surroundings, clock=lambda: self.now, shared_s=0.1)


async def test_a_look_is_shared_by_all_who_ask_within_a_moment(
    surroundings: Surroundings, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.listen(8999)
    line = Line(settings(), surroundings)
    slow = SlowKernel(line, monkeypatch)
    first = await asyncio.gather(*(line.glance() for _ in range(50)))
    assert slow.reads == 1
    assert {seen.at for seen in first} == {100.0}
    slow.may_end.clear()
    slow.now = 100.06
    assert await line.glance() == first[0], "nobody waits for the look that is made for the next"
    await asyncio.sleep(0)
    slow.now = 100.11
    late = asyncio.create_task(line.glance())
    await asyncio.sleep(0)
    assert not late.done(), "what is older than that is good for nobody"
    slow.may_end.set()
    assert (await late).at == 100.06
    assert slow.reads == 2


async def test_who_looks_anew_sees_what_happened_before_he_looked(
    surroundings: Surroundings, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(settings(), surroundings)
    slow = SlowKernel(line, monkeypatch)
    slow.may_end.clear()
    earlier = asyncio.create_task(line.look())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kernel.listen(8999)
    later = [asyncio.create_task(line.look()) for _ in range(5)]
    await asyncio.sleep(0)
    slow.may_end.set()
    await asyncio.gather(earlier, *later)
    assert all(task.result().engines[0].listening for task in later)
    assert slow.reads == 2, "those who came during a look share the next"


async def test_a_look_that_fails_is_told_to_who_waits_for_it_and_made_again(
    surroundings: Surroundings, kernel: Kernel
) -> None:
    line = Line(settings(), replace(surroundings, shared_s=0.1))
    (kernel.folder / "tcp").rename(kernel.folder / "away")
    with pytest.raises(SocketsUnreadableError):
        await line.glance()
    (kernel.folder / "away").rename(kernel.folder / "tcp")
    assert len((await line.glance()).engines) == 1


# ------------------------------------------------------------------------ waiting


async def test_who_asks_while_it_is_unclear_waits_until_it_is_clear() -> None:
    loop = asyncio.get_running_loop()
    ledger, engines = Ledger(), [ready(0)]
    first = await answer(ledger, admitted=True, look=seeing(engines), clock=loop.time)
    second = asyncio.create_task(answer(ledger, admitted=True, look=seeing(engines), clock=loop.time))
    await asyncio.sleep(0.1)
    assert first == Granted(0)
    assert not second.done()
    engines[:] = [ready(0, 40000)]  # the first call shows up
    assert await asyncio.wait_for(second, 0.5) == Refused(Refusal.LINE_FULL)


async def test_who_waits_gets_the_engine_when_the_first_call_never_comes() -> None:
    loop = asyncio.get_running_loop()
    ledger = Ledger()
    began = loop.time()
    answers = await asyncio.gather(
        *(answer(ledger, admitted=True, look=seeing([ready(0)]), clock=loop.time) for _ in range(2))
    )
    assert answers == [Granted(0), Granted(0)]
    assert RESERVED_S <= loop.time() - began < RESERVED_S + 0.5


async def test_nobody_waits_longer_than_a_reservation_however_many_ask() -> None:
    loop = asyncio.get_running_loop()
    ledger = Ledger()
    began = loop.time()
    answers = await asyncio.gather(
        *(answer(ledger, admitted=True, look=seeing([ready(0)]), clock=loop.time) for _ in range(20))
    )
    assert loop.time() - began < RESERVED_S + 1.0
    assert answers.count(Granted(0)) == 2  # the first, and one after its reservation ended
    assert answers.count(Refused(Refusal.LINE_FULL)) == 18


# ------------------------------------------------------------------------ over HTTP


async def test_nginx_is_told_the_engine_and_the_call(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with asking(make_app()) as client:
        got = await client.get(
            "/internal/authorize",
            headers={"Origin": "https://line.example.org:8998", "X-Original-URI": "/api/chat?voice=x"},
        )
    assert (got.status_code, got.content) == (204, b"")
    assert (got.headers["X-Engine"], got.headers["X-Call-Id"]) == ("moshi_0", "call-1")
    assert "X-Refusal" not in got.headers


def test_every_call_has_an_id_of_its_own() -> None:
    ids = {Surroundings().new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 36 for one in ids)


async def test_several_engines_are_named_by_their_upstreams(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999, 9000)
    async with asking(make_app(line_engines="0,1")) as client:
        answers = [await client.get("/internal/authorize") for _ in range(2)]
    assert [got.headers["X-Engine"] for got in answers] == ["moshi_0", "moshi_1"]


async def test_a_busy_engine_a_caller_that_hung_up_and_one_that_left_unnoticed(
    make_app: Any, kernel: Kernel
) -> None:
    kernel.listen(8999)
    async with asking(make_app()) as client:

        async def refusal() -> str | None:
            got = await client.get("/internal/authorize")
            return str(got.headers["X-Refusal"]) if "X-Refusal" in got.headers else None

        caller = kernel.connect(8999)
        assert await refusal() == "line_full"
        kernel.hang_up(caller)
        kernel.connect(8999, state="close_wait")
        assert await refusal() == "line_full"
        kernel.close(8999)
        kernel.listen(8999)
        kernel.connect(8999, state="time_wait")
        assert await refusal() is None


@pytest.mark.parametrize(
    ("headers", "note", "status", "code"),
    [
        ({"Origin": "https://evil.example"}, "ready", 403, "not_allowed"),
        ({}, "stopped", 503, "line_down"),
        ({}, "loading", 503, "starting"),
        ({}, "failed", 503, "line_down"),
    ],
)
async def test_nginx_is_told_why_not(
    make_app: Any, notes: Notes, *, headers: dict[str, str], note: str, status: int, code: str
) -> None:
    notes.leave(0, "phase", phase=note)
    async with asking(make_app()) as client:
        got = await client.get("/internal/authorize", headers=headers)
    assert (got.status_code, got.headers["X-Refusal"]) == (status, code)
    assert got.headers["Content-Type"] == "application/problem+json"
    assert got.json()["code"] == code
    assert "X-Engine" not in got.headers


async def test_when_the_sockets_are_hidden_nobody_is_let_in(
    make_app: Any, kernel: Kernel, caplog: Any
) -> None:
    (kernel.folder / "tcp").unlink()
    async with asking(make_app()) as client:
        got = await client.get("/internal/authorize")
    assert (got.status_code, got.headers["X-Refusal"]) == (503, "line_down")
    assert "ProcSubset" in caplog.text
