"""Everybody can use the page: WCAG 2.2 AA as far as axe can see it, keyboard, any width, any direction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line
from tests.e2e.browser.test_asked import EXECUTION, QUESTION
from tests.e2e.browser.test_task import STEPS, talked
from tests.e2e.browser.test_trouble import refusing

AXE = Path(__file__).parents[3] / "client/node_modules/axe-core/axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def complaints(caller: Caller) -> list[str]:
    """What axe finds wrong with what is on the screen."""
    caller.page.evaluate(AXE.read_text())
    found = caller.page.evaluate("(rules) => axe.run({ runOnly: rules })", RULES)
    assert found["passes"], "axe looked at nothing"
    return [
        f"{v['id']}: {node['html']} {node['failureSummary']}"
        for v in found["violations"]
        for node in v["nodes"]
    ]


def before(caller: Caller, line: Line) -> None:
    caller.see("Does your phone or browser distrust this page?")
    caller.page.locator("summary").first.click()


def sheet(caller: Caller, line: Line) -> None:
    caller.press("Check microphone and line")
    caller.press("Test the microphone")
    caller.see("You can be heard.")
    caller.page.get_by_text("Numbers", exact=True).click()


def talking(caller: Caller, line: Line) -> None:
    caller.talk()
    line.tell(type="transcript", who="caller", text="Hello", final=False, start_ms=0, end_ms=1)
    line.tell(type="draining", seconds=60)
    caller.hear(30)


def queued(caller: Caller, line: Line) -> None:
    line.desk.queue = 2
    caller.press("Call Moshi")
    caller.until_state("queued")


def forgot(caller: Caller, line: Line) -> None:
    caller.talk()
    caller.hear(20)
    line.forgetful = True
    line.kill()
    caller.until_state("forgot", 15)


def ended(caller: Caller, line: Line) -> None:
    caller.talk()
    caller.hear(20)
    caller.press("Hang up")


SCREENS = [before, sheet, talking, queued, forgot, ended]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen.__name__)
def test_axe_has_nothing_to_say(
    browser: Browser, line: Line, screen: Callable[[Caller, Line], None], scheme: str
) -> None:
    line.duplex, line.desk.access, line.authority = True, "open", "/hotline-ca.pem"
    with calling(browser, line.url, color_scheme=scheme, viewport={"width": 390, "height": 844}) as caller:
        screen(caller, line)
        assert complaints(caller) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nor_about_a_question_a_result_a_task_and_trouble(browser: Browser, line: Line, scheme: str) -> None:
    line.desk.access = "links"
    line.desk.question, line.desk.execution = dict(QUESTION), EXECUTION | {"result": "Done so far."}
    token = line.desk.link("answer", question_id="q1", execution_id="e1")
    with calling(browser, f"{line.url}/#t={token}", color_scheme=scheme) as caller:
        caller.see("claude asks")
        caller.see("It waits for an answer.")
        assert complaints(caller) == []
    with calling(browser, f"{line.url}/#t={'x' * 43}", color_scheme=scheme) as caller:
        caller.see("This link opens nothing")
        assert complaints(caller) == []
    line.desk.tasks, line.desk.proposal = True, STEPS
    with calling(browser, f"{line.url}/#t={line.desk.link()}", color_scheme=scheme) as caller:
        talked(caller)
        assert complaints(caller) == []
        caller.press("Make a task of this call")
        caller.see("Look twice")
        assert complaints(caller) == []
    line.desk.access = None
    script = refusing("NotAllowedError")
    with calling(browser, line.url, color_scheme=scheme, script=script) as caller:
        caller.press("Call Moshi")
        caller.until_state("failed")
        assert complaints(caller) == []


def test_settings_are_reached_and_left_by_keyboard(browser: Browser, line: Line) -> None:
    with calling(browser, line.url) as caller:
        page = caller.page
        button = page.get_by_role("button", name="Check microphone and line")
        button.focus()
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        for _ in range(12):
            page.keyboard.press("Tab")
            inside = page.evaluate(
                "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
            )
            assert inside, "focus stays in the dialog"
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")
        assert page.evaluate("document.activeElement.innerText") == "Check microphone and line"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_written_from_right_to_left_nothing_hangs_over_the_edge(
    browser: Browser, line: Line, width: int
) -> None:
    line.authority = "/hotline-ca.pem"
    with calling(browser, line.url, viewport={"width": width, "height": 700}) as caller:
        caller.page.evaluate("document.documentElement.dir = 'rtl'")
        edge = """() => [...document.querySelectorAll('main *')].filter((e) => {
            const { left, right, width } = e.getBoundingClientRect();
            return width > 0 && (left < -1 || right > window.innerWidth + 1);
        }).map((e) => e.outerHTML.slice(0, 80))"""
        assert caller.page.evaluate(edge) == []
        caller.talk()
        caller.hear(20)
        assert caller.page.evaluate(edge) == []
        moshi = caller.page.locator(".voice.moshi").bounding_box()
        you = caller.page.locator(".voice.you").bounding_box()
        assert moshi and you and moshi["x"] > you["x"], "the page is mirrored"


def test_text_twice_as_large_still_fits(browser: Browser, line: Line) -> None:
    with calling(browser, line.url, viewport={"width": 390, "height": 844}) as caller:
        caller.page.evaluate("document.documentElement.style.fontSize = '200%'")
        assert caller.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        caller.talk()
        assert caller.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert caller.page.get_by_role("button", name="Hang up").is_visible()
        # Whatever lies above whatever else cannot be read: the controls stand below what is said.
        words = caller.page.get_by_label("What is said").bounding_box()
        mute = caller.page.get_by_role("button", name="Mute").bounding_box()
        assert words and mute and words["y"] + words["height"] <= mute["y"]
