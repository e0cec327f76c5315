"""Requests that are too many, too large, too slow, or no requests at all."""

from __future__ import annotations

import asyncio
import os
import ssl
import time

import pytest


async def raw(line, data: bytes, tls: bool = True, patience_s: float = 20) -> tuple[bytes, float]:
    """Send bytes; everything that came back until nginx hung up, and after how many seconds it did."""
    context = line.trust() if tls else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", line.port, ssl=context, server_hostname="localhost" if tls else None
    )
    begun = time.monotonic()
    writer.write(data)
    try:
        got = await asyncio.wait_for(reader.read(), patience_s)
    except (ConnectionError, ssl.SSLError):
        got = b""
    writer.close()
    return got, time.monotonic() - begun


@pytest.mark.parametrize(
    "data", [os.urandom(4000), b"\x16\x03\x01" + os.urandom(500), b"SSH-2.0-x\r\n", b"\0" * 100, b"\r\n\r\n"]
)
async def test_garbage_on_the_tls_port_is_sent_away(line, caller, data):
    _, seconds = await raw(line, data, tls=False)
    assert seconds < 15
    assert (await caller.ask(line, "/")).status == 200


@pytest.mark.parametrize(
    "data",
    [os.urandom(3000) + b"\n\n", b"GET\r\n\r\n", b"BREW / HTCPCP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"],
)
async def test_garbage_inside_tls_is_sent_away(line, caller, data):
    got, seconds = await raw(line, data)
    assert got[:12] in (b"", b"HTTP/1.1 400") or b"could not be read" in got
    assert seconds < 15
    assert (await caller.ask(line, "/")).status == 200


async def test_a_header_too_large_is_a_problem_document(line, host, caller):
    answer = await caller.ask(line, "/api/x", headers={"X-Big": "x" * 9000})
    assert (answer.status, answer.json()["code"]) == (431, "header_too_large")
    many = {f"X-{number}": "x" * 1000 for number in range(60)}
    assert (await caller.ask(line, "/api/x", headers=many)).status == 431
    assert not host.orchestrator.seen


async def test_cookies_of_other_ports_do_not_matter(line, caller):
    """A browser sends what every other server on this address has set."""
    assert (await caller.ask(line, "/", headers={"Cookie": "x=" + "y" * 7000})).status == 200


async def test_an_address_too_long_is_a_problem_document(line, host, caller):
    answer = await caller.ask(line, "/api/" + "x" * 9000)
    assert answer.status == 414
    assert "too long" in answer.text or answer.json()["code"] == "address_too_long"
    assert not host.orchestrator.seen


async def test_a_request_that_never_ends_is_sent_away(line, caller):
    """Slowloris: a header line every second keeps nothing open."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", line.port, ssl=line.trust(), server_hostname="localhost"
    )
    begun = time.monotonic()
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")

    async def drip() -> None:
        while True:
            await asyncio.sleep(1)
            writer.write(b"X-A: b\r\n")

    dripping = asyncio.create_task(drip())
    try:
        await asyncio.wait_for(reader.read(), 15)
    except ConnectionError:
        pass
    finally:
        dripping.cancel()
        writer.close()
    assert 8 < time.monotonic() - begun < 13


async def test_a_connection_that_says_nothing_is_sent_away(line):
    _, seconds = await raw(line, b"", tls=False)
    assert 8 < seconds < 13


async def test_too_many_requests_are_told_to_wait(tight, tight_host, caller):
    answers = await asyncio.gather(*(caller.ask(tight, "/api/x") for _ in range(40)))
    statuses = [answer.status for answer in answers]
    assert statuses.count(429) >= 15
    problem = next(answer for answer in answers if answer.status == 429)
    assert (problem.headers["Retry-After"], problem.json()["code"]) == ("5", "too_many_requests")
    page = await caller.ask(tight, "/", headers={"Accept": "text/html"})
    assert page.status == 429
    assert "Too many at once" in page.text
    assert 'content="5"' in page.text


async def test_a_call_among_too_many_requests_is_refused_in_words(tight, tight_host, caller, refused):
    await asyncio.gather(*(caller.ask(tight, "/api/x") for _ in range(40)))
    assert await refused(await caller.call(tight)) == ("line_full", 1013)
    assert not tight_host.orchestrator.asked


async def test_one_client_cannot_take_all_connections(tight, tight_host, caller):
    await asyncio.sleep(8)  # the rate limit of the tests before this one
    tight_host.orchestrator.api_delay_s = 2
    answers = await asyncio.gather(*(caller.ask(tight, "/api/x") for _ in range(7)))
    assert sorted(answer.status for answer in answers) == [200] * 4 + [429] * 3


async def test_neighbours_in_one_ipv6_network_count_as_one_client(gateway, gateway_host, caller):
    """Through a trusted gateway, which says who calls: a /64 shares its 200 requests, another has its own."""

    async def burst(count: int, address: str) -> int:
        answers = await asyncio.gather(
            *(
                caller.ask(gateway, "/manifest.webmanifest", headers={"X-Forwarded-For": address % n})
                for n in range(count)
            )
        )
        return [answer.status for answer in answers].count(429)

    assert await burst(300, "2001:db8:0:7::%x") > 50
    assert await burst(5, "2001:db8:0:7:abcd::%x") >= 3
    assert await burst(5, "2001:db8:0:8::%x") == 0
    assert await burst(300, "2001:db8::%x") > 0
    assert await burst(5, "203.0.113.%d") == 0
