"""What duplex promises of its own, and that kyutai's moshi.server is one variable and a restart away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from socket import SHUT_RDWR
from typing import Any

import aiohttp
import pytest

from .conftest import Line, Run, talking
from .test_trouble import chat

SLOTS = 3  # inventory/demo.yml

# In the orchestrator's place: whoever asks gets the same call, as with tickets for a broken one.
SAME_CALL = """
import http.server
class Same(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.send_header("X-Engine", "moshi_0")
        self.send_header("X-Call-Id", "one-call")
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", 5000), Same).serve_forever()
"""


def status(line: Line) -> dict[str, Any]:
    """What duplex says about itself, on the host."""
    told = line.run("python3 -c 'import urllib.request as u; "
                    'print(u.urlopen("http://127.0.0.1:9299/status").read().decode())\'')  # fmt: skip
    return dict(json.loads(told))


def freed(line: Line) -> None:
    """Wait until no conversation is held: a broken one is kept for its grace."""
    deadline = time.monotonic() + 40
    while (seen := status(line))["free"] != SLOTS:
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)


@pytest.fixture(autouse=True)
def answers(line: Line) -> None:
    """Each test meets a line that answers."""
    line.await_health("ok")


def test_two_callers_talk_at_the_same_time(line: Line) -> None:
    freed(line)
    with ThreadPoolExecutor(2) as pool:
        calls = list(pool.map(lambda _: line.speak(), range(2)))
    assert [code for code, _ in calls] == [0, 0], calls
    assert all(report["text_pieces"] > 0 for _, report in calls)


def test_a_full_line_is_told_in_words_and_a_place_is_free_again_at_once(line: Line) -> None:
    freed(line)
    with contextlib.ExitStack() as callers:
        for number in range(SLOTS):
            callers.enter_context(talking(line, callers=number + 1))
        assert (seen := status(line))["free"] == 0, seen
        assert f"{SLOTS} of {SLOTS} in conversation" in line.get("/health/deep")[1]
        heard, code = asyncio.run(chat(line))
        assert [message[:1] for message in heard] == [b"\x05"], heard
        assert json.loads(heard[0][1:])["code"] == "line_full"
        assert code == 1013
    freed(line)
    assert line.speak()[0] == 0


def test_a_call_that_was_cut_is_the_same_call_again(line: Line) -> None:
    """Through nginx: another socket with the same call id finds the conversation where it was."""
    freed(line)
    line.run("systemctl stop orchestrator")
    line.run(
        f"cat >/run/same.py <<'END'{SAME_CALL}END\nsystemd-run -q --unit=same python3 /run/same.py; sleep 1"
    )
    try:
        first, second = asyncio.run(cut_and_back(line))
    finally:
        line.run("systemctl stop same; systemctl start orchestrator")
    assert first["call"] == second["call"] == "one-call"
    assert (first["resumed"], second["resumed"]) == (False, True)
    assert second["age_s"] >= first["age_s"] + 1, "the conversation is as old as it was, and older"


async def cut_and_back(line: Line) -> tuple[dict[str, Any], dict[str, Any]]:
    """Call, lose the connection without a word, call again; return what the engine said each time."""

    async def welcome(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
        assert (await socket.receive(timeout=10)).data == b"\x00"
        await socket.send_bytes(b"\x04" + json.dumps({"type": "hello"}).encode())
        while True:
            message = await socket.receive(timeout=10)
            assert isinstance(message.data, bytes), message
            if message.data[:1] == b"\x04" and (said := json.loads(message.data[1:]))["type"] == "welcome":
                return dict(said)

    async with aiohttp.ClientSession() as session:
        url = line.url + "/api/chat"
        socket = await session.ws_connect(url, ssl=line.tls)
        first = await welcome(socket)
        await asyncio.sleep(1.2)
        socket.get_extra_info("socket").shutdown(SHUT_RDWR)  # no goodbye, as when a phone loses its network
        deadline = time.monotonic() + 15
        while True:
            async with session.ws_connect(url, ssl=line.tls) as again:
                with contextlib.suppress(
                    AssertionError
                ):  # until the engine has noticed: the call is still held
                    return first, await welcome(again)
            assert time.monotonic() < deadline, "the call was not given back"
            await asyncio.sleep(0.3)


# ----------------------------------------------------------------------------------------------- moshi.server


@pytest.fixture(scope="module")
def kyutai(line: Line) -> Iterator[Run]:
    """The same host with kyutai's own server, and afterwards as it was."""
    switched = line.play(moshi_engine="moshi_server", moshi_conversations="auto")
    assert switched.status == 0, switched.output[-4000:]
    yield switched
    back = line.play()
    assert back.status == 0, back.output[-4000:]
    freed(line)
    assert line.speak()[0] == 0


def test_the_other_engine_is_a_restart_away(line: Line, kyutai: Run) -> None:
    assert "Fetch and install the packages" not in kyutai.output
    pid = line.run("systemctl show -p MainPID --value moshi@0").strip()
    assert "/launch.py" in line.run(f"tr '\\0' ' ' </proc/{pid}/cmdline")
    line.await_health("ok")
    code, report = line.speak(None, "--limit-lost", "0")
    assert code == 0, report
    assert report["text_pieces"] > 0
    journal = line.run("journalctl --no-pager -u 'moshi@*' -o cat")
    assert "accepted connection" in journal
    assert "text token" not in journal


def test_a_second_caller_is_told_at_once_that_the_line_is_busy(line: Line, kyutai: Run) -> None:
    with talking(line):
        began = time.monotonic()
        heard, code = asyncio.run(chat(line))
        took = time.monotonic() - began
        assert [m[:1] for m in heard] == [b"\x05"], heard
        refusal = json.loads(heard[0][1:])
        assert refusal["code"] == "line_full"
        assert refusal["message"]
        assert code == 1013
        assert took < 5
        assert line.speak()[0] == 4, "the synthetic caller's exit status for a busy line"
    line.await_health("ok")


def test_the_operator_hangs_up_a_call_with_kyutais_server(line: Line, kyutai: Run) -> None:
    line.await_health("ok")
    with talking(line) as caller:
        [call] = [one for one in line.hotline("calls", "--live") if one["state"] == "talking"]
        line.hotline("hangup", call["id"])
        assert caller.wait(10) != 0, "the caller is told that his call was ended"
        ended = line.hotline("calls", call["id"])
        assert (ended["state"], ended["reason"]) == ("ended", "operator")
    assert line.speak()[0] == 0


def test_a_killed_server_of_kyutais_is_back_without_a_human(line: Line, kyutai: Run) -> None:
    before = line.run("systemctl show -p MainPID --value moshi@0").strip()
    line.run("kill -9 " + before)
    line.await_health("ok", seconds=60)
    assert line.run("systemctl show -p MainPID --value moshi@0").strip() not in ("0", before)
    assert line.speak()[0] == 0
