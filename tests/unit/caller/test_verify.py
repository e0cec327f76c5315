"""playbooks/verify.yml against an engine of this process: what it prints, how it fails, what it leaves."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from caller.echo import Behaviour, running

ROOT = Path(__file__).parents[3]


def play(folder: Path, port: int, variables: dict[str, object]) -> tuple[int, str]:
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "line_host": "127.0.0.1",
        "line_port": port,
        "line_access": "open",
        "tls_provider": "none",
        "moshi_weights": "tiny",
        "moshi_device": "cpu",
        "verify_seconds": 1.5,
    }
    (folder / "hosts.json").write_text(json.dumps({"line": {"hosts": {"here": host}}}))
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "TMPDIR": str(folder), "NO_COLOR": "1"}
    settings["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.json"),
         "-e", json.dumps(variables), "playbooks/verify.yml"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | settings,
    )  # fmt: skip
    assert list(folder.glob("hotline-verify-*")) == [], "it leaves nothing behind"
    return done.returncode, done.stdout + done.stderr


async def verify(folder: Path, port: int, **variables: object) -> tuple[int, str]:
    """Play it for a line without TLS on this machine; its exit status and output."""
    return await asyncio.to_thread(play, folder, port, variables)


async def test_it_prints_the_table_and_changes_nothing(tmp_path: Path) -> None:
    async with running(Behaviour(lag=1)) as (url, _):
        port = int(url.split(":")[2].split("/")[0])
        status, said = await verify(tmp_path, port, verify_seconds=2)
    assert status == 0, said
    assert "25 sent, 24 answered, 0 lost" in said
    assert "160 in theory, 200 in practice" in said
    assert "changed=0" in said


HOTLINE = """#!/bin/sh
echo "$*" >>"$(dirname "$0")/asked"
case "$*" in *link*) echo '{"id": "link_1", "url": "https://127.0.0.1/#t=abc"}' ;; esac
"""


async def test_a_line_that_needs_a_link_gives_one_for_the_call(tmp_path: Path) -> None:
    (tmp_path / "hotline").write_text(HOTLINE)
    (tmp_path / "hotline").chmod(0o755)
    async with running(Behaviour(link="abc")) as (url, _):
        port = int(url.split(":")[2].split("/")[0])
        status, said = await verify(tmp_path, port, line_access="links")
    assert status == 0, said
    assert "the line answers" in said
    assert "abc" not in said
    made, revoked = (tmp_path / "asked").read_text().splitlines()
    assert made.startswith("--json link --uses 1 ")
    assert revoked == "revoke link_1"


async def test_a_line_that_makes_no_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "hotline").write_text("#!/bin/sh\necho 'hotline: the line does not answer.' >&2; exit 69\n")
    (tmp_path / "hotline").chmod(0o755)
    status, said = await verify(tmp_path, 1, line_access="links")
    assert status != 0
    assert "here makes no link for the call: hotline: the line does not answer." in said


async def test_it_fails_with_the_reason_when_a_limit_is_missed_and_keeps_the_report(tmp_path: Path) -> None:
    async with running(Behaviour(latency_s=0.05)) as (url, _):
        port = int(url.split(":")[2].split("/")[0])
        status, said = await verify(
            tmp_path, port, verify_turnaround_p50_ms=20, verify_lost=-1, verify_json=str(tmp_path)
        )
    assert status != 0
    assert "misses its limits: turnaround p50 is" in said
    assert "the limit is 20 ms" in said
    assert json.loads((tmp_path / "here.json").read_text())["outcome"] == "ok"


async def test_it_fails_with_the_reason_when_the_line_does_not_answer(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    status, said = await verify(tmp_path, unused_tcp_port)
    assert status != 0
    assert f"nothing listens on 127.0.0.1:{unused_tcp_port}" in said


@pytest.mark.parametrize(("variable", "reason"), [({"line_access": "closed"}, "line_access")])
async def test_a_wrong_variable_is_named(tmp_path: Path, variable: dict[str, str], reason: str) -> None:
    status, said = await verify(tmp_path, 1, **variable)
    assert status != 0
    assert reason in said
