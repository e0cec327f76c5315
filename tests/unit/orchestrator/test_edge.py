"""What every request passes: limits, problem documents, one line in the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from orchestrator.edge import BODY_BYTES

from orchestrator import __version__, logs

from .conftest import asking, serving


def with_routes_of_later_issues(app: FastAPI) -> FastAPI:
    """Add routes that read a body, take a parameter, and fail."""

    @app.post("/api/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.get("/api/number/{number}")
    async def number(number: int) -> int:
        return number

    @app.get("/api/fails")
    async def fails() -> None:
        raise RuntimeError("the secret is 42")

    return app


@pytest.fixture
def app(make_app: Any) -> FastAPI:
    return with_routes_of_later_issues(make_app())


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as the journal gets it."""
    root, ours = logging.getLogger(), logging.getLogger("orchestrator")
    before = (root.handlers[:], root.level, ours.level)
    stream = io.StringIO()
    logs.install("debug", stream)
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def is_problem(got: httpx.Response, status: int, code: str) -> None:
    assert (got.status_code, got.headers["Content-Type"]) == (status, "application/problem+json")
    body = got.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"].endswith(".")
    assert body["title"]


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/", "/api/nothing", "/health/", "/docs", "/openapi.json", "/%2e%2e/x"]
)
async def test_an_address_that_is_none(app: FastAPI, path: str) -> None:
    async with asking(app) as client:
        is_problem(await client.get(path), 404, "not_found")


async def test_a_method_that_is_none(app: FastAPI) -> None:
    async with asking(app) as client:
        got = await client.delete("/health")
        is_problem(got, 405, "method_not_allowed")
        assert set(got.headers["Allow"].split(", ")) == {"GET", "HEAD"}


async def test_every_method_that_an_address_knows_is_allowed_not_those_of_its_first_route(
    app: FastAPI,
) -> None:
    async with asking(app) as client:
        got = await client.put("/api/links")
        assert set(got.headers["Allow"].split(", ")) == {"GET", "POST"}


async def test_a_parameter_that_is_none(app: FastAPI) -> None:
    async with asking(app) as client:
        got = await client.get("/api/number/do-not-repeat-me")
        is_problem(got, 422, "invalid_request")
        assert "path.number" in got.json()["detail"]
        assert "do-not-repeat-me" not in got.text


async def test_our_own_failure_tells_the_log_and_not_the_caller(app: FastAPI, log: io.StringIO) -> None:
    async with asking(app) as client:
        got = await client.get("/api/fails")
        is_problem(got, 500, "internal_server_error")
        assert "42" not in got.text
    failed = [json.loads(line) for line in log.getvalue().splitlines() if "a request failed" in line]
    assert len(failed) == 1
    assert "the secret is 42" in failed[0]["error"]


@pytest.mark.parametrize(
    ("size", "status"), [(0, 200), (BODY_BYTES, 200), (BODY_BYTES + 1, 413), (10_000_000, 413)]
)
async def test_a_body_has_a_limit(app: FastAPI, size: int, status: int) -> None:
    async with asking(app) as client:
        got = await client.post("/api/echo", content=bytes(size))
        if status == 413:
            is_problem(got, 413, "body_too_large" if got.json()["code"] == "body_too_large" else "")
        else:
            assert got.json() == size


async def test_a_body_of_unknown_length_has_the_same_limit(app: FastAPI) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1000)

    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        got = await client.post("/api/echo", content=chunks())
    is_problem(got, 413, "body_too_large")


@pytest.mark.parametrize("length", [b"-1", b"x", b"9" * 30, b"1, 2"])
async def test_a_length_that_is_none(app: FastAPI, length: bytes) -> None:
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /api/echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answer.split()[1] in (b"400", b"413")


async def test_a_line_of_the_log_has_the_version_and_no_query(app: FastAPI, log: io.StringIO) -> None:
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await client.get(
            "/api/nothing?ticket=do-not-log-me", headers={"Authorization": "Bearer do-not-log-me"}
        )
        await client.get(
            "/internal/authorize?ticket=do-not-log-me", headers={"X-Original-URI": "/x?do-not-log-me"}
        )
        await client.get("/health?ticket=do-not-log-me")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert "do-not-log-me" not in log.getvalue()
    assert {line["version"] for line in lines} == {__version__}
    [request] = [line for line in lines if line.get("path") == "/api/nothing"]
    assert (request["event"], request["method"], request["status"]) == ("a request", "GET", 404)
    assert (request["level"], request["caller"]) == ("info", "127.0.0.1")
    probes = [line for line in lines if line.get("path") == "/health"]
    assert [line["level"] for line in probes] == ["debug"]


async def test_nobody_writes_a_line_of_his_own_into_the_log(app: FastAPI, log: io.StringIO) -> None:
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await client.get("/api/%0a%7b%22event%22:%22forged%22%7d")
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert "forged" not in events


async def test_the_caller_is_who_nginx_says(app: FastAPI, log: io.StringIO) -> None:
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await client.get("/api/x", headers={"X-Forwarded-For": "203.0.113.5"})
    assert '"caller": "203.0.113.5"' in log.getvalue()


async def test_the_interface_is_described_only_where_that_is_wanted(make_app: Any) -> None:
    async with asking(make_app(orchestrator_docs=True)) as client:
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/openapi.json")).json()["info"]["version"] == __version__


async def test_it_does_not_say_what_it_is_made_of(app: FastAPI) -> None:
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert "Server" not in (await client.get("/health")).headers
