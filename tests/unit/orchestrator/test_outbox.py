"""The outbox: who is told what, when, by whom, and that nobody is told twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator.asks import Ask
from orchestrator.messages import BODY_CHARS, CHECKOUT, Message, Texts
from orchestrator.outbox import (
    ATTEMPTS,
    LONGEST_PAUSE,
    MESSAGES_AN_HOUR,
    TAKEN,
    Event,
    Outbox,
    Quiet,
    Reminders,
    Rules,
    TooManyError,
    pause_after,
    reminder_due,
)
from orchestrator.questions import Questions
from orchestrator.senders import NotSentError
from orchestrator.storage import Storage
from sqlalchemy import select

from orchestrator import tables

BERLIN, UTC = ZoneInfo("Europe/Berlin"), timezone.utc
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

# ------------------------------------------------------------------------------------------------- deciding


def test_pauses_grow_to_an_hour() -> None:
    seconds = [pause_after(attempts).total_seconds() for attempts in range(1, 9)]
    assert seconds == [10, 30, 90, 270, 810, 2430, 3600, 3600]
    assert pause_after(1000) == LONGEST_PAUSE


NIGHT = Quiet(time(22), time(7), BERLIN)


@pytest.mark.parametrize(
    ("quiet", "local", "until"),
    [
        (NIGHT, "2026-11-24T21:59", None),
        (NIGHT, "2026-11-24T22:00", "2026-11-25T07:00"),
        (NIGHT, "2026-11-25T03:00", "2026-11-25T07:00"),
        (NIGHT, "2026-11-25T07:00", None),
        (NIGHT, "2026-03-28T23:00", "2026-03-29T07:00"),  # an hour shorter: summer begins
        (NIGHT, "2026-10-24T23:00", "2026-10-25T07:00"),  # an hour longer: it ends
        (Quiet(time(13), time(15), BERLIN), "2026-11-24T14:00", "2026-11-24T15:00"),
        (Quiet(time(13), time(15), BERLIN), "2026-11-24T15:00", None),
    ],
)
def test_quiet_is_of_every_day_in_the_lines_zone(quiet: Quiet, local: str, until: str | None) -> None:
    moment = datetime.fromisoformat(local).replace(tzinfo=BERLIN).astimezone(UTC)
    expected = datetime.fromisoformat(until).replace(tzinfo=BERLIN) if until else None
    assert quiet.until(moment) == expected


@given(
    st.datetimes(timezones=st.just(UTC), min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1)),
    st.times(),
    st.times(),
)
def test_quiet_always_ends_within_a_day_and_later(moment: datetime, begins: time, ends: time) -> None:
    if begins.replace(fold=0) == ends.replace(fold=0):
        return
    until = Quiet(begins.replace(fold=0), ends.replace(fold=0), BERLIN).until(moment)
    assert until is None or moment - timedelta(hours=1) < until <= moment + timedelta(hours=25)


HOURLY = Reminders(timedelta(hours=1), 3)


@pytest.mark.parametrize(
    ("reminders", "sent", "ago_minutes", "due"),
    [
        (HOURLY, 0, 60, True),
        (HOURLY, 0, 59, False),
        (HOURLY, 2, 60, True),
        (HOURLY, 3, 600, False),
        (HOURLY, 0, None, False),  # never told: the message itself is still on its way
        (Reminders(timedelta(0), 3), 0, 600, False),
    ],
)
def test_when_a_person_is_reminded(
    reminders: Reminders, sent: int, ago_minutes: int | None, due: bool
) -> None:
    last = NOON - timedelta(minutes=ago_minutes) if ago_minutes is not None else None
    assert reminder_due(reminders, sent=sent, last_at=last, moment=NOON) is due


# -------------------------------------------------------------------------------------------------- the box


class Person:
    """A sender under the test's control."""

    def __init__(self, name: str = "phone") -> None:
        self.name = name
        self.messages: list[Message] = []
        self.refuses: list[NotSentError] = []
        self.tries = 0

    async def send(self, message: Message) -> None:
        self.tries += 1
        if self.refuses:
            raise self.refuses.pop(0)
        self.messages.append(message)


