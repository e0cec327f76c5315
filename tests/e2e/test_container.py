"""A line in a rented container: no systemd, few capabilities, driver and port from outside."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from .conftest import Line, throwaway

INSIDE, OUTSIDE = 28998, 38998
# The other end-to-end tests' line has the usual ports of this machine.
PORTS = {
    "line_port": INSIDE,
    "line_url": f"https://localhost:{OUTSIDE}",
    "line_engine_port": 28999,
    "line_status_port": 29299,
    "line_orchestrator_port": 25000,
}


@contextlib.contextmanager
def forwarded(outside: int, inside: int) -> Iterator[None]:
    """What a provider does with a container's port: TCP, under another number."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(ConnectionError, RuntimeError):
            sink.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", inside)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back), pump(there, writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(connect, "127.0.0.1", outside))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """The line, made by one run of site.yml from a bare container."""
    authority = str(tmp_path_factory.mktemp("ca"))
    with throwaway("e2e-container", "--kind", "container"), forwarded(OUTSIDE, INSIDE):
        host = Line("e2e-container", variables=PORTS | {"tls_ca_dir": authority}, url=PORTS["line_url"])
        host.first = host.play()
        assert host.first.status == 0, host.first.output[-8000:]
        yield host


def main_process(line: Line) -> tuple[str, int]:
    """The engine's state and main process."""
    state, pid = line.run("supervised state moshi@0").split()[:2]
    return state, int(pid)


def test_what_a_container_lacks_is_said_once_and_its_driver_is_left_alone(container: Line) -> None:
    assert container.first.output.count("there is no systemd (PID 1 is bash)") == 1
    seen = container.play("site.yml", "--tags", "preflight,nvidia_driver", moshi_device="cuda")
    assert seen.status == 0, seen.output[-3000:]
    assert "leave: " in seen.output
    assert "NVIDIA GeForce RTX 4090" in container.run("nvidia-smi")


def test_a_caller_is_answered_through_the_port_that_the_outside_sees(container: Line) -> None:
    container.await_health("ok")
    status, report = container.speak()
    assert status == 0, report
    assert report["frames"]["answered"] >= 25, report


def test_a_second_run_changes_nothing(container: Line) -> None:
    second = container.play()
    assert second.status == 0, second.output[-4000:]
    assert second.changed == 0, second.output[-6000:]


def test_the_operators_commands_are_the_same(container: Line) -> None:
    assert container.run("hotline status").startswith("ok, version ")
    assert container.run("hotline logs moshi@0 -n 1").strip()
    assert '"GET /health' in container.run("hotline logs nginx")
    _, before = main_process(container)
    container.run("hotline restart moshi@0")
    assert main_process(container)[1] != before


def test_every_service_runs_as_its_own_user_without_privileges(container: Line) -> None:
    for name, user in (("moshi@0", "moshi"), ("orchestrator", "hotline")):
        pid = container.run(f"supervised state {name}").split()[1]
        assert container.run(f"ps -o user= -p {pid}").strip() == user
        status = container.run(f"cat /proc/{pid}/status")
        assert "CapBnd:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status


def test_a_killed_engine_is_back_without_a_human(container: Line) -> None:
    _, before = main_process(container)
    container.run(f"kill -9 {before}")
    container.await_health("ok", seconds=60)
    assert main_process(container)[1] not in (0, before)
    status, report = container.speak()
    assert status == 0, report


def test_three_failures_open_the_breaker_and_health_says_why(container: Line) -> None:
    # Both counters, the keeper's and the breaker's own, begin with this start.
    container.run(
        "supervised stop moshi@0; supervised reset moshi@0; rm -f /var/lib/hotline/moshi/0/starts.json; "
        "supervised start moshi@0"
    )
    for failure in range(3):
        before = main_process(container)[1]
        container.run(f"kill -SEGV {before}")
        deadline = time.monotonic() + 60
        while (now := main_process(container))[0] not in ("active", "failed") or now[1] == before:
            assert time.monotonic() < deadline, (failure, now)
            time.sleep(0.5)
    assert main_process(container)[0] == "failed"
    health = container.await_health("unhealthy", seconds=20)
    assert "segmentation" in " ".join(health["reasons"]).lower(), health
    assert container.get("/health/live")[0] == 503, "waiting cannot help"
    container.run("supervised reset moshi@0; supervised start moshi@0")
    container.await_health("ok")


def test_a_container_that_was_started_again_is_a_line_again(container: Line) -> None:
    container.run("echo supervised boot >/root/onstart.sh")
    container.kit("stop", "e2e-container")
    container.kit("start", "e2e-container")
    container.await_health("ok")
    status, report = container.speak()
    assert status == 0, report


def test_uninstalling_leaves_nothing(container: Line) -> None:
    gone = container.play("playbooks/uninstall.yml")
    assert gone.status == 0, gone.output[-4000:]
    ours = "/opt/hotline /etc/hotline /{var/lib,var/cache,var/log,run}/hotline /etc/nginx"
    assert container.run(f"ls -d {ours} /usr/local/sbin/supervised 2>/dev/null", check=False) == ""
    assert container.run("getent passwd moshi hotline", check=False) == ""
    assert container.run("ls -A /var/tmp") == ""
    running = container.run("ps -eo args=").splitlines()
    assert not [one for one in running if "hotline" in one or "nginx" in one or "supervis" in one], running
    assert container.play("playbooks/uninstall.yml").changed == 0, "a second uninstall has nothing to do"
