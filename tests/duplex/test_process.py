"""`python -m duplex` as a supervisor sees it: it says when it is ready, drains, and how it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "NO_TORCH_COMPILE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
BROKEN = """
import sys
from duplex.engine import Engine
def step(self, frames):
    raise RuntimeError("CUDA error: device-side assert triggered")
Engine.step = step
from duplex.__main__ import main
main(sys.argv[1:])
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def running(tiny: Path, log: Path, *how: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    port, status = free_ports(2)
    command = [sys.executable, *how, "--device", "cpu", "--config-path", str(tiny / "config.json")]
    command += ["--slots", "2", "--host", "127.0.0.1", "--port", str(port), "--status-port", str(status)]
    command += ["--codec-workers", "1", "--drain-seconds", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=output, cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while b"ready after" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process, port, status
    finally:
        process.kill()
        process.wait()


def upgrade(port: int) -> socket.socket:
    """Open a call by hand and return its socket, past the handshake byte."""
    call = socket.create_connection(("127.0.0.1", port), 10)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    up = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    call.sendall(f"GET /api/chat HTTP/1.1\r\nHost: x\r\n{up}{key}\r\n".encode())
    received = b""
    while b"\x82\x01\x00" not in received:
        received += call.recv(4096)
    return call


def heard(call: socket.socket) -> bytes:
    received = b""
    while piece := call.recv(4096):
        received += piece
        if b'"code"' in received and b"\x88" in received:
            break
    return received


def test_help_explains_every_option_with_its_default() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "duplex", "--help"], env=ENVIRONMENT, cwd=ROOT, capture_output=True, check=True
    )
    text = re.sub(r"\s+", " ", answer.stdout.decode())
    options = "--slots --context --kv-dtype --resume-grace --idle-timeout --max-call-seconds --drain-seconds"
    for option in f"{options} --status-host --status-port --random-weights".split():
        assert option in text
    assert "(default: 15.0)" in text and "seconds for which a broken call" in text


def test_a_stop_tells_the_caller_waits_and_ends_well(tiny: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(tiny, log, "-m", "duplex") as (process, port, status), upgrade(port) as call:
        with urllib.request.urlopen(f"http://127.0.0.1:{status}/status", timeout=5) as answer:
            assert json.load(answer)["free"] == 1
        process.send_signal(signal.SIGTERM)
        assert b'"going_away"' in heard(call)
        assert process.wait(20) == 0
    assert "w1" not in log.read_text()  # nobody's words


def test_an_engine_that_breaks_ends_the_process_with_70(tiny: Path, tmp_path: Path) -> None:
    sphn = pytest.importorskip("sphn")
    import numpy as np

    writer = sphn.OpusStreamWriter(24_000)
    data = b"\x01" + bytes(writer.append_pcm(np.zeros(1920, dtype=np.float32)))
    log = tmp_path / "log"
    with running(tiny, log, "-c", BROKEN) as (process, port, _), upgrade(port) as call:
        length = len(data).to_bytes(1, "big") if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
        frame = bytes([0x82, 0x80 | length[0]]) + length[1:] + bytes(4) + data  # masked with zeros
        call.sendall(frame)
        assert b'"engine_failed"' in heard(call)
        assert process.wait(20) == 70
    assert "CUDA error: device-side assert" in log.read_text()


def test_a_missing_file_is_said_in_a_line(tiny: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "duplex",
        "--device",
        "cpu",
        "--config-path",
        str(tiny / "config.json"),
        "--slots",
        "1",
    ]
    command += [
        "--moshi-weight",
        "/nowhere.safetensors",
        "--status-port",
        "0",
        "--port",
        str(free_ports(1)[0]),
    ]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 70
    assert "/nowhere.safetensors" in ended.stdout.decode()
    assert "Traceback" not in ended.stdout.decode() + ended.stderr.decode()
