"""What goes wrong on a running line, and that it is said, bounded and mended by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from .conftest import NAME, Line, talking, throwaway


@pytest.fixture(autouse=True)
def whole_again(line: Line) -> Iterator[None]:
    """Each test finds a line that answers, whatever the one before did to it."""
    line.run(
        "systemctl reset-failed 'moshi@*' orchestrator; systemctl start moshi@0 orchestrator nginx",
        check=False,
    )
    line.await_health("ok")
    yield


async def chat(
    line: Line, *messages: bytes | str, wait_s: float = 10, url: str | None = None
) -> tuple[list[bytes], int | None]:
    """Open the line's WebSocket with a ticket, send these, and give back what came until it closed."""
    heard: list[bytes] = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url or line.chat_url(), ssl=line.tls, max_msg_size=0) as socket,
    ):
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(wait_s):
                for message in messages:
                    with contextlib.suppress(ConnectionError):
                        await (
                            socket.send_str(message)
                            if isinstance(message, str)
                            else socket.send_bytes(message)
                        )
                async for message_in in socket:
                    if message_in.type is aiohttp.WSMsgType.BINARY:
                        heard.append(message_in.data)
        return heard, socket.close_code


def test_a_killed_engine_is_back_without_a_human(line: Line) -> None:
    before = line.run("systemctl show -p MainPID --value moshi@0").strip()
    line.run("kill -9 " + before)
    line.await_health("ok", seconds=60)
    assert line.run("systemctl show -p MainPID --value moshi@0").strip() not in ("0", before)
    status, report = line.speak()
    assert status == 0, report


def test_a_caller_that_vanishes_without_closing_frees_the_engine_within_15_s(line: Line) -> None:
    with talking(line) as caller:
        caller.send_signal(signal.SIGSTOP)  # the process is there, its socket is open, nothing comes
        began = time.monotonic()
        while "ESTAB" in line.run(
            "ss -tn state established 'sport = :8999' | tail -n +2 | sed 's/^/ESTAB /'"
        ):
            assert time.monotonic() - began < 16, "the engine was still held"
            time.sleep(0.5)
        print(f"\nfreed after {time.monotonic() - began:.1f} s")
        status, report = line.speak()
        assert status == 0, report


@pytest.mark.parametrize(
    "messages",
    [
        [b"\x01" + b"this is no Ogg page" * 20],
        ["a text frame, which the protocol does not know"],
        [b"\xff unknown kind", b"\x02text from the wrong side", b"\x03\x09"],
        [b""],
        [b"\x01" + bytes(2_000_000)],
    ],
    ids=["garbage audio", "text frame", "unknown kinds", "empty message", "oversized message"],
)
def test_what_no_page_would_send_disturbs_nobody_after_it(line: Line, messages: list[bytes | str]) -> None:
    asyncio.run(chat(line, *messages, wait_s=3))
    line.await_health("ok", seconds=40)
    status, report = line.speak()
    assert status == 0, report


def test_when_the_engine_is_down_the_page_is_told_why(line: Line) -> None:
    line.run("systemctl stop moshi@0")
    status, body = line.get("/health")
    assert status == 503
    assert json.loads(body)["reasons"], body
    heard, code = asyncio.run(chat(line))
    assert json.loads(heard[0][1:])["code"] in ("line_down", "starting")
    assert code == 1013


def test_when_the_orchestrator_is_down_people_and_programs_can_read_it(line: Line) -> None:
    line.run("systemctl stop orchestrator")
    status, body = line.get("/health")
    assert status == 503
    assert json.loads(body)["status"] in (503, "unhealthy"), body
    assert line.get("/")[0] == 200, "the page itself needs no orchestrator"


