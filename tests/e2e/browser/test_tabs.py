"""One browser, two tabs: never two calls at once."""

from __future__ import annotations

from playwright.sync_api import Browser, Route

from tests.e2e.browser.driver import Caller, Watch, calling
from tests.e2e.browser.standin import Line


def another_tab(caller: Caller, line: Line) -> Caller:
    """The same page once more, in the same browser."""
    page = caller.page.context.new_page()
    page.goto(line.url)
    page.locator("main").wait_for()
    return Caller(page, Watch(line.url))


def test_a_second_tab_makes_no_second_call(browser: Browser, line: Line) -> None:
    with calling(browser, line.url) as first:
        first.talk()
        second = another_tab(first, line)
        second.press("Call Moshi")
        second.until_state("failed")
        second.see("You are in a call already")
        first.hear(5)
        assert len(line.conversations) == 1
        first.press("Hang up")
        first.until_state("ended")
        first.watch.assert_clean()


def test_the_call_can_be_taken_over_and_there_is_still_only_one(browser: Browser, line: Line) -> None:
    with calling(browser, line.url) as first:
        first.talk()
        second = another_tab(first, line)
        second.press("Call Moshi")
        second.press("Call from here instead")
        second.until_state("talking")
        first.until_state("failed")
        first.see("The call went to another tab")
        assert sum(heard.open for heard in line.conversations) == 1
        second.hear(5)
        second.press("Hang up")
        second.until_state("ended")
        # And back: whoever hung up holds nothing.
        first.press("Try again")
        first.until_state("talking")
        first.hear(5)
        first.watch.assert_clean()


def test_a_tab_that_is_closed_holds_nothing(browser: Browser, line: Line) -> None:
    with calling(browser, line.url) as first:
        second = another_tab(first, line)
        second.talk()
        second.page.close()
        first.talk()
        first.hear(5)


def test_who_presses_before_the_line_has_answered_calls_all_the_same(browser: Browser, line: Line) -> None:
    line.desk.access = "links"
    with calling(browser, "about:blank", ready=False) as caller:
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        caller.page.route("**/api/line", hold)
        caller.page.goto(f"{line.url}/#t={line.desk.link()}")
        caller.press("Call Moshi")
        caller.until_state("joining")
        assert not any(request.startswith("/api/calls") for request in line.requests)
        held[0].continue_()
        caller.until_state("talking")
        caller.hear(5)
