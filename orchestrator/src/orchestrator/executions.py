"""Executions: an agent carries out an instruction, asks when it must, and goes on with the answer.

A DBOS workflow carries each (https://docs.dbos.dev/python/tutorials/workflow-tutorial): what a step gave back
is kept, so after a kill it goes on behind the last finished step, and waiting for a week is a coroutine that
sleeps. The workflow's steps are `Executions`' methods; each can be done twice with the effect of once, since
a kill may come between what a step did and DBOS's writing that it is done:

- a turn that has its output is not run again (the table `turns`);
- a question is asked under the key of its execution and turn;
- a state changes only from one that is not final, in one UPDATE with its event.

That a question has its end reaches the workflow as a DBOS message under the question's id, which DBOS takes
once; `wake` sends those that a kill kept from being sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import re
import secrets
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any, ParamSpec, TypeVar

from dbos import DBOS, DBOSConfig, SetWorkflowID
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from orchestrator import asks, tables
from orchestrator.agents import Agent, AgentError, Turn
from orchestrator.asks import Ask, how_to_ask, plain_or_none, read_output
from orchestrator.ending import end
from orchestrator.outbox import Event, Outbox
from orchestrator.problems import Problem
from orchestrator.questions import Questions, QuestionState
from orchestrator.scopes import Identity, Scope, require
from orchestrator.storage import Storage, database, now

INSTRUCTION_CHARS = 16000
RESULT_CHARS = 16000
AT_ONCE = 4
"""How many agents run at the same time; the others are pending."""
LOOK_AGAIN_S = 2.0
SIGN_OF_LIFE_S = 15.0
WAKE_S = 5.0
TURNS = 50
"""An agent that has asked as often as this asks in a loop."""
APPLICATION_VERSION = "1"
"""DBOS goes on only with what it takes for the same program. The workflow below must understand what older
ones of the same number have written."""

P = ParamSpec("P")
R = TypeVar("R")
Work = Callable[P, Coroutine[Any, Any, R]]

log = logging.getLogger("orchestrator.executions")
router = APIRouter(tags=["executions"])


class State(str, Enum):
    """Where an execution is."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting_for_input"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED})
FINAL_VALUES = [state.value for state in FINAL]


class UnknownError(Exception):
    """There is no such execution."""


class NoAgentError(Exception):
    """There is no such agent, or none at all."""


BROKEN = (
    "The line broke while it carried this out ({error}), which is a fault of the line's, not of the "
    "instruction's. Mend: look at hotline logs orchestrator, then hand it over again."
)


def failed(why: str, **values: Any) -> dict[str, Any]:
    """Return an end that is no success."""
    return {"end": State.FAILED.value, "values": {"error": why, **values}}


def first_words(instruction: str, ask_token: str) -> str:
    """Return what an agent is told first."""
    return f"{instruction}\n\n---\n{how_to_ask(ask_token)}"


# -------------------------------------------------------------------------------- the workflow

_desk: Executions | None = None
"""Whose steps the workflow does. DBOS is one per process, and so is this."""


def desk() -> Executions:
    """Return the executions of this process."""
    if _desk is None:
        raise RuntimeError("no executions are open in this process")
    return _desk


def lasting(work: Work[P, R]) -> Work[P, R]:
    """Have ``work``, which may be done twice, done again until the database is there for it.

    DBOS waits by itself for its own tables only: an error that leaves a step ends the workflow for good, and
    the execution would never come to its end.
    """

    @functools.wraps(work)
    async def until_done(*arguments: P.args, **named: P.kwargs) -> R:
        pause = 0.1
        while True:
            try:
                return await work(*arguments, **named)
            except (OperationalError, InterfaceError, PoolTimeoutError) as error:
                # Not the error's own text, which has the statement with its values.
                why = str(getattr(error, "orig", None) or error)[:300]
                log.warning("the database is away", extra={"error": why})
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_AGAIN_S)

    return until_done


