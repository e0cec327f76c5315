"""Say why an engine ended, and whether it will be started again.

The service manager starts a failed engine again, ``--max`` starts within ``--window`` seconds at most; then
the circuit is open and the engine stays down. It knows neither why nor tells anyone. This script stands
before and after every run::

    breaker.py start --state DIRECTORY --max 3 --window 300 --delay 2      (ExecStartPre)
    breaker.py stop  --state DIRECTORY --max 3 --window 300 --delay 2      (ExecStopPost)

After a failed run it writes ``failure.json`` and a line into the journal. The reason is read from how the
process ended (SERVICE_RESULT, EXIT_CODE, EXIT_STATUS: systemd.exec(5), "Environment variables set or
propagated") and from that run's own log, which launch.py keeps. Standard library only, so that it also speaks
when the engine's environment is broken.

The counting is the manager's own (src/basic/ratelimit.c of systemd): *starts* are counted, whatever for, in a
window that begins with the first start after the last window ended, not in a sliding one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXIT_BAD_FLAG = 2  # argparse
EXIT_CANNOT_EXECUTE = 203  # systemd: the program itself could not be started
DETAIL_LENGTH = 400

# Looked for in the run's log from its end; the first reason with a matching line wins, so the order matters.
IN_LOG: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "bad_flag",
        re.compile(
            r"error: (unrecognized arguments|argument |ambiguous option|the following arguments)"
            r"|^duplex: --[a-z-]+ .* needs "
        ),
    ),
    ("unsupported_model", re.compile(r"^duplex: duplex (speaks|does not speak) models")),
    (
        "cuda_out_of_memory",
        re.compile(
            r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"
            r"|GB more of GPU memory are needed"
        ),
    ),
    (
        "cuda_error",
        re.compile(
            r"CUDA error|AcceleratorError|CUBLAS_STATUS_|cuDNN error|CUDNN_STATUS_|No CUDA GPUs are available"
            r"|Found no NVIDIA driver|NVIDIA driver on your system is too old|not compiled with CUDA"
            r"|no kernel image is available"
        ),
    ),
    (
        "missing_weights",
        re.compile(
            r"(?=.*(No such file|Not a directory|not.?found|Permission denied))"
            r"(?=.*(\.safetensors|\.model\b|config\.json|mimi\.json|/models/))"
            r"|SafetensorError|could not parse ModelProto|JSONDecodeError|Error\(s\) in loading state_dict"
            r"|LocalEntryNotFoundError|OfflineModeIsEnabled",
            re.IGNORECASE,
        ),
    ),
)
MEND = {
    "cuda_out_of_memory": "The GPU's memory is full: see with nvidia-smi what else uses it, or set "
    "moshi_quantization: q8 "
    "(10.1 GB instead of 18.3 GB), with moshi_engine: duplex also moshi_kv_dtype: fp8 or fewer "
    "moshi_conversations, and run the playbook again.",
    "cuda_error": "Look at nvidia-smi and, for Xid errors, at `dmesg | grep -i nvrm`; a driver that is too "
    "old or a card "
    "that fell off the bus needs the operator (`ansible-playbook site.yml` checks the driver, a reboot frees "
    "a hung card).",
    "segmentation_fault": "The journal shows where in Python. Mostly the driver and torch do not fit each "
    "other, or memory is "
    "faulty: run `ansible-playbook site.yml`, which checks the driver and heals the environment.",
    "killed": "Somebody sent SIGKILL to the engine.",
    "missing_weights": "The weights are missing, damaged or do not fit: run `ansible-playbook site.yml`, "
    "which fetches what is missing.",
    "unsupported_model": "Set moshi_engine: moshi_server and run the playbook again.",
    "bad_flag": "The engine does not take this argument: correct moshi_extra_args and run the playbook "
    "again.",
    "other": "The journal of this engine says more.",
}
PORT_TAKEN = (
    "Something else listens on the engine's port: `ss -ltnp` names it; end it, or set line_engine_port (for "
    "the port where duplex tells about itself, line_status_port)."
)
KERNEL_KILLED = (
    "The kernel killed it because the machine's memory (not the GPU's) ran out: loading takes about 2 GB "
    "besides the "
    "page cache. End what else uses memory, or add some."
)


@dataclass
class Failure:
    """Why a run ended; ``failures`` counts those of the window."""

    at: str
    reason: str
    detail: str
    exit_code: int | None
    signal: str | None
    failures: int
    open: bool = False


@dataclass
class Window:
    """The manager's counter, followed from outside: when its window began, the starts and failures in it."""

    boot: str
    begin: float
    starts: int
    failures: int
    oom_kills: int


def boot_id() -> str:
    """Return what tells this boot from others: the clock that is counted by begins anew with each."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it booted, if it says so."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def monotonic() -> float:
    """Return the seconds of the clock that the manager counts by."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def counted(before: Window | None, most: int, window: float, now: float) -> Window:
    """Count a start at ``now``.

    A start beyond ``most`` cannot happen unless somebody reset the manager's counter (``systemctl
    reset-failed``): then a new window has begun there too.
    """
    boot = boot_id()
    if before is None or before.boot != boot or now - before.begin > window or before.starts >= most:
        return Window(boot, now, 1, 0, oom_kills())
    return Window(boot, before.begin, before.starts + 1, before.failures, oom_kills())


def is_open(seen: Window, now: float, most: int, window: float, delay: float) -> bool:
    """Say whether the manager will refuse the start that is due ``delay`` seconds from now."""
    return seen.starts >= most and now + delay - seen.begin <= window


