"""The same page in Firefox: a call, both voices, a break, and the way in by a link."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import firefox
from tests.e2e.browser.firefox import Firefox
from tests.e2e.browser.standin import Line


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Firefox]:
    with firefox.running(tmp_path) as running:
        yield running


def test_one_talks_hears_breaks_comes_back_and_hangs_up(browser: Firefox, line: Line) -> None:
    line.duplex, line.desk.access = True, "links"
    token = line.desk.link()
    browser.open(f"{line.url}/#t={token}")
    browser.until(lambda: "Call Moshi" in browser.text, 10, "button")
    assert token not in browser.evaluate("location.href")
    browser.press("Call Moshi")
    browser.until(lambda: browser.state == "talking", 30, "call")
    browser.until(lambda: browser.number("frames-heard") > 25, 20, "sound")
    browser.until(lambda: line.heard.voiced_ms > 1000, 20, "voice at the engine")
    browser.until(lambda: browser.number("voiced-ms") > 1000, 20, "voice at the ear")
    line.tell(type="transcript", who="caller", text="Hello there.", final=True, start_ms=0, end_ms=1)
    browser.until(lambda: "Hello there." in browser.text, 5, "words of the caller")
    line.kill()
    browser.until(lambda: browser.number("resumed") == 1, 20, "the same conversation")
    heard = browser.number("frames-heard")
    browser.until(lambda: browser.number("frames-heard") > heard + 10, 10, "sound")
    browser.press("Mute")
    browser.until(lambda: "Unmute" in browser.text, 5, "muted microphone")
    browser.press("Hang up")
    browser.until(lambda: browser.state == "ended", 5, "end")
    browser.until(lambda: not line.heard.open and line.heard.closed_with == 1000, 5, "closed connection")
    # Firefox itself tells of a connection that was cut.
    assert [c for c in browser.complaints if "WebSocket" not in c and "was interrupted" not in c] == []
