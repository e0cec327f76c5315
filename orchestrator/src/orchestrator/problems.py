"""Every error that is not a WebSocket's is a problem document (RFC 9457, ``application/problem+json``).

``code`` is the member by which programs tell errors apart; ``detail`` is a sentence for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match


def problem(
    status: int, detail: str, *, code: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """Make the problem document of one error. ``code`` defaults to the status's phrase, in small letters."""
    title = HTTPStatus(status).phrase
    document = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code or title.lower().replace(" ", "_").replace("-", "_"),
    }
    return Response(
        json.dumps(document, ensure_ascii=False).encode(),
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


class Problem(Exception):  # noqa: N818 - a problem document, as RFC 9457 calls it
    """A request is refused with this problem document."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers


DETAILS = {
    404: "There is nothing under this address.",
    405: "This address does not know that method; the Allow header names those it knows.",
}


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def methods_of(request: Request) -> list[str]:
    """Return the methods that an address knows; the router itself names those of one of its routes."""
    routes, asked = request.app.router.routes, request.scope
    return [
        method
        for method in METHODS
        if any(route.matches({**asked, "method": method})[0] is Match.FULL for route in routes)
    ]


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what Starlette refuses by itself (404, 405) and what a route refuses on purpose."""
    if not isinstance(error, HTTPException):
        raise error
    usual = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != usual else DETAILS.get(error.status_code, f"{usual}.")
    headers = {"Allow": ", ".join(methods_of(request))} if error.status_code == 405 else error.headers
    return problem(error.status_code, detail, headers=headers)


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Name the parts of a request that are not what the address takes, without repeating their values."""
    if not isinstance(error, RequestValidationError):
        raise error
    parts = "; ".join(
        f"{'.'.join(str(step) for step in found['loc'])}: {found['msg']}" for found in error.errors()
    )
    return problem(422, f"The request is not what this address takes: {parts}.", code="invalid_request")


async def on_problem(request: Request, error: Exception) -> Response:
    """Answer with the problem that a route raised."""
    if not isinstance(error, Problem):
        raise error
    return problem(error.status, str(error), code=error.code, headers=error.headers)


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="a sentence for people")
    code: str = Field(description="by which programs tell errors apart")


def describe(app: FastAPI) -> None:
    """Have the OpenAPI description say that every error is a problem document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = plain()
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            reference = {"$ref": "#/components/schemas/ProblemDocument"}
            error = {
                "description": "An error, as a problem document",
                "content": {"application/problem+json": {"schema": reference}},
            }
            for operations in described["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = error
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation has it


def install(app: FastAPI) -> None:
    """Have the application answer every error this way."""
    describe(app)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
