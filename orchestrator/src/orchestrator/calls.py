"""Calls as pages, operators and agents see them: asking, waiting, hanging up, what is remembered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from starlette.responses import StreamingResponse

from orchestrator import __version__, events, records, tables
from orchestrator.links import Id
from orchestrator.problems import Problem
from orchestrator.scopes import Identity, Scope, require
from orchestrator.switchboard import Call, QueueFullError, State, Switchboard, ticket_facts
from orchestrator.throttle import CALLS

router = APIRouter(tags=["calls"])

Caller = Annotated[Identity, Depends(require(Scope.CALLER))]
CallerOrOperator = Annotated[Identity, Depends(require(Scope.CALLER, Scope.OPERATOR))]
Operator = Annotated[Identity, Depends(require(Scope.OPERATOR))]
Reader = Annotated[Identity, Depends(require(Scope.OPERATOR, Scope.AGENT))]


class Transcript(BaseModel):
    """Whether what is said is kept, and for how many days."""

    kept: bool
    days: int


class About(BaseModel):
    """What anybody may know of a line."""

    version: str
    access: Literal["open", "links"]
    engine: str
    conversations: int
    transcript: Transcript
    words: bool
    tasks: bool = Field(description="an agent carries out what callers hand over")


class Wish(BaseModel):
    """What a call is for."""

    model_config = ConfigDict(extra="forbid")

    question_id: Id | None = None


class Admission(BaseModel):
    """A call: ready, with the ticket that opens ``/api/chat?ticket=…`` within 30 s, or waiting."""

    id: str
    state: Literal["ready", "waiting"]
    position: int | None = None
    estimated_wait_s: int | None = None
    ticket: str | None = None
    ticket_expires_at: datetime | None = None


class TicketOut(BaseModel):
    """A ticket: good for one upgrade."""

    ticket: str
    ticket_expires_at: datetime


class NativeTicket(TicketOut):
    """A ticket for a client that is no page, with the address that it opens."""

    call_id: str
    url: str


class Said(BaseModel):
    """One utterance; times from the call's beginning."""

    who: str
    text: str
    start_ms: int | None
    end_ms: int | None
    said_at: datetime


class Record(BaseModel):
    """What is remembered of a call."""

    id: str
    state: Literal["waiting", "called", "connecting", "talking", "ended"]
    through: str
    link_id: str | None
    question_id: str | None
    asked_at: datetime
    called_at: datetime | None
    began_at: datetime | None
    ended_at: datetime | None
    reason: str | None
    engine: int | None
    voice: str | None
    latency: dict[str, Any] | None


class FullRecord(Record):
    """A call with what was said in it."""

    transcript: list[Said]


UNKNOWN = "There is no such call, or it is not yours."
OVER = "This call is over. Place a new one."


def own(board: Switchboard, call_id: str, who: Identity) -> Call:
    """Return a call that is going on. Raises Problem 404 for one that is not the asker's."""
    call = board.calls.get(call_id)
    if call is None or (who.scope is Scope.CALLER and call.session_id != who.session_id):
        raise Problem(404, "call_unknown", UNKNOWN)
    return call


@router.get("/api/line", summary="What this line is")
async def line(request: Request) -> About:
    """Say what a page has to know before anybody calls."""
    board: Switchboard = request.state.switchboard
    settings = board.settings
    return About(
        version=__version__,
        access=settings.line_access,
        engine=settings.moshi_engine,
        conversations=board.slots,
        transcript=Transcript(
            kept=settings.transcript_retention_days > 0, days=settings.transcript_retention_days
        ),
        words=settings.moshi_engine == "duplex",
        tasks=request.state.executions is not None,
    )


@router.post("/api/calls", status_code=201, summary="Ask for a call", response_model_exclude_none=True)
async def ask(request: Request, who: Caller, wish: Wish | None = None) -> Admission:
    """Call at once, or wait for a turn: the events of the call say when it comes."""
    board: Switchboard = request.state.switchboard
    question = wish.question_id if wish else None
    if who.purpose == "view" or (question is not None and question != who.question_id):
        raise Problem(
            403, "wrong_purpose", "This link is not for that call. Ask for one to talk, or to that question."
        )
    if who.session_id is not None:
        request.state.throttle.count(CALLS, "calls", who.session_id)
    try:
        call = await board.ask(who, question or who.question_id)
    except QueueFullError:
        raise Problem(
            503,
            "queue_full",
            "Too many callers wait already. Try again later.",
            headers={"Retry-After": "60"},
        ) from None
    except records.NotSavedError:
        raise Problem(
            503,
            "database_down",
            "The line cannot write anything down just now. Try again in a moment.",
            headers={"Retry-After": "10"},
        ) from None
    if call.state is State.CALLED:
        return Admission.model_validate(
            {"id": call.id, "state": "ready"} | ticket_facts(board.tickets.issue(call.id))
        )
    position, estimate = call.told or (1, None)
    return Admission(id=call.id, state="waiting", position=position, estimated_wait_s=estimate)


