"""A long call, watched: memory, drift, delay, every few seconds. One call of a browser of its own.

    python -m tests.e2e.browser.endurance --seconds 3600 --json hour.json

test_endurance.py makes one of some minutes, and in `make soak` one of an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.e2e.browser import driver, standin

EVERY_S = 10.0
SETTLING_S = 10.0


@dataclass
class Moment:
    """What one saw at a moment of the call."""

    at_s: float
    """Since the first look."""
    heap_mb: float
    """JavaScript's, after a collection of garbage."""
    resident_mb: float
    """Of the tab's process, all in all."""
    sent_ms: float
    received_ms: float
    buffer_ms: float
    underruns: float
    dropped_ms: float
    skipped_ms: float
    gaps: float
    conversations: float
    resumed: float
    state: str


def resident_mb(browser_pid: int) -> float:
    """Memory of the largest process of a kind `renderer` below that one: the tab, with its audio thread."""
    found = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            command = (status.parent / "cmdline").read_bytes()
            if b"--type=renderer" in command and _below(status.parent, browser_pid):
                found = max(found, int(facts["VmRSS"].split()[0]) / 1000)
        except (OSError, KeyError, ValueError):
            continue  # it ended while it was looked at
    return found


def _below(process: Path, ancestor: int) -> bool:
    """Is this process a descendant of that one?"""
    pid = int(process.name)
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def watch(page_folder: Path, seconds: float) -> list[Moment]:
    """Call the stand-in, talk for that long, hang up; what was seen."""
    moments: list[Moment] = []
    line = standin.Line(duplex=True, words=(" word",) * 200_000)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        standin.running(page_folder, line=line),
    ):
        browser = driver.launch(playwright, driver.speech(Path(folder) / "speech.wav"))
        with driver.calling(browser, line.url) as caller:
            session = caller.page.context.new_cdp_session(caller.page)
            session.send("Performance.enable")
            processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
            pid = next(process["id"] for process in processes if process["type"] == "browser")
            caller.talk(60)
            caller.page.wait_for_timeout(SETTLING_S * 1000)
            began = time.monotonic()
            while True:
                session.send("HeapProfiler.collectGarbage")
                metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
                numbers = {
                    name.replace("-", "_"): caller.number(name)
                    for name in (
                        *("sent-ms", "received-ms", "buffer-ms", "underruns", "dropped-ms", "skipped-ms"),
                        *("gaps", "conversations", "resumed"),
                    )
                }
                heap, at = metrics["JSHeapUsedSize"] / 1e6, time.monotonic() - began
                moments.append(Moment(at, heap, resident_mb(pid), state=caller.state, **numbers))
                if at >= seconds:
                    break
                caller.page.wait_for_timeout(min(EVERY_S, max(0.1, seconds - at)) * 1000)
            caller.press("Hang up")
            caller.until_state("ended")
            caller.watch.assert_clean()
        browser.close()
    return moments


def main() -> None:
    """Talk, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.browser.endurance", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--page", type=Path, help="the built page; without it, it is built")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    moments = watch(options.page or standin.built_page(), options.seconds)
    if options.json:
        options.json.write_text(json.dumps([asdict(moment) for moment in moments]))
    first, last = moments[0], moments[-1]
    passed, sent = (last.at_s - first.at_s) * 1000, last.sent_ms - first.sent_ms
    received = last.received_ms - first.received_ms
    sys.stdout.write(
        f"{passed / 1000:.0f} s: sent {sent - passed:+.0f} ms, received {received - sent:+.0f} ms of that; "
        f"heap {first.heap_mb:.1f} -> {last.heap_mb:.1f} MB, process {first.resident_mb:.0f} -> "
        f"{last.resident_mb:.0f} MB; buffer {first.buffer_ms:.0f} -> {last.buffer_ms:.0f} ms, at most "
        f"{max(moment.buffer_ms for moment in moments):.0f}; ran dry {last.underruns:.0f} times, "
        f"{last.gaps:.0f} gaps, {last.dropped_ms:.0f} ms dropped\n"
    )


if __name__ == "__main__":
    main()
