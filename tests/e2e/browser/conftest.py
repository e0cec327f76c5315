"""What the browser's tests need: the built page, a browser with speech for a microphone, and a line.

HOTLINE_TEST_URL names a real line (`site.yml` printed it); without it, the stand-in is the line. What only a stand-in
can do (refuse on request, look at what arrived) is skipped on a real one. HOTLINE_TEST_KILL is the command that kills
the real line's engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.e2e.browser import driver, standin

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def page_folder() -> Path:
    """The built page: HOTLINE_TEST_PAGE, or what the role voice_client would ship, built when it is not there."""
    given = os.environ.get("HOTLINE_TEST_PAGE")
    if given:
        return Path(given)
    return REPOSITORY / "client/dist"


@pytest.fixture(scope="package")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.speech(tmp_path_factory.mktemp("microphone") / "speech.wav")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    # Not wider than a module: Playwright keeps an event loop running in this thread, and pytest-asyncio wants it too.
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, microphone: Path) -> Iterator[Browser]:
    browser = driver.launch(playwright, microphone)
    yield browser
    browser.close()


@pytest.fixture
def line(page_folder: Path) -> Iterator[standin.Line]:
    """The stand-in, for what a real line does not do on request."""
    if os.environ.get("HOTLINE_TEST_URL"):
        pytest.skip("a real line is under test: this needs the stand-in")
    with standin.running(page_folder) as running:
        yield running


@pytest.fixture
def line_url(request: pytest.FixtureRequest) -> str:
    """The line under test, real or not."""
    given = os.environ.get("HOTLINE_TEST_URL")
    if given:
        return given
    line: standin.Line = request.getfixturevalue("line")
    return line.url
