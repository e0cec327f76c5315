"""Questions to a person: kept until they are answered, declined or expired, whatever crashes meanwhile.

A question is settled once. Settling is one conditional UPDATE, so of two answers that arrive together one is
told that it came too late; the same answer sent again under the same key is the same answer. The message
that tells the person of a question is written in the transaction that writes the question (outbox.py), and
what was not sent yet is given up in the transaction that settles it.

Whoever waits here waits in memory and loses nothing by it: the question is in the database, and waiting
again, under the same id or by asking the same thing again, goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select, true, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator import tables
from orchestrator.asks import Answer, Ask
from orchestrator.outbox import Event, Outbox, give_up
from orchestrator.problems import Problem
from orchestrator.scopes import Identity, Scope, require
from orchestrator.storage import Storage, now

LOOK_AGAIN_S = 5.0
"""How often a waiting asker looks into the database: another process may have settled the question."""
LONGEST_WAIT_S = 50.0
"""Of a plain request: nginx gives an answer up after 60 s."""
OPEN_AT_MOST = 100
"""More open questions than this, and somebody is asking in a loop."""

log = logging.getLogger("orchestrator.questions")
router = APIRouter(tags=["questions"])


class QuestionState(str, Enum):
    """Where a question is; all but open are final."""

    OPEN = "open"
    ANSWERED = "answered"
    DECLINED = "declined"
    EXPIRED = "expired"


class TooManyError(Exception):
    """OPEN_AT_MOST questions are open."""


class SettledError(Exception):
    """The question has another end already."""

    def __init__(self, question: tables.Question) -> None:
        super().__init__(question.state)
        self.question = question


class UnknownError(Exception):
    """There is no such question."""


class NewAsk(Ask):
    """A question as it is sent here."""

    idempotency_key: Annotated[str | None, Field(min_length=1, max_length=200)] = Field(
        default=None, description="the same key again is the same question, however it ended"
    )


class Given(BaseModel):
    """An answer as it is sent here."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    text: Answer
    idempotency_key: Annotated[str | None, Field(min_length=1, max_length=200)] = None


class Shown(BaseModel):
    """A question as it is answered."""

    id: str
    question: str
    context: str
    choices: list[str]
    asked_by: str
    execution_id: str | None
    state: QuestionState
    asked_at: datetime
    deadline: datetime
    settled_at: datetime | None
    answer: str | None

    @classmethod
    def of(cls, row: tables.Question) -> Shown:
        """Show a row."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


def ask_key_of(ask: Ask, asked_by: str, key: str | None) -> str:
    """Return under what a question is found again: the asker's own key, or what it asks."""
    if key is not None:
        return f"key:{asked_by}:{key}"
    said = json.dumps([ask.question, ask.context, ask.choices], ensure_ascii=False)
    return f"text:{asked_by}:{hashlib.sha256(said.encode()).hexdigest()}"


