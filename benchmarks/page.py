"""What the page itself adds, from microphone to wire and from wire to ear; how soon a phone can use it.

A fake microphone plays a click every second into the built page in headless Chromium. The line is an engine
that sends back the very bytes it got (caller/echo.py's manners, in the browser tests' stand-in), so what lies
between the click that goes in and the click that is played is the page alone: encoder and sending, receiving,
decoder and jitter buffer. Both are taken from the page's own stereo recording: the caller on one side, Moshi
on the other, one clock.

    python benchmarks/page.py                       # builds the page, prints a table
    python benchmarks/page.py --json page.json
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.e2e.browser import driver, standin  # noqa: E402 - this file is run from anywhere
from tests.e2e.browser.shaping import shaped  # noqa: E402

RATE = 48_000
EVERY_S = 1.0
READY = """
    const look = new MutationObserver(() => {
        const button = document.querySelector('button.dial:not([disabled])');
        if (!button) return;
        look.disconnect();
        const { responseStart } = performance.getEntriesByType('navigation')[0];
        const script = performance.getEntriesByType('resource').find((one) => one.name.endsWith('.js'));
        window.seen = { html: responseStart, script: script.responseEnd, button: performance.now() };
        requestAnimationFrame(() => setTimeout(() => { window.seen.painted = performance.now(); }));
    });
    look.observe(document, { childList: true, subtree: true });
