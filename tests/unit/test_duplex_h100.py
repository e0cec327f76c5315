"""The GPU session: its commands are such as duplex.bench takes, and floors are judged, not assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import duplex_h100
from benchmarks.duplex_h100 import FLOORS, PARTS, judge, report_of
from duplex import bench


def row(**other: Any) -> dict[str, Any]:
    return {
        "conversations": 38,
        "missed_share": 0.0,
        "missed_deadlines": 0,
        "frames": 85_500,
        "turnaround_ms": {"p50": 29.1, "p95": 38.0, "p99": 41.2},
        "failed_calls": [],
        "ready_s": 9.0,
        **other,
    }


def leave(folder: Path, part: str, *rows: dict[str, Any], **other: Any) -> None:
    report_of(part, folder).write_text(json.dumps({"rows": rows, "ratio": {}, **other}))


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.bench])
def test_the_bench_takes_these_arguments(name: str) -> None:
    options = bench.parser().parse_args(list(PARTS[name].bench))
    assert options.seconds * len(options.conversations) + 60 < duplex_h100.LONGEST_S
    assert options.random_weights or options.q8


def test_each_floor_names_a_part_that_leaves_figures() -> None:
    assert {floor.part for floor in FLOORS} <= {name for name, part in PARTS.items() if not part.proof}


@pytest.mark.parametrize(
    ("found", "fine"),
    [
        (row(), True),
        (row(missed_share=0.001), True),
        (row(missed_share=0.0011), False),
        (row(missed_share=None), False),
        (row(failed_calls=["the engine closed the call"]), False),
        (row(turnaround_ms={"p50": 40.0, "p95": 70.0, "p99": 80.0}), False),
    ],
)
def test_real_time_is_no_call_lost_few_frames_late_and_p99_within_a_frame(
    tmp_path: Path, *, found: dict[str, Any], fine: bool
) -> None:
    leave(tmp_path, "bf16", found)
    lines, missed = judge(tmp_path, ["bf16"])
    assert (len(lines), missed) == (1, 0 if fine else 1)
    assert lines[0].startswith("reached" if fine else "MISSED")


def test_speed_ready_and_step_are_judged_too(tmp_path: Path) -> None:
    leave(tmp_path, "one-caller", row(), ratio={"p50": 1.74, "p99": 2.6})
    leave(tmp_path, "ready", row(ready_s=10.1))
    report_of("steps", tmp_path).write_text(json.dumps({"step_ms": {"1": {"p50": 9.9}}}))
    lines, missed = judge(tmp_path, ["one-caller", "ready", "steps", "fp8"])
    assert [line.split()[0] for line in lines] == ["reached", "MISSED", "reached", "MISSED"]
    assert missed == 2


def test_a_dry_run_prints_every_command_and_runs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert duplex_h100.main(["--dry-run", "fp8", "steps"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "fp8: python -m duplex.bench --random-weights --seconds 180 --kv-dtype fp8 -n 76 "
        "--json docs/benchmarks/duplex-h100-fp8.json"
    )
    assert printed[1].startswith("steps: python -m duplex.measure --slots 38 --parts 1 38 --json docs/")


def test_a_part_that_there_is_not_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        duplex_h100.main(["fp4"])
    assert "there is no part fp4: choose from kernels, parity" in capsys.readouterr().err
