"""Debian's Chromium as a caller: a fake microphone that plays speech, and an eye on what the page does."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import sphn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright

MICROPHONE_RATE = 48_000
SPEECH = (
    "Hello Moshi. I am calling from a test, so I will simply go on talking for a while. "
    "The quick brown fox jumps over the lazy dog, again and again, until somebody answers."
)


def chromium() -> str:
    """Path of the browser."""
    path = shutil.which("chromium") or shutil.which("google-chrome-stable")
    assert path, "no Chromium on this machine; mend: apt-get install chromium"
    return path


def speech(path: Path, text: str = SPEECH) -> Path:
    """Write `text`, spoken, as the WAV that Chromium's fake microphone wants: 48 kHz, mono, 16 bit."""
    raw = path.with_suffix(".raw.wav")
    subprocess.run(["espeak-ng", "-s", "150", "-w", str(raw), text], check=True)
    with wave.open(str(raw)) as source:
        rate = source.getframerate()
        pcm = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2").astype(np.float32) / 32768
    loud = sphn.resample(pcm, rate, MICROPHONE_RATE)
    with wave.open(str(path), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(MICROPHONE_RATE)
        target.writeframes((np.clip(loud, -1, 1) * 32767).astype("<i2").tobytes())
    raw.unlink()
    return path


def launch(
    playwright: Playwright, microphone: Path | None, *, allow: bool = True, more: Sequence[str] = ()
) -> Browser:
    """Start a browser. `microphone`: what it plays, over and over; None: there is no device at all.

    Without `allow` it gives the microphone to nobody. `more`: further arguments.
    """
    arguments = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        # The line's certificate comes from an authority of its own; trusting it is another test's matter.
        "--ignore-certificate-errors",
        # No way out: whatever the browser itself likes to fetch is not part of the page.
        "--disable-background-networking",
        "--disable-component-update",
        *more,
    ]
    if microphone is not None:
        arguments += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
    if allow:
        arguments += ["--use-fake-ui-for-media-stream"]
    return playwright.chromium.launch(executable_path=chromium(), headless=True, args=arguments)


@dataclass
class Watch:
    """What a page did that nobody asked it to."""

    origin: str
    complaints: list[str] = field(default_factory=list)
    """Console warnings and errors, uncaught exceptions, violations of the Content-Security-Policy."""
    strangers: list[str] = field(default_factory=list)
    """Requests to anybody but the line."""

    def assert_clean(self, *allowed: str) -> None:
        """Fail on any complaint that no pattern of `allowed` matches, and on any stranger at all."""
        assert not self.strangers, self.strangers
        left = [c for c in self.complaints if not any(re.search(pattern, c) for pattern in allowed)]
        assert not left, left


@dataclass
class Caller:
    """One open page."""

    page: Page
    watch: Watch

    @property
    def state(self) -> str:
        """The phase of the call, as in client/src/call.ts."""
        return self.page.locator("main").get_attribute("data-state") or ""

    def number(self, name: str) -> float:
        """One of the page's numbers (client/src/telephone.ts), e.g. frames-heard; NaN until it is known."""
        value = self.page.locator("main").get_attribute(f"data-{name}")
        return float("nan") if value is None else float(value)

    def press(self, name: str) -> None:
        """Press the button of that name, as a screen reader would find it."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for `condition`; returns the seconds it took, fails with `what` and the page's state."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                text = self.page.locator("body").inner_text()
                raise AssertionError(f"no {what} within {seconds} s; the page is {self.state!r}: {text}")
            self.page.wait_for_timeout(40)
        return time.monotonic() - began

    def until_state(self, state: str, seconds: float = 20) -> float:
        """Wait for a phase of the call; returns the seconds it took."""
        return self.until(lambda: self.state == state, seconds, f"state {state!r}")

    def talk(self, seconds: float = 20) -> None:
        """Press the button and wait until Moshi answers."""
        self.press("Call Moshi")
        self.until_state("talking", seconds)

    def hear(self, frames: int, seconds: float = 20) -> None:
        """Wait until that many more frames of 80 ms have reached the ear."""
        before = self.number("frames-heard")
        self.until(
            lambda: self.number("frames-heard") >= before + frames, seconds, f"{frames} frames of sound"
        )

    def see(self, text: str, seconds: float = 10) -> None:
        """Wait until `text` can be read on the page."""
        self.until(self.page.get_by_text(text).first.is_visible, seconds, f"words {text!r}")


@contextmanager
def calling(
    browser: Browser, url: str, *, script: str | None = None, ready: bool = True, **context: object
) -> Iterator[Caller]:
    """Open the page at `url` in a fresh profile. `script` runs before the page's own.

    Not `ready`: `url` is not yet the page, the test goes there itself.
    """
    profile: BrowserContext = browser.new_context(ignore_https_errors=True, **context)  # type: ignore[arg-type]
    try:
        page = profile.new_page()
        parts = urlsplit(url)
        watch = Watch(f"{parts.scheme}://{parts.netloc}")
        page.on("console", lambda message: _hear(watch, message))
        page.on("pageerror", lambda error: watch.complaints.append(f"exception: {error}"))
        page.on("request", lambda request: _meet(watch, request.url))
        page.on("websocket", lambda socket: _meet(watch, socket.url.replace("ws", "http", 1)))
        if script is not None:
            page.add_init_script(script)
        page.goto(url)
        if ready:
            page.locator("main").wait_for()
        yield Caller(page, watch)
    finally:
        profile.close()


def _hear(watch: Watch, message: ConsoleMessage) -> None:
    # Chromium itself tells of every 404. Asking a line that has no links and places for them is no fault.
    asked = message.location["url"].endswith("/api/line")
    if message.type in ("error", "warning") and not asked:
        watch.complaints.append(f"{message.type}: {message.text}")


def _meet(watch: Watch, url: str) -> None:
    parts = urlsplit(url)
    if f"{parts.scheme}://{parts.netloc}" != watch.origin:
        watch.strangers.append(url)