"""
"""Notes when the button is there, and when it was painted, ms since the navigation began."""
AIM_MS = 120
"""60 ms from microphone to wire, 60 from wire to ear, at the median."""


class Mirror(standin.Line):
    """A line that sends back what it got, undecoded, at once."""

    async def _echo(self, socket: web.WebSocketResponse, heard: standin.Heard) -> None:
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data and message.data[0] == standin.AUDIO:
                await socket.send_bytes(message.data)
                heard.pages += 1
                await asyncio.sleep(0)


def clicks(path: Path) -> Path:
    """Write the microphone's WAV: every second 4 ms of noise, silence between."""
    pcm = np.zeros(int(RATE * EVERY_S * 10), dtype=np.float32)
    noise = np.random.default_rng(1).uniform(-0.8, 0.8, int(RATE * 0.004)).astype(np.float32)
    for n in range(10):
        at = int((n + 0.5) * EVERY_S * RATE)
        pcm[at : at + len(noise)] = noise
    with wave.open(str(path), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(RATE)
        target.writeframes((pcm * 32767).astype("<i2").tobytes())
    return path


def onsets(side: NDArray[np.float64]) -> list[float]:
    """When clicks begin, in seconds."""
    loud = np.abs(side) > max(0.02, 0.3 * float(np.abs(side).max()))
    found: list[float] = []
    for at in np.flatnonzero(loud) / RATE:
        if not found or at - found[-1] > EVERY_S / 2:
            found.append(float(at))
    return found


def through(browser: Browser, line: standin.Line, seconds: float) -> dict[str, Any]:
    """Talk for a while; the delays of all clicks in ms, and the page's own numbers."""
    with driver.calling(browser, line.url) as caller:
        caller.talk()
        caller.hear(60)
        caller.press("Settings")
        caller.press("Record this call")
        caller.press("Done")
        caller.page.wait_for_timeout(seconds * 1000)
        numbers = {name: caller.number(name) for name in ("buffer-ms", "underruns", "turnaround-ms")}
        caller.press("Hang up")
        link = caller.page.get_by_role("link", name="Save the recording")
        link.wait_for()
        with caller.page.expect_download() as download:
            link.click()
        blank = caller.page.context.new_page()
        left, right = np.array(
            blank.evaluate(
                """async (base64) => {
                    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                    const context = new OfflineAudioContext(2, 48000, 48000);
                    const sound = await context.decodeAudioData(bytes.buffer);
                    return [0, 1].map((side) => Array.from(sound.getChannelData(side)));
                }""",
                base64.b64encode(download.value.path().read_bytes()).decode(),
            )
        )
        blank.close()
    played = onsets(right)
    delays = []
    for at in onsets(left):
        later = [p - at for p in played if 0 < p - at < EVERY_S / 2]
        if later:
            delays.append(later[0] * 1000)
    if len(delays) < seconds / EVERY_S / 2:
        raise SystemExit(f"Only {len(delays)} of {seconds / EVERY_S:.0f} clicks were found again.")
    return {
        "clicks": len(delays),
        "p50": round(statistics.median(delays), 1),
        "p95": round(sorted(delays)[int(len(delays) * 0.95)], 1),
    } | {name.replace("-", "_"): round(value, 1) for name, value in numbers.items()}


def recovery(browser: Browser, line: standin.Line) -> dict[str, float]:
    """How long the delay needs to be small again after a bad network, in seconds."""
    took = {}
    for name, badness in (("stalls of 200 ms", {"stall_s": 0.2}), ("jitter of 300 ms", {"jitter_s": 0.3})):
        with shaped(line.url) as network, driver.calling(browser, network.url) as caller:
            caller.talk()
            caller.hear(40)
            for key, value in badness.items():
                setattr(network, key, value)
            caller.page.wait_for_timeout(10_000)
            network.calm()
            took[name] = round(
                caller.until(lambda c=caller: c.number("buffer-ms") < 120, 60, "small delay"), 1
            )
    return took


def opening(browser: Browser, line: standin.Line, loads: int = 7) -> dict[str, float]:
    """From the address to a button that can be pressed, in s, on a mid-range phone over 4G: the median.

    As Lighthouse simulates it: 1.6 Mbit/s down, 150 ms there and back for each request, a processor four
    times slower. By the page's own clock, from the moment the browser is told to go there; the connection
    itself is made over loopback and costs nothing.
    """
    seen: list[dict[str, float]] = []
    for _ in range(loads):
        profile = browser.new_context(viewport={"width": 390, "height": 844})
        profile.add_init_script(READY)
        page = profile.new_page()
        session = profile.new_cdp_session(page)
        session.send("Network.enable")
        session.send(
            "Network.emulateNetworkConditions",
            {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 93_750},
        )
        session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        page.goto(line.url, wait_until="commit")
        while not (found := page.evaluate("window.seen")) or "painted" not in found:
            page.wait_for_timeout(100)
        seen.append(found)
        profile.close()
    return {name: round(statistics.median(one[name] for one in seen) / 1000, 2) for name in seen[0]}


@contextmanager
def lines(page: Path) -> Iterator[tuple[standin.Line, standin.Line]]:
    """The mirror, and the stand-in that decodes."""
    with standin.running(page, line=Mirror()) as mirror, standin.running(page) as line:
        yield mirror, line


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--opening", action="store_true", help="only how soon a phone can use it")
    options = parser.parse_args()
    page = standin.built_page()
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        lines(page) as (mirror, line),
    ):
        if options.opening:
            browser = driver.launch(playwright, None)
            print(json.dumps(opening(browser, line)))
            browser.close()
            return
        browser = driver.launch(playwright, clicks(Path(folder) / "clicks.wav"))
        added = through(browser, mirror, options.seconds)
        browser.close()
        browser = driver.launch(playwright, driver.speech(Path(folder) / "speech.wav"))
        result = {
            "browser": browser.version,
            "added_ms": added,
            "aim_ms": AIM_MS,
            "kyutai_ms": {"page": 40, "playback_buffer": 90, "sum": 130},
            "recovery_s": recovery(browser, line),
            "opening_s": opening(browser, line),
            "command": "python benchmarks/page.py",
        }
        browser.close()
    print(f"Chromium {result['browser']}")
    print(f"added by the page, microphone to wire to ear: p50 {added['p50']} ms, p95 {added['p95']} ms "
          f"({added['clicks']} clicks; aim {AIM_MS} ms at p50)")  # fmt: skip
    print("kyutai's page by its constants, without its decoder: 40 ms pages + 80 + 10 ms of buffer = 130 ms")
    for name, seconds in result["recovery_s"].items():
        print(f"after {name}: {seconds} s until the buffer is below 120 ms again")
    print("open on a simulated mid-range phone over 4G: "
          + ", ".join(f"{name} {seconds} s" for name, seconds in result["opening_s"].items()))  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
