"""A link on the real line: it opens with a tap, says what to do when it does not, and can be taken back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.conftest import browser, microphone, playwright  # noqa: F401 - fixtures of these tests
from tests.e2e.browser.driver import calling
from tests.e2e.browser.test_doors import REFUSED, closed

from .conftest import Line


@pytest.fixture(autouse=True)
def answers(line: Line) -> Iterator[None]:
    """Every call meets a line that answers."""
    line.await_health("ok")
    yield


def call_of(line: Line, link_id: str) -> dict[str, Any]:
    """The call that goes on through a link."""
    [call] = [one for one in line.hotline("calls", "--live") if one["link_id"] == link_id]
    return dict(call)


def listed(line: Line, link_id: str) -> dict[str, Any]:
    """What `hotline links` says of one."""
    return next(dict(one) for one in line.hotline("links") if one["id"] == link_id)


def test_a_link_opens_the_line_and_its_token_is_nowhere_afterwards(
    browser: Browser,  # noqa: F811
    line: Line,
) -> None:
    link = line.mint("--uses", "1", "--note", "for a browser")
    token = link["url"].partition("#t=")[2]
    assert len(token) == 43
    with calling(browser, link["url"]) as caller:
        caller.talk()
        caller.hear(25)
        assert caller.page.url == f"{line.url}/", "the token has left the address bar"
        assert caller.page.context.cookies() == []
        call = call_of(line, link["id"])
        assert (call["state"], call["through"]) == ("talking", "page")
        caller.press("Hang up")
        caller.until_state("ended")
        caller.watch.assert_clean()
    assert listed(line, link["id"])["state"] == "spent"
    ended = line.hotline("calls", call["id"])
    assert ended["began_at"]
    assert ended["ended_at"]
    said = line.run("journalctl --no-pager -o cat -b")
    assert not re.search(r"ticket=[\w-]{20}", said)
    assert token not in said


def test_a_link_that_opens_nothing_says_what_to_do(browser: Browser, line: Line) -> None:  # noqa: F811
    spent, revoked = line.mint("--uses", "1"), line.mint()
    with calling(browser, spent["url"]) as caller:
        caller.page.get_by_role("button", name="Call Moshi").wait_for()
        caller.until(lambda: listed(line, spent["id"])["uses_left"] == 0, 20, "redeemed link")
    line.hotline("revoke", revoked["id"])
    for url in (spent["url"], revoked["url"], f"{line.url}/#t={'x' * 43}", revoked["url"][:-9]):
        with calling(browser, url) as caller:
            closed(caller, "This link opens nothing")
            caller.see("Ask whoever sent it for a new one.")
            assert caller.page.url == f"{line.url}/"
            caller.watch.assert_clean(*REFUSED)
    with calling(browser, line.url) as caller:
        closed(caller, "This line opens with a link")


def test_revoking_a_link_ends_its_call_and_its_session(browser: Browser, line: Line) -> None:  # noqa: F811
    link = line.mint()
    with calling(browser, link["url"]) as caller:
        caller.talk()
        caller.hear(10)
        call = call_of(line, link["id"])
        line.hotline("revoke", link["id"])
        caller.see("The line ended the call", 15)
        caller.see("took the link back")
        kept = "localStorage.getItem('hotline.session')"
        caller.until(lambda: caller.page.evaluate(kept) is None, 15, "key that is forgotten")
        caller.page.reload()
        closed(caller, "This line opens with a link")
    assert line.hotline("calls", call["id"])["reason"] == "revoked"


def test_the_operator_hangs_up_any_call(browser: Browser, line: Line) -> None:  # noqa: F811
    link = line.mint()
    with calling(browser, link["url"]) as caller:
        caller.talk()
        caller.hear(10)
        call = call_of(line, link["id"])
        line.hotline("hangup", call["id"])
        caller.see("The line ended the call", 15)
        assert line.hotline("calls", call["id"])["reason"] == "operator"
        caller.press("Try again")  # the link is as good as before
        caller.until_state("talking")
        caller.hear(5)
