"""Start moshi.server through the launcher, as the unit does, and talk to it as a page does."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import sphn

from roles.moshi.files import launch

RATE, FRAME = 24_000, 1_920  # samples a second, samples in a frame of 80 ms


@dataclass
class Heard:
    """What came back in a call."""

    first: bytes = b""
    samples: int = 0
    loudest: float = 0.0
    texts: list[str] = field(default_factory=list)
    turnarounds: list[float] = field(
        default_factory=list
    )  # seconds from a frame's sending to the next answer


async def call(port: int, frames: int, pace: float = 0.08, headers: dict[str, str] | None = None) -> Heard:
    """Call the engine on ``port``, send ``frames`` frames of noise ``pace`` seconds apart, and listen."""
    heard = Heard()
    writer, reader = sphn.OpusStreamWriter(RATE), sphn.OpusStreamReader(RATE)
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, (frames, FRAME)).astype(np.float32)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}/api/chat", headers=headers) as socket,
    ):
        heard.first = (await socket.receive(timeout=30)).data
        sent_at = 0.0

        async def listen() -> None:
            async for message in socket:
                if message.data[0] == 1:
                    pcm = reader.append_bytes(message.data[1:])
                    heard.samples += pcm.shape[-1]
                    heard.loudest = max(heard.loudest, float(np.abs(pcm).max(initial=0.0)))
                    heard.turnarounds.append(time.perf_counter() - sent_at)
                elif message.data[0] == 2:
                    heard.texts.append(message.data[1:].decode())

        listening = asyncio.create_task(listen())
        began = time.perf_counter()
        for count, frame in enumerate(noise, 1):
            sent_at = time.perf_counter()
            await socket.send_bytes(b"\x01" + writer.append_pcm(frame))
            await asyncio.sleep(max(0.0, began + count * pace - time.perf_counter()))
        for _ in range(50):
            if heard.samples >= (frames - 2) * FRAME:
                break
            await asyncio.sleep(0.1)
        listening.cancel()
    return heard


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(serving: Path, port: int, *more: str) -> list[str]:
    """Return the command line of the unit, with this interpreter and port."""
    return [
        sys.executable, launch.__file__, "--host", "127.0.0.1", "--port", str(port), "--static", "none",
        "--device", "cpu", "--moshi-weight", str(serving / "moshi.safetensors"),
        "--mimi-weight", str(serving / "mimi.safetensors"), "--tokenizer", str(serving / "tokenizer.model"),
        "--config-path", str(serving / "config.json"), *more,
    ]  # fmt: skip


def environment(state: Path, status_port: int = 0) -> dict[str, str]:
    """Return the environment of the unit on a CPU."""
    told = {"STATUS_PORT": str(status_port)} if status_port else {}
    return {
        **os.environ, "HOTLINE_ENGINE_STATE": str(state), "NO_TORCH_COMPILE": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", **told,
    }  # fmt: skip


@dataclass
class Engine:
    """A running engine."""

    port: int
    status_port: int
    state: Path
    process: subprocess.Popen[str]
    log: Path

    def said(self) -> str:
        """Return all that the journal would hold."""
        return self.log.read_text()


@contextmanager
def running(serving: Path, state: Path, *more: str) -> Iterator[Engine]:
    """Run an engine until it is ready, and end it."""
    port, status_port, log = free_port(), free_port(), state.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(
            command(serving, port, *more),
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(state, status_port),
        )
    try:
        deadline = time.monotonic() + 300
        while not ((state / "phase.json").exists() and "ready" in (state / "phase.json").read_text()):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"the engine is not ready ({process.returncode}):\n{log.read_text()}")
            time.sleep(0.1)
        yield Engine(port, status_port, state, process, log)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
