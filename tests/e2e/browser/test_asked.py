"""A question by voice: read, talked over, answered by a press; and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line

QUESTION = {
    "id": "q1",
    "question": "Deploy to <b>staging</b> or production?",
    "context": "The tests are green.\n<script>alert(1)</script>",
    "choices": ["staging", "production"],
    "asked_by": "claude",
    "state": "open",
    "deadline": None,
    "answer": None,
    "execution_id": "e1",
}
EXECUTION = {
    "id": "e1",
    "state": "waiting_for_input",
    "instruction": "Deploy.",
    "result": None,
    "error": None,
}


@pytest.fixture
def caller(browser: Browser, line: Line) -> Iterator[Caller]:
    line.duplex, line.desk.access = True, "links"
    line.desk.question, line.desk.execution = dict(QUESTION), dict(EXECUTION)
    token = line.desk.link("answer", question_id="q1")
    with calling(browser, f"{line.url}/#t={token}") as caller:
        caller.see("claude asks")
        yield caller


def draft(caller: Caller) -> str:
    return caller.page.get_by_label("Your answer").input_value()


def test_question_and_context_are_text_and_nothing_else(caller: Caller) -> None:
    caller.see("Deploy to <b>staging</b> or production?")
    caller.see("<script>alert(1)</script>")
    assert caller.page.locator("article script, article b").count() == 0
    caller.watch.assert_clean()


def test_what_is_said_becomes_a_draft_and_only_a_press_sends_it(caller: Caller, line: Line) -> None:
    caller.talk()
    caller.hear(5)
    caller.see("claude asks"), "the question stays in view"
    line.tell(type="turn_end", text="Staging, please.")
    caller.until(lambda: draft(caller) == "Staging, please.", 5, "a draft")
    caller.page.get_by_label("Your answer").fill("Staging first.")
    line.tell(type="turn_end", text="And tell me.")
    caller.press("Add what you said: “And tell me.”")
    caller.until(lambda: draft(caller) == "Staging first. And tell me.", 5, "what was said since")
    assert line.desk.answers == []
    caller.press("Send answer")
    caller.see("Answered. Thank you!")
    assert [answer["text"] for answer in line.desk.answers] == ["Staging first. And tell me."]
    assert caller.state == "talking", "the call goes on"
    # What comes of it, live.
    caller.see("Your answer is on its way.")
    line.desk.run(state="running")
    caller.see("It is being done.")
    line.desk.run(state="completed", result="Deployed to staging.")
    caller.see("Deployed to staging.")
    # With all of that on a phone's screen the way out is still under the thumb.
    caller.page.set_viewport_size({"width": 390, "height": 700})
    bottom = caller.page.get_by_role("button", name="Hang up").bounding_box()
    assert bottom and bottom["y"] + bottom["height"] <= 700
    caller.press("Hang up")
    caller.until_state("ended")
    caller.watch.assert_clean()


def test_without_a_call_it_is_typed_or_chosen(caller: Caller, line: Line) -> None:
    assert caller.page.get_by_role("button", name="Send answer").is_disabled()
    caller.press("production")
    assert draft(caller) == "production"
    caller.press("Send answer")
    caller.see("Answered. Thank you!")
    assert line.desk.answers[0]["text"] == "production"
    assert line.conversations == []


def test_an_answer_whose_connection_broke_is_sent_again_and_is_one_answer(caller: Caller, line: Line) -> None:
    line.desk.lose_answers = 1
    caller.press("staging")
    caller.press("Send answer")
    caller.until(lambda: len(line.desk.answers) == 1, 5, "an answer at the line")
    caller.until(
        lambda: (
            caller.page.get_by_role("alert").is_visible() or caller.page.get_by_text("Answered.").is_visible()
        ),
        15,
        "word of it",
    )
    if caller.page.get_by_role("button", name="Send answer").is_visible():
        caller.press("Send answer")
    caller.see("Answered. Thank you!")
    assert len(line.desk.answers) == 1


def test_it_can_be_declined(caller: Caller, line: Line) -> None:
    caller.press("I cannot answer")
    caller.see("You said that you cannot answer.")
    assert line.desk.question is not None
    assert line.desk.question["state"] == "declined"


def test_one_that_was_answered_elsewhere_says_so(caller: Caller, line: Line) -> None:
    assert line.desk.question is not None
    line.desk.question |= {"state": "answered", "answer": "production"}
    caller.press("staging")
    caller.press("Send answer")
    caller.see("Answered. Thank you!")
    caller.see("production")
    assert line.desk.answers == []


def test_a_link_to_look_has_no_call_button(browser: Browser, line: Line) -> None:
    line.desk.access, line.desk.execution = "links", EXECUTION | {"state": "running"}
    with calling(browser, f"{line.url}/#t={line.desk.link('view', execution_id='e1')}") as caller:
        caller.see("It is being done.")
        assert caller.page.get_by_role("button", name="Call Moshi").count() == 0
        line.desk.run(state="failed", error="The host is gone.")
        caller.see("It failed.")
        caller.see("The host is gone.")
        caller.watch.assert_clean()


def test_it_can_be_read_aloud_and_moshi_does_not_hear_it(caller: Caller) -> None:
    caller.page.evaluate("""() => {
        window.read = [];
        speechSynthesis.speak = (utterance) => { window.read.push(utterance); };
    }""")
    caller.talk()
    caller.press("Read aloud")
    assert "staging" in caller.page.evaluate("window.read[0].text")
    caller.see("Unmute")
    caller.page.evaluate("window.read[0].onend()")
    caller.page.get_by_role("button", name="Mute", exact=True).wait_for()
