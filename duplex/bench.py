"""How many callers a voice engine carries, and how quickly it answers: ``python -m duplex.bench``.

Real WebSocket callers with real Opus (the package ``caller``), each in real time and out of step with the
others, against any server of Moshi's protocol: one that is running (``--url``), or moshi.server and duplex
started in turn. Turnaround is from the last byte of a frame in to the first byte of its answer out. A frame
that is never answered has missed its deadline as one has that is answered after 80 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from caller.line import call
from caller.measure import percentile
from caller.report import evaluate
from caller.speech import prepare

FRAME_S = 0.08
DEADLINE_MS = 80.0
CALLERS_PER_PROCESS = 10
"""A process with more of them measures itself."""


class BenchError(RuntimeError):
    """Nothing was measured."""


# ---------------------------------------------------------------------------------------------------- callers


async def speak(url: str, count: int, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Hold ``count`` calls at the same time, out of step; return what each was like."""
    speech = prepare(None, seconds)
    chance = random.Random(seed)  # noqa: S311 - when people begin to speak

    async def one() -> dict[str, Any]:
        await asyncio.sleep(chance.uniform(0, min(2.0, seconds / 4)))
        report = evaluate(await call(url, speech))
        return {
            "outcome": report.outcome,
            "reason": report.reason,
            "turnarounds_ms": report.turnarounds_ms,
            "lost": report.frames.lost,
            "drift_ms_per_minute": report.drift_ms_per_minute,
            "clock_p99_ms": report.clock_ms.p99,
        }

    return list(await asyncio.gather(*(one() for _ in range(count))))


def callers(url: str, conversations: int, seconds: float) -> list[dict[str, Any]]:
    """Hold calls from as many processes as it takes."""
    shares = []
    left = conversations
    while left:
        shares.append(min(left, CALLERS_PER_PROCESS))
        left -= shares[-1]
    base = [sys.executable, "-m", "duplex.bench", "--url", url, "--seconds", str(seconds), "--as-callers"]
    children = [
        subprocess.Popen([*base, str(share), "--seed", str(i)], stdout=subprocess.PIPE)
        for i, share in enumerate(shares)
    ]
    results: list[dict[str, Any]] = []
    for child in children:
        output, _ = child.communicate()
        if child.returncode:
            raise BenchError(f"a process of callers ended with {child.returncode}")
        results += json.loads(output)
    return results


