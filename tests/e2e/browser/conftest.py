"""What the browser's tests need: the built page, a browser with speech for a microphone, and a line.

HOTLINE_TEST_URL names a real line (`site.yml` printed it); without it, the stand-in is the line. What only a
stand-in can do (refuse on request, look at what arrived) is skipped on a real one. HOTLINE_TEST_KILL is the
command that kills the real line's engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.e2e.browser import driver, standin

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def page_folder() -> Path:
    """The built page: HOTLINE_TEST_PAGE, or what the role voice_client ships, built as it does it."""
    given = os.environ.get("HOTLINE_TEST_PAGE")
    if given:
        return Path(given)
    builder = REPOSITORY / "roles/voice_client/files/build_page.py"
    built = subprocess.run(
        [sys.executable, builder, "--sources", REPOSITORY / "client", "--builds", REPOSITORY / ".cache/page"],
        check=True,
        stdout=subprocess.PIPE,
    )
    return Path(json.loads(built.stdout)["folder"])


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.speech(tmp_path_factory.mktemp("microphone") / "speech.wav")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    # Not wider than a module: Playwright keeps an event loop running in this thread, and pytest-asyncio
    # wants one of its own.
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
