"""A browser calls the real line: nginx's page, TLS, the real engine; and browser/test_call.py once more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.conftest import browser, microphone, playwright  # noqa: F401 - fixtures of these tests
from tests.e2e.browser.driver import calling
from tests.e2e.browser.test_call import *  # noqa: F403 - the same tests, on the real line
from tests.e2e.browser.test_trouble import refusing

from .conftest import Line, talking


@pytest.fixture(autouse=True)
def answers(line: Line) -> None:
    """Every call meets a line that answers."""
    line.await_health("ok")


@pytest.fixture
def kill_engine(line: Line) -> Callable[[], None]:
    """kill -9, on the host."""

    def kill() -> None:
        line.run("systemctl kill --kill-whom=main --signal=KILL moshi@0")

    return kill


def test_a_caller_of_a_full_line_waits_for_his_turn(
    browser: Browser,  # noqa: F811
    line: Line,
    line_url: str,
) -> None:
    with (
        talking(line),
        talking(line, callers=2),
        calling(browser, line_url) as first,
        calling(browser, line_url) as second,
    ):
        first.talk()
        second.press("Call Moshi")
        second.until_state("queued", 10)
        second.see("You are next")
        first.hear(10)
        first.press("Hang up")
        first.until_state("ended")
        second.until_state("talking", 30)
        second.hear(10)
        second.watch.assert_clean()


def test_a_microphone_blocked_by_a_script_is_told(browser: Browser, line_url: str) -> None:  # noqa: F811
    with calling(browser, line_url, script=refusing("NotAllowedError")) as caller:
        caller.press("Call Moshi")
        caller.until_state("failed")
        caller.see("The microphone is not allowed")
        caller.watch.assert_clean()


def test_the_lines_own_authority_is_offered(browser: Browser, line: Line) -> None:  # noqa: F811
    with calling(browser, line.url) as caller:
        caller.see("Does your phone or browser distrust this page?")
        caller.page.get_by_text("Does your phone or browser distrust this page?").click()
        with caller.page.expect_download() as download:
            caller.page.get_by_role("link", name="Download the certificate authority").click()
        assert download.value.url == f"{line.url}/hotline-ca.pem"
