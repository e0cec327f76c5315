"""kyutai's real moshi.server behind the launcher, on a CPU with the tiny weights: frames in, frames out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from roles.moshi.files import breaker, launch
from tests.engine.engine import FRAME, Engine, call, command, environment, free_port, running


@pytest.fixture(scope="module")
def engine(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(models / "serving", tmp_path_factory.mktemp("engine") / "0") as engine:
        yield engine


async def test_it_answers_frame_by_frame_in_real_time(engine: Engine) -> None:
    frames = 40
    heard = await call(engine.port, frames)
    assert heard.first == b"\x00"
    assert heard.samples >= (frames - 3) * FRAME
    assert heard.loudest > 0.001
    assert statistics.median(heard.turnarounds) < 0.5


async def test_its_journal_holds_the_call_and_nothing_of_what_was_said(engine: Engine) -> None:
    heard = await call(engine.port, 20)
    assert heard.texts, "it said something, which could have been logged"
    lines = engine.said().splitlines()
    assert "[Info] accepted connection" in lines
    assert not [line for line in lines if "text token" in line or "frame handled" in line]
    assert set(lines) <= {line for line in lines if launch.LIFECYCLE.match(line)}
    kept = (engine.state / "run.log").read_text()
    assert "text token" not in kept


async def test_a_call_after_a_call_is_answered(engine: Engine) -> None:
    for _ in range(2):
        assert (await call(engine.port, 5)).samples >= 2 * FRAME


async def test_garbage_ends_that_call_and_not_the_engine(engine: Engine) -> None:
    async with aiohttp.ClientSession() as session:
        for garbage in (b"\x01not an ogg page" * 50, b"\x63", b"", b"\xff" * 100_000):
            async with session.ws_connect(f"http://127.0.0.1:{engine.port}/api/chat") as socket:
                await socket.receive(timeout=30)
                await socket.send_bytes(garbage)
                await socket.send_str("a text frame")
        async with session.get(f"http://127.0.0.1:{engine.port}/api/chat") as answer:
            assert answer.status == 400
    assert (await call(engine.port, 5)).samples >= 2 * FRAME
    assert engine.process.poll() is None


async def told_to_end(engine: Engine, call_id: str, body: object) -> int:
    """The orchestrator's question; the status of its answer."""
    url = f"http://127.0.0.1:{engine.status_port}/calls/{call_id}/end"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answered:
        return answered.status


@pytest.mark.parametrize("reason", ["operator", "revoked"])
async def test_a_call_is_ended_from_outside_and_the_next_one_has_the_engine(
    engine: Engine, reason: str
) -> None:
    headers = {"X-Call-Id": "call-1"}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{engine.port}/api/chat", headers=headers) as socket,
    ):
        assert (await socket.receive(timeout=30)).data == b"\x00"
        assert await told_to_end(engine, "call-2", {"reason": reason}) == 404
        assert await told_to_end(engine, "call-1", ["no object"]) == 400
        ending = asyncio.create_task(told_to_end(engine, "call-1", {"reason": reason}))
        said = await socket.receive(timeout=5)
        assert said.data[:1] == b"\x05"
        assert json.loads(said.data[1:])["code"] == reason
        assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1008
        assert await ending == 202
        assert await told_to_end(engine, "call-1", {"reason": reason}) == 404
    assert (await call(engine.port, 5)).samples >= 2 * FRAME
    assert engine.process.poll() is None


async def test_a_caller_in_the_middle_of_talking_is_ended(engine: Engine) -> None:
    """He talks on while he is told, and the model has a step in hand."""
    calling = asyncio.create_task(call(engine.port, 200, headers={"X-Call-Id": "talker"}))
    for _ in range(100):
        if await told_to_end(engine, "talker", {"reason": "operator"}) == 202:
            break
        await asyncio.sleep(0.1)
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await asyncio.wait_for(calling, 20)
    assert (await call(engine.port, 5)).samples >= 2 * FRAME


