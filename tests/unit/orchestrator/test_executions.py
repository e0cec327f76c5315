"""An instruction is carried out: the agent runs, asks, goes on with the answer, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dbos import DBOS
from orchestrator.storage import Storage, migrate
from sqlalchemy.exc import OperationalError

from orchestrator import executions

from .conftest import asking
from .people import Inbox, ntfy
from .workshop import Workshop, workshop

AGENT, OPERATOR = "a" * 40, "o" * 40
FINAL = ("completed", "failed", "cancelled", "expired")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path / "shop") as made:
        yield made


@pytest.fixture
async def client(make_app: Any, database_url: str, shop: Workshop) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(
        database_url=database_url,
        orchestrator_agent_token=AGENT,
        orchestrator_operator_token=OPERATOR,
        agent_socket=str(shop.socket),
    )
    async with asking(app) as made:
        made.headers["Authorization"] = f"Bearer {OPERATOR}"
        yield made


async def hand_over(client: httpx.AsyncClient, instruction: str = "Clean up.", key: str = "k") -> str:
    body = {"instruction": instruction, "idempotency_key": key}
    got = await client.post("/api/executions", json=body)
    assert got.status_code == 201, got.text
    return str(got.json()["id"])


async def until(client: httpx.AsyncClient, execution: str, *states: str) -> dict[str, Any]:
    """Wait until an execution is in one of these states."""
    for _ in range(600):
        got = dict((await client.get(f"/api/executions/{execution}")).json())
        if got["state"] in states:
            return got
        assert got["state"] not in FINAL, got
        await asyncio.sleep(0.05)
    raise AssertionError(got)


async def test_an_instruction_is_carried_out(client: httpx.AsyncClient, shop: Workshop) -> None:
    shop.plan({"say": "All clean.\n"})
    execution = await hand_over(client)
    done = await until(client, execution, "completed")
    assert (done["result"], done["error"], done["agent"]) == ("All clean.", None, "command")
    [run] = shop.runs()
    assert run["text"].startswith("Clean up.\n\n---\n")
    assert run["session"] == execution


async def test_whichever_access_to_the_database_fails_the_execution_comes_to_its_end(
    client: httpx.AsyncClient, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each access by a step fails once, one per execution; every turn is done once all the same."""
    monkeypatch.setattr(executions, "LOOK_AGAIN_S", 0.2)
    accesses, failing = 0, 0

    def flaky(access: Any) -> Any:
        def fails_once(storage: Storage) -> Any:
            nonlocal accesses
            if DBOS.workflow_id is not None:
                accesses += 1
                if accesses == failing:
                    raise OperationalError("", {}, ConnectionError("terminating connection"))
            return access(storage)

        return fails_once

    monkeypatch.setattr(Storage, "reading", flaky(Storage.reading))
    monkeypatch.setattr(Storage, "writing", flaky(Storage.writing))
    while failing <= accesses:
        accesses, failing = 0, failing + 1
        shop.plan({"ask": {"question": "Go on?"}}, {"say": "Done."})
        execution = await hand_over(client, key=str(failing))
        waiting = await until(client, execution, "waiting_for_input")
        path = f"/api/questions/{waiting['question_id']}/answer"
        assert (await client.post(path, json={"text": "Yes.", "idempotency_key": "y"})).status_code == 200
        assert (await until(client, execution, "completed"))["result"] == "Done."
        assert [run["text"] for run in shop.runs() if run["session"] == execution][1:] == ["Yes."]
    assert failing > 8


