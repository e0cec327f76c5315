"""What a phone has to fetch before anybody can call, and that it can keep the page as an app."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Browser

from tests.e2e.browser.driver import calling
from tests.e2e.browser.standin import Line

BUDGET = 150_000
"""Bytes, compressed, without the Opus module."""
NOT_FETCHED = {"line.json", "icon-192.png", "icon-512.png"}
"""Made by the role; fetched only by who installs the page."""


def test_the_page_stays_within_its_budget(page_folder: Path) -> None:
    sizes: dict[str, int] = {}
    for path in page_folder.rglob("*"):
        if path.suffix == ".gz" or not path.is_file():
            continue
        if path.name in NOT_FETCHED or "opus-" in path.parent.name:
            continue
        zipped = path.with_name(f"{path.name}.gz")
        sizes[path.relative_to(page_folder).as_posix()] = (zipped if zipped.exists() else path).stat().st_size
    assert any(name.startswith("assets/index") for name in sizes)
    assert sum(sizes.values()) < BUDGET, sizes


def test_the_page_can_be_kept_as_an_app(browser: Browser, line: Line, page_folder: Path) -> None:
    manifest = json.loads((page_folder / "manifest.webmanifest").read_text())
    with calling(browser, line.url) as caller:
        assert caller.page.locator("link[rel=manifest]").get_attribute("href") == "/manifest.webmanifest"
        session = caller.page.context.new_cdp_session(caller.page)
        found = session.send("Page.getAppManifest")
        assert found["errors"] == []
        assert json.loads(found["data"]) == manifest
        # The test's own profile is a private window, which installs nothing.
        left = session.send("Page.getInstallabilityErrors")["installabilityErrors"]
        assert [error["errorId"] for error in left if error["errorId"] != "in-incognito"] == []
        for icon in manifest["icons"]:
            shown = caller.page.request.get(line.url + icon["src"])
            assert shown.ok
            assert shown.headers["content-type"] == icon["type"]