class Questions:
    """All questions of the line."""

    def __init__(
        self, storage: Storage, outbox: Outbox, *, timeout: timedelta, clock: Callable[[], datetime] = now
    ) -> None:
        self._storage = storage
        self._outbox = outbox
        self._timeout = timeout
        self._clock = clock
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.on_settled: list[Callable[[tables.Question], None]] = []

    # -------------------------------------------------------------------------------------------- asking

    async def ask(
        self, ask: Ask, *, asked_by: str, key: str | None = None, execution_id: str | None = None
    ) -> tables.Question:
        """Ask once. Raises TooManyError.

        Asked again under the same key it is the same question, for ever. Asked again in the same words it is
        the same question until its end was handed over: a reconnect asks nothing twice, and "go on?", asked
        of another thing tomorrow, is a new question.
        """
        ask_key = ask_key_of(ask, asked_by, key)
        found = await self._found(ask_key)
        if found is not None:
            return found
        moment = self._clock()
        minutes = ask.deadline_minutes
        row = tables.Question(
            id=str(uuid.uuid4()),
            asked_by=asked_by,
            ask_key=ask_key,
            execution_id=execution_id,
            question=ask.question,
            context=ask.context,
            choices=list(ask.choices),
            state=QuestionState.OPEN.value,
            asked_at=moment,
            deadline=moment + (timedelta(minutes=minutes) if minutes else self._timeout),
        )
        try:
            async with self._storage.writing() as session:
                still_open = select(func.count()).where(tables.Question.state == QuestionState.OPEN.value)
                if (await session.scalar(still_open) or 0) >= OPEN_AT_MOST:
                    raise TooManyError
                session.add(row)
                await session.flush()
                self._outbox.put(session, Event.question(row))
        except IntegrityError:  # somebody asked the same in the same instant
            found = await self._found(ask_key)
            if found is None:
                raise
            return found
        self._outbox.look()
        log.info("a question is asked", extra={"question": row.id, "by": asked_by})
        return row

    async def _found(self, ask_key: str) -> tables.Question | None:
        async with self._storage.reading() as session:
            found = await session.scalar(select(tables.Question.id).where(tables.Question.ask_key == ask_key))
        return await self.get(found) if found else None

    async def get(self, question_id: str) -> tables.Question:
        """Look one up, and see that it is not past its deadline. Raises UnknownError."""
        async with self._storage.reading() as session:
            row = await session.get(tables.Question, question_id)
        if row is None:
            raise UnknownError
        if row.state == QuestionState.OPEN.value and row.deadline <= self._clock():
            with contextlib.suppress(SettledError):
                return await self._settle(question_id, QuestionState.EXPIRED)
            return await self.get(question_id)
        return row

    async def listed(self, state: QuestionState | None, limit: int) -> Sequence[tables.Question]:
        """Return the newest first."""
        wanted = select(tables.Question).order_by(tables.Question.asked_at.desc()).limit(limit)
        if state is not None:
            wanted = wanted.where(tables.Question.state == state.value)
        async with self._storage.reading() as session:
            return (await session.scalars(wanted)).all()

    # ------------------------------------------------------------------------------------------ settling

    async def answer(self, question_id: str, text: str, key: str | None = None) -> tables.Question:
        """Answer once. Raises UnknownError and SettledError."""
        row = await self.get(question_id)
        if row.state == QuestionState.OPEN.value:
            try:
                return await self._settle(question_id, QuestionState.ANSWERED, answer=text, answer_key=key)
            except SettledError as error:
                row = error.question
        if row.state == QuestionState.ANSWERED.value and key and (row.answer_key, row.answer) == (key, text):
            return row
        raise SettledError(row)

    async def decline(self, question_id: str) -> tables.Question:
        """Say that there will be no answer. Raises UnknownError and SettledError."""
        row = await self.get(question_id)
        if row.state == QuestionState.DECLINED.value:
            return row
        return await self._settle(question_id, QuestionState.DECLINED)

    async def withdraw(self, question_id: str) -> None:
        """Nobody needs the answer any more: whoever asked was ended. It is expired, if it was open."""
        with contextlib.suppress(SettledError, UnknownError):
            await self._settle(question_id, QuestionState.EXPIRED, withdrawn=True)

    async def _settle(
        self, question_id: str, state: QuestionState, *, withdrawn: bool = False, **also: Any
    ) -> tables.Question:
        """Give an open question its end, if it has none yet: of several at once, one wins."""
        moment = self._clock()
        still_open = tables.Question.state == QuestionState.OPEN.value
        past = tables.Question.deadline <= moment
        in_time = true() if withdrawn else past if state is QuestionState.EXPIRED else ~past
        async with self._storage.writing() as session:
            done = await session.execute(
                update(tables.Question)
                .where(tables.Question.id == question_id, still_open, in_time)
                .values(state=state.value, settled_at=moment, **also)
                .execution_options(synchronize_session=False)
            )
            won = bool(done.rowcount)  # type: ignore[attr-defined] # an UPDATE's result has it
            if won:
                await give_up(session, question_id, moment)
        async with self._storage.reading() as session:
            row = await session.get(tables.Question, question_id)
        if row is None:
            raise UnknownError
        if not won:
            raise SettledError(row)
        log.info("a question is settled", extra={"question": question_id, "state": state.value})
        self._told(row)
        return row

    async def expire(self) -> int:
        """Settle those whose deadline has passed; return how many."""
        async with self._storage.reading() as session:
            due = await session.scalars(
                select(tables.Question.id).where(
                    tables.Question.state == QuestionState.OPEN.value,
                    tables.Question.deadline <= self._clock(),
                )
            )
        expired = 0
        for question_id in due.all():
            with contextlib.suppress(SettledError):
                await self._settle(question_id, QuestionState.EXPIRED)
                expired += 1
        return expired

    # ------------------------------------------------------------------------------------------- waiting

    def _told(self, row: tables.Question) -> None:
        for event in self._waiting.get(row.id, ()):
            event.set()
        for told in self.on_settled:
            told(row)

    async def wait(self, question_id: str, seconds: float) -> tables.Question:
        """Wait until it is settled, this long at most. Raises UnknownError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        woken = asyncio.Event()
        self._waiting.setdefault(question_id, set()).add(woken)
        try:
            while True:
                row = await self.get(question_id)
                left = until - loop.time()
                if row.state != QuestionState.OPEN.value or left <= 0:
                    return row
                to_deadline = (row.deadline - self._clock()).total_seconds()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(woken.wait(), max(0.0, min(left, LOOK_AGAIN_S, to_deadline)))
        finally:
            self._waiting[question_id].discard(woken)
            if not self._waiting[question_id]:
                del self._waiting[question_id]

    async def handed_over(self, row: tables.Question) -> None:
        """Note that whoever asked has its end: the same words ask anew from now on."""
        if row.state == QuestionState.OPEN.value or row.handed_over_at is not None:
            return
        values: dict[str, Any] = {"handed_over_at": self._clock()}
        if row.ask_key and row.ask_key.startswith("text:"):
            values["ask_key"] = None
        async with self._storage.writing() as session:
            await session.execute(
                update(tables.Question).where(tables.Question.id == row.id).values(**values)
            )


async def open_of(session: AsyncSession) -> Sequence[tables.Question]:
    """Return the open questions."""
    wanted = select(tables.Question).where(tables.Question.state == QuestionState.OPEN.value)
    return (await session.scalars(wanted)).all()


# --------------------------------------------------------------------------------------------- the addresses

NO_QUESTION = "There is no such question, or it is not for this key."
ENDED = {
    QuestionState.ANSWERED: ("already_answered", "This question was answered already."),
    QuestionState.DECLINED: ("declined", "This question was declined; whoever asked knows it."),
    QuestionState.EXPIRED: (
        "expired",
        "Nobody needs the answer any more: the question's deadline has passed.",
    ),
}
AnyScope = Annotated[Identity, Depends(require(Scope.CALLER, Scope.AGENT, Scope.OPERATOR))]
Person = Annotated[Identity, Depends(require(Scope.CALLER, Scope.OPERATOR))]
Asker = Annotated[Identity, Depends(require(Scope.AGENT, Scope.OPERATOR))]


async def question_for(questions: Questions, question_id: str, who: Identity) -> tables.Question:
    """Look up a question that this key may see: a caller sees the one whose link it opened."""
    if who.scope is Scope.CALLER and who.question_id != question_id:
        raise Problem(404, "not_found", NO_QUESTION)
    try:
        return await questions.get(question_id)
    except UnknownError:
        raise Problem(404, "not_found", NO_QUESTION) from None


def settled_problem(error: SettledError) -> Problem:
    """Say which end a question has already."""
    code, detail = ENDED[QuestionState(error.question.state)]
    return Problem(409, code, detail)


@router.post("/api/questions", status_code=201)
async def ask(request: Request, who: Asker, new: NewAsk) -> Shown:
    """Ask a person. The answer is fetched by the question's id, or waited for there."""
    questions: Questions = request.state.questions
    try:
        row = await questions.ask(new, asked_by=who.scope.value, key=new.idempotency_key)
    except TooManyError:
        raise Problem(
            429, "too_many_questions", f"{OPEN_AT_MOST} questions are open. Wait until some are settled."
        ) from None
    return Shown.of(row)