@pytest.mark.parametrize("step", ["turn", "ask", "answer"])
async def test_a_fault_of_the_lines_own_ends_it_as_failed_and_says_so(
    client: httpx.AsyncClient, shop: Workshop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(executions.Executions, step, broken)
    shop.plan({"ask": {"question": "Go on?"}}, {"say": "Done."})
    execution = await hand_over(client)
    if step == "answer":
        waiting = await until(client, execution, "waiting_for_input")
        await client.post(f"/api/questions/{waiting['question_id']}/answer", json={"text": "Yes."})
    failed = await until(client, execution, "failed")
    assert "ZeroDivisionError" in failed["error"] and "hotline logs orchestrator" in failed["error"]


async def test_it_asks_waits_and_goes_on_with_the_answer_alone(
    client: httpx.AsyncClient, shop: Workshop
) -> None:
    shop.plan(
        {"say": "I looked.", "ask": {"question": "Delete May?", "choices": ["yes", "no"]}},
        {"ask": {"question": "June too?"}},
        {"say": "Done."},
    )
    execution = await hand_over(client)
    for number, (question, answer) in enumerate([("Delete May?", "Yes, all."), ("June too?", "No.")]):
        waiting = await until(client, execution, "waiting_for_input")
        asked = (await client.get(f"/api/questions/{waiting['question_id']}")).json()
        while asked["question"] != question:
            await asyncio.sleep(0.05)
            waiting = (await client.get(f"/api/executions/{execution}")).json()
            asked = (await client.get(f"/api/questions/{waiting['question_id']}")).json()
        assert (asked["asked_by"], asked["execution_id"]) == ("execution", execution)
        await client.post(f"/api/questions/{asked['id']}/answer", json={"text": answer})
        assert number < 2
    done = await until(client, execution, "completed")
    assert [run["text"] for run in shop.runs()[1:]] == ["Yes, all.", "No."]
    assert {run["session"] for run in shop.runs()} == {execution}
    assert [turn["attempts"] for turn in done["turns"]] == [1, 1, 1]


async def test_a_declined_question_is_told_to_the_agent(client: httpx.AsyncClient, shop: Workshop) -> None:
    shop.plan({"ask": {"question": "Delete May?"}}, {"say": "I left it."})
    execution = await hand_over(client)
    waiting = await until(client, execution, "waiting_for_input")
    await client.post(f"/api/questions/{waiting['question_id']}/decline")
    assert (await until(client, execution, "completed"))["result"] == "I left it."
    assert shop.runs()[1]["text"].startswith("The person declined to answer.")


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"say": "no such file\n", "status": 3}, "it ended with status 3. Its last words: no such file"),
        ({"ask": {"question": ""}}, "did not say it as it was told: The block is not a question: question"),
        ({"ask": {"queston": "?"}}, "queston: Extra inputs are not permitted"),
    ],
)
async def test_what_fails_says_why(
    client: httpx.AsyncClient, shop: Workshop, plan: dict[str, Any], why: str
) -> None:
    shop.plan(plan)
    failed = await until(client, await hand_over(client), "failed")
    assert why in failed["error"]


async def test_the_same_key_is_the_same_execution(client: httpx.AsyncClient, shop: Workshop) -> None:
    shop.plan({"say": "Once."})
    ids = await asyncio.gather(*(hand_over(client, key="nightly") for _ in range(5)))
    assert len(set(ids)) == 1
    await until(client, ids[0], "completed")
    assert await hand_over(client, key="nightly") == ids[0]
    assert await hand_over(client, key="nightly-2") != ids[0]
    listed = (await client.get("/api/executions")).json()
    assert len(listed) == 2
    older = (await client.get("/api/executions", params={"before": listed[0]["made_at"]})).json()
    assert [row["id"] for row in older] == [ids[0]]
    for moment in ("0.5", "1764000000", "2026-11-24T18:00:00"):  # seconds since 1970, and no zone
        got = await client.get("/api/executions", params={"before": moment})
        assert (got.status_code, got.json()["code"]) == (422, "invalid_request")


async def test_a_cancelled_execution_stops_its_agent(client: httpx.AsyncClient, shop: Workshop) -> None:
    shop.plan({"say": "Never."})
    shop.hold(1)
    execution = await hand_over(client)
    await shop.started()
    cancelled = (await client.post(f"/api/executions/{execution}/cancel")).json()
    assert (cancelled["state"], cancelled["error"]) == ("cancelled", "It was cancelled.")
    assert await asyncio.to_thread(shop.children[0].wait, 20) == 0
    again = await client.post(f"/api/executions/{execution}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")