@DBOS.step(name="turn")
@lasting
async def turn_step(execution_id: str, number: int, text: str) -> dict[str, Any]:
    """Have the agent do one turn."""
    return await desk().turn(execution_id, number, text)


@DBOS.step(name="ask")
@lasting
async def ask_step(execution_id: str, number: int, ask: dict[str, Any]) -> dict[str, Any]:
    """Ask the person what the agent wants to know."""
    return await desk().ask(execution_id, number, ask)


@DBOS.step(name="answer")
@lasting
async def answer_step(execution_id: str, question_id: str) -> dict[str, Any]:
    """Look how the question ended."""
    return await desk().answer(execution_id, question_id)


@DBOS.step(name="end")
@lasting
async def end_step(execution_id: str, state: str, values: dict[str, Any]) -> None:
    """Give it its end."""
    await desk().end(execution_id, State(state), **values)


@DBOS.workflow(name="execution")
async def carry(execution_id: str, text: str) -> None:
    """Carry one instruction to its end, whatever breaks on the way."""
    try:
        ended = await turns(execution_id, text)
    except Exception as error:
        log.exception("an execution broke", extra={"execution": execution_id})
        ended = failed(BROKEN.format(error=type(error).__name__))
    await end_step(execution_id, ended["end"], ended["values"])


async def turns(execution_id: str, text: str) -> dict[str, Any]:
    """Do turn after turn; return the end."""
    for number in range(1, TURNS + 1):
        done = await turn_step(execution_id, number, text)
        if "end" in done:
            return done
        asked = await ask_step(execution_id, number, done["ask"])
        await DBOS.recv_async(topic=asked["id"], timeout_seconds=asked["seconds"])
        answered = await answer_step(execution_id, asked["id"])
        if "end" in answered:
            return answered
        text = answered["text"]
    return failed(f"It has asked {TURNS} times.")


# -------------------------------------------------------------------------------- executions


