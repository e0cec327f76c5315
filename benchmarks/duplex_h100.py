"""The whole table of docs/duplex.md, made anew on one NVIDIA card: figures, ready times, profile, proofs.

    python -m benchmarks.duplex_h100 --list                 what there is, and how long each part takes
    python -m benchmarks.duplex_h100 --dry-run              the commands, nothing is run
    python -m benchmarks.duplex_h100                        all of it, about 50 minutes on an H100
    python -m benchmarks.duplex_h100 one-caller bf16        some parts
    python -m benchmarks.duplex_h100 --tiny DIRECTORY       the same way on a CPU, with tiny weights, 2 s each

Each part is a run of its own of less than ten minutes and leaves ``docs/benchmarks/duplex-h100-PART.json``
with its commands, or a text where it is a proof. Weights are random ones of the real 7B shape, contexts are
full. Afterwards every floor that the figures have to reach is printed with what was reached; the exit status
is 1 if one of those that were measured was missed, 2 if a part failed.

Needs the packages of roles/moshi/files/locks and pytest, and a card that is free; neither root nor a host.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "docs/benchmarks"
LONGEST_S = 600.0
WEIGHTS = Path(tempfile.gettempdir()) / "hotline-random-7b"
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One run: arguments of duplex.bench, of duplex.measure, or of Python for a proof."""

    minutes: float
    what: str
    bench: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()
    fresh_kernels: bool = False
    """Compiled anew, into a folder of its own."""


LARGE = ("--random-weights", "--seconds", "180")
SHORT = ("--random-weights", "--seconds", "30")
FILES = ("--files", str(WEIGHTS))
PARTS: dict[str, Part] = {
    "kernels": Part(
        3,
        "each kernel and its PyTorch twin agree",
        proof=("-m", "pytest", "-q", "tests/duplex/test_kernels.py"),
    ),
    "parity": Part(4, "tokens are upstream's, in float32", proof=("tests/duplex/parity_on_gpu.py",)),
    "one-caller": Part(
        3,
        "one caller, beside moshi.server on the same files",
        bench=("--engine", "both", *SHORT, *FILES, "-n", "1", "--slots", "4"),
    ),
    "ready-cold": Part(
        2,
        "start to ready, kernels never compiled before",
        bench=(*SHORT[:1], *FILES, "--seconds", "5", "-n", "1", "--slots", "38"),
        fresh_kernels=True,
    ),
    "ready": Part(
        2,
        "start to ready, as at every later start",
        bench=(*SHORT[:1], *FILES, "--seconds", "5", "-n", "1", "--slots", "38"),
    ),
    "bf16": Part(5, "38 conversations, three minutes", bench=(*LARGE, "-n", "38")),
    "fp8": Part(
        5,
        "76 conversations with an 8-bit memory, three minutes",
        bench=(*LARGE, "--kv-dtype", "fp8", "-n", "76"),
    ),
    "callers": Part(
        6, "turnaround over callers", bench=(*SHORT, "-n", "1", "4", "8", "16", "24", "32", "38")
    ),
    "bf16-24gb": Part(2, "4 on 24 GB", bench=(*SHORT, "--memory-gb", "24", "-n", "4")),
    "q8-24gb": Part(2, "8 on 24 GB in q8", bench=("--q8", "--seconds", "30", "--memory-gb", "24", "-n", "8")),
    "q8-fp8-24gb": Part(
        2,
        "16 on 24 GB in q8 with an 8-bit memory",
        bench=("--q8", "--kv-dtype", "fp8", "--seconds", "30", "--memory-gb", "24", "-n", "16"),
    ),
    "mixed-128": Part(
        2, "128 of mixed ages", bench=(*SHORT, "--kv-dtype", "fp8", "--mixed-ages", "-n", "128")
    ),
    "steps": Part(3, "where a step's time goes", measure=("--slots", "38", "--parts", "1", "38")),
}


@dataclass(frozen=True)
class Floor:
    """What has to be reached: in which part, and how it is told from its rows."""

    part: str
    what: str
    reached: Callable[[dict[str, Any]], tuple[bool, str]]


def carries(report: dict[str, Any]) -> tuple[bool, str]:
    """In real time: nobody's call failed, at most 0.1 % of frames late, p99 under 80 ms."""
    row = report["rows"][-1]
    share, p99 = row["missed_share"], row["turnaround_ms"]["p99"]
    fine = not row["failed_calls"] and share is not None and share <= 0.001 and p99 < 80
    late = f"{row['missed_deadlines']} of {row['frames']} frames late"
    return fine, f"{row['conversations']} conversations, p99 {p99} ms, {late}"


def quicker(name: str, times: float) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    """So many times quicker than moshi.server in the same run."""

    def judge(report: dict[str, Any]) -> tuple[bool, str]:
        ratio = report["ratio"].get(name)
        return ratio is not None and ratio >= times, f"{ratio} times"

    return judge


def within(seconds: float) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    """From start to ready."""
    return lambda report: (report["rows"][-1]["ready_s"] <= seconds, f"{report['rows'][-1]['ready_s']} s")


def step_within(ms: float) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    """One conversation's step."""
    return lambda report: (report["step_ms"]["1"]["p50"] <= ms, f"{report['step_ms']['1']['p50']} ms")


