"""What every request passes: a limit for its body, a line in the log, an answer when we fail ourselves."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.problems import problem

BODY_BYTES = 64 * 1024  # questions, answers and settings are text; audio never comes this way

log = logging.getLogger("orchestrator.access")


class BodyTooLargeError(Exception):
    """A request's body is larger than BODY_BYTES."""


class Edge:
    """The outermost layer of the application (pure ASGI, so that it sees what the others do)."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = self._clock()
        status = 0
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            if message["type"] == "http.request":
                arrived += len(message.get("body", b""))
                if arrived > BODY_BYTES:
                    raise BodyTooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if announced(scope) > BODY_BYTES:
                raise BodyTooLargeError
            await self._app(scope, counted, noted)
        except BodyTooLargeError:
            if not status:
                # What still comes is read and forgotten by the server: to close on it would lose the answer.
                too_large = problem(
                    413,
                    f"The body of a request may have {BODY_BYTES} bytes at most.",
                    code="body_too_large",
                )
                await too_large(scope, receive, noted)
        except Exception:
            log.exception("a request failed", extra={"path": scope["path"]})
            if not status:
                failed = problem(
                    500, "The orchestrator failed at this; its log (hotline logs orchestrator) says how."
                )
                await failed(scope, receive, noted)
        finally:
            # Probes ask every few seconds; what matters about them is logged where it is decided.
            quiet = scope["path"].startswith(("/health", "/internal/")) and status != 500
            log.log(
                logging.DEBUG if quiet else logging.INFO,
                "a request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round((self._clock() - began) * 1000, 1),
                    "caller": scope["client"][0] if scope.get("client") else None,
                },
            )


def announced(scope: Scope) -> int:
    """Return the length that a request says its body has; 0 when it says nothing."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
