"""A call: who gets which engine, who is refused and how, and when an engine is free again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import aiohttp
import pytest
from aiohttp import WSMsgType

FRAME = b"\x01" + bytes(60)
ENOUGH_S = 15.0  # the longest that a caller who vanished may hold an engine


async def talk(call: aiohttp.ClientWebSocketResponse) -> None:
    """One frame there and back."""
    await call.send_bytes(FRAME)
    assert await call.receive_bytes(timeout=5) == FRAME


async def greeted(call: aiohttp.ClientWebSocketResponse) -> aiohttp.ClientWebSocketResponse:
    assert await call.receive_bytes(timeout=5) == b"\x00"
    return call


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_a_call_reaches_the_engine(line, host, caller, address):
    call = await greeted(await caller.call(line, address=address))
    await talk(call)
    await call.close()
    await host.freed(within_s=2)


async def test_the_orchestrator_is_asked_with_everything_it_needs(line, host, caller):
    call = await caller.call(line, "?ticket=abc", origin=f"https://127.0.0.1:{line.port}")
    asked = host.orchestrator.asked[0]
    assert asked["X-Original-URI"] == "/api/chat?ticket=abc"
    assert asked["X-Real-IP"] == "127.0.0.1"
    assert asked["X-Forwarded-Proto"] == "https"
    assert asked["Origin"] == f"https://127.0.0.1:{line.port}"
    assert asked["Host"] == f"127.0.0.1:{line.port}"
    assert "Upgrade" not in asked
    await call.close()


async def test_the_engine_that_the_orchestrator_names_gets_the_call(line, host, caller):
    host.orchestrator.engine = "moshi_1"
    call = await greeted(await caller.call(line))
    assert [engine.open for engine in host.engines] == [0, 1]
    await call.close()


async def test_the_engine_learns_the_call_and_nothing_of_the_caller(line, host, caller):
    forged = {
        "X-Call-Id": "forged",
        "x_call_id": "forged",
        "X-Engine": "moshi_1",
        "X-Refusal": "line_full",
        "Authorization": "Bearer secret",
        "Cookie": "secret=1",
        "X-Forwarded-For": "8.8.8.8",
    }
    call = await greeted(await caller.call(line, "?ticket=secret", headers=forged))
    headers = host.engines[0].headers[0]
    assert headers["X-Call-Id"] == host.orchestrator.call
    assert host.engines[0].paths == ["/api/chat"]
    assert not {"Authorization", "Cookie", "X-Engine", "X-Refusal", "X-Forwarded-For", "X-Real-IP"} & set(
        headers
    )
    assert "forged" not in str(headers)
    assert "secret" not in str(headers)
    assert "X-Call-Id" not in host.orchestrator.asked[0]
    assert "X-Engine" not in host.orchestrator.asked[0]
    await call.close()


async def test_audio_is_not_compressed_and_a_subprotocol_is_agreed_upon(line, host, caller):
    call = await greeted(await caller.call(line, compress=15, protocols=("hotline",)))
    assert call.compress == 0
    assert call.protocol == "hotline"
    await call.close()


@pytest.mark.parametrize(
    "named",
    [
        "",
        "moshi_2",
        "moshi_00",
        "127.0.0.1:22",
        "moshi_0:22",
        "hotline_orchestrator",
        "localhost",
        "/etc",
        "moshi_0/x",
    ],
)
async def test_an_unknown_engine_is_no_address(line, host, caller, refused, named):
    """Whatever stands in X-Engine, only an engine of this line is ever spoken to."""
    host.orchestrator.engine = named
    assert await refused(await caller.call(line)) == ("line_down", 1013)
    assert not host.engines[0].headers
    assert not host.engines[1].headers
    assert not [path for _, path, _ in host.orchestrator.seen]


async def test_a_client_cannot_choose_its_engine(line, host, caller):
    call = await greeted(await caller.call(line, headers={"X-Engine": "moshi_1"}))
    assert [engine.open for engine in host.engines] == [1, 0]
    await call.close()


@pytest.mark.parametrize(
    ("answer", "close"),
    [
        ((403, "not_allowed"), 1008),
        ((401, "not_allowed"), 1008),
        ((503, "line_full"), 1013),
        ((503, "line_down"), 1013),
        ((503, "starting"), 1013),
    ],
)
async def test_a_refusal_is_said_in_words(host, caller, refused, answer, close):
    line, (_, code) = host.line, answer
    host.orchestrator.refuse = answer
    assert await refused(await caller.call(line, "?ticket=x")) == (code, close)
    assert host.orchestrator.refused[0]["path"] == "/internal/refusal"
    assert not host.engines[0].headers


async def test_a_client_cannot_choose_its_refusal(line, host, caller, refused):
    host.orchestrator.refuse = (403, "not_allowed")
    call = await caller.call(line, headers={"X-Refusal": "line_full"})
    assert await refused(call) == ("not_allowed", 1008)


async def test_the_second_caller_is_told_at_once_that_the_line_is_busy(line, host, caller, refused):
    first = await greeted(await caller.call(line))
    begun = time.monotonic()
    assert await refused(await caller.call(line)) == ("line_full", 1013)
    assert time.monotonic() - begun < 1
    await talk(first)
    host.orchestrator.engine = "moshi_1"
    other = await greeted(await caller.call(line))
    await talk(other)
    await first.close()
    await other.close()


async def test_after_a_call_the_next_one_gets_the_engine(line, host, caller):
    for _ in range(3):
        call = await greeted(await caller.call(line))
        await call.close()
        await host.freed(within_s=2)


async def test_many_callers_at_once_make_one_call(line, host, caller, refused):
    calls = await asyncio.gather(*(caller.call(line) for _ in range(12)))
    told = []
    for call in calls:
        first = await call.receive_bytes(timeout=5)
        told.append(first[:1])
    assert sorted(told) == [b"\x00"] + [b"\x05"] * 11
    assert host.engines[0].open == 1
    for call in calls:
        await call.close()


async def test_as_many_calls_as_an_engine_carries(tight, tight_host, caller, refused):
    """tight: an engine carries 6 conversations, one client may have 4."""
    calls = [await greeted(await caller.call(tight)) for _ in range(4)]
    assert await refused(await caller.call(tight)) == ("line_full", 1013)
    for call in calls:
        await call.close()


async def test_an_engine_that_says_itself_how_much_it_carries_is_never_full_before_it_says_so(
    many_host, caller, refused
):
    calls = [await greeted(await caller.call(many_host.line)) for _ in range(9)]
    assert many_host.engines[0].open == 9
    many_host.engines[0].status = 503
    assert await refused(await caller.call(many_host.line)) == ("line_down", 1013)
    for call in calls:
        await call.close()


async def test_an_engine_that_is_down_is_said_in_words(line, host, caller, refused):
    await host.down("engine0")
    assert await refused(await caller.call(line)) == ("line_down", 1013)


@pytest.mark.parametrize(
    ("status", "code"), [(500, "line_down"), (502, "line_down"), (503, "line_down"), (429, "line_full")]
)
async def test_an_engine_that_will_not_take_the_call_is_said_in_words(host, caller, refused, status, code):
    host.engines[0].status = status
    assert await refused(await caller.call(host.line)) == (code, 1013)


async def test_without_an_orchestrator_a_call_fails_at_once_and_not_silently(line, host, caller):
    await host.down("orchestrator")
    begun = time.monotonic()
    with pytest.raises(aiohttp.WSServerHandshakeError) as failed:
        await caller.call(line)
    assert failed.value.status == 503
    assert time.monotonic() - begun < 3
    assert not host.engines[0].headers
    answer = await caller.ask(line, "/api/chat", headers={"Upgrade": "websocket", "Connection": "upgrade"})
    assert (answer.status, answer.json()["code"]) == (503, "line_down")


async def test_an_orchestrator_that_answers_nonsense_opens_no_engine(line, host, caller, refused):
    host.orchestrator.refuse = (418, "Bad Code; x")
    assert await refused(await caller.call(line)) == ("line_down", 1013)
    assert not host.engines[0].headers


async def test_a_browser_at_the_calls_address_is_told_what_it_is_for(line, host, caller):
    answer = await caller.ask(line, "/api/chat")
    assert (answer.status, answer.json()["code"]) == (426, "upgrade_required")
    assert answer.headers["Upgrade"] == "websocket"
    assert (await caller.ask(line, "/api/chat", "POST", data=b"x")).status == 405
    assert not host.orchestrator.asked
    assert not host.engines[0].headers


async def test_a_broken_handshake_is_refused_and_holds_nothing(line, host, caller):
    """An Upgrade without a key: the engine refuses it, and is free for the next."""
    answer = await caller.ask(line, "/api/chat", headers={"Upgrade": "websocket", "Connection": "upgrade"})
    assert answer.status == 400
    call = await greeted(await caller.call(line))
    await call.close()


async def test_text_and_garbage_reach_the_engine_which_judges_them(line, host, caller):
    call = await greeted(await caller.call(line))
    await call.send_str("hello?")
    await call.send_bytes(b"\xff" * 100)
    assert await call.receive_bytes(timeout=5) == b"\xff" * 100
    await call.close()


async def test_an_oversized_message_ends_that_call_and_frees_the_engine(line, host, caller):
    host.engines[0].max_message = 1000
    call = await greeted(await caller.call(line))
    await call.send_bytes(b"\x01" * 5000)
    closed = await call.receive(timeout=5)
    assert (closed.type, closed.data) == (WSMsgType.CLOSE, 1009)
    await host.freed(within_s=2)
    await (await greeted(await caller.call(line))).close()


async def test_frames_that_are_no_websocket_frames_end_the_call(line, host):
    """Garbage instead of a frame: the engine closes, and nginx passes that on."""
    context = line.trust()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", line.port, ssl=context, server_hostname="localhost"
    )
    writer.write(
        b"GET /api/chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b"101" in await reader.readline()
    writer.write(os.urandom(2000))
    await asyncio.wait_for(reader.read(), 5)
    await host.freed(within_s=2)
    writer.close()


async def test_an_engine_that_dies_ends_the_call_at_once(line, host, caller):
    call = await greeted(await caller.call(line))
    await host.down("engine0")
    assert (await call.receive(timeout=2)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)


async def test_a_caller_who_hangs_up_without_a_word_frees_the_engine(line, host, caller):
    call = await greeted(await caller.call(line))
    transport = call._response.connection.transport  # the socket itself: no close frame, no TLS goodbye
    transport.abort()
    assert await host.freed() < 1


async def test_a_caller_who_falls_silent_frees_the_engine_within_15_s(line, host, caller):
    call = await greeted(await caller.call(line))
    await talk(call)
    assert 5 < await host.freed(within_s=ENOUGH_S) < ENOUGH_S
    second = await greeted(await caller.call(line))
    await second.close()


STOPPED_CALLER = """
import asyncio, ssl, sys
import aiohttp

