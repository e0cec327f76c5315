"""Is the line well, and if not, why, and what mends it?"""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from orchestrator.app import create_app
from orchestrator.engines import Engine, EngineFiles, Failure, Peer, Phase
from orchestrator.health import MIB, Check, Status, Verdict, judge_disk, judge_engines, judge_gpus, worst
from orchestrator.line import Surroundings
from orchestrator.probes import Gpu, Space

from orchestrator import __version__

from .conftest import Clock, Kernel, Notes, asking, serving, settings

READY = Engine(0, 8999, listening=True, peers=frozenset({Peer("127.0.0.1", 40000)}))
LOADING = Engine(1, 9000, listening=False, files=EngineFiles(Phase("loading")))
BROKEN = Engine(
    2, 9001, listening=False, files=EngineFiles(None, Failure("killed", "Too little memory.", 3, open=True))
)
ABSENT = Engine(3, 9002, listening=False)

# ------------------------------------------------------------------------ judging


def test_the_worst_of_several_is_the_lines_own() -> None:
    assert worst([]) is Status.OK
    assert worst([Status.OK, Status.DEGRADED]) is Status.DEGRADED
    assert worst([Status.STARTING, Status.DEGRADED]) is Status.STARTING
    assert worst([Status.STARTING, Status.UNHEALTHY, Status.OK]) is Status.UNHEALTHY


@pytest.mark.parametrize(
    ("engines", "status", "hopeless"),
    [
        ([READY], Status.OK, False),
        ([READY, LOADING], Status.DEGRADED, False),
        ([READY, BROKEN], Status.DEGRADED, False),
        ([LOADING], Status.STARTING, False),
        ([LOADING, BROKEN], Status.STARTING, False),
        ([BROKEN], Status.UNHEALTHY, True),
        ([ABSENT], Status.UNHEALTHY, False),
        ([BROKEN, ABSENT], Status.UNHEALTHY, False),
    ],
)
def test_engines(engines: list[Engine], status: Status, hopeless: bool) -> None:
    verdict = judge_engines(engines, {})
    assert (verdict.status, verdict.hopeless) == (status, hopeless)


def test_what_is_said_of_engines_that_are_well() -> None:
    assert judge_engines([READY], {}).detail == "1 of 1 engines ready, 1 in conversation"


def test_an_engine_that_listens_and_does_not_answer() -> None:
    verdict = judge_engines([READY], {0: "port 8999 is open, but nothing answered within 1.5 s"})
    assert verdict.status is Status.UNHEALTHY
    assert not verdict.hopeless
    assert verdict.detail.endswith(
        "nothing answered within 1.5 s. Mend, if it stays so: hotline restart moshi@0"
    )


def test_every_engine_that_is_not_well_is_named() -> None:
    detail = judge_engines([READY, LOADING, BROKEN, ABSENT], {}).detail
    assert [name for name in ("moshi@0", "moshi@1", "moshi@2", "moshi@3") if name in detail] == [
        "moshi@1",
        "moshi@2",
        "moshi@3",
    ]


@pytest.mark.parametrize(
    ("free_mib", "status", "word"),
    [
        (50_000, Status.OK, "50000 MiB of 100000 MiB are free"),
        (2048, Status.OK, "2048 MiB"),
        (2047, Status.DEGRADED, "nearly full"),
        (199, Status.UNHEALTHY, "the disk is full"),
        (0, Status.UNHEALTHY, "Mend: make room"),
    ],
)
def test_the_disk(free_mib: int, status: Status, word: str) -> None:
    verdict = judge_disk(Space(free_mib * MIB, 100_000 * MIB), "/var/lib/hotline")
    assert verdict.status is status
    assert word in verdict.detail


def test_the_gpus() -> None:
    h100 = Gpu(0, "NVIDIA H100 80GB HBM3", 18304, 81559)
    assert judge_gpus([h100], [0]) == Verdict(Status.OK, "NVIDIA H100 80GB HBM3, 18304 of 81559 MiB used")
    assert judge_gpus([Gpu(0, "Tegra", None, None)], [0]).detail == "Tegra"
    gone = judge_gpus([h100], [0, 1])
    assert gone.status is Status.UNHEALTHY
    assert "does not show GPU 1" in gone.detail


