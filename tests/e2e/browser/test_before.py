"""Before the call and beside it: trying microphone and line, choosing devices, numbers, recording."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line
from tests.e2e.browser.test_trouble import refusing


@pytest.fixture
def caller(browser: Browser, line: Line) -> Iterator[Caller]:
    with calling(
        browser, line.url, permissions=["microphone", "clipboard-read", "clipboard-write"]
    ) as caller:
        yield caller


def test_one_is_told_what_this_is_and_what_is_kept(browser: Browser, line: Line) -> None:
    with calling(browser, line.url) as caller:
        caller.see("A phone call with Moshi")
        caller.see("You talk to a machine.")
        caller.see("Nothing of the call is kept")
    line.desk.access, line.desk.kept_days = "open", 30
    with calling(browser, line.url) as caller:
        caller.see("The words of the call are kept on the line for 30 days; its sound is not.")


def test_the_microphone_can_be_tried_and_nothing_is_sent(caller: Caller, line: Line) -> None:
    caller.press("Check microphone and line")
    caller.press("Test the microphone")
    meter = caller.page.get_by_label("Level")
    caller.until(lambda: float(meter.evaluate("m => m.value")) > 0.2, 10, "level of the microphone")
    caller.see("You can be heard.")
    caller.page.get_by_role("combobox", name="Microphone").select_option(index=1)
    caller.page.get_by_label("Volume").fill("50")
    caller.press("Play a tone")
    kept = json.loads(caller.page.evaluate("localStorage.getItem('hotline.settings')"))
    assert kept["volume"] == 0.5
    assert kept["microphone"]
    caller.page.keyboard.press("Escape")
    caller.page.get_by_role("dialog").wait_for(state="hidden")
    assert not any("/api/chat" in request for request in line.requests)
    # The choice outlives the visit, and the call takes it.
    caller.page.reload()
    caller.talk()
    caller.press("Settings")
    assert caller.page.get_by_label("Volume").input_value() == "50"
    caller.watch.assert_clean()


def test_a_refused_microphone_is_explained_for_this_browser(browser: Browser, line: Line) -> None:
    with calling(browser, line.url, script=refusing("NotAllowedError")) as caller:
        caller.press("Call Moshi")
        caller.until_state("failed")
        caller.see("Click the symbol at the left of the address, switch Microphone on, and try again.")


def test_the_line_can_be_tried_in_two_seconds(caller: Caller, line: Line) -> None:
    caller.press("Check microphone and line")
    caller.press("Check the line (two seconds)")
    caller.see("ms to the line and back", 10)
    assert line.conversations == [], "no engine is bothered"
    caller.watch.assert_clean()


def test_numbers_and_a_report_without_anything_private(caller: Caller, line: Line) -> None:
    line.duplex, line.words = True, (" Confidential", " words")
    caller.talk()
    caller.until(lambda: caller.number("turnaround-ms") >= 0, 20, "turnaround")
    caller.see("Confidential words")
    caller.press("Settings")
    caller.page.get_by_text("Numbers", exact=True).click()
    caller.see("To the line and back")
    caller.press("Copy report")
    caller.see("Copied")
    copied = caller.page.evaluate("navigator.clipboard.readText()")
    assert "engine: duplex" in copied
    assert "contextHz: " in copied
    for private in ("Confidential", "127.0.0.1", "token", "key"):
        assert private not in copied
    caller.watch.assert_clean()


def test_the_connection_is_judged_in_words(caller: Caller) -> None:
    caller.talk()
    caller.until(
        lambda: "connection" in caller.page.locator(".status").inner_text(), 20, "a word for the connection"
    )


def test_a_recording_has_one_voice_on_each_side(caller: Caller, line: Line) -> None:
    line.tone = 440.0
    caller.talk()
    caller.hear(5)
    caller.press("Settings")
    caller.press("Record this call")
    caller.press("Done")
    caller.hear(40)
    caller.press("Hang up")
    caller.until_state("ended")
    link = caller.page.get_by_role("link", name="Save the recording")
    link.wait_for()
    with caller.page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename.endswith(".webm")
    left, right = _sides(caller, download.value.path())
    assert np.sqrt(np.mean(left**2)) > 0.005, "the caller's voice"
    assert _share(right, 440) > 0.8, "Moshi's, which is a tone here"
    assert _share(left, 440) < 0.2, "and nothing of it on the other side"
    caller.watch.assert_clean()


def _sides(caller: Caller, path: Path) -> NDArray[np.float64]:
    """Both channels of a sound file at 8 kHz, decoded by the browser."""
    blank = caller.page.context.new_page()
    sides = blank.evaluate(
        """async (base64) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const sound = await new OfflineAudioContext(2, 8000, 8000).decodeAudioData(bytes.buffer);
            return [0, 1].map((side) => Array.from(sound.getChannelData(side)));
        }""",
        base64.b64encode(path.read_bytes()).decode(),
    )
    blank.close()
    return np.array(sides)


def _share(sound: NDArray[np.float64], hertz: float) -> float:
    """How much of the energy lies within 20 Hz of `hertz`."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    near = np.abs(np.fft.rfftfreq(len(sound), 1 / 8000) - hertz) < 20
    return float(power[near].sum() / power.sum())


def test_a_newer_page_is_loaded_between_calls(caller: Caller, line: Line) -> None:
    caller.see("Hotline 0.0+standin")
    caller.talk()
    line.version = "0.1+newer"
    caller.hear(10)
    assert caller.state == "talking"
    caller.press("Hang up")
    caller.see("This page has a newer version.")
    caller.press("Load it")
    caller.see("Hotline 0.1+newer")
    # Where nothing was said yet nobody is asked.
    line.version = "0.2+newest"
    caller.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    caller.see("Hotline 0.2+newest")