def log_of_run(state: Path, invocation: str) -> list[str]:
    """Return the lines of this run's log, none if the log is of an earlier run."""
    lines: list[str] = []
    for name in ("run.log.1", "run.log"):
        with contextlib.suppress(OSError):
            lines += (state / name).read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return []
    try:
        first = json.loads(lines[0])
    except (
        ValueError
    ):  # a long run: its first line is gone, and an earlier run's file would have been emptied
        return lines
    return lines[1:] if not invocation or first.get("invocation") == invocation else []


def last_error(lines: list[str]) -> str:
    """Return the line that says most: the last that begins like an exception or an error, else the last."""
    spoken = [line.strip() for line in lines if line.strip()]
    for line in reversed(spoken):
        if re.match(r"[\w.]*(Error|Exception|error|Interrupt|Exit)\b", line) or " error: " in line:
            return line
    return spoken[-1] if spoken else ""


def judged(environment: Mapping[str, str], lines: list[str], killed_by_kernel: bool) -> tuple[str, str]:
    """Return the reason and one line of detail for a run that failed."""
    result, how, status = (
        environment.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS")
    )
    if result == "oom-kill" or (status == "KILL" and killed_by_kernel):
        return "killed", KERNEL_KILLED
    if how in {"killed", "dumped"} and status in {"SEGV", "BUS", "ILL", "FPE"}:
        return "segmentation_fault", f"The engine crashed with SIG{status}. {MEND['segmentation_fault']}"
    if how == "killed" and status == "KILL" and result != "timeout":
        return "killed", MEND["killed"]
    for reason, pattern in IN_LOG:
        if reason == "bad_flag" and status != str(EXIT_BAD_FLAG):
            continue
        found = next((line.strip() for line in reversed(lines) if pattern.search(line)), None)
        if found:
            return reason, f"{found.rstrip('.')}. {MEND[reason]}"
    if status == str(EXIT_CANNOT_EXECUTE):
        return (
            "other",
            "The engine's Python cannot be started: run `ansible-playbook site.yml`, which heals the "
            "environment.",
        )
    if result == "timeout":
        return "other", f"The engine did not start or stop in time. {MEND['other']}"
    if how in {"killed", "dumped"}:
        return "other", f"The engine was ended by SIG{status}. {MEND['other']}"
    said = last_error(lines)
    if "address already in use" in said.lower():
        return "other", PORT_TAKEN
    return (
        "other",
        f"{said.rstrip('.') or f'The engine ended by itself with status {status}'}. {MEND['other']}",
    )


def one_line(text: str) -> str:
    """Return text as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= DETAIL_LENGTH else line[: DETAIL_LENGTH - 1] + "…"


def read_window(state: Path) -> Window | None:
    """Return what was counted before, if anything readable was."""
    try:
        return Window(**json.loads((state / "starts.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file in one step, readable by the orchestrator."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    draft.chmod(0o644)
    draft.replace(path)


def start(state: Path, most: int, window: float) -> None:
    """Count a start that is about to happen."""
    state.mkdir(parents=True, exist_ok=True)
    write_json(state / "starts.json", asdict(counted(read_window(state), most, window, monotonic())))
    write_json(state / "phase.json", {"phase": "loading", "detail": "", "at": stamp()})


def stop(
    state: Path, most: int, window: float, delay: float, environment: Mapping[str, str]
) -> Failure | None:
    """Record the end of a run; return the failure if it was one."""
    if environment.get("SERVICE_RESULT", "success") == "success":
        write_json(state / "phase.json", {"phase": "stopped", "detail": "", "at": stamp()})
        return None
    now = monotonic()
    seen = read_window(state) or counted(None, most, window, now)
    seen.failures += 1
    reason, detail = judged(
        environment, log_of_run(state, environment.get("INVOCATION_ID", "")), oom_kills() > seen.oom_kills
    )
    status, by_exit = environment.get("EXIT_STATUS", ""), environment.get("EXIT_CODE") == "exited"
    failure = Failure(
        at=stamp(),
        reason=reason,
        detail=one_line(detail),
        exit_code=int(status) if by_exit and status.isdigit() else None,
        signal=f"SIG{status}" if status and not by_exit else None,
        failures=seen.failures,
        open=is_open(seen, now, most, window, delay),
    )
    write_json(state / "failure.json", asdict(failure))
    write_json(state / "starts.json", asdict(seen))
    phase = "failed" if failure.open else "loading"
    write_json(state / "phase.json", {"phase": phase, "detail": failure.detail, "at": failure.at})
    return failure


def stamp() -> str:
    """Return the time as ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def main(argv: list[str]) -> None:
    """Read the command line; whatever goes wrong here must not keep an engine down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("event", choices=["start", "stop"])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--max", type=int, required=True, dest="most")
    parser.add_argument("--window", type=float, required=True)
    parser.add_argument("--delay", type=float, required=True)
    options = parser.parse_args(argv)
    try:
        if options.event == "start":
            start(options.state, options.most, options.window)
            return
        failure = stop(options.state, options.most, options.window, options.delay, os.environ)
    except OSError as error:
        print(
            f"{options.state} cannot be written, the {options.event} of this run goes unrecorded: {error}",
            file=sys.stderr,
        )
        return
    if failure:
        then = "it stays down" if failure.open else f"it is started again in {options.delay:.0f} s"
        how = (
            f"failure {failure.failures}, {options.most} starts are allowed in {options.window:.0f} s: {then}"
        )
        print(f"<3>{failure.reason}: {failure.detail} ({how})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