# ------------------------------------------------------------------------ checks


async def test_a_check_that_hangs_is_given_up_and_not_started_again() -> None:
    looks = 0

    async def hang() -> Verdict:
        nonlocal looks
        looks += 1
        await asyncio.sleep(3600)
        raise AssertionError

    check = Check("the GPU", hang, time.monotonic, limit=0.05)
    for _ in range(3):
        verdict = await check.verdict()
        assert verdict.status is Status.UNHEALTHY
        assert verdict.detail == "the check of the GPU did not come back within 0.05 s"
        assert 40 < verdict.ms < 1000
    assert looks == 1
    await check.stop()


async def test_a_slow_check_is_heard_by_the_next_who_asks() -> None:
    async def slow() -> Verdict:
        await asyncio.sleep(0.08)
        return Verdict(Status.OK, "in the end")

    check = Check("the GPU", slow, time.monotonic, limit=0.05)
    assert (await check.verdict()).status is Status.UNHEALTHY
    assert (await check.verdict()).detail == "in the end"


async def test_who_asks_at_the_same_time_shares_one_look() -> None:
    looks = 0

    async def look() -> Verdict:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.01)
        return Verdict(Status.OK, "fine")

    check = Check("the disk", look, time.monotonic)
    await asyncio.gather(*(check.verdict() for _ in range(10)))
    assert looks == 1


async def test_a_check_that_fails_itself_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> Verdict:
        raise ZeroDivisionError

    verdict = await Check("the disk", fail, Clock()).verdict()
    assert verdict.status is Status.UNHEALTHY
    assert "hotline logs orchestrator" in verdict.detail
    assert "ZeroDivisionError" in caplog.text


# ------------------------------------------------------------------------ over HTTP


async def get(client: httpx.AsyncClient, path: str = "/health") -> tuple[int, dict[str, Any]]:
    got = await client.get(path)
    assert got.headers["Cache-Control"] == "no-store"
    return got.status_code, got.json()