async def main():
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(sys.argv[1], ssl=trust, autoping=False) as call:
            await call.receive_bytes()
            while True:
                await call.send_bytes(b"\\x01" + bytes(60))
                await call.receive_bytes()
                print("talking", flush=True)
                await asyncio.sleep(0.08)

asyncio.run(main())
"""


async def stopped_caller(url: str) -> asyncio.subprocess.Process:
    """A caller in a process of its own that talks, and is then stopped dead with its socket open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STOPPED_CALLER, url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    for _ in range(3):
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"talking\n"
    process.send_signal(signal.SIGSTOP)
    return process


async def test_a_stopped_caller_frees_the_engine_within_15_s(line, host, caller):
    process = await stopped_caller(line.chat())
    try:
        assert host.engines[0].open == 1
        assert await host.freed(within_s=ENOUGH_S) < ENOUGH_S
        await (await greeted(await caller.call(line))).close()
    finally:
        process.kill()
        await process.wait()


async def test_a_caller_who_takes_nothing_any_more_frees_an_engine_that_goes_on_sending(tight, tight_host):
    tight_host.engines[0].goes_on = True
    process = await stopped_caller(tight.chat())
    try:
        await tight_host.freed(within_s=ENOUGH_S)
    finally:
        process.kill()
        await process.wait()


async def test_a_call_with_sound_outlives_every_timeout(tight, tight_host, caller):
    """tight: silence ends a call after 2 s. This one speaks every 0.5 s for 7."""
    call = await greeted(await caller.call(tight))
    for _ in range(14):
        await talk(call)
        await asyncio.sleep(0.5)
    await call.close()


async def test_a_caller_who_only_talks_and_one_who_only_listens_are_alive(tight, tight_host, caller):
    call = await greeted(await caller.call(tight))
    for _ in range(8):
        await call.send_str("no answer is due to text")
        await asyncio.sleep(0.5)
    await talk(call)
    await call.close()


async def test_a_call_survives_a_reload_and_still_counts(line, host, caller, refused):
    call = await greeted(await caller.call(line))
    line.reload()
    await talk(call)
    assert await refused(await caller.call(line)) == ("line_full", 1013)
    await talk(call)
    await call.close()
    await host.freed(within_s=2)
    await (await greeted(await caller.call(line))).close()


async def test_a_call_through_a_gateway_is_plain(gateway, gateway_host, caller):
    call = await greeted(await caller.call(gateway))
    await talk(call)
    await call.close()