def test_three_failures_open_the_breaker_and_health_says_why(line: Line) -> None:
    # Both counters, systemd's and the breaker's own, begin with this start.
    line.run(
        "systemctl stop moshi@0; rm -f /var/lib/hotline/moshi/0/starts.json; "
        "systemctl reset-failed moshi@0; systemctl start moshi@0"
    )
    for _ in range(3):
        line.run("systemctl kill --kill-whom=main --signal=SEGV moshi@0")
        time.sleep(1)
        deadline = time.monotonic() + 60
        while line.run("systemctl show -p ActiveState --value moshi@0").strip() not in ("active", "failed"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        if line.run("systemctl show -p ActiveState --value moshi@0").strip() == "failed":
            break
    assert line.run("systemctl show -p ActiveState --value moshi@0").strip() == "failed"
    health = line.await_health("unhealthy", seconds=20)
    assert "segmentation" in " ".join(health["reasons"]).lower(), health
    assert line.get("/health/live")[0] == 503, "waiting cannot help"
    healed = line.play()
    assert healed.status == 0, healed.output[-3000:]
    line.await_health("ok")


def test_verify_speaks_and_prints_the_table(line: Line) -> None:
    verified = line.play("playbooks/verify.yml")
    assert verified.status == 0, verified.output[-3000:]
    assert "p99" in verified.output


def test_verify_reaches_a_line_on_another_machines_loopback_through_ssh(line: Line) -> None:
    verified = line.play("playbooks/verify.yml", verify_tunnel=True)
    assert verified.status == 0, verified.output[-3000:]
    assert f"{line.url.rsplit(':', 1)[-1]}/api/chat" not in verified.output, "that was the line's own port"
    assert subprocess.run(["pgrep", "-f", "hotline-verify-"], check=False).returncode == 1, (
        "the tunnel is open"
    )


def test_verify_fails_with_a_reason_when_the_line_does_not_answer(line: Line) -> None:
    line.run("systemctl stop moshi@0")
    verified = line.play("playbooks/verify.yml")
    assert verified.status != 0
    assert "engine" in verified.output


def test_an_interrupted_first_run_is_healed_by_the_next(line: Line) -> None:
    """Pulled in the middle: half a Python environment and no unit. The next run puts it right."""
    line.run("systemctl stop moshi@0; rm -rf /opt/hotline/moshi/venv/lib/python3*/site-packages/moshi "
             "/etc/systemd/system/moshi@.service; : >/etc/hotline/hotline.env")  # fmt: skip
    healed = line.play()
    assert healed.status == 0, healed.output[-4000:]
    assert line.speak()[0] == 0
    assert line.play().changed == 0


def test_a_wrong_variable_is_refused_with_the_mend(line: Line) -> None:
    refused = line.play(
        "site.yml", "--tags", "preflight", moshi_extra_args=["--cpu-offload"], moshi_voice="moshi"
    )
    assert refused.status != 0
    assert "--cpu-offload" in refused.output
    assert "moshiko" in refused.output


def test_a_full_disk_is_refused_before_anything_is_changed() -> None:
    with throwaway(f"{NAME}-small", "--disk-mib", "300") as small:
        refused = small.play()
        assert refused.status != 0
        assert "disk" in refused.output.lower()
        assert "hotline" not in small.run("ls /opt /var/lib")


def test_a_host_without_network_is_told_so() -> None:
    with throwaway(f"{NAME}-alone", "--no-package-cache") as alone:
        nowhere = "deb http://127.0.0.1:9/ bookworm main"
        alone.run(f"rm -rf /var/lib/apt/lists/*; echo {nowhere} >/etc/apt/sources.list")
        refused = alone.play()
        assert refused.status != 0
        assert "127.0.0.1:9" in refused.output or "network" in refused.output.lower()


@pytest.mark.timeout(1500)  # two uninstalls and a whole first run
def test_uninstalling_leaves_nothing_and_installing_again_works(line: Line) -> None:
    gone = line.play("playbooks/uninstall.yml")
    assert gone.status == 0, gone.output[-4000:]
    ours = "/opt/hotline /etc/hotline /var/lib/hotline /var/cache/hotline /etc/nginx"
    units = "/etc/systemd/system/moshi@.service /etc/systemd/system/orchestrator.service"
    left = line.run(f"ls -d {ours} {units} 2>/dev/null", check=False)
    assert left == "", left
    assert line.run("getent passwd moshi hotline", check=False) == ""
    assert line.run("ss -Hltn '( sport = :8998 or sport = :8999 or sport = :5000 )'") == ""
    again = line.play("playbooks/uninstall.yml")
    assert again.changed == 0, "a second uninstall has nothing to do"
    vars(line).pop("link", None)  # it went with the database
    back = line.play()
    assert back.status == 0, back.output[-4000:]
    assert f"{line.url}/#t=" in back.output, "a line without a link gets its first one"
    line.await_health("ok")


@pytest.mark.timeout(1500)  # a whole first run
def test_a_lost_host_comes_back_from_its_backup_with_its_question_links_and_certificate(
    line: Line, tmp_path: Path
) -> None:
    link, question = line.link, "Delete the old backups?"
    asked = json.loads(line.run(f"hotline --json ask --no-wait '{question}' || test $? = 3"))
    calls = line.hotline("calls")
    identity = "cat /etc/hotline/secrets/orchestrator.env /etc/hotline/tls/fullchain.pem | sha256sum"
    before = line.run(identity)
    saved = line.play("playbooks/backup.yml", backup_dir=str(tmp_path))
    assert saved.status == 0, saved.output[-4000:]
    [archive] = tmp_path.glob("*.hotline")
    assert archive.stat().st_mode & 0o777 == 0o600

    line.kit("destroy", line.name)
    line.kit("create", line.name, "--owner", str(os.getpid()))
    assert "hotline" not in line.run("ls /etc /opt /var/lib")
    restored = line.play("playbooks/restore.yml", restore_from=str(archive))
    assert restored.status == 0, restored.output[-8000:]
    assert "#t=" not in restored.output, "it has its links, and needs no first one"
    line.await_health("ok")

    assert line.run(identity) == before
    [found] = line.hotline("questions", "--state", "open")
    assert (found["id"], found["question"]) == (asked["id"], question)
    assert {one["id"] for one in calls} <= {one["id"] for one in line.hotline("calls")}
    status, report = line.speak(link)  # which was given away before the loss
    assert status == 0, report
    again = line.play()
    assert (again.status, again.changed) == (0, 0), again.output[-4000:]