class Executions:
    """All executions of the line. One per process."""

    def __init__(
        self,
        storage: Storage,
        questions: Questions,
        outbox: Outbox,
        agents: Mapping[str, Agent],
        *,
        timeout: timedelta,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._storage = storage
        self._questions = questions
        self._outbox = outbox
        self._agents = agents
        self._timeout = timeout
        self._clock = clock
        self._running: dict[str, tuple[asyncio.Task[str], asyncio.Event]] = {}
        self._stopping = False
        self._room = asyncio.Semaphore(AT_ONCE)
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        questions.on_settled.append(lambda _: self._wake.set())

    @property
    def agents(self) -> list[str]:
        """The names of the agents; the first is asked when nobody says which."""
        return list(self._agents)

    @property
    def drafting_agent(self) -> Agent | None:
        """Who drafts instructions: one that answers in words and was told to use no tools."""
        return self._agents.get("openclaw")

    # ------------------------------------------------------------------------------------------ lifetime

    @contextlib.asynccontextmanager
    async def open(self, database_url: str) -> AsyncIterator[None]:
        """Go on with what was begun, and take new ones, for as long as the block goes on."""
        global _desk  # noqa: PLW0603 - DBOS's workflows are functions of the process
        DBOS(config=dbos_config(database_url))
        _desk = self
        # In a running loop, so that workflows run in it; they use this loop's connections.
        DBOS.launch()
        waking = asyncio.create_task(self._keep_waking())
        try:
            yield
        finally:
            self._stopping = True
            # The agent goes on if it can; the next process asks for the same turn.
            await end([waking, *(task for task, _ in self._running.values())])
            await asyncio.sleep(0)
            await asyncio.to_thread(DBOS.destroy)
            # DBOS lent the loop its threads.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
            _desk = None

    async def _keep_waking(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.wake()
            except Exception:
                log.exception("executions could not be woken; it is tried again")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), WAKE_S)

    async def wake(self) -> None:
        """Start what was written down and not started; pass on the ends of questions that are waited for."""
        async with self._storage.reading() as session:
            begun = (
                await session.scalars(
                    select(tables.Execution).where(tables.Execution.state == State.PENDING.value)
                )
            ).all()
            settled = (
                await session.execute(
                    select(tables.Execution.id, tables.Question.id)
                    .join(tables.Question, tables.Question.id == tables.Execution.question_id)
                    .where(
                        tables.Execution.state == State.WAITING.value,
                        tables.Question.state != QuestionState.OPEN.value,
                        tables.Execution.woken_for.is_distinct_from(tables.Question.id),
                    )
                )
            ).all()
        for row in begun:
            if await DBOS.get_workflow_status_async(row.id) is None:
                await self._start(row)
        for execution_id, question_id in settled:
            await DBOS.send_async(execution_id, "settled", question_id, idempotency_key=question_id)
            async with self._storage.writing() as session:
                await session.execute(
                    update(tables.Execution)
                    .where(tables.Execution.id == execution_id)
                    .values(woken_for=question_id)
                )

    # ------------------------------------------------------------------------------------------- handing

    async def hand_over(
        self, instruction: str, *, agent: str | None, asked_by: str, key: str | None
    ) -> tables.Execution:
        """Hand over an instruction, once per key. Raises NoAgentError."""
        name = agent or next(iter(self._agents), "")
        if name not in self._agents:
            raise NoAgentError
        whole_key = f"{asked_by}:{key}" if key is not None else None
        if whole_key is not None and (found := await self._found(whole_key)) is not None:
            return found
        row = tables.Execution(
            id=str(uuid.uuid4()),
            key=whole_key,
            asked_by=asked_by,
            agent=name,
            instruction=instruction,
            state=State.PENDING.value,
            ask_token=secrets.token_hex(8),
            made_at=self._clock(),
        )
        try:
            async with self._storage.writing() as session:
                session.add(row)
                await session.flush()
                session.add(self._event(row.id, State.PENDING))
        except IntegrityError:  # somebody handed over the same in the same instant
            found = await self._found(whole_key or "")
            if found is None:
                raise
            return found
        log.info("an instruction is handed over", extra={"execution": row.id, "agent": name})
        await self._start(row)
        return row

    async def _found(self, key: str) -> tables.Execution | None:
        async with self._storage.reading() as session:
            wanted = select(tables.Execution).where(tables.Execution.key == key)
            return (await session.scalars(wanted)).one_or_none()

    async def _start(self, row: tables.Execution) -> None:
        """Start its workflow. It has the execution's id, so that it is started once."""
        with SetWorkflowID(row.id):
            await DBOS.start_workflow_async(carry, row.id, first_words(row.instruction, row.ask_token))

    async def cancel(self, execution_id: str) -> tables.Execution:
        """End it, with its agent and its question, unless it has its end. Raises UnknownError."""
        row = await self.get(execution_id)
        await self.end(execution_id, State.CANCELLED, error="It was cancelled.")
        if State(row.state) not in FINAL:
            await DBOS.cancel_workflow_async(execution_id)
            if (running := self._running.get(execution_id)) is not None:
                task, stop = running
                stop.set()
                task.cancel()
            if row.question_id is not None:
                await self._questions.withdraw(row.question_id)
        return await self.get(execution_id)

    # --------------------------------------------------------------------------------------------- steps

    async def turn(self, execution_id: str, number: int, text: str) -> dict[str, Any]:
        """Have the agent do one turn, unless it has done it; return what comes of it."""
        row = await self.get(execution_id)
        output = await self._output_of(execution_id, number)
        if output is None:
            agent = self._agents.get(row.agent)
            if agent is None:
                why = f"There is no agent {row.agent} any more on this line."
                return failed(why)
            async with self._room:
                attempt = await self._begun(execution_id, number, text)
                if attempt is None:
                    return {"end": State.CANCELLED.value, "values": {}}
                limit_s = int(self._timeout.total_seconds())
                turn = Turn(execution_id, number, attempt, text, limit_s)
                stop = asyncio.Event()
                running = asyncio.create_task(agent.run(turn, stop))
                self._running[execution_id] = running, stop
                try:
                    output = await self._watched(execution_id, running, stop)
                except AgentError as error:
                    return failed(str(error))
                finally:
                    self._running.pop(execution_id, None)
            if output is None:
                return {"end": State.CANCELLED.value, "values": {}}
            await self._finished(execution_id, number, output)
        read = read_output(output, row.ask_token)
        if isinstance(read, asks.Asks):
            return {"ask": read.ask.model_dump(mode="json")}
        if isinstance(read, asks.Malformed):
            why = f"The agent wanted to ask something and did not say it as it was told: {read.why}"
            return failed(why, result=shortened(output))
        return {"end": State.COMPLETED.value, "values": {"result": shortened(read.result)}}

    async def _watched(
        self, execution_id: str, running: asyncio.Task[str], stop: asyncio.Event
    ) -> str | None:
        """Wait for the agent; None when it was cancelled, here or by another process."""
        try:
            while True:
                done, _ = await asyncio.wait([running], timeout=LOOK_AGAIN_S)
                if self._stopping:
                    raise asyncio.CancelledError
                if done:
                    return None if running.cancelled() else running.result()
                if await self._over(execution_id):
                    stop.set()
                    return None
        finally:
            if not running.done():
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    @lasting
    async def _over(self, execution_id: str) -> bool:
        return State((await self.get(execution_id)).state) in FINAL

    async def _output_of(self, execution_id: str, number: int) -> str | None:
        async with self._storage.reading() as session:
            found = await session.get(tables.Turn, (execution_id, number))
        return found.output if found is not None else None

    async def _begun(self, execution_id: str, number: int, text: str) -> int | None:
        """Note that a turn begins; return which attempt it is, None when the execution has its end."""
        moment = self._clock()
        async with self._storage.writing() as session:
            row = await session.get(tables.Execution, execution_id)
            if row is None or State(row.state) in FINAL:
                return None
            turn = await session.get(tables.Turn, (execution_id, number))
            if turn is None:
                turn = tables.Turn(
                    execution_id=execution_id, number=number, text=text, attempts=0, began_at=moment
                )
                session.add(turn)
            turn.attempts += 1
            if row.state != State.RUNNING.value:
                row.state = State.RUNNING.value
                row.started_at = row.started_at or moment
                session.add(self._event(execution_id, State.RUNNING))
            attempts = turn.attempts
        await self._tell()
        return attempts

    @lasting  # by itself: a turn that was done must not be done again because it could not be written down
    async def _finished(self, execution_id: str, number: int, output: str) -> None:
        async with self._storage.writing() as session:
            await session.execute(
                update(tables.Turn)
                .where(tables.Turn.execution_id == execution_id, tables.Turn.number == number)
                .values(output=output, ended_at=self._clock())
            )

    async def ask(self, execution_id: str, number: int, ask: dict[str, Any]) -> dict[str, Any]:
        """Ask the person, and note that the execution waits."""
        question = await self._questions.ask(
            Ask.model_validate(ask),
            asked_by="execution",
            key=f"{execution_id}:{number}",
            execution_id=execution_id,
        )
        moved = await self._move(execution_id, State.WAITING, detail=question.id, question_id=question.id)
        if not moved and State((await self.get(execution_id)).state) is State.CANCELLED:
            await self._questions.withdraw(question.id)
        self._wake.set()  # an answer may have come already
        left = (question.deadline - self._clock()).total_seconds()
        # The question's own deadline ends the wait; this is for the case that nobody passes that on.
        return {"id": question.id, "seconds": max(0.0, left) + 60.0}

    async def answer(self, execution_id: str, question_id: str) -> dict[str, Any]:
        """Return what the agent is told next, or the end."""
        question = await self._questions.get(question_id)
        await self._questions.handed_over(question)
        state = QuestionState(question.state)
        if state is QuestionState.ANSWERED:
            return {"text": question.answer or ""}
        if state is QuestionState.DECLINED:
            return {"text": "The person declined to answer. Go on without it, or stop and say why."}
        why = "Its question was not answered in time."
        return {"end": State.EXPIRED.value, "values": {"error": why}}

    async def end(
        self, execution_id: str, state: State, *, result: str | None = None, error: str | None = None
    ) -> None:
        """Give it its end, if it has none, and tell the person."""
        row = await self.get(execution_id)
        facts = {"instruction": row.instruction, "result": result or "", "error": error or ""}
        event = None if state is State.CANCELLED else Event.ended(execution_id, state.value, facts)
        await self._move(
            execution_id,
            state,
            event=event,
            detail=error or "",
            result=result,
            error=error,
            ended_at=self._clock(),
        )

    async def _move(
        self, execution_id: str, state: State, *, detail: str = "", event: Event | None = None, **values: Any
    ) -> bool:
        """Change the state, once, unless it is final; with its event and the message that tells of it."""
        async with self._storage.writing() as session:
            moved = await session.execute(
                update(tables.Execution)
                .where(
                    tables.Execution.id == execution_id,
                    tables.Execution.state.not_in([*FINAL_VALUES, state.value]),
                )
                .values(state=state.value, **values)
                .execution_options(synchronize_session=False)
            )
            if not moved.rowcount:  # type: ignore[attr-defined] # an UPDATE's result has it
                return False
            session.add(self._event(execution_id, state, detail))
            if event is not None:
                self._outbox.put(session, event)
        log.info("an execution moves", extra={"execution": execution_id, "state": state.value})
        self._outbox.look()
        await self._tell()
        return True

    def _event(self, execution_id: str, state: State, detail: str = "") -> tables.Happened:
        return tables.Happened(execution_id=execution_id, at=self._clock(), state=state.value, detail=detail)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------- looking

    async def get(self, execution_id: str) -> tables.Execution:
        """Look one up. Raises UnknownError."""
        async with self._storage.reading() as session:
            row = await session.get(tables.Execution, execution_id)
        if row is None:
            raise UnknownError
        return row

    async def turns(self, execution_id: str) -> Sequence[tables.Turn]:
        """Return what its agent was told and said, in order."""
        wanted = select(tables.Turn).where(tables.Turn.execution_id == execution_id)
        async with self._storage.reading() as session:
            return (await session.scalars(wanted.order_by(tables.Turn.number))).all()

    async def turn_counts(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many turns these have had."""
        counted = (
            select(tables.Turn.execution_id, func.count().label("many"))
            .where(tables.Turn.execution_id.in_(ids))
            .group_by(tables.Turn.execution_id)
        )
        async with self._storage.reading() as session:
            return {one.execution_id: one.many for one in await session.execute(counted)}

    async def listed(
        self, state: State | None, limit: int, before: datetime | None
    ) -> Sequence[tables.Execution]:
        """Return the newest first, those before a moment."""
        wanted = select(tables.Execution).order_by(tables.Execution.made_at.desc()).limit(limit)
        if state is not None:
            wanted = wanted.where(tables.Execution.state == state.value)
        if before is not None:
            wanted = wanted.where(tables.Execution.made_at < before)
        async with self._storage.reading() as session:
            return (await session.scalars(wanted)).all()

    async def events(self, execution_id: str, after: int) -> AsyncIterator[tables.Happened | None]:
        """Yield what happened after an event, then what happens, until its end; None is a sign of life."""
        last, quiet = after, 0.0
        while True:
            async with self._storage.reading() as session:
                new = (
                    await session.scalars(
                        select(tables.Happened)
                        .where(tables.Happened.execution_id == execution_id, tables.Happened.id > last)
                        .order_by(tables.Happened.id)
                    )
                ).all()
            for event in new:
                yield event
                last, quiet = event.id, 0.0
                if State(event.state) in FINAL:
                    return
            if not new and last == after and State((await self.get(execution_id)).state) in FINAL:
                return
            try:
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait(), LOOK_AGAIN_S)
            except asyncio.TimeoutError:
                quiet += LOOK_AGAIN_S
                if quiet >= SIGN_OF_LIFE_S:
                    yield None
                    quiet = 0.0


def shortened(text: str) -> str:
    """Cut a result to what a person reads; the whole output is with the turn."""
    if len(text) <= RESULT_CHARS:
        return text
    return f"{text[:RESULT_CHARS]}\n[… {len(text) - RESULT_CHARS} more characters; the turn has them]"


def dbos_config(database_url: str) -> DBOSConfig:
    """Return DBOS's settings: its tables lie beside ours, in a file or a schema of their own."""
    url = database(database_url)
    one_of_many = url.get_backend_name() != "sqlite"
    if one_of_many:
        system = url.set(drivername="postgresql").render_as_string(hide_password=False)
    else:
        system = f"sqlite:///{(url.database or '').removesuffix('.db')}-executions.db"
    return DBOSConfig(
        name="hotline",
        system_database_url=system,
        application_version=APPLICATION_VERSION,
        # Who goes on with what a killed process had begun: on a database of many, that machine itself.
        executor_id=socket.gethostname() if one_of_many else "local",
        log_level="ERROR",
        # Looked for, not listened for: what PostgreSQL says while the listener's connection is lost is heard
        # a minute later, and an answered agent would stand still for so long.
        use_listen_notify=False,
        notification_listener_polling_interval_sec=0.2,
        enable_otlp=False,
    )


# -------------------------------------------------------------------------------- the addresses

NO_EXECUTION = "There is no such execution, or it is not for this key."
NO_AGENT = (
    "No agent of that name carries out instructions on this line{has}. Mend: set orchestrator_agent_command "
    "and run site.yml again."
)


def moment_of(value: object) -> object:
    """Refuse a number: it would be read as seconds since 1970, which nobody means and nothing says."""
    if isinstance(value, str) and re.fullmatch(r"[\s+-]*[0-9.]+\s*", value):
        raise ValueError("must be a moment such as 2026-11-24T18:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(moment_of)]


class Instruction(BaseModel):
    """An instruction as it is sent here."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    instruction: Annotated[
        str, Field(min_length=1, max_length=INSTRUCTION_CHARS), BeforeValidator(plain_or_none)
    ]
    agent: Annotated[str | None, Field(max_length=40)] = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=200)]


class Shown(BaseModel):
    """An execution as it is answered."""

    id: str
    agent: str
    asked_by: str
    instruction: str
    state: State
    made_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    question_id: str | None
    result: str | None
    error: str | None

    @classmethod
    def of(cls, row: tables.Execution) -> Shown:
        """Show a row."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class ShownTurn(BaseModel):
    """A turn as it is answered."""

    number: int
    text: str
    attempts: int
    began_at: datetime
    ended_at: datetime | None
    output: str | None


class Whole(Shown):
    """An execution with what its agent was told and said."""

    turns: list[ShownTurn]


AnyScope = Annotated[Identity, Depends(require(Scope.CALLER, Scope.AGENT, Scope.OPERATOR))]
Person = Annotated[Identity, Depends(require(Scope.CALLER, Scope.OPERATOR, Scope.AGENT))]
Asker = Annotated[Identity, Depends(require(Scope.AGENT, Scope.OPERATOR))]


def at_work(request: Request) -> Executions:
    """Return the executions. Raises Problem when no agent is set up."""
    executions: Executions | None = request.state.executions
    if executions is None:
        raise Problem(503, "no_agent", NO_AGENT.format(has=""))
    return executions


def own_session(who: Identity) -> str:
    """Return under whose name an instruction is handed over. Raises Problem for a caller without a link."""
    if who.scope is not Scope.CALLER:
        return str(who.scope.value)
    if who.session_id is None:
        raise Problem(
            401,
            "no_key",
            "An instruction needs a key, also where everybody may call: open a link of the line.",
        )
    return f"caller:{who.link_id}"


async def execution_for(executions: Executions, execution_id: str, who: Identity) -> tables.Execution:
    """Look up one that this key may see: a caller sees what it handed over, and what its link is for."""
    try:
        row = await executions.get(execution_id)
    except UnknownError:
        raise Problem(404, "not_found", NO_EXECUTION) from None
    if who.scope is Scope.CALLER and not (
        who.execution_id == execution_id or (who.link_id and row.asked_by == f"caller:{who.link_id}")
    ):
        raise Problem(404, "not_found", NO_EXECUTION)
    return row


@router.post("/api/executions", status_code=201)
async def hand_over(request: Request, who: Person, wanted: Instruction) -> Shown:
    """Hand over an instruction. The same key again is the same execution."""
    executions = at_work(request)
    if who.scope is Scope.CALLER and who.purpose != "talk":
        raise Problem(403, "wrong_scope", "This link is for one question or one execution, not for new ones.")
    try:
        row = await executions.hand_over(
            wanted.instruction,
            agent=wanted.agent,
            asked_by=own_session(who),
            key=wanted.idempotency_key,
        )
    except NoAgentError:
        has = f" (there is: {', '.join(executions.agents)})"
        raise Problem(422, "no_agent", NO_AGENT.format(has=has)) from None
    return Shown.of(row)


@router.get("/api/executions")
async def list_executions(
    request: Request,
    who: Asker,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Moment | None = None,
) -> list[Shown]:
    """List executions, newest first."""
    return [Shown.of(row) for row in await at_work(request).listed(state, limit, before)]


class Session(BaseModel):
    """A session of an agent: one task's. Its history is the turns of the execution of the same id."""

    id: str
    agent: str
    title: str
    state: State
    began_at: datetime
    turns: int


@router.get("/api/agent/sessions")
async def list_sessions(
    request: Request, who: Asker, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> list[Session]:
    """List the agents' sessions, newest first; GET /api/executions/{id} has the history of one."""
    executions = at_work(request)
    rows = await executions.listed(None, limit, None)
    counts = await executions.turn_counts([row.id for row in rows])
    return [
        Session(
            id=row.id,
            agent=row.agent,
            title=" ".join(row.instruction.split())[:80],
            state=State(row.state),
            began_at=row.made_at,
            turns=counts.get(row.id, 0),
        )
        for row in rows
    ]


@router.get("/api/executions/{execution_id}")
async def get_execution(request: Request, who: AnyScope, execution_id: str) -> Whole:
    """Look at one, with what its agent was told and said."""
    executions = at_work(request)
    row = await execution_for(executions, execution_id, who)
    turns = [
        ShownTurn(**{name: getattr(turn, name) for name in ShownTurn.model_fields})
        for turn in await executions.turns(execution_id)
    ]
    return Whole(**Shown.of(row).model_dump(), turns=turns)


@router.post("/api/executions/{execution_id}/cancel")
async def cancel_execution(request: Request, who: Person, execution_id: str) -> Shown:
    """End one; what has its end keeps it."""
    executions = at_work(request)
    await execution_for(executions, execution_id, who)
    return Shown.of(await executions.cancel(execution_id))


@router.get(
    "/api/executions/{execution_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def execution_events(
    request: Request,
    who: AnyScope,
    execution_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Stream its states as they change (Server-Sent Events), from after ``Last-Event-ID``."""
    executions = at_work(request)
    await execution_for(executions, execution_id, who)
    after = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else 0

    async def stream() -> AsyncIterator[bytes]:
        async for event in executions.events(execution_id, min(after, 2**62)):
            if event is None:
                yield b": still here\n\n"
                continue
            said = {"state": event.state, "at": event.at.isoformat(), "detail": event.detail}
            yield f"id: {event.id}\nevent: execution\ndata: {json.dumps(said)}\n\n".encode()

    return StreamingResponse(
        stream(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
