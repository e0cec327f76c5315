"""What the browser's tests need: the built page, a browser with speech for a microphone, and a line.

In this folder the line is the stand-in. The same calls are made on a real line by tests/e2e/test_browser.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.e2e.browser import driver, standin


@pytest.fixture(scope="session")
def page_folder() -> Path:
    """The built page."""
    return standin.built_page()


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech, as Chromium's fake microphone plays it."""
    return driver.speech(tmp_path_factory.mktemp("microphone") / "speech.wav")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Not wider than a module: it keeps an event loop running in this thread, as pytest-asyncio does."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, microphone: Path) -> Iterator[Browser]:
    """Chromium, with a microphone that is allowed."""
    browser = driver.launch(playwright, microphone)
    yield browser
    browser.close()


@pytest.fixture
def line(page_folder: Path) -> Iterator[standin.Line]:
    """The stand-in."""
    with standin.running(page_folder) as running:
        yield running


@pytest.fixture
def line_url(line: standin.Line) -> str:
    """Where the page is opened."""
    return line.url


@pytest.fixture
def kill_engine(line: standin.Line) -> Callable[[], None]:
    """Kills the engine as `kill -9` does. It stays away for a moment, as one that loads weights."""

    def kill() -> None:
        line.refuse_for(2.0, "starting", "The voice engine is loading its weights.")
        line.kill()

    return kill
