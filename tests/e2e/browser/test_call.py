"""A call, from the first press to the last, on any line: the stand-in, and in ../test_browser.py the real."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Browser

from tests.e2e.browser.driver import calling

# Chromium itself reports a connection that it could not make, /health's 503 while the engine is away, and the
# 409 of a call that went with it.
EXPECTED = (r"WebSocket connection to .* failed", r"Failed to load resource: .* (409|503)")


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
        assert re.fullmatch(r"\d+:\d\d", caller.page.get_by_role("timer").inner_text())
        caller.press("Hang up")
        caller.until_state("ended")
        sent = caller.number("sent-ms")
        caller.page.wait_for_timeout(600)
        assert caller.number("sent-ms") == sent
        caller.watch.assert_clean()


def test_moshis_words_can_be_read_during_and_after_the_call(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        caller.talk()
        words = caller.page.get_by_label("What is said").locator(".said[data-who=moshi] .text").first
        caller.until(lambda: len(words.inner_text()) > 3, 60, "words of Moshi")
        said = words.inner_text()
        assert not re.search(r"<0x[0-9A-F]{2}>", said), "bytes are not characters"
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
        caller.until_state("talking")
        caller.hear(10)
        caller.watch.assert_clean()


def test_muted_one_stays_in_the_call(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        caller.talk()
        caller.press("Mute")
        caller.hear(25)
        assert caller.state == "talking"
        caller.press("Unmute")
        caller.hear(10)
        caller.watch.assert_clean()


def test_the_footer_says_whose_voice_and_which_version(browser: Browser, line_url: str) -> None:
    with calling(browser, line_url) as caller:
        caller.see("CC-BY-4.0")
        assert caller.page.get_by_role("link", name="Kyutai").get_attribute("href") == "https://kyutai.org"
        footer = caller.page.locator("footer")
        caller.until(lambda: re.search(r"Hotline \d\S+", footer.inner_text()) is not None, 10, "version")
        caller.see("You talk to a machine.")


def test_a_killed_engine_is_told_and_the_page_is_back_by_itself_and_asks_before_it_starts_anew(
    browser: Browser, line_url: str, kill_engine: Callable[[], None]
) -> None:
    with calling(browser, line_url) as caller:
        caller.talk()
        caller.hear(10)
        kill_engine()
        caller.until_state("waiting", 10)
        assert caller.page.locator(".notice h2").is_visible()
        caller.see("Trying again by itself")
        caller.until_state("forgot", 120)
        caller.see("Moshi remembers nothing of what was said.")
        caller.press("Start anew")
        caller.until_state("talking", 30)
        assert caller.number("conversations") == 2
        caller.hear(25)
        caller.press("Hang up")
        caller.until_state("ended")
        caller.watch.assert_clean(*EXPECTED)
