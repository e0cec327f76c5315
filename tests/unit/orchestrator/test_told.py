"""An engine that tells about itself (duplex): what it says decides, not the sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from orchestrator.engines import Condition, Engine, Told, sentence_of, told_in
from orchestrator.line import TELLING_S, TOLD_S, Line, Surroundings

from .conftest import Kernel, asking, settings

STATUS = {"engine": "duplex", "ready": True, "draining": False, "slots": 2, "free": 2, "calls": []}


def call(number: str) -> dict[str, Any]:
    return {"id": number, "age_s": 3.5, "frames": 40, "connected": True}


class Window:
    """What duplex says at its status port; ``status`` is its answer, as text or an object."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.status: Any = STATUS
        self.delay_s = 0.0
        self.asked = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        if isinstance(self.status, str):
            return web.Response(text=self.status)
        return web.json_response(self.status)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Window]:
        app = web.Application()
        app.router.add_get("/status", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield self
        finally:
            await runner.cleanup()


def engine(**told: Any) -> Engine:
    return Engine(0, 8999, listening=True, told=Told(**told))


@pytest.mark.parametrize(
    ("told", "condition", "words"),
    [
        ({"ready": True, "slots": 2}, Condition.READY, "moshi@0 is ready"),
        ({"ready": False}, Condition.STARTING, "moshi@0 starts"),
        ({"draining": True}, Condition.STARTING, "is ending its calls"),
        ({"silence": "nothing answered"}, Condition.SILENT, "hotline restart moshi@0"),
    ],
)
def test_its_own_words_say_what_it_is_good_for(
    told: dict[str, Any], condition: Condition, words: str
) -> None:
    assert engine(**told).condition is condition
    assert words in sentence_of(engine(**told))


def test_an_engine_without_an_open_port_is_seen_from_outside_whatever_it_said_before() -> None:
    gone = Engine(0, 8999, listening=False, told=Told(ready=True, slots=2))
    assert gone.condition is Condition.ABSENT


@pytest.mark.parametrize(
    "wrong", [{}, STATUS | {"slots": "many"}, STATUS | {"calls": [{}]}, STATUS | {"calls": 3}]
)
def test_an_answer_that_is_none_is_told_apart(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not duplex's /status"):
        told_in(wrong)


async def test_as_many_are_let_in_as_it_has_slots(make_app: Any, kernel: Kernel) -> None:
    """Its calls count, the broken ones that it keeps included; connections of nobody knows whom do not."""
    kernel.listen(8999)
    kernel.connect(8999)
    async with Window().open() as window, asking(app_of(make_app, window)) as client:
        first = await client.get("/internal/authorize")
        assert (first.status_code, first.headers["X-Engine"]) == (204, "moshi_0")
        window.status = STATUS | {"calls": [call("call-1"), call("kept for its grace")], "free": 0}
        await asyncio.sleep(0.15)
        full = await client.get("/internal/authorize")
        assert (full.status_code, full.headers["X-Refusal"]) == (503, "line_full")
        window.status = STATUS | {"calls": [call("call-1")], "free": 1}
        await asyncio.sleep(0.15)
        assert (await client.get("/internal/authorize")).status_code == 204


async def test_the_same_moment_is_asked_about_once() -> None:
    now = 100.0
    async with Window().open() as window:
        line = Line(
            settings(moshi_engine="duplex", line_status_port=window.port), Surroundings(clock=lambda: now)
        )
        await line.ask(0)
        await line.ask(0)
        assert window.asked == 1
        now += 2 * TOLD_S
        await line.ask(0)
        assert window.asked == 2


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (STATUS | {"ready": False}, "starting"),
        (STATUS | {"ready": False, "draining": True}, "starting"),
        ("no JSON", "line_down"),
        ([], "line_down"),
    ],
)
async def test_why_a_caller_is_refused(make_app: Any, kernel: Kernel, status: Any, refusal: str) -> None:
    kernel.listen(8999)
    async with Window().open() as window, asking(app_of(make_app, window)) as client:
        window.status = status
        assert (await client.get("/internal/authorize")).headers["X-Refusal"] == refusal


async def test_an_engine_that_hangs_does_not_hold_up_a_caller(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with Window().open() as window, asking(app_of(make_app, window)) as client:
        window.delay_s = 30.0
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await client.get("/internal/authorize")).headers["X-Refusal"] == "line_down"
        assert loop.time() - began < TELLING_S + 2
        health = (await client.get("/health")).json()
    assert health["status"] == "unhealthy"
    assert "nothing answered on port" in health["reasons"][0]


async def test_health_says_how_many_talk_of_how_many(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with Window().open() as window, asking(app_of(make_app, window)) as client:
        window.status = STATUS | {"calls": [call("a")], "free": 1}
        assert (await client.get("/health")).json()["status"] == "ok"
        deep = (await client.get("/health/deep")).json()
    # Its calls' port is only in the stand-in's table here, so nobody answers on it.
    assert "moshi@0 does not answer" in deep["checks"]["moshi"]["detail"]


async def test_an_engine_that_is_not_there_is_not_asked(make_app: Any, kernel: Kernel) -> None:
    async with Window().open() as window, asking(app_of(make_app, window)) as client:
        assert (await client.get("/internal/authorize")).headers["X-Refusal"] == "line_down"
        assert window.asked == 0


def app_of(make_app: Any, window: Window) -> Any:
    return make_app(moshi_engine="duplex", line_status_port=window.port)
