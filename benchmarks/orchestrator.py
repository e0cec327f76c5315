# ruff: noqa: ASYNC220, ASYNC221 - nothing else runs while the program is started
"""How much the orchestrator carries: authorisations, wishes for a call, event streams, and its start.

    python -m benchmarks.orchestrator [--seconds 5] [--json FILE]

It runs the real program (``python -m orchestrator``) on a port of its own, with a database in a temporary
folder and a listening socket as engine, and asks it over loopback from this process. Load comes on a clock:
a slow answer does not slow the questions down: what is measured is what callers would wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1] / "orchestrator/src"
OPERATOR = "o" * 43


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Connections:
    """HTTP/1.1 over a few connections that stay open; just enough of it, so that the client costs little."""

    def __init__(self, port: int, size: int) -> None:
        self.port, self.size = port, size
        self.free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def __aenter__(self) -> Connections:
        for _ in range(self.size):
            self.free.put_nowait(await asyncio.open_connection("127.0.0.1", self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self.free.empty():
            self.free.get_nowait()[1].close()

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, bytes]:
        """One question and its answer."""
        reader, writer = await self.free.get()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: line", "Content-Length: 0", *lines])
        writer.write(f"{head}\r\n\r\n".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        body = await reader.readexactly(length)
        self.free.put_nowait((reader, writer))
        return int(answer.split()[1]), body


async def paced(rate: float, seconds: float, ask: Callable[[], Awaitable[int]]) -> dict[str, Any]:
    """Ask ``rate`` times a second; latencies in ms count from when a question was due."""
    took: list[float] = []
    statuses: dict[int, int] = {}

    async def one(due: float) -> None:
        status = await ask()
        took.append((time.perf_counter() - due) * 1000)
        statuses[status] = statuses.get(status, 0) + 1

    began, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    took.sort()
    spread = {f"p{p}_ms": round(took[min(len(took) - 1, len(took) * p // 100)], 2) for p in (50, 95, 99)}
    done = round(len(took) / (time.perf_counter() - began), 1)
    return {"asked_per_s": rate, "answered_per_s": done, **spread, "statuses": statuses}


async def measure(seconds: float) -> dict[str, Any]:
    """Run everything; return the figures."""
    port, found = free_port(), {}
    with (
        tempfile.TemporaryDirectory(prefix="hotline-load-") as folder,
        socket.create_server(("127.0.0.1", 0)) as engine,
    ):
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCES),
            "MOSHI_URL": "https://line.example.org:8998",
            "LINE_ACCESS": "open",
            "MOSHI_DEVICE": "cpu",
            "LINE_ORCHESTRATOR_PORT": str(port),
            "LINE_ENGINE_PORT": str(engine.getsockname()[1]),
            "DATABASE_URL": f"sqlite:///{folder}/hotline.db",
            "ORCHESTRATOR_OPERATOR_TOKEN": OPERATOR,
            "ORCHESTRATOR_LOG_LEVEL": "warning",
        }
        program = [sys.executable, "-m", "orchestrator"]
        subprocess.run([*program, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
        began = time.perf_counter()
        subprocess.run([*program, "--check"], env=environment, check=True, stdout=subprocess.DEVNULL)
        imports = time.perf_counter() - began
        began = time.perf_counter()
        process = subprocess.Popen(program, env=environment)
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                await asyncio.sleep(0.01)
            async with Connections(port, 1) as one:
                await one.ask("GET", "/health")
            start = time.perf_counter() - began
            found["start"] = {
                "imports_s": round(imports, 2),
                "after_imports_s": round(max(0, start - imports), 2),
            }
            async with Connections(port, 32) as line:

                async def authorize() -> int:
                    # A ticket for nothing: refused after the same work but for the engines; then a real one.
                    return (await line.ask("GET", "/internal/authorize", Origin="https://evil.example"))[0]

                async def full() -> int:
                    return (await line.ask("GET", "/internal/authorize"))[0]

                found["authorisations, refused at the door"] = await paced(500, seconds, authorize)
                holder = socket.create_connection(engine.getsockname())  # the engine is in a conversation
                found["authorisations, engines looked at"] = await paced(500, seconds, full)

                async def wish() -> int:
                    return (await line.ask("POST", "/api/calls"))[0]

                await paced(500, 2, wish)  # a thousand wait
                found["POST /api/calls with 1,000 waiting"] = await paced(200, seconds, wish)
                status, body = await line.ask(
                    "GET", "/api/calls?live=true&limit=1", Authorization=f"Bearer {OPERATOR}"
                )
                assert status == 200
                call = json.loads(body)[0]["id"]
                before = resident_mib(process.pid)
                streams = []
                for _ in range(1000):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(f"GET /api/calls/{call}/events HTTP/1.1\r\nHost: line\r\n\r\n".encode())
                    streams.append((reader, writer))
                for reader, _ in streams:
                    await reader.readuntil(b": here")
                after = resident_mib(process.pid)
                found["1,000 event streams"] = {
                    "memory_mib": round(after),
                    "of_which_streams_mib": round(after - before),
                }
                for _, writer in streams:
                    writer.close()
                holder.close()
        finally:
            process.terminate()
            process.wait(30)
    return found


def main() -> None:
    """Measure, print, and keep as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": ?"
    )
    machine = {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    found = {"machine": machine} | asyncio.run(measure(asked.seconds))
    for name, figures in found.items():
        print(f"{name}\n    {', '.join(f'{key} {value}' for key, value in figures.items())}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