async def test_a_caller_who_does_not_listen_any_more_is_cut_off(engine: Engine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(
        b"GET /api/chat HTTP/1.1\r\nHost: line\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"X-Call-Id: deaf\r\n\r\n"
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    assert await told_to_end(engine, "deaf", {"reason": "revoked"}) == 202
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert (await call(engine.port, 5)).samples >= 2 * FRAME


def test_it_asks_no_network(models: Path, tmp_path: Path) -> None:
    """In a network namespace without any interface, up to the moment at which it would open its port."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    state = tmp_path / "state"
    run = ["unshare", "--net", *command(models / "serving", 8999)]
    with subprocess.Popen(
        run, env=environment(state), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("[Info] Access the Web UI"):
                    break
            else:
                raise AssertionError(process.stderr.read() if process.stderr else "")
        finally:
            process.kill()


async def test_a_stop_in_a_call_takes_seconds(models: Path, tmp_path: Path) -> None:
    with running(models / "serving", tmp_path / "0") as engine:
        calling = asyncio.create_task(call(engine.port, 200))
        await asyncio.sleep(1.5)
        began = time.monotonic()
        engine.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(engine.process.wait, 15) == 0
        assert time.monotonic() - began < 10
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)


def failed(serving: Path, state: Path, *more: str) -> dict[str, object]:
    """Run an engine that fails by itself, with the breaker before and after it; return ``failure.json``."""
    options = ["--state", str(state), "--max", "3", "--window", "300", "--delay", "2"]
    subprocess.run([sys.executable, breaker.__file__, "start", *options], check=True)
    done = subprocess.run(
        command(serving, free_port(), *more),
        env=environment(state),
        capture_output=True,
        check=False,
        timeout=120,
    )
    told = {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": str(done.returncode)}
    subprocess.run(
        [sys.executable, breaker.__file__, "stop", *options], env={**os.environ, **told}, check=True
    )
    failure: dict[str, object] = json.loads((state / "failure.json").read_text())
    return failure


@pytest.mark.parametrize("name", ["moshi.safetensors", "mimi.safetensors", "tokenizer.model", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_weights_that_are_not_whole_are_named_as_the_reason(
    models: Path, tmp_path: Path, name: str, damage: str
) -> None:
    serving = tmp_path / "serving"
    serving.mkdir()
    for path in (models / "serving").iterdir():
        (serving / path.name).symlink_to(path.resolve())
    (serving / name).unlink()
    if damage == "cut short":
        whole = (models / "serving" / name).read_bytes()
        (serving / name).write_bytes(whole[: len(whole) // 2])
    failure = failed(serving, tmp_path / "state")
    assert failure["reason"] == "missing_weights", failure
    assert "fetches what is missing" in str(failure["detail"])


def test_cpu_offload_is_a_bad_flag(models: Path, tmp_path: Path) -> None:
    failure = failed(models / "serving", tmp_path / "state", "--cpu-offload")
    assert failure["reason"] == "bad_flag"
    assert "unrecognized arguments: --cpu-offload" in str(failure["detail"])


def test_a_machine_without_a_gpu_is_a_cuda_error(models: Path, tmp_path: Path) -> None:
    assert failed(models / "serving", tmp_path / "state", "--device", "cuda")["reason"] == "cuda_error"


def test_it_says_its_arguments(models: Path) -> None:
    """What the role checks moshi_extra_args against."""
    run = [sys.executable, launch.__file__, "--cfg-coef", "1.5", "--help"]
    done = subprocess.run(
        run, capture_output=True, text=True, check=False, env={**os.environ, "NO_TORCH_COMPILE": "1"}
    )
    assert done.returncode == 0
    assert "--no_fuse_lora" in done.stdout
    assert "--cpu-offload" not in done.stdout
    wrong = subprocess.run([*run[:3], "much", "--help"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "invalid float value: 'much'" in wrong.stderr