async def test_a_cancelled_execution_takes_its_question_back(
    client: httpx.AsyncClient, shop: Workshop
) -> None:
    shop.plan({"ask": {"question": "Delete May?"}}, {"say": "Never."})
    execution = await hand_over(client)
    waiting = await until(client, execution, "waiting_for_input")
    await client.post(f"/api/executions/{execution}/cancel")
    late = await client.post(f"/api/questions/{waiting['question_id']}/answer", json={"text": "Yes"})
    assert (late.status_code, late.json()["code"]) == (409, "expired")
    assert len(shop.runs()) == 1


async def test_its_states_are_streamed_and_resumed(client: httpx.AsyncClient, shop: Workshop) -> None:
    shop.plan({"ask": {"question": "Delete May?"}}, {"say": "Done."})
    execution = await hand_over(client)
    waiting = await until(client, execution, "waiting_for_input")
    await client.post(f"/api/questions/{waiting['question_id']}/answer", json={"text": "Yes"})
    await until(client, execution, "completed")

    async def stream(**headers: str) -> list[tuple[int, str]]:
        got = await client.get(f"/api/executions/{execution}/events", headers=headers)
        assert got.headers["content-type"].startswith("text/event-stream")
        blocks = [block.splitlines() for block in got.text.split("\n\n") if block.startswith("id:")]
        return [(int(b[0].split(": ")[1]), json.loads(b[2][6:])["state"]) for b in blocks]

    events = await stream()
    states = [state for _, state in events]
    assert states == ["pending", "running", "waiting_for_input", "running", "completed"]
    assert await stream(**{"Last-Event-ID": str(events[2][0])}) == events[3:]
    assert await stream(**{"Last-Event-ID": str(events[4][0])}) == []


async def test_output_without_end_is_cut_with_a_note(make_app: Any, tmp_path: Path) -> None:
    chatter = "import sys\nfor n in range(200000): print('line', n)\nprint('the end')"
    with workshop(tmp_path / "loud", sys.executable, "-c", chatter) as shop:
        app = make_app(orchestrator_operator_token=OPERATOR, agent_socket=str(shop.socket))
        async with asking(app) as client:
            client.headers["Authorization"] = f"Bearer {OPERATOR}"
            done = await until(client, await hand_over(client), "completed")
    output = done["turns"][0]["output"]
    assert len(output) < 300_000
    assert output.startswith("line 0\n")
    assert "bytes are left out here" in output
    assert output.endswith("the end\n")
    assert "more characters; the turn has them" in done["result"]


async def test_a_page_is_told_that_there_is_an_agent(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/line")).json()["tasks"] is True


async def test_without_an_agent_it_says_how_to_get_one(make_app: Any) -> None:
    async with asking(make_app(orchestrator_operator_token=OPERATOR)) as client:
        client.headers["Authorization"] = f"Bearer {OPERATOR}"
        got = await client.post("/api/executions", json={"instruction": "x", "idempotency_key": "k"})
    assert (got.status_code, got.json()["code"]) == (503, "no_agent")
    assert "orchestrator_agent_command" in got.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"instruction": "x"}, 422, "invalid_request"),
        ({"instruction": "", "idempotency_key": "k"}, 422, "invalid_request"),
        ({"instruction": "x" * 16001, "idempotency_key": "k"}, 422, "invalid_request"),
        ({"instruction": "x", "idempotency_key": "k", "agent": "nobody"}, 422, "no_agent"),
    ],
)
async def test_what_cannot_be_handed_over(
    make_app: Any, shop: Workshop, body: dict[str, Any], status: int, code: str
) -> None:
    app = make_app(orchestrator_operator_token=OPERATOR, agent_socket=str(shop.socket))
    async with asking(app) as client:
        client.headers["Authorization"] = f"Bearer {OPERATOR}"
        got = await client.post("/api/executions", json=body)
        assert (got.status_code, got.json()["code"]) == (status, code)
        assert (await client.get("/api/executions/unknown")).status_code == 404