async def test_a_line_that_is_well(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with asking(make_app()) as client:
        assert await get(client) == (200, {"status": "ok", "version": __version__, "reasons": []})
        assert (await get(client, "/health/live"))[0] == 200


@pytest.mark.parametrize(
    ("note", "status", "live_code"),
    [
        (None, "unhealthy", 200),
        ({"phase": "fetching", "detail": "3 of 15 GB"}, "starting", 200),
        ({"phase": "loading"}, "starting", 200),
        ({"phase": "ready"}, "starting", 200),
        ({"phase": "stopped"}, "unhealthy", 200),
        ({"phase": "failed"}, "unhealthy", 503),
    ],
)
async def test_what_probes_are_told(
    make_app: Any, notes: Notes, note: dict[str, str] | None, status: str, live_code: int
) -> None:
    if note:
        notes.leave(0, "phase", **note)
    async with asking(make_app()) as client:
        code, body = await get(client)
        assert (code, body["status"], len(body["reasons"])) == (503, status, 1)
        assert await get(client, "/health/live") == (live_code, body)


async def test_one_engine_of_two_is_enough_to_be_ready(make_app: Any, kernel: Kernel, notes: Notes) -> None:
    kernel.listen(8999)
    notes.leave(1, "failure", reason="cuda_error", detail="Xid 79. Reboot.", failures=3, open=True)
    async with asking(make_app(line_engines="0,1")) as client:
        code, body = await get(client)
        assert (code, body["status"]) == (200, "degraded")
        assert "Xid 79. Reboot" in body["reasons"][0]
        assert (await get(client, "/health/live"))[0] == 200


async def test_the_reason_of_an_open_breaker_is_told(make_app: Any, notes: Notes) -> None:
    notes.leave(
        0, "failure", reason="cuda_out_of_memory", detail="Set moshi_quantization: q8.", failures=3, open=True
    )
    async with asking(make_app()) as client:
        code, body = await get(client, "/health/live")
    assert code == 503
    assert "Set moshi_quantization: q8" in body["reasons"][0]


async def test_how_many_failures_open_the_breaker_is_a_setting(make_app: Any, notes: Notes) -> None:
    notes.leave(0, "failure", reason="other", failures=4)
    async with asking(make_app(max_moshi_failures=5)) as client:
        assert (await get(client))[1]["status"] == "starting"
    async with asking(make_app(max_moshi_failures=4)) as client:
        assert (await get(client))[1]["status"] == "unhealthy"


async def test_hidden_sockets_are_said(make_app: Any, kernel: Kernel) -> None:
    (kernel.folder / "tcp").unlink()
    async with asking(make_app()) as client:
        code, body = await get(client)
    assert (code, body["status"]) == (503, "unhealthy")
    assert "ProcSubset=pid" in body["reasons"][0]


async def test_probes_may_ask_for_the_head_alone(make_app: Any, kernel: Kernel) -> None:
    kernel.listen(8999)
    async with asking(make_app()) as client:
        for path in ("/health", "/health/live", "/health/deep"):
            assert (await client.head(path)).status_code in (200, 503)


async def test_a_change_is_logged_once(
    make_app: Any, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchestrator.health")
    async with asking(make_app()) as client:
        for _ in range(3):
            await client.get("/health")
        kernel.listen(8999)
        for _ in range(3):
            await client.get("/health")
    assert [record.getMessage() for record in caplog.records] == ["the line is unhealthy", "the line is ok"]


# ------------------------------------------------------------------------ deep, for real


async def neighbour(answer: bytes | None, *, tls: ssl.SSLContext | None = None) -> tuple[asyncio.Server, int]:
    """A real server that gives one answer to everything, or none."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    return server, server.sockets[0].getsockname()[1]


BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def deep(around: Surroundings, **changed: Any) -> tuple[int, dict[str, Any]]:
    async with asking(create_app(settings(**changed), around)) as client:
        return await get(client, "/health/deep")


async def test_every_part_is_asked(surroundings: Surroundings) -> None:
    engine, engine_port = await neighbour(BAD_REQUEST)
    nginx, nginx_port = await neighbour(FINE)
    async with engine, nginx:
        code, body = await deep(
            replace(surroundings, proc_net=Path("/proc/net")),
            line_engine_port=engine_port,
            line_port=nginx_port,
            tls_provider="none",
        )
    assert (code, body["status"], body["reasons"]) == (200, "ok", [])
    assert set(body["checks"]) == {"moshi", "nginx", "disk", "gpu"}
    for check in body["checks"].values():
        assert set(check) == {"status", "detail", "ms"}
        assert check["status"] == "ok"
    assert body["checks"]["moshi"]["detail"] == "1 of 1 engines ready, 0 in conversation"
    assert "CPU" in body["checks"]["gpu"]["detail"]


@pytest.fixture
def strangers_tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody trusts, for another name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=another.example", "-days", "1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls


async def test_nginx_is_asked_over_tls_whoever_signed_its_certificate(
    surroundings: Surroundings, strangers_tls: ssl.SSLContext
) -> None:
    server, port = await neighbour(FINE, tls=strangers_tls)
    async with server:
        _, body = await deep(surroundings, line_port=port)
        assert body["checks"]["nginx"] | {"ms": 0} == {
            "status": "ok",
            "detail": f"answers on port {port}",
            "ms": 0,
        }
        _, body = await deep(surroundings, line_port=port, tls_provider="none")
        assert "does not speak HTTP" in body["checks"]["nginx"]["detail"]


async def test_plain_http_where_tls_should_be(surroundings: Surroundings) -> None:
    server, port = await neighbour(FINE)
    async with server:
        _, body = await deep(surroundings, line_port=port)
    assert body["checks"]["nginx"]["status"] == "unhealthy"


async def test_an_engine_that_hangs_and_an_nginx_that_is_gone(surroundings: Surroundings) -> None:
    engine, engine_port = await neighbour(None)
    async with engine:
        began = time.monotonic()
        code, body = await deep(
            replace(surroundings, proc_net=Path("/proc/net")), line_engine_port=engine_port, line_port=1
        )
        assert time.monotonic() - began < 2.5
        engine.close()
    assert (code, body["status"]) == (503, "unhealthy")
    assert "nothing answered within 1.5 s" in body["checks"]["moshi"]["detail"]
    assert "nothing listens on port 1" in body["checks"]["nginx"]["detail"]
    assert body["checks"]["disk"]["status"] == "ok"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "answers 404 where nginx",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"x" * 100_000, "port"),
    ],
)
async def test_something_else_on_nginxs_port(surroundings: Surroundings, answer: bytes, words: str) -> None:
    server, port = await neighbour(answer)
    async with server:
        _, body = await deep(surroundings, line_port=port, tls_provider="none")
    assert body["checks"]["nginx"]["status"] == "unhealthy"
    assert words in body["checks"]["nginx"]["detail"]
    assert "Mend:" in body["checks"]["nginx"]["detail"]


async def test_looking_in_on_an_engine_takes_it_from_nobody(surroundings: Surroundings) -> None:
    """The look is a connection to the engine's port, and no caller's."""
    engine, engine_port = await neighbour(None)
    async with engine:
        app = create_app(
            settings(line_engine_port=engine_port, line_port=1),
            replace(surroundings, proc_net=Path("/proc/net")),
        )
        async with asking(app) as client:
            looking = asyncio.create_task(client.get("/health/deep"))
            await asyncio.sleep(0.3)
            assert not looking.done()
            assert (await client.get("/internal/authorize")).status_code == 204
            await looking
        engine.close()


# ------------------------------------------------------------------------ GPU


def program(folder: Path, body: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("echo '0, NVIDIA H100 80GB HBM3, 18304, 81559'", "ok", "18304 of 81559 MiB used"),
        ("echo '0, NVIDIA L4, [N/A], [N/A]'", "ok", "NVIDIA L4"),
        ("echo '1, NVIDIA L4, 1, 2'", "unhealthy", "does not show GPU 0"),
        ("echo 'No devices were found'", "unhealthy", "No devices were found"),
        ("echo 'Unable to determine the device handle'; exit 255", "unhealthy", "Unable to determine"),
        ("kill -9 $$", "unhealthy", "ended with -9"),
        ("echo", "unhealthy", ""),
    ],
)
async def test_what_nvidia_smi_says(
    surroundings: Surroundings, tmp_path: Path, body: str, status: str, words: str
) -> None:
    around = replace(surroundings, nvidia_smi=program(tmp_path, body))
    _, found = await deep(around, moshi_device="cuda", line_port=1)
    assert found["checks"]["gpu"]["status"] == status
    assert words in found["checks"]["gpu"]["detail"]


async def test_without_nvidia_smi_nothing_is_known_of_the_gpu(surroundings: Surroundings) -> None:
    _, body = await deep(surroundings, moshi_device="cuda", line_port=1)
    assert body["checks"]["gpu"]["status"] == "degraded"
    assert "run site.yml again" in body["checks"]["gpu"]["detail"]


async def test_nvidia_smi_is_told_no_secret(
    surroundings: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "do-not-tell")
    around = replace(surroundings, nvidia_smi=program(tmp_path, f"env > {tmp_path}/env; echo '0, X, 1, 2'"))
    await deep(around, moshi_device="cuda", line_port=1)
    assert "do-not-tell" not in (tmp_path / "env").read_text()


async def test_a_driver_that_hangs_holds_up_neither_the_answer_nor_the_stop(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    around = replace(
        surroundings, nvidia_smi=program(tmp_path, f"echo $$ >> {tmp_path}/started; exec sleep 60")
    )
    began = time.monotonic()
    async with (
        serving(create_app(settings(moshi_device="cuda", line_port=1), around)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answers = await asyncio.gather(*(client.get("/health/deep", timeout=10) for _ in range(3)))
        shallow = await client.get("/health")
    assert time.monotonic() - began < 6
    for got in answers:
        body = got.json()
        assert "the GPU did not come back within 2 s" in body["checks"]["gpu"]["detail"]
        assert body["checks"]["disk"]["status"] == "ok"
        assert body["checks"]["disk"]["ms"] < 1500
    assert shallow.status_code == 503
    [pid] = (tmp_path / "started").read_text().split()
    for _ in range(50):
        if not alive(int(pid)):
            break
        await asyncio.sleep(0.1)
    assert not alive(int(pid))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
