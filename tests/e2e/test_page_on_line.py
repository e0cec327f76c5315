"""The page on the real line: asked, answered, told what came of it; a network that goes away; Firefox."""

from __future__ import annotations

import json
import re
import shlex
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Playwright

from tests.e2e.browser import driver, firefox
from tests.e2e.browser.conftest import browser, microphone, playwright  # noqa: F401 - fixtures of these tests
from tests.e2e.browser.driver import calling
from tests.e2e.browser.shaping import shaped

from .conftest import AGENT, Line

# An agent: asked to ask, it asks a person and reports the answer; told anything else, it is done at once.
PROGRAM = """
import json, os, re, sys
text = sys.stdin.read()
if os.environ["HOTLINE_TURN"] != "1":
    print("The answer was: " + text)
elif text.startswith("Ask"):
    key = re.search(r"\\[\\[hotline:ask (\\w+)\\]\\]", text)[1]
    question = {"question": "Staging or production?", "context": "All tests are green.",
                "choices": ["staging", "production"]}
    print("[[hotline:ask " + key + "]]", json.dumps(question), "[[hotline:end]]", sep="\\n")
else:
    print("Done: " + text.partition("---")[0].strip())
"""


@pytest.fixture(autouse=True)
def answers(line: Line) -> None:
    """Every call meets a line that answers."""
    line.await_health("ok")


@pytest.fixture(scope="module", autouse=True)
def agent(line: Line) -> None:
    """The program that the line's agent is."""
    line.run(f"printf %s {shlex.quote(PROGRAM)} >{AGENT[-1]}")


def ask(line: Line, method: str, path: str, **body: object) -> Any:
    """Ask the orchestrator as the operator does, through nginx."""
    secrets = line.run("cat /etc/hotline/secrets/orchestrator.env")
    found = re.search(r'ORCHESTRATOR_OPERATOR_TOKEN="(.*)"', secrets)
    assert found
    request = urllib.request.Request(
        line.url + path,
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {found[1]}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, context=line.tls, timeout=15) as answer:
        return json.loads(answer.read())


def until_asked(line: Line, execution: str) -> dict[str, Any]:
    """Wait until an execution waits for an answer."""
    deadline = time.monotonic() + 60
    while (found := ask(line, "GET", f"/api/executions/{execution}"))["state"] != "waiting_for_input":
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return dict(found)


def test_one_is_asked_talks_it_over_answers_by_a_press_and_sees_what_comes_of_it(
    browser: Browser,  # noqa: F811
    line: Line,
) -> None:
    made = ask(line, "POST", "/api/executions", instruction="Ask where to deploy.", idempotency_key="page")
    asked = until_asked(line, made["id"])
    link = ask(
        line, "POST", "/api/links",
        purpose="answer", question_id=asked["question_id"], execution_id=asked["id"],
    )  # fmt: skip
    with calling(browser, link["url"]) as caller:
        caller.see("Staging or production?")
        caller.see("All tests are green.")
        caller.see("It waits for an answer.")
        caller.talk()
        answer = caller.page.get_by_label("Your answer")
        caller.until(lambda: len(answer.input_value()) > 5, 60, "a draft from what was said")
        spoken = answer.input_value()
        answer.fill("Staging first.")
        assert ask(line, "GET", f"/api/questions/{asked['question_id']}")["state"] == "open"
        caller.press("Send answer")
        caller.see("Answered. Thank you!")
        caller.see("Done.", 60)
        caller.see("The answer was: Staging first.")
        assert caller.state == "talking", "the call goes on"
        caller.press("Hang up")
        caller.until_state("ended")
        assert spoken
        caller.watch.assert_clean()
    assert ask(line, "GET", f"/api/questions/{asked['question_id']}")["answer"] == "Staging first."


def test_a_talk_becomes_a_task(browser: Browser, line: Line) -> None:  # noqa: F811
    with calling(browser, ask(line, "POST", "/api/links", purpose="talk")["url"]) as caller:
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
        caller.see("Done: Look at the backups.", 60)
        caller.watch.assert_clean()


def test_a_network_that_goes_away_and_comes_back_is_the_same_conversation(
    playwright: Playwright,  # noqa: F811
    microphone: Path,  # noqa: F811
    line: Line,
) -> None:
    link = ask(line, "POST", "/api/links", purpose="talk")["url"]
    with shaped(line.url) as network:
        # The address stays the line's own, as for a phone that changes from Wi-Fi to mobile.
        host = line.url.removeprefix("https://")
        rule = f"--host-resolver-rules=MAP {host} 127.0.0.1:{network.port}"
        browser = driver.launch(playwright, microphone, more=[rule])
        with calling(browser, link) as caller:
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
    link = ask(line, "POST", "/api/links", purpose="talk")["url"]
    with firefox.running(tmp_path) as fox:
        fox.open(link)
        fox.press("Call Moshi")
        fox.until_state("talking", 30)
        fox.hear(25, 30)
        fox.until(lambda: fox.number("voiced-ms") > 500, 20, "voice at the ear")
        fox.until(lambda: fox.number("engine-ms") > 0, 20, "news from the engine")
        fox.press("Hang up")
        fox.until_state("ended")
        assert fox.complaints == []