class LinkBook:
    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.revoked: list[str] = []

    async def mint(self, **wanted: Any) -> tuple[str, str]:
        self.made.append(wanted)
        return f"link-{len(self.made)}", f"https://line.example.org:8998/#t={len(self.made):043}"

    async def revoke(self, link_id: str) -> None:
        self.revoked.append(link_id)


class Desk:
    """An outbox with its questions, a clock and two senders."""

    def __init__(self, storage: Storage, rules: Rules) -> None:
        self.now = NOON
        self.phone, self.mail, self.links = Person(), Person("mail"), LinkBook()
        self.storage = storage
        self.outbox = self.box(rules)
        self.questions = Questions(storage, self.outbox, timeout=timedelta(days=7), clock=lambda: self.now)

    def box(self, rules: Rules) -> Outbox:
        return Outbox(
            self.storage,
            [self.phone, self.mail],
            Texts(BERLIN),
            self.links,
            rules,
            line="https://line.example.org:8998",
            clock=lambda: self.now,
        )

    async def ask(self, text: str = "Delete it?", **more: Any) -> tables.Question:
        return await self.questions.ask(Ask(question=text, **more), asked_by="agent")

    async def rows(self) -> Sequence[tables.Notification]:
        async with self.storage.reading() as session:
            wanted = select(tables.Notification).order_by(tables.Notification.made_at)
            return (await session.scalars(wanted)).all()

    def titles(self) -> list[str]:
        return [message.title for message in (*self.phone.messages, *self.mail.messages)]


@pytest.fixture
def desk(storage: Storage) -> Desk:
    return Desk(storage, Rules())


QUESTION = "Your agent has a question for you"


async def test_a_question_reaches_the_person_once_with_a_link_for_it_alone(desk: Desk) -> None:
    made = await desk.ask(context="secret", choices=("yes", "no"), deadline_minutes=60)
    assert await desk.outbox.round() == 1
    assert await desk.outbox.round() == 0
    [message] = desk.phone.messages
    assert message.title == QUESTION
    assert message.body == (
        "Delete it?\n- yes\n- no\n\nAnswer by voice or by text, until Tue 24 Nov, 14:00:\n"
        f"https://line.example.org:8998/#t={1:043}"
    )
    assert desk.mail.messages == []
    [link] = desk.links.made
    assert (link["purpose"], link["question_id"], link["expires_at"]) == ("answer", made.id, made.deadline)
    [row] = await desk.rows()
    assert (row.state, row.delivered_by, row.attempts) == ("delivered", "phone", 1)


async def test_the_next_sender_takes_what_the_first_refuses(desk: Desk) -> None:
    desk.phone.refuses = [NotSentError("out of order")]
    await desk.ask()
    await desk.outbox.round()
    assert (len(desk.phone.messages), len(desk.mail.messages)) == (0, 1)
    [row] = await desk.rows()
    assert (row.state, row.delivered_by) == ("delivered", "mail")
    assert row.refusals == {"phone": {"why": "out of order", "final": False}}


async def test_when_nobody_takes_it_it_is_tried_again_with_growing_pauses(desk: Desk) -> None:
    desk.phone.refuses = [NotSentError("busy")] * 2
    desk.mail.refuses = [NotSentError("busy")] * 2
    await desk.ask()
    assert await desk.outbox.round() == 1
    assert await desk.outbox.round() == 0
    desk.now += timedelta(seconds=10)
    assert await desk.outbox.round() == 1
    desk.now += timedelta(seconds=29)
    assert await desk.outbox.round() == 0
    desk.now += timedelta(seconds=1)
    assert await desk.outbox.round() == 1
    assert desk.titles() == [QUESTION]
    # A link that was in no message opens nothing.
    assert desk.links.revoked == ["link-1", "link-2"]


