"""A refused call is told why, in words: through a real server and a real WebSocket client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator.refusal import CLOSE, MESSAGES, STATUS, Refusal, message_of, refusal_of
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from .conftest import asking, serving


def test_every_refusal_is_said_in_every_way() -> None:
    for table in (MESSAGES, STATUS, CLOSE):
        assert set(table) == set(Refusal)


@pytest.mark.parametrize("refusal", Refusal)
def test_the_message_is_the_wire_protocols_error(refusal: Refusal) -> None:
    message = message_of(refusal)
    assert message[:1] == b"\x05"
    assert json.loads(message[1:]) == {"code": refusal.value, "message": MESSAGES[refusal]}


@given(st.none() | st.text())
def test_what_nginx_does_not_name_is_a_line_that_is_down(header: str | None) -> None:
    expected = Refusal(header) if header in {r.value for r in Refusal} else Refusal.LINE_DOWN
    assert refusal_of(header) is expected


@pytest.mark.parametrize(
    ("header", "code", "close"),
    [
        ("not_allowed", "not_allowed", 1008),
        ("line_full", "line_full", 1013),
        ("line_down", "line_down", 1013),
        ("starting", "starting", 1013),
        ("something new", "line_down", 1013),
        (None, "line_down", 1013),
    ],
)
async def test_a_refused_upgrade_is_accepted_told_and_closed(
    make_app: Any, header: str | None, code: str, close: int
) -> None:
    async with serving(make_app()) as port:
        headers = {"X-Refusal": header} if header else {}
        async with connect(f"ws://127.0.0.1:{port}/internal/refusal", additional_headers=headers) as call:
            message = await asyncio.wait_for(call.recv(), 5)
            assert isinstance(message, bytes)
            assert message[0] == 5
            assert json.loads(message[1:])["code"] == code
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(call.recv(), 5)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (close, code)


async def test_a_subprotocol_that_was_offered_is_chosen(make_app: Any) -> None:
    """A browser drops the connection otherwise, and reads nothing."""
    offered = [Subprotocol("moshi"), Subprotocol("other")]
    async with (
        serving(make_app()) as port,
        connect(f"ws://127.0.0.1:{port}/internal/refusal", subprotocols=offered) as call,
    ):
        assert call.subprotocol == "moshi"


async def test_a_caller_that_already_talks_still_reads_why(make_app: Any) -> None:
    """Audio that nobody reads must not make the kernel reset the connection before the reason is read."""
    async with serving(make_app()) as port:
        uri = f"ws://127.0.0.1:{port}/internal/refusal"
        async with connect(uri, additional_headers={"X-Refusal": "line_full"}) as call:

            async def talk() -> None:
                with contextlib.suppress(ConnectionClosed):
                    for _ in range(300):
                        await call.send(b"\x01" + bytes(4000))

            talking = asyncio.create_task(talk())
            await asyncio.sleep(0.3)  # the reason waits while the audio goes on
            message = await asyncio.wait_for(call.recv(), 5)
            assert json.loads(message[1:])["code"] == "line_full"
            await talking


async def test_a_caller_that_neither_reads_nor_closes_is_left_alone(make_app: Any) -> None:
    """The server stops in time, whatever such a caller does."""
    async with serving(make_app()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /internal/refusal HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
    writer.close()


async def test_a_caller_that_is_gone_leaves_nothing_in_the_log(
    make_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app()) as port:
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /internal/refusal HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            writer.transport.abort()
        await asyncio.sleep(0.2)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize("path", ["/", "/api/chat", "/internal/authorize", "/nothing"])
async def test_no_other_address_takes_a_websocket(make_app: Any, path: str) -> None:
    async with serving(make_app()) as port:
        with pytest.raises(Exception, match="403"):
            async with connect(f"ws://127.0.0.1:{port}{path}"):
                pass


@pytest.mark.parametrize(
    ("header", "status", "retry"),
    [("not_allowed", 403, None), ("line_full", 503, "10"), ("line_down", 503, "60"), ("starting", 503, "15")],
)
async def test_without_an_upgrade_it_is_a_problem_document(
    make_app: Any, header: str, status: int, retry: str | None
) -> None:
    async with asking(make_app()) as client:
        for method in ("GET", "POST"):
            got: httpx.Response = await client.request(
                method, "/internal/refusal", headers={"X-Refusal": header}
            )
            assert (got.status_code, got.headers.get("Retry-After")) == (status, retry)
            assert got.headers["Content-Type"] == "application/problem+json"
            assert got.json() == {
                "type": "about:blank",
                "title": got.json()["title"],
                "status": status,
                "detail": MESSAGES[Refusal(header)],
                "code": header,
            }
