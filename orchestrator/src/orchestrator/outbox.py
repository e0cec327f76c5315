"""The outbox: messages to the person, kept until somebody has taken them.

An event is written once (its name is unique), in the transaction of what it tells of where there is one. A
worker tries the senders in their order; the first that takes the message ends it. When none does, it is tried
again with growing pauses, and given up after `ATTEMPTS`. Times of quiet put it off, unless the question would
be past its deadline by then. What is being sent is marked as taken for `TAKEN`: if the process is killed in
that moment, nobody knows whether the message went out, and it is sent again. A message that comes twice then
is the lesser evil; nothing else makes one come twice.

Deciding is pure: `pause_after`, `Quiet.until`, `reminder_due`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, tzinfo
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from sqlalchemy import case, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator import tables
from orchestrator.messages import Texts
from orchestrator.scopes import Identity, Scope, require
from orchestrator.senders import NotSentError, Sender
from orchestrator.storage import Storage, now

ATTEMPTS = 10
FIRST_PAUSE = timedelta(seconds=10)
LONGEST_PAUSE = timedelta(hours=1)
TAKEN = timedelta(minutes=3)
LOOK_AGAIN_S = 15.0
MESSAGES_AN_HOUR = 30
"""How many messages of its own an agent may send in an hour (`notify`)."""
LINK_USES = 5
"""A person opens a link on the phone, then on the laptop."""
LINK_LIFE = timedelta(days=7)
"""How long a link to an execution's end opens it."""

log = logging.getLogger("orchestrator.outbox")
router = APIRouter(tags=["notifications"])


Purpose = Literal["talk", "answer", "view"]


class TooManyError(Exception):
    """An agent has sent MESSAGES_AN_HOUR messages within an hour."""


class Links(Protocol):
    """Who makes the links that messages carry."""

    async def mint(
        self,
        *,
        purpose: Purpose,
        question_id: str | None,
        execution_id: str | None,
        uses: int,
        expires_at: datetime,
        note: str,
    ) -> tuple[str, str]:
        """Make a link; return its id and its URL."""

    async def revoke(self, link_id: str) -> None:
        """Take a link back."""


# ------------------------------------------------------------------------------------------------- deciding


def pause_after(attempts: int) -> timedelta:
    """Return how long to wait after this many attempts: 10 s, 30 s, 90 s … an hour."""
    return min(FIRST_PAUSE * int(3 ** min(attempts - 1, 10)), LONGEST_PAUSE)


@dataclass(frozen=True)
class Quiet:
    """A time of every day, in the line's zone, at which nobody is woken; from 22:00 to 07:00 for example."""

    begins: time
    ends: time
    zone: tzinfo

    def until(self, moment: datetime) -> datetime | None:
        """Return when the quiet ends in which this moment lies; None when it lies in none."""
        local = moment.astimezone(self.zone)
        at = local.time()
        over_midnight = self.begins > self.ends
        if not ((at >= self.begins or at < self.ends) if over_midnight else self.begins <= at < self.ends):
            return None
        day = local.date() + timedelta(days=1 if over_midnight and at >= self.begins else 0)
        return datetime.combine(day, self.ends, self.zone).astimezone(moment.tzinfo)


@dataclass(frozen=True)
class Reminders:
    """How often a person is reminded of a question that waits."""

    every: timedelta
    at_most: int


def reminder_due(reminders: Reminders, *, sent: int, last_at: datetime | None, moment: datetime) -> bool:
    """Say whether a waiting question wants a reminder.

    ``sent`` reminders there were; the person last heard of it at ``last_at``, None when never.
    """
    if reminders.every <= timedelta(0) or sent >= reminders.at_most or last_at is None:
        return False
    return moment - last_at >= reminders.every


