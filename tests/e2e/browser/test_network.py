"""A bad network: speech goes on, and the delay does not stay."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.shaping import shaped
from tests.e2e.browser.standin import Line


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