def summarise(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Join what the calls were like into the report's figures."""
    times = sorted(value for one in calls for value in one["turnarounds_ms"])
    lost = sum(one["lost"] for one in calls)
    late = sum(value > DEADLINE_MS for value in times)
    frames = len(times) + lost
    measured = [one["drift_ms_per_minute"] for one in calls]
    drifts: list[float] = [drift for drift in measured if drift is not None]
    farthest: float = max(drifts, key=abs) if drifts else 0.0
    clocks = [one["clock_p99_ms"] for one in calls if one["clock_p99_ms"] is not None]
    return {
        "turnaround_ms": {
            name: round(percentile(times, share), 2) if times else None
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        "missed_deadlines": late + lost,
        "missed_share": round((late + lost) / frames, 6) if frames else None,
        "frames": frames,
        "lost": lost,
        "drift_ms_per_minute": round(farthest, 2) if drifts else None,
        "callers_clock_p99_ms": round(max(clocks), 2) if clocks else None,
        "failed_calls": [one["reason"] for one in calls if one["outcome"] != "ok"][:5],
    }


# ----------------------------------------------------------------------------------------------------- engine


@dataclass
class Running:
    """An engine that was started for the measurement."""

    process: subprocess.Popen[bytes]
    url: str
    command: str
    ready_s: float
    status_url: str | None


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def engine(kind: str, arguments: Sequence[str], patience_s: float = 300) -> Iterator[Running]:
    """Start moshi.server or duplex, wait for its port, end it afterwards."""
    port = free_port()
    module = {"duplex": "duplex", "moshi": "moshi.server"}[kind]
    status_port = free_port()
    own = ["--status-port", str(status_port)] if kind == "duplex" else ["--static", "none"]
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), *own, *arguments]
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                if process.poll() is not None or time.monotonic() - started > patience_s:
                    log.seek(0)
                    raise BenchError(
                        f"{shlex.join(command)} did not start:\n{log.read()[-3000:].decode(errors='replace')}"
                    )
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            shown = shlex.join(["python", *command[1:]])
            status = f"http://127.0.0.1:{status_port}/status" if kind == "duplex" else None
            ready = time.monotonic() - started
            log.seek(0)
            print(log.read()[-2000:].decode(errors="replace") if kind == "duplex" else "", end="", flush=True)
            log.seek(0, os.SEEK_END)
            yield Running(process, f"ws://127.0.0.1:{port}/api/chat", shown, ready, status)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def gpu(query: str) -> str | None:
    """Ask nvidia-smi about the first card; None without one."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.decode().splitlines()[0].strip()


def cpu_seconds(root: int) -> float:
    """Return the processor time that a process and its children have used (/proc; 0 where there is none)."""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], used[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    family, total = {root}, used.get(root, 0)
    for pid in sorted(parents):
        if parents[pid] in family:
            family.add(pid)
            total += used[pid]
    return total / os.sysconf("SC_CLK_TCK")


def inside(url: str | None) -> dict[str, Any]:
    """Return what duplex says of its last 2048 steps."""
    if url is None:
        return {}
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - an address of our own making
        status = json.load(answer)
    return {
        "step_ms": status["step_ms"],
        "batch": status["batch"],
        "server_turnaround_ms": status["turnaround_ms"],
    }


def version_of(kind: str) -> str:
    """Return what was measured, as exactly as can be told."""
    try:
        moshi = version("moshi")
    except PackageNotFoundError:
        moshi = "?"
    if kind == "moshi":
        return f"moshi {moshi}"
    return f"duplex {os.environ.get('HOTLINE_VERSION', 'dev')}, moshi {moshi}"


def measure(options: argparse.Namespace, kind: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Measure one engine with each number of conversations; print and return a row for each."""
    rows = []
    with engine(kind, arguments) as running:
        print(f"{kind}: ready after {running.ready_s:.1f} s", flush=True)
        for conversations in options.conversations if kind == "duplex" else [1]:
            before, since = cpu_seconds(running.process.pid), time.monotonic()
            calls = callers(running.url, conversations, options.seconds)
            cores = (cpu_seconds(running.process.pid) - before) / (time.monotonic() - since)
            memory = gpu("memory.used")
            row = {
                "card": gpu("name") or "cpu",
                "driver": gpu("driver_version"),
                "engine": {"moshi": "moshi.server", "duplex": "duplex"}[kind],
                "version": version_of(kind),
                "weights": options.weights,
                "kv_dtype": options.kv_dtype if kind == "duplex" else "bf16",
                "context": options.context,
                "ages": "mixed"
                if options.mixed_ages
                else "full"
                if options.random_weights or options.q8
                else "fresh",
                "conversations": conversations,
                "seconds": options.seconds,
                **summarise(calls),
                "cpu_cores": round(cores, 2),
                "gpu_memory_gb": round(float(memory) * 1.048576e-3, 2) if memory else None,
                "ready_s": round(running.ready_s, 1),
                **inside(running.status_url),
                "command": shlex.join(["python", "-m", "duplex.bench", *sys.argv[1:]]),
                "engine_command": running.command,
            }
            rows.append(row)
            show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    """Print a row as a person reads it."""
    turnaround = row["turnaround_ms"]
    share = row["missed_share"]
    print(
        f"{row['engine']:13} {row['conversations']:4} conversations, {row['seconds']:g} s: "
        f"turnaround p50 {turnaround['p50']} ms, p95 {turnaround['p95']}, p99 {turnaround['p99']}; "
        f"missed {row['missed_deadlines']} of {row['frames']} frames "
        f"({'-' if share is None else f'{share:.3%}'}); {row['cpu_cores']} cores, {row['gpu_memory_gb']} GB"
        + (f"; step {row['step_ms']}, batch {row['batch']}" if "step_ms" in row else "")
        + (f"; FAILED {row['failed_calls']}" if row["failed_calls"] else ""),
        flush=True,
    )


