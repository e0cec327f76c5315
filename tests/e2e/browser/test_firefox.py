"""The same page in Firefox, screen by screen: what the other tests here hold Chromium to, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import firefox
from tests.e2e.browser.firefox import Firefox
from tests.e2e.browser.screenshot import ELSEWHERE
from tests.e2e.browser.standin import Line
from tests.e2e.browser.test_asked import EXECUTION, QUESTION
from tests.e2e.browser.test_task import STEPS
from tests.e2e.browser.test_trouble import refusing


@pytest.fixture
def fox(tmp_path: Path, line: Line) -> Iterator[Firefox]:
    line.duplex, line.desk.access = True, "links"
    with firefox.running(tmp_path) as running:
        yield running


def clean(fox: Firefox) -> None:
    """Nothing was logged but what Firefox itself tells of connections that were cut."""
    assert [c for c in fox.complaints if "WebSocket" not in c and "was interrupted" not in c] == []


def test_before_the_call_microphone_and_line_are_tried(fox: Firefox, line: Line) -> None:
    line.authority = "/hotline-ca.pem"
    fox.open(f"{line.url}/#t={line.desk.link()}")
    fox.see("A phone call with Moshi")
    fox.see("Does your phone or browser distrust this page?")
    fox.evaluate("document.querySelector('.certificate summary').click()")
    fox.see("Download the certificate authority")
    fox.press("Check microphone and line")
    fox.press("Test the microphone")
    fox.see("You can be heard.")
    fox.press("Check the line (two seconds)")
    fox.see("ms to the line and back")
    fox.press("Done")
    assert line.conversations == []
    clean(fox)


def test_one_talks_hears_breaks_comes_back_and_hangs_up(fox: Firefox, line: Line) -> None:
    token = line.desk.link()
    fox.open(f"{line.url}/#t={token}")
    fox.press("Call Moshi")
    fox.until_state("talking", 30)
    assert token not in fox.evaluate("location.href")
    fox.hear(25)
    fox.until(lambda: line.heard.voiced_ms > 1000, 20, "voice at the engine")
    fox.until(lambda: fox.number("voiced-ms") > 1000, 20, "voice at the ear")
    line.tell(type="transcript", who="caller", text="Hello there.", final=True, start_ms=0, end_ms=1)
    fox.see("Hello there.")
    line.kill()
    fox.until(lambda: fox.number("resumed") == 1, 20, "the same conversation")
    fox.see("Moshi remembers everything.")
    fox.hear(10)
    fox.press("Mute")
    fox.see("Unmute")
    fox.press("Settings")
    fox.press("Record this call")
    fox.press("Done")
    fox.hear(10)
    fox.press("Hang up")
    fox.until_state("ended")
    fox.see("Save the recording")
    fox.until(lambda: not line.heard.open and line.heard.closed_with == 1000, 5, "closed connection")
    clean(fox)


# Counts who asks for the way from the page to the ear, instead of an answer.
ASKED = """
    window.asked = 0;
    Object.defineProperty(AudioContext.prototype, 'outputLatency', { get: () => window.asked++ });
    AudioContext.prototype.getOutputTimestamp = () => window.asked++;
"""


def test_its_sound_is_not_asked_what_makes_it_stand_still(fox: Firefox, line: Line) -> None:
    """It holds the lock of its sound while it asks PulseAudio, which may wait for that lock: speaker.ts."""
    fox.before_each_page(ASKED)
    fox.open(f"{line.url}/#t={line.desk.link()}")
    fox.press("Call Moshi")
    fox.until_state("talking", 30)
    fox.hear(25)
    fox.press("Hang up")
    fox.until_state("ended")
    assert fox.evaluate("window.asked") == 0
    clean(fox)


def test_one_waits_for_a_turn_and_for_a_line_that_restarts(fox: Firefox, line: Line) -> None:
    line.desk.queue = 2
    fox.open(f"{line.url}/#t={line.desk.link()}")
    fox.press("Call Moshi")
    fox.until_state("queued")
    fox.see("You are number 2")
    line.desk.queue = 0
    line.desk.your_turn(line.desk.place)
    fox.until_state("talking")
    fox.hear(5)
    line.forgetful = True
    line.refuse_for(1.5, "going_away", "The engine is being stopped.")
    line.kill()
    fox.see("The line is being restarted")
    fox.until_state("forgot", 20)
    fox.see("The line is back, but Moshi forgot")
    fox.press("Start anew")
    fox.until_state("talking")
    fox.hear(5)
    fox.press("Hang up")
    fox.until_state("ended")
    clean(fox)


def test_a_question_is_talked_over_answered_and_its_result_shown(fox: Firefox, line: Line) -> None:
    line.desk.question, line.desk.execution = dict(QUESTION), dict(EXECUTION)
    fox.open(f"{line.url}/#t={line.desk.link('answer', question_id='q1')}")
    fox.see("claude asks")
    fox.press("Call Moshi")
    fox.until_state("talking")
    fox.hear(5)
    line.tell(type="turn_end", text="Staging, please.")
    fox.until(lambda: fox.field("Your answer") == "Staging, please.", 5, "a draft")
    fox.fill("Your answer", "Staging first.")
    assert line.desk.answers == []
    fox.press("Send answer")
    fox.see("Answered. Thank you!")
    assert [answer["text"] for answer in line.desk.answers] == ["Staging first."]
    line.desk.run(state="completed", result="Deployed to staging.")
    fox.see("Deployed to staging.")
    fox.press("Hang up")
    fox.until_state("ended")
    clean(fox)


def test_a_talk_becomes_a_task(fox: Firefox, line: Line) -> None:
    line.desk.tasks, line.desk.proposal = True, STEPS
    fox.open(f"{line.url}/#t={line.desk.link()}")
    fox.press("Call Moshi")
    fox.until_state("talking")
    fox.press("Hang up")
    fox.press("Make a task of this call")
    fox.see("Look twice: something could be lost by this.")
    fox.press("Remove step 2")
    fox.fill("Step 1", "Look at the newest backup.")
    fox.press("Hand over")
    fox.see("It is about to begin.")
    assert line.desk.handed[0]["instruction"] == "Look at the newest backup.\nTell me what is left."
    clean(fox)


# What a page is opened with says what is wrong in this browser.
WRONG = f"""
    if (location.search === '?refused') {refusing("NotAllowedError")};
    if (location.search === '?elsewhere') {ELSEWHERE};
"""


def test_trouble_is_told(fox: Firefox, line: Line) -> None:
    fox.before_each_page(WRONG)
    fox.open(f"{line.url}/#t={'x' * 43}")
    fox.see("This link opens nothing")
    fox.open(f"{line.url}/?refused#t={line.desk.link()}")
    fox.press("Call Moshi")
    fox.see("The microphone is not allowed")
    fox.see("Click the crossed-out microphone at the left of the address")
    fox.open(f"{line.url}/?elsewhere#t={line.desk.link()}")
    fox.press("Call Moshi")
    fox.see("You are in a call already")
    line.refusal = ("line_full", "Somebody else is talking with Moshi.", 1013)
    fox.press("Call from here instead")
    fox.see("The line is busy")
    assert line.conversations == []
    line.refusal = None
    fox.press("Try again")
    fox.until_state("talking")
    fox.hear(5)
    fox.press("Hang up")
    fox.until_state("ended")
