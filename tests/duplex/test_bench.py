"""The bench's arithmetic: what counts as late, and what is compared with what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("caller.line")
from duplex.bench import CALLERS_PER_PROCESS, compare, plot, summarise
from duplex.metrics import Histogram, Metrics

ROOT = Path(__file__).parents[2]


def one(times: list[float], lost: int = 0, outcome: str = "ok") -> dict[str, Any]:
    return {
        "outcome": outcome,
        "reason": "it broke",
        "turnarounds_ms": times,
        "lost": lost,
        "drift_ms_per_minute": -3.0,
        "clock_p99_ms": 1.0,
    }


def test_a_frame_that_is_lost_has_missed_its_deadline() -> None:
    figures = summarise([one([10.0, 20.0, 80.0, 80.1]), one([30.0] * 5, lost=1)])
    assert (figures["frames"], figures["missed_deadlines"], figures["lost"]) == (10, 2, 1)
    assert figures["missed_share"] == 0.2
    assert figures["drift_ms_per_minute"] == -3.0
    assert figures["failed_calls"] == []


def test_a_call_that_fails_is_named() -> None:
    assert summarise([one([], outcome="busy")])["failed_calls"] == ["it broke"]


def row(engine: str, conversations: int, ms: float) -> dict[str, Any]:
    spread = {"p50": ms, "p95": ms * 2, "p99": ms * 4}
    return {"engine": engine, "conversations": conversations, "turnaround_ms": spread, "card": "a card"}


def test_the_ratio_is_of_one_caller_each() -> None:
    rows = [row("moshi.server", 1, 24.0), row("duplex", 1, 12.0), row("duplex", 38, 30.0)]
    assert compare(rows) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert compare(rows[1:]) == {}


def test_the_plot_is_an_svg_with_every_number_of_callers() -> None:
    drawn = plot([row("duplex", count, 10.0 + count) for count in (1, 38, 76)])
    assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")
    assert all(f">{count}</text>" in drawn for count in (1, 38, 76))


def test_no_process_of_callers_holds_more_than_it_can_measure() -> None:
    assert CALLERS_PER_PROCESS <= 16


def test_histograms_count_up_to_their_bounds_and_metrics_say_what_was_late() -> None:
    histogram = Histogram((10, 20))
    for value in (10, 11, 25):
        histogram.add(value)
    lines = list(histogram.lines("x_seconds", "help", 1e-3))
    assert 'x_seconds_bucket{le="0.01"} 1' in lines
    assert 'x_seconds_bucket{le="0.02"} 2' in lines
    assert 'x_seconds_bucket{le="+Inf"} 3' in lines
    metrics = Metrics()
    for seconds in (0.02, 0.081):
        metrics.answered(seconds)
    assert metrics.missed == 1
    metrics.refused["line_full"] += 2
    assert 'duplex_calls_refused_total{code="line_full"} 2' in metrics.text({})


def test_the_whole_session_runs_with_tiny_weights_on_a_cpu(tiny: Path, tmp_path: Path) -> None:
    """What makes docs/duplex.md's table on a card: the same commands, real callers, real engine."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.duplex_h100",
            "--tiny",
            str(tiny),
            "--into",
            str(tmp_path),
            "bf16",
        ],
        cwd=ROOT,
        env={**os.environ, "NO_TORCH_COMPILE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "duplex-h100-bf16.json").read_text())
    assert report["rows"][0]["conversations"] == 3
    assert report["rows"][0]["frames"] > 50
    assert report["run"].startswith("python -m duplex.bench --seconds 2 -n 3")
    assert report["commit"]