# --------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Event:
    """Something the person is told. ``name`` is unique for ever."""

    name: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    question_id: str | None = None

    @classmethod
    def question(cls, row: tables.Question) -> Event:
        """A question was asked."""
        return cls(f"question:{row.id}", "question", question_id=row.id)

    @classmethod
    def reminder(cls, row: tables.Question, number: int) -> Event:
        """A question still waits."""
        return cls(f"question:{row.id}:reminder:{number}", "reminder", question_id=row.id)

    @classmethod
    def message(cls, text: str, url: str | None, moment: datetime, asked_by: str) -> Event:
        """An agent has something to say. The same text within the hour is the same event."""
        said = hashlib.sha256(f"{asked_by}\0{text}\0{url or ''}".encode()).hexdigest()[:32]
        facts = {"text": text, "url": url, "asked_by": asked_by}
        return cls(f"message:{said}:{moment:%Y%m%d%H}", "message", facts)

    @classmethod
    def trouble(cls, what: str, moment: datetime, title: str, detail: str) -> Event:
        """The line is in trouble. The same trouble is the same event for the day."""
        return cls(f"trouble:{what}:{moment:%Y%m%d}", "trouble", {"title": title, "detail": detail})

    @classmethod
    def ended(cls, execution_id: str, state: str, facts: dict[str, Any]) -> Event:
        """An execution has ended."""
        kind = "completed" if state == "completed" else "failed"
        return cls(
            f"execution:{execution_id}:{state}", kind, facts | {"state": state, "execution_id": execution_id}
        )


async def give_up(session: AsyncSession, question_id: str, moment: datetime) -> None:
    """A question has its end: nobody is told of it any more."""
    await session.execute(
        update(tables.Notification)
        .where(tables.Notification.question_id == question_id, tables.Notification.state == "pending")
        .values(state="superseded", settled_at=moment)
        .execution_options(synchronize_session=False)
    )


# --------------------------------------------------------------------------------------------------- the box


@dataclass(frozen=True)
class Rules:
    """What the operator wants to be told, and when."""

    on_question: bool = True
    on_complete: bool = True
    quiet: Quiet | None = None
    reminders: Reminders = Reminders(timedelta(hours=1), 3)