@router.post("/api/calls/{call_id}/ticket", summary="A new ticket for the same call")
async def ticket(request: Request, call_id: str, who: Caller) -> TicketOut:
    """Come back after a broken connection, or after a ticket was not used in time."""
    board: Switchboard = request.state.switchboard
    call = own(board, call_id, who)
    call.heard = board.clock()
    if call.state is State.TALKING:
        await board.look()  # it may be over and nobody has seen it yet
    if call.state is State.ENDED:
        raise Problem(409, "call_over", OVER)
    if call.state is State.WAITING:
        raise Problem(409, "call_waiting", "It is not this call's turn yet. Its events say when it is.")
    return TicketOut.model_validate(ticket_facts(board.tickets.issue(call.id)))


@router.get(
    "/api/calls/{call_id}/events",
    summary="What happens to a call",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def happens(
    request: Request,
    call_id: str,
    who: CallerOrOperator,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Server-Sent Events: waiting, ready, began, transcript, turn_end, question, execution, ended."""
    board: Switchboard = request.state.switchboard
    call = own(board, call_id, who)
    counts = who.scope is Scope.CALLER

    def opened() -> None:
        call.listeners += counts

    def closed() -> None:
        call.listeners -= counts
        call.heard = board.clock()

    return events.stream(call.log, last_event_id, opened, closed)


@router.delete("/api/calls/{call_id}", status_code=204, summary="Hang up, or leave the queue")
async def hang_up(request: Request, call_id: str, who: CallerOrOperator) -> None:
    """End a call. A caller ends his own, the operator any."""
    board: Switchboard = request.state.switchboard
    call = own(board, call_id, who)
    operator = who.scope is Scope.OPERATOR
    if call.state is State.ENDED:
        return
    done = await board.hang_up(call, "operator" if operator else "hung_up")
    if not done and operator:
        raise Problem(
            502,
            "engine_silent",
            f"The engine did not end the call. Mend: hotline restart moshi@{call.engine}, which ends all.",
        )


@router.get("/api/calls", summary="List calls")
async def list_calls(
    request: Request,
    who: Reader,
    live: Annotated[bool, Query(description="only those that wait or talk")] = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[Record]:
    """List the newest calls, without what was said."""
    board: Switchboard = request.state.switchboard
    wanted = select(tables.Call).order_by(tables.Call.asked_at.desc()).limit(limit)
    async with board.storage.reading() as session:
        kept = {row.id: record_of(row) for row in (await session.execute(wanted)).scalars()}
    # Memory is ahead of the disk by the changes that are not written yet.
    now = {
        call.id: Record.model_validate(call.facts() | {"voice": board.settings.moshi_voice})
        for call in board.calls.values()
    }
    found = sorted((kept | now).values(), key=lambda one: one.asked_at, reverse=True)
    return [one for one in found if not live or one.state != "ended"][:limit]


def record_of(row: tables.Call) -> Record:
    """Return a row as it is shown."""
    return Record.model_validate({name: getattr(row, name) for name in Record.model_fields})


@router.get("/api/calls/{call_id}", summary="One call, with what was said")
async def one_call(
    request: Request,
    call_id: str,
    who: Annotated[Identity, Depends(require(Scope.CALLER, Scope.AGENT, Scope.OPERATOR))],
) -> FullRecord:
    """Return a call's record. A caller sees his own."""
    board: Switchboard = request.state.switchboard
    async with board.storage.reading() as session:
        row = await session.get(tables.Call, call_id)
    if row is None or (who.scope is Scope.CALLER and row.session_id != who.session_id):
        raise Problem(404, "call_unknown", UNKNOWN)
    said = await records.transcript(board.storage, call_id)
    going_on = board.calls.get(call_id)
    facts = going_on.facts() | {"voice": row.voice} if going_on else record_of(row).model_dump()
    return FullRecord.model_validate(
        facts | {"transcript": [{name: getattr(one, name) for name in Said.model_fields} for one in said]}
    )


@router.delete("/api/calls/{call_id}/record", status_code=204, summary="Forget a call")
async def forget(request: Request, call_id: str, who: Operator) -> None:
    """Delete what is remembered of a call that has ended, transcript and all."""
    board: Switchboard = request.state.switchboard
    call = board.calls.get(call_id)
    if call is not None and call.state is not State.ENDED:
        raise Problem(
            409, "call_going_on", "This call has not ended yet. Hang it up first: DELETE /api/calls/{id}."
        )
    board.calls.pop(call_id, None)
    if not await records.forget(board.storage, call_id):
        raise Problem(404, "call_unknown", UNKNOWN)


@router.post("/api/tickets", status_code=201, summary="A ticket for a native client")
async def native_ticket(request: Request, who: Operator) -> NativeTicket:
    """Let one client of Moshi's protocol call once within 30 s, kyutai's moshi.client for one.

    The URL ends in a parameter of its own, because that client appends ``/api/chat`` to whatever it is given.
    """
    board: Switchboard = request.state.switchboard
    call, made = board.new_ticket(who)
    scheme, _, rest = board.settings.moshi_url.partition("://")
    address = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/api/chat?ticket={made.word}&for="
    return NativeTicket.model_validate(ticket_facts(made) | {"call_id": call.id, "url": address})