FLOORS = (
    Floor("bf16", "38 in bf16 for three minutes", carries),
    Floor("fp8", "76 with fp8 KV for three minutes", carries),
    Floor("steps", "GPU time per frame, one conversation: 11 ms", step_within(11)),
    Floor("one-caller", "p50 of one caller 1.8 times quicker", quicker("p50", 1.8)),
    Floor("one-caller", "p99 of one caller 2.5 times quicker", quicker("p99", 2.5)),
    Floor("bf16-24gb", "4 on 24 GB in bf16", carries),
    Floor("q8-24gb", "8 on 24 GB in q8", carries),
    Floor("q8-fp8-24gb", "16 on 24 GB in q8 with fp8 KV", carries),
    Floor("ready", "ready within 10 s, weights in the page cache", within(10)),
    Floor("mixed-128", "128 of mixed ages (what we would like to print)", carries),
)


def report_of(name: str, folder: Path) -> Path:
    """Where a part leaves what it found."""
    return folder / f"duplex-h100-{name}{'.txt' if PARTS[name].proof else '.json'}"


def command_of(name: str, folder: Path, tiny: Path | None) -> list[str] | None:
    """Return the command of a part; None when it has none without a card."""
    part, out = PARTS[name], report_of(name, folder.resolve())
    if out.is_relative_to(ROOT):
        out = out.relative_to(ROOT)
    if part.bench and tiny is None:
        return [sys.executable, "-m", "duplex.bench", *part.bench, "--json", str(out)]
    if part.bench:
        count = min(3, int(part.bench[part.bench.index("-n") + 1]))
        few = ["--seconds", "2", "-n", str(count), "--json", str(out)]
        return [
            sys.executable,
            "-m",
            "duplex.bench",
            *few,
            "--",
            "--device",
            "cpu",
            "--config-path",
            str(tiny / "config.json"),
        ]
    if tiny is not None:
        return None
    if part.measure:
        return [sys.executable, "-m", "duplex.measure", *part.measure, "--json", str(out)]
    return [sys.executable, *part.proof]


def machine() -> str:
    """What the figures were made on, besides the card."""
    versions = []
    for package in ("torch", "triton", "moshi"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([f"{os.cpu_count()} CPU cores", platform.platform(), *versions])


def commit() -> str:
    """Return the version of what is measured."""
    done = subprocess.run([ROOT / "scripts/version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or os.environ.get("HOTLINE_VERSION", "unknown")


def run(name: str, command: list[str], folder: Path) -> bool:
    """Run a part to its end; say whether it left what it should."""
    part, report = PARTS[name], report_of(name, folder)
    with tempfile.TemporaryDirectory() as fresh:
        environment = os.environ | {"HOTLINE_VERSION": commit()}
        if part.fresh_kernels:
            environment |= {
                "TRITON_CACHE_DIR": f"{fresh}/triton",
                "TORCHINDUCTOR_CACHE_DIR": f"{fresh}/inductor",
            }
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=LONGEST_S, check=False, text=True,
                stdout=subprocess.PIPE if part.proof else None,
                stderr=subprocess.STDOUT if part.proof else None,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{name}: not done within {LONGEST_S:g} s", flush=True)
            return False
    if part.proof:
        print(done.stdout, flush=True)
        report.write_text(f"{machine()}\n{shlex.join(shown(command))}\n\n{done.stdout}", encoding="utf-8")
        return done.returncode == 0
    if not report.exists() or done.returncode not in (0, 1):
        print(f"{name}: ended with {done.returncode}", flush=True)
        return False
    found = json.loads(report.read_text(encoding="utf-8"))
    about = {"machine": machine(), "commit": commit(), "what": part.what, "run": shlex.join(shown(command))}
    report.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
    return done.returncode == 0


def shown(command: list[str]) -> list[str]:
    """A command as a person types it."""
    return ["python", *command[1:]]


def judge(folder: Path, names: list[str]) -> tuple[list[str], int]:
    """Hold what was found against the floors: lines to print, and how many were missed."""
    lines, missed = [], 0
    for floor in FLOORS:
        path = report_of(floor.part, folder)
        if floor.part not in names or not path.exists():
            continue
        fine, seen = floor.reached(json.loads(path.read_text(encoding="utf-8")))
        missed += not fine
        lines.append(f"{'reached' if fine else 'MISSED ':8} {floor.what}: {seen}")
    return lines, missed


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.duplex_h100",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="parts: " + ", ".join(PARTS),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="which of them (default: all)")
    parser.add_argument("--list", action="store_true", help="say what there is and how long it takes")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument(
        "--tiny", type=Path, metavar="DIRECTORY", help="on a CPU, with the tiny weights that lie there"
    )
    parser.add_argument("--into", type=Path, default=REPORTS, help="where the reports go")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    names = asked.parts or list(PARTS)
    if asked.list:
        for name in names:
            print(f"{name:14} {PARTS[name].minutes:3g} min  {PARTS[name].what}")
        return 0
    commands = {name: command_of(name, asked.into, asked.tiny) for name in names}
    if asked.dry_run:
        for name, command in commands.items():
            print(f"{name}: {shlex.join(shown(command)) if command else 'needs a card'}")
        return 0
    asked.into.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, command in commands.items():
        if command is None:
            continue
        print(f"\n--- {name}: {PARTS[name].what}\n{shlex.join(shown(command))}", flush=True)
        if not run(name, command, asked.into):
            failed.append(name)
    if asked.tiny is None:
        lines, missed = judge(asked.into, names)
        print("\n" + "\n".join(lines), flush=True)
    else:
        missed = 0
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 2 if failed else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