async def test_what_a_sender_refuses_for_good_it_is_not_asked_again(desk: Desk) -> None:
    """OpenClaw keeps a queued message and sends it by itself: asked again, it would come twice."""
    desk.phone.refuses = [NotSentError("delivery_queued", final=True)]
    desk.mail.refuses = [NotSentError("busy")]
    await desk.ask()
    await desk.outbox.round()
    assert desk.links.revoked == []  # the queued message has it
    desk.now += timedelta(seconds=10)
    await desk.outbox.round()
    assert (desk.phone.tries, desk.phone.messages, len(desk.mail.messages)) == (1, [], 1)


async def test_what_everybody_refuses_for_good_has_failed(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.phone.refuses = [NotSentError("no", final=True)]
    desk.mail.refuses = [NotSentError("no", final=True)]
    await desk.ask()
    await desk.outbox.round()
    assert [row.state for row in await desk.rows()] == ["failed"]
    assert "a message could not be sent" in caplog.text


async def test_it_is_given_up_in_the_end(storage: Storage) -> None:
    desk = Desk(storage, Rules(reminders=Reminders(timedelta(0), 0)))
    desk.phone.refuses = [NotSentError("busy")] * 99
    desk.mail.refuses = [NotSentError("busy")] * 99
    await desk.ask()
    for _ in range(ATTEMPTS + 2):
        await desk.outbox.round()
        desk.now += timedelta(hours=1)
    assert desk.phone.tries == ATTEMPTS
    assert (await desk.rows())[0].state == "failed"


async def test_of_what_is_settled_nobody_is_told(desk: Desk) -> None:
    answered, expired = await desk.ask("One?"), await desk.ask("Two?", deadline_minutes=1)
    await desk.questions.answer(answered.id, "Yes")
    desk.now += timedelta(minutes=1)
    assert await desk.outbox.round() == 1  # it is looked at, and seen to be too late
    assert desk.titles() == []
    assert {row.state for row in await desk.rows()} == {"superseded"}
    assert expired.id


async def test_a_question_that_waits_is_recalled_a_few_times(desk: Desk) -> None:
    made = await desk.ask()
    for _ in range(6):
        await desk.outbox.round()
        await desk.outbox.round()
        desk.now += timedelta(hours=1)
    assert desk.titles() == [QUESTION, *["Still waiting for your answer"] * 3]
    assert "Asked Tue 24 Nov, 13:00" in desk.phone.messages[-1].body
    await desk.questions.answer(made.id, "Yes")


async def test_who_has_answered_is_not_reminded(desk: Desk) -> None:
    made = await desk.ask()
    await desk.outbox.round()
    await desk.questions.answer(made.id, "Yes")
    desk.now += timedelta(hours=5)
    assert await desk.outbox.round() == 0


async def test_at_night_messages_wait_unless_the_morning_is_too_late(storage: Storage) -> None:
    desk = Desk(storage, Rules(quiet=NIGHT))
    desk.now = datetime(2026, 11, 24, 23, 0, tzinfo=BERLIN).astimezone(UTC)
    await desk.ask("Tomorrow?", deadline_minutes=24 * 60)
    await desk.ask("Tonight?", deadline_minutes=60)
    await desk.outbox.round()
    assert [message.body.splitlines()[0] for message in desk.phone.messages] == ["Tonight?"]
    desk.now = datetime(2026, 11, 25, 6, 59, tzinfo=BERLIN).astimezone(UTC)
    assert await desk.outbox.round() == 0
    desk.now = datetime(2026, 11, 25, 7, 0, tzinfo=BERLIN).astimezone(UTC)
    await desk.outbox.round()
    assert [message.body.splitlines()[0] for message in desk.phone.messages] == ["Tonight?", "Tomorrow?"]


async def test_the_same_event_is_written_once(desk: Desk) -> None:
    event = Event.trouble("moshi@0", NOON, "The voice is down", "moshi@0 does not run")
    assert await desk.outbox.tell(event) is True
    assert await desk.outbox.tell(event) is False
    at_once = (desk.outbox.tell(Event("once", "trouble", event.facts)) for _ in range(10))
    assert sorted(await asyncio.gather(*at_once)) == [False] * 9 + [True]
    await desk.outbox.round()
    assert desk.titles() == ["The voice is down"] * 2
    assert desk.links.made == []


async def test_an_agents_own_words_are_bounded_and_not_repeated(desk: Desk) -> None:
    assert await desk.outbox.say("Deployed.", "https://ci.example/7", "agent") is True
    assert await desk.outbox.say("Deployed.", "https://ci.example/7", "agent") is False
    for number in range(MESSAGES_AN_HOUR - 1):
        await desk.outbox.say(f"Step {number}", None, "agent")
    with pytest.raises(TooManyError):
        await desk.outbox.say("One more", None, "agent")
    assert await desk.outbox.say("Deployed.", "https://ci.example/7", "agent") is False
    desk.now += timedelta(hours=1, minutes=1)
    assert await desk.outbox.say("One more", None, "agent") is True
    await desk.outbox.round()
    assert "Deployed.\n\nhttps://ci.example/7" in [message.body for message in desk.phone.messages]


async def test_what_the_operator_does_not_want_is_not_written(storage: Storage) -> None:
    desk = Desk(storage, Rules(on_question=False, on_complete=False))
    await desk.ask()
    await desk.outbox.tell(Event.ended("x", "completed", {"instruction": "i", "result": "r"}))
    await desk.outbox.tell(Event.trouble("disk", NOON, "Disk", "full"))
    assert [row.kind for row in await desk.rows()] == ["trouble"]
    desk.now += timedelta(hours=2)
    await desk.outbox.round()
    assert desk.titles() == ["Disk"]


async def test_what_a_killed_process_was_sending_is_sent_by_the_next(desk: Desk) -> None:
    await desk.ask()
    assert await desk.outbox._take() is not None  # and then it is killed
    assert await desk.outbox.round() == 0
    desk.now += TAKEN
    assert await desk.outbox.round() == 1
    assert desk.titles() == [QUESTION]


async def test_two_workers_do_not_send_the_same(desk: Desk) -> None:
    for number in range(10):
        await desk.ask(f"Question {number}?")
    other = desk.box(Rules())
    counts = await asyncio.gather(desk.outbox.round(), other.round())
    assert sum(counts) == 10
    assert len({message.body for message in desk.phone.messages}) == 10


# -------------------------------------------------------------------------------------------------- texts

FACTS = {
    "question": {"asked_by": "Your agent", "question": "?", "choices": [], "deadline": NOON, "link": "l"},
    "reminder": {"question": "?", "asked_at": NOON, "deadline": NOON, "link": "l"},
    "completed": {"instruction": "i", "result": "r", "state": "completed", "link": "l"},
    "failed": {"instruction": "i", "error": "e", "state": "failed", "link": "l"},
    "message": {"asked_by": "Your agent", "text": "t", "url": None},
    "trouble": {"title": "t", "detail": "d", "line": "l"},
    "test": {"line": "l"},
}


def test_every_template_has_its_facts_and_every_kind_its_template() -> None:
    assert {path.name.removesuffix(".txt.j2") for path in CHECKOUT.glob("*.j2")} == set(FACTS)


@pytest.mark.parametrize("kind", FACTS)
def test_a_message_has_a_title_and_a_body_of_bounded_length(kind: str) -> None:
    free = ("question", "instruction", "result", "error", "text", "title", "detail")
    long = FACTS[kind] | {name: FACTS[kind][name] * 5000 for name in free if name in FACTS[kind]}
    message = Texts(UTC).message(kind, long)
    assert message.title
    assert "\n" not in message.title
    assert 0 < len(message.body) <= BODY_CHARS
    assert "link" not in long or message.body.endswith("\nl")


def test_what_is_quoted_stays_text() -> None:
    quoted = "{{ 7 * 7 }} <b> *x* {% raw %}"
    assert quoted in Texts(UTC).message("question", FACTS["question"] | {"question": quoted}).body