def plot(rows: list[dict[str, Any]]) -> str:
    """Draw turnaround over conversations as an SVG: p50 and p99, and the 80 ms that a frame has."""
    points = sorted(
        (r["conversations"], r["turnaround_ms"])
        for r in rows
        if r["engine"] == "duplex" and r["turnaround_ms"]["p50"]
    )
    widest = max([count for count, _ in points] or [1])
    highest = max([80.0, *(t["p99"] for _, t in points)]) * 1.1

    def at(count: float, ms: float) -> str:
        return f"{60 + 520 * count / widest:.1f},{340 - 300 * ms / highest:.1f}"

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 400" '
        'font-family="sans-serif" font-size="12">'
    ]
    parts.append(
        '<rect width="620" height="400" fill="white"/><path d="M60 30V340H590" fill="none" stroke="#333"/>'
    )
    left, right = at(0, DEADLINE_MS), at(widest, DEADLINE_MS)
    parts.append(
        f'<path d="M{left}L{right}" stroke="#c33" stroke-dasharray="4"/>'
        '<text x="66" y="24">ms from a frame in to its answer out</text>'
    )
    for name, colour in (("p50", "#277"), ("p99", "#727")):
        path = " ".join(at(count, t[name]) for count, t in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if points:
            x, y = at(points[-1][0], points[-1][1][name]).split(",")
            parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{name} {points[-1][1][name]:.0f}</text>')
    for tick in range(0, math.ceil(highest), 20):
        y = at(0, tick).split(",")[1]
        parts.append(f'<text x="30" y="{y}">{tick}</text>')
    for count, _ in points:
        x = at(count, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="358" text-anchor="middle">{count}</text>')
    card = rows[0]["card"] if rows else ""
    parts.append(
        f'<text x="320" y="385" text-anchor="middle">conversations at the same time, {card}</text></svg>'
    )
    return "\n".join(parts) + "\n"


def compare(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how many times quicker duplex answers one caller than moshi.server in the same run."""
    alone = {row["engine"]: row["turnaround_ms"] for row in rows if row["conversations"] == 1}
    if set(alone) != {"duplex", "moshi.server"} or not all(t["p50"] for t in alone.values()):
        return {}
    return {
        name: round(alone["moshi.server"][name] / alone["duplex"][name], 2) for name in ("p50", "p95", "p99")
    }


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(
        prog="python -m duplex.bench",
        description="Measures a voice engine with real callers.",
        epilog="What follows -- goes to the engines that are started.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument(
        "--url", help="measure a server that is running, for example ws://127.0.0.1:8998/api/chat"
    )
    result.add_argument(
        "--engine", choices=["duplex", "moshi", "both"], default="duplex", help="which engines to start"
    )
    result.add_argument(
        "-n",
        "--conversations",
        type=int,
        nargs="+",
        default=[1],
        help="numbers of callers, one after the other",
    )
    result.add_argument("--seconds", type=float, default=30.0, help="length of each call")
    result.add_argument("--slots", type=int, help="room in duplex (default: the largest number of callers)")
    result.add_argument("--kv-dtype", default="bf16", choices=["bf16", "fp8"], help="of duplex")
    result.add_argument("--context", type=int, default=3000, help="frames a conversation of duplex remembers")
    result.add_argument("--memory-gb", type=float, help="GPU memory duplex may use")
    result.add_argument(
        "--random-weights", action="store_true", help="random weights of the 7B shape, with full contexts"
    )
    result.add_argument(
        "--mixed-ages", action="store_true", help="contexts of any length up to full instead of full ones"
    )
    result.add_argument("--q8", action="store_true", help="random weights in 8 bits (duplex)")
    result.add_argument(
        "--files",
        type=Path,
        help="with --random-weights: write them here (15.8 GB) and have both engines read the same files",
    )
    result.add_argument("--json", type=Path, help="write the rows here")
    result.add_argument("--plot", type=Path, help="draw turnaround over callers here (.svg)")
    result.add_argument("--as-callers", type=int, help=argparse.SUPPRESS)
    result.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, extra = (
        (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    )
    options = parser().parse_args(own)
    if options.as_callers:
        print(json.dumps(asyncio.run(speak(options.url, options.as_callers, options.seconds, options.seed))))
        return 0
    try:
        rows = run(options, extra)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    ratio = compare(rows)
    if ratio:
        print(
            f"duplex answers one caller quicker than moshi.server: p50 {ratio['p50']} times, "
            f"p95 {ratio['p95']}, p99 {ratio['p99']}"
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "ratio": ratio}, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.write_text(plot(rows), encoding="utf-8")
    return 1 if any(row["failed_calls"] for row in rows) else 0


def run(options: argparse.Namespace, extra: Sequence[str]) -> list[dict[str, Any]]:
    """Measure what the options ask for."""
    options.weights = (
        "random, q8" if options.q8 else "random, bf16" if options.random_weights else "as started"
    )
    if options.url:
        rows = []
        for conversations in options.conversations:
            figures = summarise(callers(options.url, conversations, options.seconds))
            about = {
                "card": None,
                "engine": options.url,
                "version": None,
                "weights": None,
                "kv_dtype": None,
                "context": None,
            }
            own = {
                "conversations": conversations,
                "seconds": options.seconds,
                "cpu_cores": None,
                "gpu_memory_gb": None,
                "ready_s": None,
            }
            rows.append(
                {
                    **about,
                    **own,
                    **figures,
                    "command": shlex.join(["python", "-m", "duplex.bench", *sys.argv[1:]]),
                }
            )
            show(rows[-1])
        return rows
    slots = options.slots or max(options.conversations)
    duplex_arguments = [
        "--slots",
        str(slots),
        "--kv-dtype",
        options.kv_dtype,
        "--context",
        str(options.context),
    ]
    if options.memory_gb:
        duplex_arguments += ["--memory-gb", str(options.memory_gb)]
    common = list(extra)
    if options.random_weights or options.q8:
        duplex_arguments += ["--prefilled", str(options.context)] + ["--mixed-ages"] * options.mixed_ages
        if options.files is not None or options.engine != "duplex":
            import torch  # noqa: PLC0415 - only files need it

            from duplex.weights import write_random  # noqa: PLC0415

            common += write_random(
                options.files or Path(tempfile.gettempdir()) / "hotline-random-7b", torch.device("cuda")
            )
            torch.cuda.empty_cache()
        else:
            duplex_arguments += ["--random-q8" if options.q8 else "--random-weights"]
    rows = []
    if options.engine in ("moshi", "both"):
        rows += measure(options, "moshi", common)
    if options.engine in ("duplex", "both"):
        rows += measure(options, "duplex", [*duplex_arguments, *common])
    return rows


if __name__ == "__main__":
    sys.exit(main())