@router.get("/api/questions")
async def list_questions(
    request: Request,
    who: Asker,
    state: QuestionState | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[Shown]:
    """List questions, newest first."""
    questions: Questions = request.state.questions
    return [Shown.of(row) for row in await questions.listed(state, limit)]


@router.get("/api/questions/{question_id}")
async def get_question(
    request: Request,
    who: AnyScope,
    question_id: str,
    wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0,
) -> Shown:
    """Look at one, and wait for its end if asked to."""
    questions: Questions = request.state.questions
    row = await question_for(questions, question_id, who)
    if wait_s:
        row = await questions.wait(question_id, wait_s)
    if who.scope is Scope.AGENT:
        await questions.handed_over(row)
    return Shown.of(row)


@router.post("/api/questions/{question_id}/answer")
async def answer_question(request: Request, who: Person, question_id: str, given: Given) -> Shown:
    """Answer, once."""
    questions: Questions = request.state.questions
    await question_for(questions, question_id, who)
    try:
        return Shown.of(await questions.answer(question_id, given.text, given.idempotency_key))
    except SettledError as error:
        raise settled_problem(error) from None


@router.post("/api/questions/{question_id}/decline")
async def decline_question(request: Request, who: Person, question_id: str) -> Shown:
    """Say that there will be no answer."""
    questions: Questions = request.state.questions
    await question_for(questions, question_id, who)
    try:
        return Shown.of(await questions.decline(question_id))
    except SettledError as error:
        raise settled_problem(error) from None
