"""The whole story on the real line: an agent asks, a person is told, opens the link, speaks and sends it.

Between any two of these the orchestrator is killed with signal 9. The agent is the official Python client of
the Model Context Protocol; the message goes to a stand-in for ntfy that follows its documentation; the words
of the answer are those that the line's own transcriber heard.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from playwright.sync_api import Browser

from tests.e2e.browser import driver
from tests.e2e.browser.conftest import browser, playwright  # noqa: F401 - fixtures of these tests
from tests.e2e.browser.driver import calling
from tests.unit.orchestrator.people import LINK, Inbox, ntfy

from .conftest import Line

SPOKEN = "Yes. Please delete the old backups, but keep the newest one."
PAUSE_S = 4
"""Behind each time that the answer is spoken: the line takes it for the end of what was said."""
ASKED = {
    "question": "Delete the old backups?",
    "context": "12 GB, the newest from May.",
    "choices": ["yes", "no"],
    "deadline": 60,
    "wait_minutes": 0.5,
}
GIVES_UP_S = 45
"""How long the agent waits for a tool, as any client does."""


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answer, spoken, and a pause."""
    path = driver.speech(tmp_path_factory.mktemp("story") / "answer.wav", SPOKEN)
    with wave.open(str(path)) as heard:
        spoken = heard.readframes(heard.getnframes())
    with wave.open(str(path), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(driver.MICROPHONE_RATE)
        target.writeframes(spoken + bytes(2 * driver.MICROPHONE_RATE * PAUSE_S))
    return path


@pytest.fixture
def elsewhere() -> Iterator[BlockingPortal]:
    """Another thread with a loop of its own, for whoever is not the browser."""
    with start_blocking_portal() as portal:
        yield portal
        portal.call(end_all)


async def end_all() -> None:
    """End whoever still waits there: a test that failed must not wait for an agent that has no answer."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "asks" in repr(task.get_coro()):
            task.cancel()


@pytest.fixture
def inbox(line: Line, elsewhere: BlockingPortal) -> Iterator[Inbox]:
    """The person's messages. The line is told of them, and afterwards it is as it was."""
    with elsewhere.wrap_async_context_manager(ntfy()) as made:
        told: dict[str, Any] = {"orchestrator_notify_urls": [f"ntfy://127.0.0.1:{made.port}/hotline"]}
        tags = "orchestrator"
        if int(line.run("nproc")) < 2:  # the line hears words by itself from two cores on
            told, tags = told | {"moshi_transcribe": "moonshine"}, "moshi,orchestrator"
        set_up = line.play("site.yml", "--tags", tags, **told)
        assert set_up.status == 0, set_up.output[-4000:]
        line.await_health("ok")
        yield made
    back = line.play("site.yml", "--tags", tags)
    assert back.status == 0, back.output[-4000:]
    line.await_health("ok")


class Agent:
    """A program that asks until it has its end, however often its connection breaks."""

    def __init__(self, line: Line) -> None:
        secrets = line.run("cat /etc/hotline/secrets/orchestrator.env")
        [token] = re.findall(r'(?m)^ORCHESTRATOR_AGENT_TOKEN="(.*)"$', secrets)
        self._headers, self._url, self._tls = {"Authorization": f"Bearer {token}"}, line.url, line.tls
        self.online = threading.Event()
        """While it is not, the agent does not ask again: its network is down."""
        self.online.set()

    async def asks(self) -> dict[str, Any]:
        """Ask by voice, and again when the call breaks; return the end."""
        while True:
            await asyncio.to_thread(self.online.wait)
            try:
                async with asyncio.timeout(GIVES_UP_S):
                    outcome = await self._asks_once()
            except Exception as error:  # as a client's user sees it: the call broke
                print(f"the agent's call broke: {type(error).__name__}")
                await asyncio.sleep(0.5)
                continue
            if outcome["state"] != "open" and self.online.is_set():
                return outcome

    async def _asks_once(self) -> dict[str, Any]:
        async with (
            httpx2.AsyncClient(
                headers=self._headers, timeout=httpx2.Timeout(30, read=300), verify=self._tls
            ) as http,
            Client(streamable_http_client(f"{self._url}/mcp", http_client=http)) as client,
        ):
            result = await client.call_tool("ask_by_voice", ASKED)
        assert not result.is_error, result.content
        return dict(result.structured_content or {})


def kill(line: Line) -> None:
    """kill -9 of the orchestrator, and wait until systemd's next one answers."""
    before = line.run("systemctl show -p MainPID --value orchestrator").strip()
    line.run(
        "systemctl reset-failed orchestrator; systemctl kill --kill-whom=main --signal=KILL orchestrator"
    )
    deadline = time.monotonic() + 60
    while line.run("systemctl show -p MainPID --value orchestrator").strip() in ("0", before):
        assert time.monotonic() < deadline, line.run("journalctl --no-pager -u orchestrator -n 40")
        time.sleep(0.2)
    line.await_health("ok")


def of_what_was_spoken(text: str) -> int:
    """How many of the spoken words a text has: the transcriber mishears some of a synthetic voice's."""
    return len(set(re.findall(r"[a-z]+", text.lower())) & set(re.findall(r"[a-z]+", SPOKEN.lower())))


def test_an_answer_reaches_the_agent_exactly_whatever_is_killed_on_the_way(
    line: Line,
    inbox: Inbox,
    elsewhere: BlockingPortal,
    browser: Browser,  # noqa: F811
) -> None:
    agent = Agent(line)
    inbox.hangs = True  # the service does not answer yet: the kill finds the message on its way
    outcome = elsewhere.start_task_soon(agent.asks)
    until(lambda: inbox.tries > 0, 60, "message on its way")
    kill(line)  # asked, and nobody told

    inbox.hangs = False
    message = elsewhere.call(inbox.message)
    assert ASKED["question"] in message["message"] + message["title"]
    found = LINK.search(message["message"])
    assert found, message
    kill(line)  # told, and the link not opened

    with calling(browser, found.group(0)) as person:
        person.see(str(ASKED["question"]))
        person.see(str(ASKED["context"]))
        kill(line)  # opened, and nothing said

        person.talk(40)
        draft = person.page.get_by_label("Your answer")
        person.until(lambda: of_what_was_spoken(draft.input_value()) >= 2, 60, "draft of what was spoken")
        agent.online.clear()
        kill(line)  # said, and not sent
        assert person.state == "talking", "the call goes on without the orchestrator"
        person.hear(5)

        person.press("Send answer")
        person.see("Answered. Thank you!")
        answer = person.page.locator("article q").inner_text()
        assert of_what_was_spoken(answer) >= 2
        kill(line)  # sent, and the agent has not fetched it
        person.press("Hang up")

    agent.online.set()
    until(outcome.done, GIVES_UP_S + 30, "answer at the agent")
    end = outcome.result(0)
    print(f"\nspoken: {SPOKEN}\nanswer: {answer}")
    assert (end["state"], end["answer"]) == ("answered", answer)
    questions = {LINK.sub("", one["message"]) for one in inbox.messages}
    assert len(questions) == 1, "one question was asked, however often the agent's call broke"


def until(condition: Any, seconds: float, what: str) -> None:
    """Wait for something that happens in the other thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.1)
