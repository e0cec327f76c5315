"""A node is lost, another gets its backup: what was open is open. The playbooks, on two roots of a machine.

Each node is a mount namespace with its own /etc, /var/lib and /var/tmp, in which Ansible works with a local
connection and the real orchestrator runs on what is there. site.yml, the end of restore.yml, is not run here;
tests/e2e/test_trouble.py loses a whole host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.orchestrator.test_main import SOURCES, environment, free_port
from tests.unit.orchestrator.workshop import Workshop, workshop

ROOT = Path(__file__).parents[2]
STATE = "/var/lib/hotline/orchestrator"
AGENT, OPERATOR = "a" * 43, "o" * 43
PATIENCE_S = 240
ROOTS = r"""
set -e
mount -t tmpfs tmpfs "$1"
for folder in etc var/lib var/tmp; do
    mkdir -p "$1/$folder/upper" "$1/$folder/work"
    mount -t overlay overlay "/$folder" \
        -o "lowerdir=/$folder,upperdir=$1/$folder/upper,workdir=$1/$folder/work"
done
echo up
exec sleep 900
"""


class Node:
    """A root of its own, as far as a backup reaches."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.inventory = folder, folder.with_suffix(".json")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", ROOTS, "roots", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout and self.process.stdout.readline() == "up\n"
        self.enter = ["nsenter", "--mount", "--target", str(self.process.pid), f"--wdns={ROOT}"]
        self.port = free_port()
        self.orchestrator: subprocess.Popen[bytes] | None = None

    def run(self, command: str) -> str:
        return subprocess.run(
            [*self.enter, "bash", "-ec", command], check=True, capture_output=True, text=True
        ).stdout

    def play(self, playbook: str, *words: str) -> tuple[int, str]:
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        self.inventory.write_text(
            json.dumps({"line": {"hosts": {"node": host | {"line_host": "localhost"}}}})
        )
        ansible = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run(
            [*self.enter, ansible, f"playbooks/{playbook}", "-i", self.inventory, *words],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"NO_COLOR": "1", "HOTLINE_VERSION": "0.7"},
        )
        return done.returncode, done.stdout + done.stderr

    def start(self, shop: Workshop) -> None:
        """Run the orchestrator on what is there, with the tokens that lie there."""
        secrets = dict(
            re.findall(r'(?m)^(\w+)="(.*)"$', self.run("cat /etc/hotline/secrets/orchestrator.env"))
        )
        variables = environment(
            MOSHI_URL="https://line.example.org",
            LINE_ORCHESTRATOR_PORT=str(self.port),
            AGENT_SOCKET=str(shop.socket),
            **secrets,
        )
        program = [*self.enter, sys.executable, "-m", "orchestrator"]
        subprocess.run([*program, "migrate"], env=variables, check=True, cwd=SOURCES)
        self.orchestrator = subprocess.Popen(program, env=variables, cwd=SOURCES, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                self.ask("GET", "/api/line")
                return
            assert self.orchestrator.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def ask(self, method: str, path: str, key: str = OPERATOR, **body: Any) -> Any:
        got = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}{path}",
            json=body or None,
            headers={"Authorization": f"Bearer {key}"},
        )
        assert got.is_success, got.text
        return got.json()

    def until(self, path: str, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.ask("GET", path))["state"] != state:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return dict(found)

    def lose(self) -> None:
        for process in (self.orchestrator, self.process):
            if process is not None:
                process.kill()
                process.wait(10)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    made = [Node(tmp_path / "lost"), Node(tmp_path / "found")]
    yield made
    for node in made:
        node.lose()


def test_a_question_that_was_open_when_the_node_was_lost_is_open_on_another_and_can_be_answered(
    nodes: list[Node], tmp_path: Path
) -> None:
    lost, found = nodes
    authority = tmp_path / "authority"
    authority.mkdir()
    for name in ("ca.pem", "ca-key.pem"):
        (authority / name).write_text(name)
    lost.run(f"""
        for user in hotline hotline-agent; do useradd --system --no-create-home $user; done
        install -d {STATE} /etc/hotline/secrets /etc/hotline/tls
        install -d -o hotline-agent -m 0750 /var/lib/hotline-agent
        echo 'MOSHI_URL="https://line.example.org"' > /etc/hotline/hotline.env
        umask 077
        echo key > /etc/hotline/tls/privkey.pem
        echo kept > /var/lib/hotline-agent/session && chown hotline-agent /var/lib/hotline-agent/session
        secrets=/etc/hotline/secrets/orchestrator.env
        echo 'ORCHESTRATOR_OPERATOR_TOKEN="{OPERATOR}"' > $secrets
        echo 'ORCHESTRATOR_AGENT_TOKEN="{AGENT}"' >> $secrets
    """)
    with workshop(tmp_path / "shop") as shop:
        shop.plan({"ask": {"question": "Delete May?"}}, {"say": "Done."})
        lost.start(shop)
        question = lost.ask("POST", "/api/questions", AGENT, question="Delete the old backups?")
        link = lost.ask("POST", "/api/links", purpose="answer", question_id=question["id"])
        key = lost.ask("POST", "/api/links/redeem", token=link["url"].partition("#t=")[2])["key"]
        execution = lost.ask("POST", "/api/executions", instruction="Clean up.", idempotency_key="k")
        waiting = lost.until(f"/api/executions/{execution['id']}", "waiting_for_input")
        lost.run(f"chown -R hotline {STATE}")
        status, output = lost.play(
            "backup.yml", "-e", f"backup_dir={tmp_path}/kept", "-e", f"tls_ca_dir={authority}"
        )
        assert status == 0, output
        lost.lose()
        [archive] = (tmp_path / "kept").glob("node-*.hotline")
        assert str(archive) in output

        words = (
            "--tags",
            "restore",
            "-e",
            f"restore_from={archive}",
            "-e",
            f"tls_ca_dir={tmp_path}/authority-again",
        )
        status, output = found.play("restore.yml", *words)
        assert status == 0, output
        found.start(shop)
        assert found.ask("GET", f"/api/questions/{question['id']}", AGENT)["state"] == "open"
        found.ask("POST", f"/api/questions/{question['id']}/answer", key, text="Yes, but keep May.")
        assert found.ask("GET", f"/api/questions/{question['id']}", AGENT)["answer"] == "Yes, but keep May."
        found.ask("POST", f"/api/questions/{waiting['question_id']}/answer", text="No.")
        assert found.until(f"/api/executions/{execution['id']}", "completed")["result"] == "Done."
        assert [run["turn"] for run in shop.runs()] == [1, 2], "no turn was run twice"

    owners = "stat -c '%U %a' /etc/hotline/tls/privkey.pem /var/lib/hotline-agent/session " + STATE
    assert found.run(owners).splitlines() == ["root 600", "hotline-agent 600", "hotline 755"]
    assert (tmp_path / "authority-again/ca-key.pem").read_text() == "ca-key.pem"
    assert (tmp_path / "authority-again/ca-key.pem").stat().st_mode & 0o777 == 0o600
    left = found.run(f"ls {found.folder}/var/tmp/upper")
    assert "hotline-restore" not in left, "the archive stays on no node"

    status, output = found.play("restore.yml", *words)
    assert status != 0
    assert "Mend: restore onto a fresh node" in output
    content = archive.read_bytes()
    archive.write_bytes(content[: content.index(b"\x1f\x8b\x08") + 100])  # cut off in the node's part
    status, output = found.play("restore.yml", *words)
    assert status != 0
    assert "is damaged" in output
