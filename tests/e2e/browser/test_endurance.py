"""A long call: two minutes and a half here, an hour in `make soak`."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from tests.e2e.browser.endurance import watch

LONG_CALL_S = float(os.environ.get("HOTLINE_CALL_S", "150"))


@pytest.mark.timeout(LONG_CALL_S + 300)
def test_a_long_call_grows_nothing(page_folder: Path) -> None:
    """No drift, no growing delay, no growing memory, however long one talks."""
    moments = watch(page_folder, LONG_CALL_S)
    first, last = moments[0], moments[-1]
    assert last.at_s >= LONG_CALL_S
    assert {moment.state for moment in moments} == {"talking"}
    assert (last.conversations, last.resumed, last.gaps) == (1, 0, 0)
    passed, sent = (last.at_s - first.at_s) * 1000, last.sent_ms - first.sent_ms
    assert sent == pytest.approx(passed, rel=0.005, abs=1500)
    assert last.received_ms - first.received_ms == pytest.approx(sent, abs=1500)
    quarter = max(1, len(moments) // 4)
    early, late = moments[:quarter], moments[-quarter:]
    heap = [statistics.median(moment.heap_mb for moment in some) for some in (early, late)]
    assert heap[1] < heap[0] + 2 + LONG_CALL_S / 600, "MB; what was said is kept, and little else"
    resident = [statistics.median(moment.resident_mb for moment in some) for some in (early, late)]
    caches = 60 if LONG_CALL_S < 1800 else 30  # a browser fills its own in the first minutes
    assert resident[1] < resident[0] + caches, "MB of the browser's process"
    delay = [min(moment.buffer_ms for moment in some) for some in (early, late)]
    assert delay[1] < max(150, delay[0] + 100), "what others cost on this machine is given back"