async def test_a_program_that_is_not_there_is_named(make_app: Any, tmp_path: Path) -> None:
    app = make_app(orchestrator_operator_token=OPERATOR, agent_socket=str(tmp_path / "none.sock"))
    async with asking(app) as client:
        client.headers["Authorization"] = f"Bearer {OPERATOR}"
        failed = await until(client, await hand_over(client), "failed")
    assert "Mend: systemctl status hotline-agent.socket" in failed["error"]


# ------------------------------------------------------------------------------------------------ kill -9


class Orchestrator:
    """The real process, which is killed and started again on the same database."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        root = Path(__file__).parents[3]
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(root / "orchestrator/src"),
            "MOSHI_URL": "https://line.example.org:8998",
            "MOSHI_DEVICE": "cpu",
            "LINE_ORCHESTRATOR_PORT": str(self.port),
            "DATABASE_URL": f"sqlite:///{folder}/hotline.db",
            "ORCHESTRATOR_OPERATOR_TOKEN": OPERATOR,
            "ORCHESTRATOR_AGENT_TOKEN": AGENT,
            **environment,
        }
        migrate(self.environment["DATABASE_URL"])
        self.log = (folder / "log").open("ab")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator"], env=self.environment, stdout=self.log, stderr=self.log
        )
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def killed_and_started(self) -> None:
        self.kill()
        self.start()


async def test_killed_between_any_two_steps_it_goes_on_and_repeats_nothing(
    tmp_path: Path, shop: Workshop
) -> None:
    shop.plan({"ask": {"question": "Delete May?", "deadline_minutes": 600}}, {"say": "Done."})
    held = [shop.hold(1), shop.hold(2)]
    async with ntfy() as inbox:
        line = Orchestrator(
            tmp_path,
            AGENT_SOCKET=str(shop.socket),
            NOTIFY_URLS=f"ntfy://127.0.0.1:{inbox.port}/hotline",
            NOTIFY_ON_COMPLETE="true",
        )
        base = f"http://127.0.0.1:{line.port}"
        try:
            async with httpx.AsyncClient(
                base_url=base,
                headers={"Authorization": f"Bearer {OPERATOR}"},
                # A killed server leaves connections behind that look alive.
                limits=httpx.Limits(max_keepalive_connections=0),
            ) as client:
                execution = await hand_over(client)
                await asyncio.to_thread(line.killed_and_started)  # handed over
                await shop.started()
                await asyncio.to_thread(line.killed_and_started)  # while the agent runs
                held[0].unlink()
                waiting = await until(client, execution, "waiting_for_input")
                await asyncio.to_thread(line.killed_and_started)  # while it waits
                await inbox.message()
                path = f"/api/questions/{waiting['question_id']}/answer"
                given = {"text": 'Yes, but keep "May".', "idempotency_key": "press"}
                assert (await client.post(path, json=given)).status_code == 200
                await asyncio.to_thread(line.killed_and_started)  # at once after the answer
                assert (await client.post(path, json=given)).status_code == 200
                await shop.started(2)
                await asyncio.to_thread(line.killed_and_started)  # while the agent goes on
                held[1].unlink()
                done = await until(client, execution, "completed")
                await told(inbox, "Done: Clean up.")
                await asyncio.to_thread(line.killed_and_started)  # when all is over
                assert (await until(client, execution, "completed"))["result"] == "Done."
        finally:
            line.kill()
    assert [(run["turn"], run["text"]) for run in shop.runs()][1:] == [(2, 'Yes, but keep "May".')]
    assert len(shop.runs()) == 2
    assert done["result"] == "Done."
    # A message that was on its way when the process was killed may come twice; no event is told otherwise.
    assert 1 <= sum("question" in message["title"] for message in inbox.messages) <= 2


async def told(inbox: Inbox, title: str) -> None:
    number = 0
    while (await inbox.message(number))["title"] != title:
        number += 1
