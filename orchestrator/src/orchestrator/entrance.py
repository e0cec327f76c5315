"""The door of ``/api/chat``: nginx asks here before every upgrade (``auth_request``).

Three things open it: a ticket in the query (pages, which fetch one with their key, and ``hotline ticket``),
a key or token as bearer (native clients), and, where everybody may call (``line_access: open``), nothing at
all. A page from elsewhere is refused whatever it brings.
"""

from __future__ import annotations

import logging
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Depends, Request, Response

from orchestrator import __version__
from orchestrator.authorize import Granted, Refused
from orchestrator.engines import SocketsUnreadableError
from orchestrator.problems import Problem, problem
from orchestrator.refusal import MESSAGES, STATUS, Refusal
from orchestrator.scopes import Identity, Scope, bearer_of, identity_of, require
from orchestrator.switchboard import Call, Switchboard
from orchestrator.throttle import Throttle, client_of

log = logging.getLogger("orchestrator.entrance")
router = APIRouter(include_in_schema=False)


def ticket_of(original_uri: str | None) -> str | None:
    """Return the ticket in the query of the request that nginx asks about; None when there is none."""
    try:
        query = parse_qs(urlsplit(original_uri or "").query, keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return None
    return query.get("ticket", [None])[0]


async def admitted(request: Request) -> tuple[Call | None, str, Identity | None] | Refusal:
    """Say who comes in: a call that has a ticket for, or how somebody comes without one; or why not."""
    board: Switchboard = request.state.switchboard
    throttle: Throttle = request.state.throttle
    if not request.state.doors.admit(request.headers.get("origin")):
        return Refusal.NOT_ALLOWED
    client = client_of(request.client.host if request.client else None)
    word, header = ticket_of(request.headers.get("x-original-uri")), request.headers.get("authorization")
    if word is None and bearer_of(header) is None:
        open_line = board.settings.line_access == "open"
        return (None, "open", None) if open_line else Refusal.LINK_NEEDED
    try:
        throttle.check_failures(client)
    except Problem:
        return Refusal.TOO_MANY_FAILURES
    if word is not None:
        call = board.by_ticket(word)
        if call is None:
            throttle.failed(client)
            return Refusal.TICKET_INVALID
        return call, call.through, None
    identity = await identity_of(header, request.state.keys, board.storage)
    if identity is None:
        throttle.failed(client)
        return Refusal.LINK_NEEDED
    return (None, "bearer", identity) if identity.purpose != "view" else Refusal.NOT_ALLOWED


@router.get("/internal/authorize")
async def authorize(request: Request) -> Response:
    """Answer nginx: 204 with the engine's upstream and the call's id, or why not."""
    board: Switchboard = request.state.switchboard
    facts = {"origin": request.headers.get("origin"), "caller": request.headers.get("x-real-ip")}
    who = await admitted(request)
    refusal = who if isinstance(who, Refusal) else None
    if not isinstance(who, Refusal):
        try:
            call, decision = await board.connect(*who)
        except SocketsUnreadableError as error:
            log.error("the engines cannot be seen: %s", error)
            decision = Refused(Refusal.LINE_DOWN)
        if isinstance(decision, Granted):
            engine = f"moshi_{decision.engine}"
            log.info(
                "a call is let in", extra=facts | {"call": call.id, "engine": engine, "through": call.through}
            )
            return Response(status_code=204, headers={"X-Engine": engine, "X-Call-Id": call.id})
        refusal = decision.refusal if isinstance(decision, Refused) else Refusal.LINE_DOWN
    assert refusal is not None  # noqa: S101 - for the type checker
    log.info("a call is refused", extra=facts | {"refusal": refusal.value})
    return problem(
        STATUS[refusal], MESSAGES[refusal], code=refusal.value, headers={"X-Refusal": refusal.value}
    )


@router.get("/api/openapi.json")
async def description(
    request: Request, _: Annotated[Identity, Depends(require(Scope.OPERATOR))]
) -> dict[str, object]:
    """Describe the interface, to the operator."""
    return dict(request.app.openapi(), **{"x-version": __version__})
