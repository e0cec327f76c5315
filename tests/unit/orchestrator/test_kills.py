"""Under load, orchestrator, engines and connections to the database are killed at random: nothing is lost.

Real processes on loopback: the orchestrator as systemd starts it, stand-ins for moshi.server that hold a
connection as long as its caller does, the agent's program behind its runner. Programs ask, instructions
are carried out, a person answers, callers come and go; all of them try again for as long as somebody would.
KILLS=200 is what `make soak` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import AGENT, OPERATOR, bearer
from .databases import Postgres
from .test_killed import Process
from .test_main import free_port
from .workshop import Workshop, workshop

KILLS = int(os.environ.get("KILLS", "10"))
"""Half of them on each kind of database."""
SEED = int(os.environ.get("KILLS_SEED", "5"))
ENGINES = 2
BETWEEN_S = 1.5
"""At most so long after everything is up again comes the next kill."""
TO_THE_END_S = 120
"""When the killing is over, how long the rest may take."""

FINAL = ("completed", "failed", "cancelled", "expired")
ENGINE = """
import asyncio, sys

async def hold(reader, writer):
    await reader.read()
    writer.close()

async def serve():
    server = await asyncio.start_server(hold, "127.0.0.1", int(sys.argv[1]))
    print("listening", flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""
PROGRAM = """
import json, os, sys
text, turn, session = sys.stdin.read(), os.environ["HOTLINE_TURN"], os.environ["HOTLINE_SESSION"]
with open(sys.argv[1], "a") as runs:
    runs.write(json.dumps([session, int(turn)]) + "\\n")
if turn == "1":
    key = text.partition("The key of this run is ")[2].split(" ")[0]
    print("[[hotline:ask " + key + "]]")
    print(json.dumps({"question": "Of " + session + "?"}))
    print("[[hotline:end]]")
else:
    print("Told: " + text, end="")
"""


def answer_to(question: str) -> str:
    """What the person says."""
    return f"The answer to: {question}"


class Engine:
    """A stand-in for moshi.server in a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ENGINE, str(self.port), stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert await asyncio.wait_for(self.process.stdout.readline(), 20)

    async def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


class Load:
    """Everybody who uses the line, and what they know."""

    def __init__(self, line: Process, engines: list[Engine]) -> None:
        self.line, self.engines = line, engines
        self.over = asyncio.Event()
        """Nobody begins anything new."""
        self.answers: dict[str, str] = {}
        """Of each question that a program asked, what it was told."""
        self.executions: dict[str, str] = {}
        """Of each instruction, its id."""
        self.calls = 0

    async def ask(
        self, method: str, path: str, *statuses: int, key: str | None = OPERATOR, **more: Any
    ) -> httpx.Response:
        """Ask until there is one of these answers: whoever needs one tries again."""
        headers = (bearer(key) if key else {}) | more.pop("headers", {})
        while True:
            with contextlib.suppress(httpx.HTTPError):
                got = await self.line.ask(method, path, headers=headers, **more)
                if got.status_code in statuses:
                    return got
                # The database may be away for a moment; anything else that was not expected is a fault.
                assert got.status_code >= 500, (method, path, got.status_code, got.text)
            await asyncio.sleep(0.1)

    async def program(self, name: str) -> None:
        """Ask one question after the other, each until it has its answer."""
        number = 0
        while not self.over.is_set():
            number += 1
            question = f"Question {number} of {name}?"
            body = {"question": question, "idempotency_key": f"{name}:{number}"}
            asked = (await self.ask("POST", "/api/questions", 201, key=AGENT, json=body)).json()
            path = f"/api/questions/{asked['id']}?wait_s=2"
            while asked["state"] == "open":
                asked = (await self.ask("GET", path, 200, key=AGENT)).json()
            assert asked["state"] == "answered"
            self.answers[question] = asked["answer"]

    async def operator(self) -> None:
        """Hand over instructions."""
        number = 0
        while not self.over.is_set():
            number += 1
            body = {"instruction": f"Do {number}.", "idempotency_key": f"do:{number}"}
            made = await self.ask("POST", "/api/executions", 201, json=body)
            self.executions[f"Do {number}."] = made.json()["id"]
            await asyncio.sleep(0.7)

    async def person(self) -> None:
        """Answer whatever is open; then try to answer it otherwise, which must be refused."""
        while True:
            for row in (await self.ask("GET", "/api/questions?state=open", 200)).json():
                path = f"/api/questions/{row['id']}/answer"
                given = {"text": answer_to(row["question"]), "idempotency_key": f"press:{row['id']}"}
                await self.ask("POST", path, 200, json=given)
                await self.ask("POST", path, 409, json={"text": "Something else.", "idempotency_key": "x"})
            await asyncio.sleep(0.2)

    async def caller(self) -> None:
        """Call, talk for a moment, hang up; again and again."""
        while not self.over.is_set():
            self.calls += await self.calls_once()
            await asyncio.sleep(0.1)

    async def calls_once(self, talk_s: float = 0.3) -> bool:
        """Place one call and come back to it as a page does; False when it was over before it began."""
        call = (await self.ask("POST", "/api/calls", 201, key=None)).json()
        path = f"/api/calls/{call['id']}"
        try:
            while True:
                if "ticket" not in call:
                    got = await self.ask("POST", f"{path}/ticket", 200, 404, 409, key=None)
                    if got.status_code != 200 and got.json()["code"] != "call_waiting":
                        return False
                    call |= got.json() if got.status_code == 200 else {}
                if "ticket" in call and await self.talked(call.pop("ticket"), talk_s):
                    return True
                await asyncio.sleep(0.2)
        finally:
            await self.ask("DELETE", path, 204, 404, key=None)

    async def talked(self, ticket: str, seconds: float) -> bool:
        """Come to the engine with a ticket, as nginx lets one; False when one must come again."""
        uri = {"X-Original-URI": f"/api/chat?ticket={ticket}"}
        allowed = await self.ask("GET", "/internal/authorize", *range(200, 500), key=None, headers=uri)
        if allowed.status_code != 204:
            return False
        engine = int(allowed.headers["X-Engine"].removeprefix("moshi_"))
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.engines[engine].port)
        except OSError:
            return False
        await asyncio.sleep(seconds)
        writer.close()
        return True


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    runs = tmp_path / "runs.jsonl"
    with workshop(tmp_path / "shop", sys.executable, "-c", PROGRAM, str(runs)) as made:
        yield made


@pytest.fixture
async def engines() -> AsyncIterator[list[Engine]]:
    first = free_port()
    made = [Engine(first + number) for number in range(ENGINES)]
    for engine in made:
        await engine.start()
    yield made
    for engine in made:
        await engine.kill()


@pytest.fixture
async def line(database_url: str, engines: list[Engine], shop: Workshop) -> AsyncIterator[Process]:
    process = Process(
        database_url,
        engines[0].port,
        LINE_ENGINES="0,1",
        ORCHESTRATOR_AGENT_TOKEN=AGENT,
        AGENT_SOCKET=str(shop.socket),
    )
    await process.start()
    yield process
    await process.kill()


async def test_whatever_is_killed_every_question_and_execution_comes_to_its_end_and_no_slot_is_lost(
    line: Process, engines: list[Engine], database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(f"{SEED} {database_url.partition(':')[0]}")
    load = Load(line, engines)

    async def orchestrator() -> None:
        await line.kill()
        await line.start()

    async def engine() -> None:
        one = chance.choice(engines)
        await one.kill()
        await one.start()

    kinds: list[Callable[[], Any]] = [orchestrator, engine]
    if database_url.startswith("postgresql"):
        server: Postgres = request.getfixturevalue("server")

        async def connections() -> None:
            await asyncio.to_thread(server.cut, database_url)

        kinds.append(connections)
    working = [load.program("one"), load.program("two"), load.operator(), load.caller(), load.caller()]
    tasks = [asyncio.create_task(one) for one in working]
    person = asyncio.create_task(load.person())
    killed: Counter[str] = Counter()
    try:
        for number in range(KILLS // 2):
            await asyncio.sleep(chance.uniform(0, BETWEEN_S))
            # Of each kind at least one, then by chance.
            kind = kinds[number] if number < len(kinds) else chance.choice(kinds)
            await kind()
            killed[kind.__name__] += 1
            for task in (*tasks, person):
                assert not task.done(), task
        while not (load.calls and load.answers and load.executions):  # noqa: ASYNC110 - whoever was unlucky
            await asyncio.sleep(0.1)
        load.over.set()
        async with asyncio.timeout(TO_THE_END_S):
            await asyncio.gather(*tasks)
            ended = {name: await until(load, made, *FINAL) for name, made in load.executions.items()}
    finally:
        for task in (*tasks, person):
            task.cancel()
        await asyncio.gather(*tasks, person, return_exceptions=True)
    print(
        f"\nkilled {dict(killed)}; {len(load.answers)} questions, {len(ended)} executions, {load.calls} calls"
    )

    assert {question: answer_to(question) for question in load.answers} == load.answers
    asked = (await load.ask("GET", "/api/questions?limit=500", 200)).json()
    assert len(asked) == len({row["question"] for row in asked}), "a question was asked twice"
    assert {row["state"] for row in asked} == {"answered"}

    for execution in ended.values():
        assert execution["state"] == "completed", execution
        assert execution["result"] == f"Told: {answer_to('Of ' + execution['id'] + '?')}"
    runs = Counter(tuple(json.loads(one)) for one in (tmp_path / "runs.jsonl").read_text().splitlines())
    assert runs == {(execution["id"], turn): 1 for execution in ended.values() for turn in (1, 2)}

    async with asyncio.timeout(60):  # every slot, at the same time
        assert all(await asyncio.gather(*(load.calls_once(2.0) for _ in range(ENGINES))))


async def test_an_answer_given_while_the_database_was_lost_is_heard_at_once(
    line: Process, engines: list[Engine], database_url: str, request: pytest.FixtureRequest
) -> None:
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite has no connections to lose")
    load = Load(line, engines)
    body = {"instruction": "Do it.", "idempotency_key": "do"}
    made = (await load.ask("POST", "/api/executions", 201, json=body)).json()
    async with asyncio.timeout(30):
        await until(load, made["id"], "waiting_for_input")
    asked = (await load.ask("GET", "/api/questions?state=open", 200)).json()
    request.getfixturevalue("server").cut(database_url)
    given = {"text": "Go on.", "idempotency_key": "press"}
    await load.ask("POST", f"/api/questions/{asked[0]['id']}/answer", 200, json=given)
    async with asyncio.timeout(30):  # DBOS itself would look a minute later
        assert (await until(load, made["id"], *FINAL))["result"] == "Told: Go on."


async def until(load: Load, execution: str, *states: str) -> dict[str, Any]:
    """Wait until an execution is in one of these states."""
    while True:
        found = (await load.ask("GET", f"/api/executions/{execution}", 200)).json()
        if found["state"] in states:
            return dict(found)
        await asyncio.sleep(0.2)
