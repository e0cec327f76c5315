"""A refused call is told why, in words.

A browser cannot read the HTTP status of a refused upgrade. So nginx sends what was refused to
``/internal/refusal``, which accepts the WebSocket, says it in a message of kind 5 and closes: 1008 when the
caller is not allowed, 1013 when trying again later helps
(https://www.iana.org/assignments/websocket/websocket.xhtml). Without an upgrade the answer is a problem
document.
"""

from __future__ import annotations

import json
import logging
from enum import Enum

from fastapi import APIRouter, Request, Response, WebSocket
from starlette.websockets import WebSocketDisconnect

from orchestrator.problems import problem

KIND_ERROR = b"\x05"

log = logging.getLogger("orchestrator.refusal")
router = APIRouter(include_in_schema=False)


class Refusal(str, Enum):
    """Why a call is refused."""

    NOT_ALLOWED = "not_allowed"
    LINK_NEEDED = "link_needed"
    TICKET_INVALID = "ticket_invalid"
    TOO_MANY_FAILURES = "too_many_failures"
    LINE_FULL = "line_full"
    LINE_DOWN = "line_down"
    STARTING = "starting"


MESSAGES = {
    Refusal.NOT_ALLOWED: (
        "This line does not take calls from the page that you came from. "
        "Open the line's own address and call from there."
    ),
    Refusal.LINK_NEEDED: "This line is opened by a link. Open the one that you were sent, or ask for one.",
    Refusal.TICKET_INVALID: (
        "This ticket does not open the line (any more): it is good once, for 30 seconds. "
        "Load the page again, or ask for another."
    ),
    Refusal.TOO_MANY_FAILURES: "Too many wrong keys or links came from your address. Wait a minute.",
    Refusal.LINE_FULL: "The line is busy: somebody else is talking. Try again in a moment.",
    Refusal.LINE_DOWN: "The line is out of order. Whoever runs it finds the reason under /health.",
    Refusal.STARTING: "The line is starting: the voice is being loaded. Try again in a minute.",
}
STATUS = {
    Refusal.NOT_ALLOWED: 403,
    Refusal.LINK_NEEDED: 403,
    Refusal.TICKET_INVALID: 403,
    Refusal.TOO_MANY_FAILURES: 403,
    Refusal.LINE_FULL: 503,
    Refusal.LINE_DOWN: 503,
    Refusal.STARTING: 503,
}
RETRY_AFTER_S = {Refusal.LINE_FULL: 10, Refusal.LINE_DOWN: 60, Refusal.STARTING: 15}
CLOSE = {
    Refusal.NOT_ALLOWED: 1008,
    Refusal.LINK_NEEDED: 1008,
    Refusal.TICKET_INVALID: 1008,
    Refusal.TOO_MANY_FAILURES: 1013,
    Refusal.LINE_FULL: 1013,
    Refusal.LINE_DOWN: 1013,
    Refusal.STARTING: 1013,
}


def refusal_of(header: str | None) -> Refusal:
    """Read nginx's X-Refusal. What it does not name is an error of the line's own: it is down."""
    try:
        return Refusal(header or "")
    except ValueError:
        return Refusal.LINE_DOWN


def message_of(refusal: Refusal) -> bytes:
    """Return the message of kind 5 that says it: one byte, then JSON in UTF-8."""
    said = {"code": refusal.value, "message": MESSAGES[refusal]}
    return KIND_ERROR + json.dumps(said, ensure_ascii=False).encode()


@router.websocket("/internal/refusal")
async def say_no(websocket: WebSocket) -> None:
    """Accept, say why, close.

    A caller that already sends audio still gets to read the reason: the server goes on reading, and forgets
    what it reads, until the caller has closed as well (uvicorn does, for 10 s at most). Closing with bytes
    unread would make the kernel reset the connection, and the reason would be lost on the way.
    """
    refusal = refusal_of(websocket.headers.get("x-refusal"))
    # A browser drops a connection on which none of the subprotocols it offered was chosen.
    offered = websocket.scope.get("subprotocols") or [None]
    try:
        await websocket.accept(subprotocol=offered[0])
        await websocket.send_bytes(message_of(refusal))
        await websocket.close(CLOSE[refusal], refusal.value)
    except WebSocketDisconnect:
        log.debug("a refused caller was gone before it could be told")


@router.api_route("/internal/refusal", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def refuse(request: Request) -> Response:
    """Say why to whoever did not ask for a WebSocket."""
    refusal = refusal_of(request.headers.get("x-refusal"))
    headers = {"X-Refusal": refusal.value}
    if refusal in RETRY_AFTER_S:
        headers["Retry-After"] = str(RETRY_AFTER_S[refusal])
    return problem(STATUS[refusal], MESSAGES[refusal], code=refusal.value, headers=headers)
