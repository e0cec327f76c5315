"""The program: as systemd starts, asks and stops it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "orchestrator/src"


def environment(**changed: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"PYTHONPATH": str(SOURCES), "MOSHI_DEVICE": "cpu"} | changed


def run(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env=environment(**changed),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(port: int, database: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator"],
        env=environment(
            MOSHI_URL="https://line.example.org:8998", LINE_ORCHESTRATOR_PORT=str(port), DATABASE_URL=database
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_help_names_every_setting() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ("MOSHI_URL", "LINE_ENGINES", "MAX_MOSHI_FAILURES", "ORCHESTRATOR_LOG_LEVEL"):
        assert name in done.stdout


def test_version() -> None:
    assert run("--version").stdout.strip()


def test_wrong_settings_end_it_with_one_line() -> None:
    done = run(MOSHI_URL="nonsense", LINE_PORT="70000")
    assert done.returncode == 78
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "MOSHI_URL is 'nonsense'" in line
    assert "Mend: set line_port and run site.yml again" in line


def test_settings_can_be_checked_alone() -> None:
    assert run("--check").returncode == 78
    done = run("--check", MOSHI_URL="https://line.example.org")
    assert (done.returncode, done.stdout) == (0, "orchestrator: the settings are fine\n")


def test_migrate_makes_the_database_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    given = {"MOSHI_URL": "https://line.example.org", "DATABASE_URL": f"sqlite:///{tmp_path}/hotline.db"}
    first, second = run("migrate", **given), run("migrate", **given)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.startswith("orchestrator: the database has had 0001")
    assert second.stdout == "orchestrator: the database is as it should be\n"


def test_without_its_database_it_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    done = run(MOSHI_URL="https://line.example.org", DATABASE_URL=f"sqlite:///{tmp_path}/hotline.db")
    assert done.returncode == 74
    assert "Mend: hotline-orchestrator migrate" in done.stderr


def test_a_port_that_is_taken_ends_it_with_one_line(sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(
            MOSHI_URL="https://line.example.org", LINE_ORCHESTRATOR_PORT=str(port), DATABASE_URL=sqlite_url
        )
    assert done.returncode == 69
    [line] = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "set line_orchestrator_port" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_stops_when_told(number: signal.Signals, sqlite_url: str) -> None:
    port = free_port()
    with running(port, sqlite_url) as process:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        assert json.load(refused.value)["status"] == "unhealthy"
        process.send_signal(number)
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events == ["listening", "the line is unhealthy", "stopped"]


def test_it_stops_in_time_although_somebody_holds_a_connection(sqlite_url: str) -> None:
    port = free_port()
    with running(port, sqlite_url) as process, socket.create_connection(("127.0.0.1", port)) as held:
        held.sendall(b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        time.sleep(0.2)
        began = time.monotonic()
        process.terminate()
        process.communicate(timeout=10)
        assert time.monotonic() - began < 8
        assert process.returncode == 0


def test_it_listens_on_loopback_only(sqlite_url: str) -> None:
    port = free_port()
    with running(port, sqlite_url):
        listening = [
            line.split()[1]
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()
            if f":{port:04X} " in line and " 0A " in line
        ]
        assert listening == [f"0100007F:{port:04X}"]
