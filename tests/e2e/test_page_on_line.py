"""The page on the real line: an agent asks and is answered, a talk becomes a task, a lost network, Firefox.

That a spoken answer reaches an agent through the Model Context Protocol is test_story.py's matter. Here the
agent is a program that the line runs in its sandbox, and the person at the page sees what it does.
"""

from __future__ import annotations

import json
import re
import shlex
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Playwright

from tests.e2e.browser import driver, firefox
from tests.e2e.browser.conftest import browser, microphone, playwright  # noqa: F401 - fixtures of these tests
from tests.e2e.browser.driver import calling
from tests.e2e.browser.shaping import shaped

from .conftest import AGENT, Line

# Told to ask, it asks a person and reports the answer; told anything else, it is done at once.
PROGRAM = """
import json, os, re, sys
text = sys.stdin.read()
if os.environ["HOTLINE_TURN"] != "1":
    print("The answer was: " + text)
elif text.startswith("Ask"):
    key = re.search(r"The key of this run is (\\w+)", text)[1]
    question = {"question": "Staging or production?", "context": "All tests are green.",
                "choices": ["staging", "production"]}
    print("[[hotline:ask " + key + "]]", json.dumps(question), "[[hotline:end]]", sep="\\n")
else:
    print("Done: " + text.partition("---")[0].strip())
"""


@pytest.fixture(scope="module", autouse=True)
def at_work(line: Line) -> Iterator[None]:
    """The line's agent has its program, and the line hears words. Afterwards it is as it was."""
    line.run(f"printf %s {shlex.quote(PROGRAM)} >{AGENT}")
    few = int(line.run("nproc")) < 2  # the line hears words by itself from two cores on
    if few:
        set_up = line.play("site.yml", "--tags", "moshi", moshi_transcribe="moonshine")
        assert set_up.status == 0, set_up.output[-4000:]
    yield
    line.run(f"rm {AGENT}")
    if few:
        back = line.play("site.yml", "--tags", "moshi")
        assert back.status == 0, back.output[-4000:]
        line.await_health("ok")


@pytest.fixture(autouse=True)
def answers(line: Line) -> None:
    """Every call meets a line that answers."""
    line.await_health("ok")


def asked(line: Line) -> dict[str, Any]:
    """An execution whose agent has asked, and waits."""
    made = json.loads(line.run("hotline --json run --no-wait 'Ask where to deploy.' || test $? = 3"))
    deadline = time.monotonic() + 30
    while (found := line.hotline("executions", made["id"]))["state"] != "waiting_for_input":
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return dict(found)


def link_to_answer(line: Line, execution: dict[str, Any]) -> str:
    """The link that a message to the person would bring."""
    secrets = line.run("cat /etc/hotline/secrets/orchestrator.env")
    [token] = re.findall(r'(?m)^ORCHESTRATOR_OPERATOR_TOKEN="(.*)"$', secrets)
    about = {
        "purpose": "answer",
        "question_id": execution["question_id"],
        "execution_id": execution["id"],
    }
    request = urllib.request.Request(
        f"{line.url}/api/links",
        data=json.dumps(about).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, context=line.tls, timeout=15) as answer:
        return str(json.loads(answer.read())["url"])


def test_an_agents_question_is_answered_by_a_press_and_what_comes_of_it_is_seen(
    browser: Browser,  # noqa: F811
    line: Line,
) -> None:
    execution = asked(line)
    with calling(browser, link_to_answer(line, execution)) as caller:
        caller.see("Staging or production?")
        caller.see("All tests are green.")
        caller.see("It waits for an answer.")
        caller.talk()
        caller.hear(10)
        caller.page.get_by_label("Your answer").fill("Staging first.")
        [question] = line.hotline("questions", "--state", "open")
        assert question["id"] == execution["question_id"], "nothing is sent before the press"
        caller.press("Send answer")
        caller.see("Answered. Thank you!")
        caller.see("The answer was: Staging first.", 30)
        assert caller.state == "talking", "the call goes on"
        caller.press("Hang up")
        caller.until_state("ended")
        caller.watch.assert_clean()
    assert line.hotline("executions", execution["id"])["state"] == "completed"


def test_a_talk_becomes_a_task(browser: Browser, line: Line) -> None:  # noqa: F811
    with calling(browser, line.mint()["url"]) as caller:
        caller.talk()
        mine = caller.page.locator(".said[data-who=you][data-final=true]")
        caller.until(lambda: mine.count() > 0, 60, "words of the caller")
        caller.press("Hang up")
        caller.until_state("ended")
        caller.press("Make a task of this call")
        first = caller.page.get_by_label("Step 1", exact=True)
        first.wait_for()
        assert len(first.input_value()) > 3, "what the line heard"
        first.fill("Look at the backups.")
        while (second := caller.page.get_by_role("button", name="Remove step 2")).count():
            second.click()
        caller.press("Hand over")
        caller.see("Done: Look at the backups.", 30)
        caller.watch.assert_clean()


def test_a_network_that_goes_away_and_comes_back_is_the_same_conversation(
    playwright: Playwright,  # noqa: F811
    microphone: Path,  # noqa: F811
    line: Line,
) -> None:
    with shaped(line.url) as network:
        # The address stays the line's own, as for a phone that changes from Wi-Fi to mobile.
        host = line.url.removeprefix("https://")
        rule = f"--host-resolver-rules=MAP {host} 127.0.0.1:{network.port}"
        browser = driver.launch(playwright, microphone, more=[rule])
        with calling(browser, line.mint()["url"]) as caller:
            caller.talk()
            caller.hear(25)
            network.cut()
            caller.until_state("waiting", 10)
            caller.page.wait_for_timeout(2000)
            network.gone = False
            caller.until(lambda: caller.number("resumed") == 1, 20, "the same conversation")
            assert caller.state == "talking"
            caller.see("Moshi remembers everything.")
            caller.hear(25)
            assert caller.number("conversations") == 1
            caller.press("Hang up")
            caller.until_state("ended")
            caller.watch.assert_clean(r"WebSocket connection to .* failed", r"Failed to load resource")
        browser.close()


def test_firefox_calls_it(line: Line, tmp_path: Path) -> None:
    with firefox.running(tmp_path) as fox:
        fox.open(line.mint()["url"])
        fox.press("Call Moshi")
        fox.until_state("talking", 30)
        fox.hear(25, 30)
        fox.until(lambda: fox.number("voiced-ms") > 500, 20, "voice at the ear")
        fox.until(lambda: fox.number("engine-ms") > 0, 20, "news from the engine")
        fox.press("Hang up")
        fox.until_state("ended")
        assert fox.complaints == []
