"""One throwaway host, made into a line by the real site.yml, for all end-to-end tests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KIT = ROOT / "tests/hosts/host.py"
NAME = os.environ.get("HOTLINE_E2E_HOST", "e2e")
AGENT = "/srv/agent.py"
"""The program on the line that carries out instructions; test_page_on_line.py writes it."""


@dataclass
class Run:
    """What one run of ansible-playbook said."""

    output: str
    status: int
    seconds: float

    @property
    def changed(self) -> int:
        """How many tasks changed something, over all hosts."""
        return sum(int(n) for n in re.findall(r"\bchanged=(\d+)", self.output))


@dataclass
class Host:
    """A throwaway host and how tests reach it."""

    name: str
    variables: dict[str, Any] = field(default_factory=dict)

    def kit(self, *words: str) -> str:
        """One command of the kit."""
        done = subprocess.run([KIT, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, command: str, check: bool = True) -> str:
        """One shell command on the host; its standard output."""
        done = subprocess.run([KIT, "ssh", self.name, command], capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def play(self, playbook: str = "site.yml", *words: str, **variables: Any) -> Run:
        """ansible-playbook as the README calls it, with this host as the only one of the line."""
        began = time.monotonic()
        done = subprocess.run(
            ["ansible-playbook", playbook, "-i", "inventory/demo.yml",
             "-i", f"/var/lib/hotline-hosts/{self.name}/inventory.yml",
             "-e", json.dumps(self.variables | variables), *words],
            cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
        return Run(done.stdout + done.stderr, done.returncode, time.monotonic() - began)


@dataclass
class Line(Host):
    """A host that site.yml made into a line."""

    first: Run = field(default_factory=lambda: Run("", 0, 0.0))
    url: str = "https://localhost:8998"

    @property
    def tls(self) -> ssl.SSLContext:
        """Trusts the line's own authority, and nothing else: the certificate is really checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.run("cat /etc/hotline/tls/ca.pem"))
        return context

    def hotline(self, *words: str) -> Any:
        """The operator's command on the host; what its JSON says."""
        done = self.run(shlex.join(["hotline", "--json", *words]))
        return json.loads(done)

    def mint(self, *words: str) -> dict[str, Any]:
        """A new link: its id, and the URL that one opens."""
        return dict(self.hotline("link", *words))

    def chat_url(self) -> str:
        """Where one call may be made, within 30 s: a ticket stands in it."""
        return str(self.hotline("ticket")["url"])

    @functools.cached_property
    def link(self) -> str:
        """A link that all callers of these tests share."""
        return str(self.mint("--uses", "1000", "--note", "callers of the tests")["url"])

    def engine(self, port: int = 8999) -> str:
        """The engine's own address, past nginx."""
        return f"ws://127.0.0.1:{port}/api/chat"

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """GET through nginx and TLS, certificate checked: status and body."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=15) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @property
    def ca(self) -> Path:
        """The line's own authority as a file."""
        path = Path(self.variables["tls_ca_dir"]) / "trusted.pem"
        path.write_text(self.run("cat /etc/hotline/tls/ca.pem"))
        return path

    def speak(self, url: str | None = None, *words: str) -> tuple[int, dict[str, Any]]:
        """The synthetic caller, once, with the link unless told otherwise: its exit status and its report."""
        done = subprocess.run(
            [sys.executable, "-m", "caller", url or self.link, "--ca", str(self.ca), "--random-weights",
             "--json", "-", *words],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            return done.returncode, dict(json.loads(done.stdout))
        except json.JSONDecodeError:
            return done.returncode, {"said": done.stdout + done.stderr}

    def await_health(self, *wanted: str, seconds: float = 90) -> dict[str, Any]:
        """Wait until /health says one of these states."""
        deadline, health = time.monotonic() + seconds, {}
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, json.JSONDecodeError):
                health = json.loads(self.get("/health")[1])
                if health.get("status") in wanted:
                    return dict(health)
            time.sleep(0.5)
        raise AssertionError(
            f"not {wanted} within {seconds} s: {health}\n"
            + self.run("journalctl --no-pager -n 60 || tail -n 25 /var/log/hotline/*", check=False)
        )


@contextlib.contextmanager
def throwaway(name: str, *words: str) -> Iterator[Host]:
    """A bare host that this test run owns."""
    subprocess.run([KIT, "destroy", name], check=False, capture_output=True)
    host = Host(name)
    host.kit("create", name, "--owner", str(os.getpid()), *words)
    try:
        yield host
    finally:
        subprocess.run([KIT, "destroy", name], check=False)


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """The line. Its first run is from a pristine host, without wheels cached before."""
    missing = [tool for tool in ("debootstrap", "systemd-nspawn") if not shutil.which(tool)]
    assert not missing, f"{missing} missing: `make e2e` installs what this needs"
    with throwaway(NAME, "--no-package-cache") as bare:
        # The demo keeps to loopback; a line of a GPU host listens where callers come from.
        settings = {
            "tls_ca_dir": str(tmp_path_factory.mktemp("ca")),
            "line_listen": "",
            "orchestrator_agent_command": ["/usr/bin/python3", "-I", AGENT],
        }
        host = Line(NAME, variables=settings)
        dry = host.play("site.yml", "--check", "--diff")
        assert dry.status == 0, f"--check --diff on a virgin host:\n{dry.output[-6000:]}"
        assert "hotline" not in bare.run("ls /etc /opt /var/lib"), "a dry run left something"
        host.first = host.play()
        assert host.first.status == 0, host.first.output[-8000:]
        yield host


@pytest.fixture(scope="session")
def line_url(line: Line) -> str:
    """What the browser tests open: a link, each time in a browser that was never here."""
    return line.link


@contextlib.contextmanager
def talking(line: Line, seconds: int = 60, callers: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A caller who has the engine, ``callers`` of them altogether."""
    caller = subprocess.Popen(
        [sys.executable, "-m", "caller", line.link, "--ca", str(line.ca), "--random-weights",
         "--seconds", str(seconds)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while len(line.run("ss -Htn state established 'sport = :8999'").splitlines()) < callers:
            assert time.monotonic() < deadline, "the caller never reached the engine"
            time.sleep(0.2)
        yield caller
    finally:
        with contextlib.suppress(ProcessLookupError):
            caller.send_signal(signal.SIGCONT)
        caller.kill()
        caller.wait()
