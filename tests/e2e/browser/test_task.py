"""From talk to task: what was said becomes an instruction, seen, changed, and handed over by a press."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line

STEPS = [
    {"text": "Look at the backups.", "destructive": False},
    {"text": "Delete everything before May.", "destructive": True},
    {"text": "Tell me what is left.", "destructive": False},
]


@pytest.fixture
def caller(browser: Browser, line: Line) -> Iterator[Caller]:
    line.duplex, line.desk.access, line.desk.tasks = True, "links", True
    with calling(browser, f"{line.url}/#t={line.desk.link()}") as caller:
        yield caller


def talked(caller: Caller) -> None:
    """A call that is over."""
    caller.talk()
    caller.hear(5)
    assert not caller.page.get_by_role("button", name="Make a task of this call").is_visible()
    caller.press("Hang up")
    caller.until_state("ended")


def test_what_was_said_is_drafted_marked_changed_and_handed_over_by_a_press(
    caller: Caller, line: Line
) -> None:
    line.desk.proposal = STEPS
    talked(caller)
    caller.press("Make a task of this call")
    second = caller.page.get_by_label("Step 2", exact=True)
    second.wait_for()
    assert second.input_value() == "Delete everything before May."
    mark = caller.page.locator(f"#{second.get_attribute('aria-describedby')}")
    assert mark.inner_text() == "Look twice: something could be lost by this."
    assert caller.page.get_by_label("Step 1", exact=True).get_attribute("aria-describedby") is None
    second.fill("Delete everything before April.")
    caller.press("Remove step 1")
    caller.press("Add a step")
    caller.page.get_by_label("Step 3", exact=True).fill("Then stop.")
    assert line.desk.handed == [], "nothing is carried out before the press"
    caller.press("Hand over")
    caller.see("It is about to begin.")
    assert [task["instruction"] for task in line.desk.handed] == [
        "Delete everything before April.\nTell me what is left.\nThen stop."
    ]
    # What comes of it, live.
    line.desk.run(state="running")
    caller.see("It is being done.")
    line.desk.run(state="waiting_for_input", question_id="q7")
    caller.see("It has a question, and waits")
    line.desk.run(state="completed", result="3 backups are left.")
    caller.see("3 backups are left.")
    caller.watch.assert_clean()


def test_a_draft_can_be_forgotten(caller: Caller, line: Line) -> None:
    line.desk.proposal = STEPS
    talked(caller)
    caller.press("Make a task of this call")
    caller.press("Forget it")
    caller.see("Make a task of this call")
    assert line.desk.handed == []


def test_where_nothing_was_heard_it_is_typed(caller: Caller, line: Line) -> None:
    talked(caller)
    caller.press("Make a task of this call")
    caller.see("No words of the caller were heard in this call.")
    assert caller.page.get_by_role("button", name="Hand over").is_disabled()
    caller.page.get_by_label("Step 1", exact=True).fill("Look at the backups.")
    caller.press("Hand over")
    caller.see("It is about to begin.")
    assert line.desk.handed[0]["instruction"] == "Look at the backups."


def test_it_is_not_offered_where_nobody_would_do_it(browser: Browser, line: Line) -> None:
    line.duplex, line.desk.access = True, "links"
    with calling(browser, f"{line.url}/#t={line.desk.link()}") as caller:
        talked(caller)
        assert not caller.page.get_by_role("button", name="Make a task of this call").is_visible()
    # On an open line without a link there is an agent, and nobody who may tell it anything.
    line.desk.access, line.desk.tasks = "open", True
    with calling(browser, line.url) as caller:
        talked(caller)
        assert not caller.page.get_by_role("button", name="Make a task of this call").is_visible()
