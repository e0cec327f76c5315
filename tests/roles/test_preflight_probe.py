"""What the probe sees of a host: space, places, ports, addresses."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from roles.preflight.library.preflight_probe import (
    address_of,
    apt_sources,
    look_at_path,
    look_at_ports,
    look_at_url,
    memory_mib,
    size_mb,
    system_python,
)

ROOT = Path(__file__).parents[2]


def test_a_place_that_is_yet_to_be_made(tmp_path: Path) -> None:
    seen = look_at_path(str(tmp_path / "a/b/c"), with_size=True)
    assert seen["existing"] == str(tmp_path)
    assert seen["blocked"] == ""
    assert seen["used_mb"] == 0
    assert seen["free_mb"] > 0
    assert Path(seen["mount"]).is_mount()
    assert not seen["read_only"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "hotline").write_text("")
    seen = look_at_path(str(tmp_path / "hotline/moshi"), with_size=False)
    assert seen["blocked"] == f"{tmp_path / 'hotline'} is a file, not a directory"


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "hotline").symlink_to("/mnt/gone")
    seen = look_at_path(str(tmp_path / "hotline/moshi"), with_size=False)
    assert seen["blocked"] == f"{tmp_path / 'hotline'} is a link to /mnt/gone, which does not exist"


def test_what_is_there_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(3_000_000))
    os.link(tmp_path / "weights", tmp_path / "again")
    (tmp_path / "link").symlink_to("weights")
    assert size_mb(tmp_path) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F:2326", ("127.0.0.1", 8998)),
        ("00000000:1388", ("0.0.0.0", 5000)),
        ("00000000000000000000000000000000:2326", ("::", 8998)),
        ("00000000000000000000000001000000:2327", ("::1", 8999)),
        ("0000000000000000FFFF00000100007F:2326", ("127.0.0.1", 8998)),
    ],
)
def test_addresses_as_the_kernel_writes_them(text: str, address: tuple[str, int]) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_holds_a_port(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        port = listener.getsockname()[1]
        assert look_at_ports([port]) == [], "bound is not listening"
        listener.listen()
        [held] = look_at_ports([port, 1])
    assert (held["port"], held["address"], held["pid"]) == (port, address, os.getpid())
    assert held["process"] == Path("/proc/self/comm").read_text().strip()


def test_who_may_hold_a_port_whose_process_cannot_be_seen() -> None:
    """As in a container: another user's process, and no right to look into it (CAP_SYS_PTRACE)."""
    serve = (
        "import socket; listener = socket.create_server(('127.0.0.1', 0)); "
        "print(listener.getsockname()[1], flush=True); input()"
    )
    look = (
        "import json, sys; from roles.preflight.library import preflight_probe as probe; "
        "mine = sys.argv[2]; probe.unit_of = lambda pid: 'moshi@0.service' if pid == mine else None; "
        "print(json.dumps(probe.look_at_ports([int(sys.argv[1])])))"
    )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    blind = ["setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace", "--"]
    python = "/usr/bin/python3"
    with subprocess.Popen(
        [*nobody, python, "-c", serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        port = process.stdout.readline().strip()
        words = [*blind, sys.executable, "-c", look, port, str(process.pid)]
        told = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        process.stdin.close()
    [held] = json.loads(told.stdout)
    assert (held["user"], held.get("pid"), held["units"]) == ("nobody", None, ["moshi@0.service"])


@pytest.fixture
def hub() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/there" or self.headers["Authorization"] == "Bearer hf_secret"
            self.send_response(200 if known else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_address_that_answers(hub: str) -> None:
    assert look_at_url(f"{hub}/there", "", 5) == {"url": f"{hub}/there", "status": 200, "error": None}


def test_a_repository_that_wants_a_token(hub: str) -> None:
    assert look_at_url(f"{hub}/private", "", 5)["status"] == 401
    assert look_at_url(f"{hub}/private", "hf_secret", 5)["status"] == 200


def test_an_address_that_nobody_listens_on() -> None:
    assert look_at_url("http://127.0.0.1:9/x", "", 5)["error"] == "Connection refused"


def test_an_address_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        assert look_at_url(url, "", 0.2)["error"] == "no answer within 0 s"


def test_what_is_no_address_is_told_and_does_not_break_the_probe() -> None:
    assert look_at_url("huggingface.co", "", 1)["error"] == "unknown url type: 'huggingface.co'"


def test_apts_sources_are_those_that_apt_itself_would_ask() -> None:
    for url in apt_sources():
        assert url.startswith(("http://", "https://"))


def test_memory_and_python_of_this_machine() -> None:
    assert (memory_mib() or 0) > 100
    assert system_python() is None or (system_python() or "").startswith("3.")
