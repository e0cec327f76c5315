"""Start the rendered command line of moshi@0 with each kind of weights, call it, and print what was seen.

``measure.py UNIT.json MODELS OUT DEVICE`` stands in for the service manager: the breaker before and after,
the unit's environment and arguments as they are. Every step has a limit of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roles.moshi.files import serve_weights

STATE = Path("/var/lib/hotline/moshi/0")
BREAKER = ["/opt/hotline/moshi/bin/breaker.py"]
COUNTED = ["--state", str(STATE), "--max", "3", "--window", "300", "--delay", "2"]
PORT = int(os.environ.get("PORT", "8999"))
START_LIMIT_S, CALL_S = 150, int(os.environ.get("CALL_S", "20"))


@dataclass
class Unit:
    """What the role rendered."""

    command: list[str]
    environment: dict[str, str]

    @classmethod
    def read(cls, path: Path, device: str) -> Unit:
        """Read it, with the instance and port of moshi@0 in it as the service manager would put them."""
        found = json.loads(path.read_text())
        command = [argument.replace("${SERVICE_PORT}", str(PORT)) for argument in found["command"]]
        if device == "cpu":
            command = ["cpu" if argument == "cuda" else argument for argument in command]
        environment = {name: str(value).replace("%i", "0") for name, value in found["environment"].items()}
        if device == "cpu":
            environment |= {"NO_TORCH_COMPILE": "1", "OMP_NUM_THREADS": "1"}
        return cls(command, {**os.environ, "CUDA_VISIBLE_DEVICES": "0", **environment})


def breaker(event: str, **told: str) -> None:
    """Run breaker.py as the unit does."""
    subprocess.run([sys.executable, *BREAKER, event, *COUNTED], env={**os.environ, **told}, check=True)


def gpu_mib() -> int:
    """Return the memory used on the card in MiB; 0 without one."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    with contextlib.suppress(OSError, ValueError):
        return int(subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()[0])
    return 0


def phase() -> str:
    """Return how far the engine says it has come."""
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((STATE / "phase.json").read_text())["phase"])
    return ""


@contextlib.contextmanager
def engine(unit: Unit, log: Path) -> Iterator[float]:
    """Run the engine until it is ready; give the seconds that took; stop it."""
    breaker("start")
    began = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(unit.command, env=unit.environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        while phase() != "ready":
            if process.poll() is not None or time.perf_counter() - began > START_LIMIT_S:
                raise RuntimeError(f"not ready, status {process.poll()}: {log.read_text()[-1500:]}")
            time.sleep(0.1)
        yield time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        stopping = time.perf_counter()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(
            f"  stopped in {time.perf_counter() - stopping:.1f} s with status {process.returncode}",
            flush=True,
        )
        breaker("stop", SERVICE_RESULT="success")


def lay_out(models: Path, name: str) -> None:
    """Serve these weights."""
    serve_weights.lay_out(models, models / name / "record.json", {})


def call(out: Path, name: str) -> dict[str, Any]:
    """Let verify's client talk for CALL_S seconds; return its report."""
    report = out / f"{name}.json"
    address = f"ws://127.0.0.1:{PORT}/api/chat"
    client = [
        sys.executable,
        "-m",
        "caller",
        address,
        "--random-weights",
        "--seconds",
        str(CALL_S),
        "--json",
        str(report),
    ]
    done = subprocess.run(client, capture_output=True, text=True, check=False, timeout=CALL_S + 60)
    print(done.stdout + done.stderr, flush=True)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def talk(unit: Unit, models: Path, out: Path, name: str) -> None:
    """Start, call and stop with one kind of weights, twice: the first start compiles."""
    lay_out(models, name)
    for turn in ("first", "second"):
        print(f"{name}, {turn} start", flush=True)
        before = gpu_mib()
        log = out / f"{name}-{turn}.log"
        with engine(unit, log) as seconds:
            print(f"  ready after {seconds:.1f} s", flush=True)
            call(out, f"{name}-{turn}")
            print(f"  GPU memory: {gpu_mib() - before} MiB", flush=True)
        journal = log.read_text()
        leaked = [line for line in journal.splitlines() if "text token" in line or "frame handled" in line]
        print(
            f"  journal: {len(journal.splitlines())} lines, {len(leaked)} of them with what was said",
            flush=True,
        )


def fails(unit: Unit, what: str, expected: str, command: list[str] | None = None, **environment: str) -> None:
    """Run an engine that must fail by itself; print the breaker's reason."""
    breaker("start")
    log = STATE / "fails.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command or unit.command,
            env={**unit.environment, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"{what}: did not fail within 90 s", flush=True)
            return
    told = {"EXIT_CODE": "exited", "EXIT_STATUS": str(status), "SERVICE_RESULT": "exit-code"}
    if status < 0:
        name = signal.Signals(-status).name.removeprefix("SIG")
        told = {"EXIT_CODE": "killed", "EXIT_STATUS": name, "SERVICE_RESULT": "signal"}
    breaker("stop", **told)
    failure = json.loads((STATE / "failure.json").read_text())
    right = "as expected" if failure["reason"] == expected else f"EXPECTED {expected}"
    print(f"{what}: {failure['reason']} ({right}): {failure['detail']}", flush=True)
    if failure["reason"] != expected:
        print(log.read_text()[-1500:], flush=True)


def main(unit_path: Path, models: Path, out: Path, device: str) -> None:
    """Do all of it; a part that fails does not keep the others from running."""
    unit = Unit.read(unit_path, device)
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    for name in ("bf16", "q8"):
        try:
            talk(unit, models, out, name)
        except Exception as error:
            print(f"{name} FAILED: {error!r}", flush=True)
    lay_out(models, "q8")
    unmended = [unit.command[0], "-m", "moshi.server", *unit.command[2:]]
    print("q8 by the package alone, without the launcher:", flush=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        alone = subprocess.run(
            unmended, env=unit.environment, capture_output=True, text=True, check=False, timeout=60
        )
        print(
            f"  status {alone.returncode}: {(alone.stderr.strip().splitlines() or ['no word'])[-1]}",
            flush=True,
        )
    lay_out(models, "bf16")
    fails(unit, "an unknown flag", "bad_flag", [*unit.command, "--cpu-offload"])
    if device == "cpu":
        return
    fails(unit, "no card", "cuda_error", CUDA_VISIBLE_DEVICES="7")
    hold = (
        "import torch, time; free, _ = torch.cuda.mem_get_info(); "
        "x = torch.empty(free - 6 * 2**30, dtype=torch.uint8, device='cuda'); print('held', flush=True); "
        "time.sleep(120)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        fails(unit, "a card that is full", "cuda_out_of_memory")
        holder.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