class Outbox:
    """All messages of the line. One worker per process; several processes do not send the same twice."""

    def __init__(
        self,
        storage: Storage,
        senders: Sequence[Sender],
        texts: Texts,
        links: Links,
        rules: Rules,
        *,
        line: str,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._storage = storage
        self._senders = senders
        self._texts = texts
        self._links = links
        self._rules = rules
        self._line = line
        self._clock = clock
        self._wake = asyncio.Event()

    # -------------------------------------------------------------------------------------------- putting

    def wanted(self, event: Event) -> bool:
        """Say whether the operator wants to be told of such an event."""
        if event.kind in ("question", "reminder"):
            return self._rules.on_question
        return self._rules.on_complete if event.kind in ("completed", "failed") else True

    def put(self, session: AsyncSession, event: Event) -> None:
        """Write an event into a transaction that goes on; `look` when it is over."""
        if not self.wanted(event):
            return
        moment = self._clock()
        session.add(
            tables.Notification(
                id=str(uuid.uuid4()),
                event=event.name,
                kind=event.kind,
                facts=event.facts,
                question_id=event.question_id,
                state="pending",
                made_at=moment,
                due_at=moment,
                attempts=0,
                refusals={},
            )
        )

    async def tell(self, event: Event) -> bool:
        """Write an event by itself. Return False when it was written before."""
        try:
            async with self._storage.writing() as session:
                self.put(session, event)
        except IntegrityError:
            return False
        self.look()
        return True

    async def say(self, text: str, url: str | None, asked_by: str) -> bool:
        """Tell what an agent has to say; False when it said the same within the hour. Raises TooManyError."""
        moment = self._clock()
        recent = (
            select(func.count())
            .select_from(tables.Notification)
            .where(
                tables.Notification.kind == "message",
                tables.Notification.made_at > moment - timedelta(hours=1),
            )
        )
        event = Event.message(text, url, moment, asked_by)
        async with self._storage.reading() as session:
            same = await session.scalar(
                select(tables.Notification.id).where(tables.Notification.event == event.name)
            )
            many = await session.scalar(recent) or 0
        if same is None and many >= MESSAGES_AN_HOUR:
            raise TooManyError
        return same is None and await self.tell(event)

    def look(self) -> None:
        """There is something to send."""
        self._wake.set()

    # ------------------------------------------------------------------------------------------- sending

    async def run(self) -> None:
        """Send what is due, for ever."""
        if self._storage.is_sqlite:  # then this process is the only one: what was taken, a killed one took
            async with self._storage.writing() as session:
                await session.execute(update(tables.Notification).values(taken_until=None))
        while True:
            self._wake.clear()
            try:
                await self.round()
            except Exception:
                log.exception("the outbox could not be worked on; it is tried again")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_AGAIN_S)

    async def round(self) -> int:
        """Remind, then send everything that is due; return how many messages were tried."""
        await self._remind()
        tried = 0
        while (taken := await self._take()) is not None:
            await self._send(taken)
            tried += 1
        return tried

    async def _remind(self) -> None:
        if not self._rules.on_question:
            return
        moment = self._clock()
        async with self._storage.reading() as session:
            waiting = (
                await session.scalars(
                    select(tables.Question).where(
                        tables.Question.state == "open",
                        tables.Question.deadline > moment,
                        tables.Question.asked_at <= moment - self._rules.reminders.every,
                    )
                )
            ).all()
            pending = case((tables.Notification.state == "pending", 1), else_=0)
            told = (
                await session.execute(
                    select(
                        tables.Notification.question_id,
                        func.count(),
                        func.max(tables.Notification.settled_at),
                        func.sum(pending),
                    )
                    .where(tables.Notification.question_id.in_([row.id for row in waiting]))
                    .group_by(tables.Notification.question_id)
                )
            ).all()
        heard = {question_id: (count - 1, last, unsent) for question_id, count, last, unsent in told}
        for row in waiting:
            sent, last, unsent = heard.get(row.id, (0, None, 0))
            if not unsent and reminder_due(self._rules.reminders, sent=sent, last_at=last, moment=moment):
                await self.tell(Event.reminder(row, sent + 1))

    async def _take(self) -> tables.Notification | None:
        """Take the message that has been due for longest, so that nobody else sends it."""
        moment = self._clock()
        free = or_(tables.Notification.taken_until.is_(None), tables.Notification.taken_until <= moment)
        due = (tables.Notification.state == "pending", tables.Notification.due_at <= moment, free)
        async with self._storage.writing() as session:
            first = select(tables.Notification.id).where(*due).order_by(tables.Notification.due_at).limit(1)
            found = await session.scalar(first)
            if found is None:
                return None
            taken = await session.execute(
                update(tables.Notification)
                .where(tables.Notification.id == found, *due)
                .values(taken_until=moment + TAKEN, attempts=tables.Notification.attempts + 1)
                .execution_options(synchronize_session=False)
            )
            if not taken.rowcount:  # type: ignore[attr-defined] # another process was faster
                return None
            return await session.get(tables.Notification, found, populate_existing=True)

    async def _settle(self, row: tables.Notification, **values: Any) -> None:
        async with self._storage.writing() as session:
            await session.execute(
                update(tables.Notification)
                .where(tables.Notification.id == row.id, tables.Notification.state == "pending")
                .values(taken_until=None, **values)
                .execution_options(synchronize_session=False)
            )

    async def _send(self, row: tables.Notification) -> None:
        """Try the senders with one message, and write down what came of it."""
        moment = self._clock()
        question = await self._question_of(row)
        if row.question_id is not None and (
            question is None or question.state != "open" or question.deadline <= moment
        ):
            await self._settle(row, state="superseded", settled_at=moment)
            return
        quiet = self._rules.quiet.until(moment) if self._rules.quiet and row.kind != "test" else None
        if quiet is not None and (question is None or question.deadline > quiet):
            await self._settle(row, due_at=quiet, attempts=row.attempts - 1)
            return
        link_id, facts = await self._facts(row, question)
        message = self._texts.message(row.kind, facts, row.id)
        refusals = dict(row.refusals)
        for sender in self._senders:
            if refusals.get(sender.name, {}).get("final"):
                continue
            try:
                await sender.send(message)
            except NotSentError as error:
                refusals[sender.name] = {"why": str(error), "final": error.final}
                log.warning(
                    "a message was not taken",
                    extra={"notification": row.id, "sender": sender.name, "why": str(error)},
                )
                continue
            await self._settle(
                row,
                state="delivered",
                delivered_by=sender.name,
                settled_at=self._clock(),
                refusals=refusals,
            )
            log.info("a message is sent", extra={"notification": row.id, "sender": sender.name})
            return
        if link_id is not None and not any(one["final"] for one in refusals.values()):
            await self._links.revoke(link_id)  # nobody has it
        hopeless = all(refusals.get(sender.name, {}).get("final") for sender in self._senders)
        if hopeless or row.attempts >= ATTEMPTS:
            await self._settle(row, state="failed", settled_at=self._clock(), refusals=refusals)
            log.error("a message could not be sent", extra={"notification": row.id, "kind": row.kind})
            return
        await self._settle(row, due_at=self._clock() + pause_after(row.attempts), refusals=refusals)

    async def _question_of(self, row: tables.Notification) -> tables.Question | None:
        if row.question_id is None:
            return None
        async with self._storage.reading() as session:
            return await session.get(tables.Question, row.question_id)

    async def _facts(
        self, row: tables.Notification, question: tables.Question | None
    ) -> tuple[str | None, dict[str, Any]]:
        """Return what the template is given, with a new link where it carries one, and that link's id."""
        facts: dict[str, Any] = {"line": self._line, **row.facts}
        execution_id = facts.get("execution_id")
        if question is None and execution_id is None:
            return None, facts
        link_id, url = await self._links.mint(
            purpose="view" if question is None else "answer",
            question_id=row.question_id,
            execution_id=execution_id,
            uses=LINK_USES,
            expires_at=self._clock() + LINK_LIFE if question is None else question.deadline,
            note=f"message {row.kind}",
        )
        if question is not None:
            names = ("question", "choices", "asked_at", "deadline")
            facts |= {name: getattr(question, name) for name in names}
            facts["asked_by"] = WHO[question.asked_by]
        return link_id, facts | {"link": url}

    # ------------------------------------------------------------------------------------------- looking

    async def test(self) -> list[Tried]:
        """Send a test message through every sender; return what each made of it."""
        message = self._texts.message("test", {"line": self._line}, f"test:{uuid.uuid4()}")

        async def tried(sender: Sender) -> Tried:
            try:
                await sender.send(message)
            except NotSentError as error:
                return Tried(sender=sender.name, sent=False, why=str(error))
            return Tried(sender=sender.name, sent=True, why="")

        return [await tried(sender) for sender in self._senders]

    async def listed(self, limit: int) -> Sequence[tables.Notification]:
        """Return the newest first."""
        async with self._storage.reading() as session:
            wanted = select(tables.Notification).order_by(tables.Notification.made_at.desc()).limit(limit)
            return (await session.scalars(wanted)).all()


WHO = {"agent": "Your agent", "operator": "The operator", "execution": "Your task"}


class Tried(BaseModel):
    """What one sender made of a test."""

    sender: str
    sent: bool
    why: str


class Told(BaseModel):
    """A message as it is listed: what it tells of and what became of it, not its text."""

    id: str
    kind: str
    question_id: str | None
    state: str
    made_at: datetime
    due_at: datetime
    attempts: int
    refusals: dict[str, Any]
    settled_at: datetime | None
    delivered_by: str | None


Operator = Annotated[Identity, Depends(require(Scope.OPERATOR))]


@router.get("/api/notifications")
async def list_notifications(
    request: Request, who: Operator, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> list[Told]:
    """List messages, newest first."""
    outbox: Outbox = request.state.outbox
    rows = await outbox.listed(limit)
    return [Told(**{name: getattr(row, name) for name in Told.model_fields}) for row in rows]


@router.post("/api/notifications/test")
async def test_notifications(request: Request, who: Operator) -> list[Tried]:
    """Send a test through every sender, now, and say what each made of it."""
    outbox: Outbox = request.state.outbox
    return await outbox.test()
