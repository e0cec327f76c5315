"""duplex as role `moshi` runs it: what launch_duplex.py notes down, what breaker.py makes of its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.roles.moshi_stage import told

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "roles/moshi/files"
CUDA_BREAKS = """
from duplex.engine import Engine
def step(self, frames):
    raise RuntimeError("CUDA error: device-side assert triggered")
Engine.step = step
"""
MEMORY_IS_FULL = """
import torch
from duplex.engine import Engine
def prepare(self, say=None):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
Engine.prepare = prepare
"""


@dataclass
class Unit:
    """moshi@0 with duplex, as systemd runs it: start, the engine, stop."""

    folder: Path
    weights: Path
    ports: list[int]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / name).read_text())
        return found

    def breaker(self, event: str, **environment: str) -> None:
        command = [sys.executable, str(PROGRAMS / "breaker.py"), event, "--state", str(self.state)]
        subprocess.run(
            [*command, "--max", "3", "--window", "300", "--delay", "2"],
            env={**os.environ, "INVOCATION_ID": "this-run", **environment},
            capture_output=True,
            check=True,
        )

    def command(self, *arguments: str) -> list[str]:
        port, status = map(str, self.ports)
        named = {
            "--config-path": "config.json",
            "--moshi-weight": "model.safetensors",
            "--mimi-weight": "mimi.safetensors",
            "--tokenizer": "tokenizer.model",
        }
        files = [part for flag, name in named.items() for part in (flag, str(self.weights / name))]
        listen = ["--host", "127.0.0.1", "--port", port, "--status-port", status, "--device", "cpu"]
        few = ["--slots", "2", "--codec-workers", "1", "--drain-seconds", "1"]
        return [sys.executable, str(PROGRAMS / "launch_duplex.py"), *listen, *files, *few, *arguments]

    @contextmanager
    def running(self, *arguments: str, first: str = "") -> Iterator[subprocess.Popen[str]]:
        """Start it; ``first`` is run inside before it. Whatever happens, it has ended afterwards."""
        (self.folder / "inside").mkdir()
        (self.folder / "inside" / "sitecustomize.py").write_text(first)
        self.breaker("start")
        process = subprocess.Popen(
            self.command(*arguments),
            env={
                **os.environ,
                "NO_TORCH_COMPILE": "1",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": f"{self.folder / 'inside'}:{ROOT}",
                "HOTLINE_ENGINE_STATE": str(self.state),
                "INVOCATION_ID": "this-run",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 120
        while self.read("phase.json")["phase"] != "ready":
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.1)

    def ended(self, process: subprocess.Popen[str]) -> tuple[str, dict[str, Any]]:
        """Wait for its end; return what the journal has of it and what the breaker made of it."""
        said = process.communicate(timeout=120)[0]
        self.breaker("stop", **told(process.returncode))
        failed = self.state / "failure.json"
        return said, self.read("failure.json") if failed.exists() else {}


@pytest.fixture
def unit(tmp_path: Path, tiny: Path) -> Unit:
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return Unit(tmp_path, tiny, ports)


def test_it_says_when_it_is_ready_and_a_stop_is_no_failure(unit: Unit) -> None:
    (unit.state).mkdir()
    (unit.state / "failure.json").write_text('{"reason": "killed", "failures": 1}')
    with unit.running() as process:
        unit.ready(process)
        assert not (unit.state / "failure.json").exists(), "an engine that answers has no failure"
        assert (unit.state / "last_failure.json").exists()
        process.send_signal(signal.SIGTERM)
        said, failure = unit.ended(process)
    assert process.returncode == 0
    assert failure == {}
    assert unit.read("phase.json")["phase"] == "stopped"
    log = (unit.state / "run.log").read_text()
    assert "ready after" in said and "ready after" in log
    assert json.loads(log.splitlines()[0])["invocation"] == "this-run"


@pytest.mark.parametrize(
    ("arguments", "first", "reason", "detail"),
    [
        (
            ["--moshi-weight", "/var/lib/hotline/models/gone.safetensors"],
            "",
            "missing_weights",
            "fetches what",
        ),
        (["--config-path", "/var/lib/hotline/models/serving/config.json"], "", "missing_weights", "site.yml"),
        (
            ["--cpu-offload"],
            "",
            "bad_flag",
            "unrecognized arguments: --cpu-offload. The engine does not take",
        ),
        (["--slots", "none"], "", "bad_flag", "a number from 1 on, or auto"),
        ([], MEMORY_IS_FULL, "cuda_out_of_memory", "moshi_kv_dtype: fp8"),
        (["--device", "cuda"], "", "cuda_error", "nvidia-smi"),
    ],
    ids=["no weights", "no config", "unknown flag", "bad value", "out of memory", "no card"],
)
def test_why_it_did_not_start_is_told_apart(
    unit: Unit, arguments: list[str], first: str, reason: str, detail: str
) -> None:
    with unit.running(*arguments, first=first) as process:
        said, failure = unit.ended(process)
    assert process.returncode > 0
    assert (failure["reason"], failure["failures"]) == (reason, 1), said
    assert detail in failure["detail"]


def test_a_fine_tune_with_a_lora_is_told_the_other_engine(unit: Unit, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(unit.weights, tmp_path / "tuned")) / "config.json"
    tuned.write_text(json.dumps(json.loads(tuned.read_text()) | {"lora": True}))
    with unit.running("--config-path", str(tuned)) as process:
        said, failure = unit.ended(process)
    assert failure["reason"] == "unsupported_model", said
    assert "with lora: use moshi.server. Set moshi_engine: moshi_server" in failure["detail"]


def test_a_taken_port_is_named(unit: Unit) -> None:
    with socket.create_server(("127.0.0.1", unit.ports[1])), unit.running() as process:
        _, failure = unit.ended(process)
    assert failure["reason"] == "other"
    assert "line_status_port" in failure["detail"]


def test_a_broken_card_ends_it_and_is_told_from_a_kill(unit: Unit) -> None:
    from tests.duplex.test_process import upgrade

    with unit.running(first=CUDA_BREAKS) as process:
        unit.ready(process)
        import sphn

        call = upgrade(unit.ports[0])
        import numpy as np

        pages = sphn.OpusStreamWriter(24_000).append_pcm(np.zeros(1920 * 3, np.float32))
        message = b"\x01" + pages
        mask = bytes(4)
        assert len(message) < 65536
        call.sendall(b"\x82" + bytes([0xFE]) + len(message).to_bytes(2, "big") + mask + message)
        said, failure = unit.ended(process)
        call.close()
    assert process.returncode == 70
    assert failure["reason"] == "cuda_error", said
    assert "device-side assert" in failure["detail"]


def test_a_kill_is_told(unit: Unit) -> None:
    with unit.running() as process:
        unit.ready(process)
        process.send_signal(signal.SIGKILL)
        _, failure = unit.ended(process)
    assert (failure["reason"], failure["signal"]) == ("killed", "SIGKILL")
