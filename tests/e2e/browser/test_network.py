"""A bad network, and a long call: speech goes on, and the delay does not stay."""

from __future__ import annotations

import os
import time

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.shaping import shaped
from tests.e2e.browser.standin import Line

LONG_CALL_S = float(os.environ.get("HOTLINE_CALL_S", "60"))
"""`make soak` talks for an hour."""


def goes_on(caller: Caller, seconds: float) -> None:
    """Speech is heard all the time: never 3 s without a new frame."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        caller.hear(5, 3)
    assert caller.state == "talking"
    assert caller.number("conversations") == 1


@pytest.mark.parametrize(
    "badness", [{"stall_s": 0.2, "stall_every_s": 4.0}, {"jitter_s": 0.3}], ids=["losses", "jitter"]
)
def test_speech_goes_on_and_the_delay_goes_down_again(
    browser: Browser, line: Line, badness: dict[str, float]
) -> None:
    with shaped(line.url) as network, calling(browser, network.url) as caller:
        caller.talk()
        goes_on(caller, 3)
        for name, value in badness.items():
            setattr(network, name, value)
        before = caller.number("voiced-ms")
        goes_on(caller, 15)
        assert caller.number("voiced-ms") > before + 3000
        if "stall_s" in badness:
            assert network.stalls >= 3
        else:
            assert caller.number("buffer-ms") > 60, "the buffer grew, as it must"
        network.calm()
        # 5 s on a machine of its own (benchmarks/page.py prints it); this one may be busy with other things.
        caller.until(lambda: caller.number("buffer-ms") < 120, 20, "a small delay again")
        assert caller.number("resumed") == 0
        caller.watch.assert_clean()


@pytest.mark.timeout(LONG_CALL_S + 300)
def test_a_long_call_grows_nothing(browser: Browser, line: Line) -> None:
    """No drift, no growing delay, no growing memory, over a minute here and an hour in `make soak`."""
    line.duplex = True
    line.words = (" word",) * 100_000
    with calling(browser, line.url) as caller:
        session = caller.page.context.new_cdp_session(caller.page)
        session.send("Performance.enable")

        def heap() -> float:
            session.send("HeapProfiler.collectGarbage")
            metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            return metrics["JSHeapUsedSize"] / 1e6

        caller.talk()
        goes_on(caller, 10)
        began, early = time.monotonic(), heap()
        sent, received = caller.number("sent-ms"), caller.number("received-ms")
        goes_on(caller, LONG_CALL_S)
        passed = (time.monotonic() - began) * 1000
        assert caller.number("sent-ms") - sent == pytest.approx(passed, rel=0.02, abs=2000)
        assert caller.number("received-ms") - received == pytest.approx(
            caller.number("sent-ms") - sent, abs=1500
        )
        assert heap() < early + 5 + LONG_CALL_S / 600, "MB; what was said is kept, and little else"
        caller.until(lambda: caller.number("buffer-ms") < 150, 20, "a small delay")
        assert caller.number("conversations") == 1
        caller.watch.assert_clean()
