"""A call, from the first press to the last, on any line: the stand-in, or the one in HOTLINE_TEST_URL."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import calling
from tests.e2e.browser.standin import Line


def test_one_talks_hears_and_hangs_up(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        assert caller.state == "idle"
        caller.talk()
        caller.see("Connected")
        caller.hear(25)
        assert caller.number("sent-ms") > 1500
        assert caller.number("received-ms") > 1500
        caller.until(lambda: caller.number("voiced-ms") > 500, 20, "sound louder than silence")
        caller.until(lambda: caller.number("turnaround-ms") < 1000, 5, "turnaround")
        caller.until(lambda: caller.number("latency-ms") < 1500, 5, "latency")
        assert re.fullmatch(r"0:\d\d", caller.page.get_by_role("timer").inner_text())
        caller.press("Hang up")
        caller.until_state("ended")
        sent = caller.number("sent-ms")
        caller.page.wait_for_timeout(600)
        assert caller.number("sent-ms") == sent
        caller.watch.assert_clean()


def test_moshis_words_can_be_read_during_and_after_the_call(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        caller.talk()
        words = caller.page.get_by_label("What Moshi says").locator(".said")
        caller.until(lambda: len(words.inner_text()) > 3, 60, "words of Moshi")
        said = words.inner_text()
        caller.press("Hang up")
        caller.until_state("ended")
        assert words.inner_text().startswith(said)


def test_one_can_call_again(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        caller.talk()
        caller.hear(10)
        caller.press("Hang up")
        caller.until_state("ended")
        caller.press("Call again")
        # A real line may need a moment until the engine is free.
        caller.until_state("talking", 20)
        caller.hear(10)
        caller.watch.assert_clean()


def test_the_footer_says_whose_voice_and_which_version(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        caller.see("CC-BY-4.0")
        assert caller.page.get_by_role("link", name="Kyutai").get_attribute("href") == "https://kyutai.org"
        caller.until(
            lambda: re.search(r"Hotline \d\S+", caller.page.locator("footer").inner_text()) is not None,
            10,
            "version",
        )
        caller.see("You talk to a machine.")


def test_a_killed_engine_is_told_and_the_call_comes_back_by_itself(
    browser: Browser, line_url: str, request: pytest.FixtureRequest
) -> None:
    command = os.environ.get("HOTLINE_TEST_KILL")
    real = os.environ.get("HOTLINE_TEST_URL")
    if real and not command:
        pytest.skip("HOTLINE_TEST_KILL does not say how to kill this line's engine")
    with calling(browser, line_url) as caller:
        caller.talk()
        caller.hear(10)
        if command:
            subprocess.run(command, shell=True, check=True, timeout=60)  # noqa: S602 - the tester's own command
        else:
            line: Line = request.getfixturevalue("line")
            line.refusal = ("starting", "The voice engine is loading its weights.", 1013)
            line.kill()
        caller.until_state("waiting", 10)
        assert caller.page.locator(".notice").is_visible()
        caller.see("Trying again by itself")
        if not command:
            caller.see("Moshi is waking up")
            caller.see("The voice engine is loading its weights.")
            line.refusal = None
        caller.until_state("talking", 120)
        caller.see("Moshi starts anew: it remembers nothing of what was said before.")
        assert caller.number("conversations") == 2
        caller.hear(25)
        caller.press("Hang up")
        caller.until_state("ended")
        caller.watch.assert_clean(r"WebSocket connection to .* failed")
