# ruff: noqa: ASYNC220, ASYNC221 - nothing else runs while the program is started
"""How much the orchestrator carries: authorisations, wishes for a call, event streams, and its start.

    python -m benchmarks.orchestrator [--seconds 5] [--json FILE]

It runs the real program (``python -m orchestrator``) on a port of its own, with a database in a temporary
folder, a listening socket as engine and another as the agent's program, and asks it over loopback from this
process. Load comes on a clock: a slow answer does not slow the questions down: what is measured is what
callers would wait. Executions are handed over on an empty database, then with ten thousand finished ones in
it, copies of the first in all tables, the workflows' too; everything else is measured with those.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1] / "orchestrator/src"
OPERATOR = "o" * 43
EXECUTIONS = int(os.environ.get("EXECUTIONS", "10000"))
HANDED_OVER = 20
"""Executions whose time is taken, each from being handed over to its end."""
PAGE = 100


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

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """One question and its answer."""
        reader, writer = await self.free.get()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}"] + (["Content-Type: application/json"] if body else [])
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: line", *lines])
        writer.write(f"{head}\r\n\r\n".encode() + body)
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


async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The agent's program behind its socket, as run_agent.py speaks: done at once."""
    await reader.readline()
    writer.write(b'{"out": "Done."}\n{"end": {"status": 0, "note": ""}}\n')
    await writer.drain()
    writer.close()


@asynccontextmanager
async def running(
    environment: dict[str, str], port: int
) -> AsyncIterator[tuple[subprocess.Popen[bytes], float]]:
    """The program; with the seconds from its start to its first answer."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "orchestrator"], env=environment)
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            await asyncio.sleep(0.01)
        async with Connections(port, 1) as one:
            await one.ask("GET", "/health")
        yield process, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


async def handed_over(port: int, name: str) -> dict[str, Any]:
    """Hand executions over, one after the other; return how long each took to its end, by its events."""
    took = []
    operator = f"Bearer {OPERATOR}"
    for number in range(HANDED_OVER):
        began = time.perf_counter()
        async with Connections(port, 1) as line:
            wanted = json.dumps({"instruction": "Do it.", "idempotency_key": f"{name} {number}"}).encode()
            status, body = await line.ask("POST", "/api/executions", wanted, Authorization=operator)
            assert status == 201, body
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = f"/api/executions/{json.loads(body)['id']}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: line\r\nAuthorization: {operator}\r\n\r\n".encode())
        await reader.readuntil(b'"completed"')
        writer.close()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return {"p50_ms": round(took[len(took) // 2], 1), "max_ms": round(took[-1], 1)}


def multiplied(path: Path, tables: dict[str, str], names: list[str]) -> None:
    """Copy one execution's rows for each name; ``tables``: in which column of which table its id stands."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for table, own in tables.items():
            described = f"SELECT name, pk, type FROM pragma_table_info('{table}')"  # noqa: S608
            columns = database.execute(described).fetchall()
            # Left out: numbers that the database gives by itself, and the key, of which there is one.
            given = {name for name, key, kind in columns if key and kind == "INTEGER" and name == "id"}
            left_out = given | {own} | ({"key"} if table == "executions" else set())
            kept = [name for name, *_ in columns if name not in left_out]
            listed = ", ".join(f'"{name}"' for name in kept)
            first = database.execute(f"SELECT {own} FROM {table} LIMIT 1").fetchone()  # noqa: S608
            database.executemany(
                f"INSERT INTO {table} ({own}, {listed}) SELECT ?, {listed} FROM {table} WHERE {own} = ?",  # noqa: S608
                [(name, *first) for name in names],
            )


async def every_page(line: Connections) -> dict[str, Any]:
    """Walk through the list from the newest to the oldest."""
    took, seen, before = [], 0, ""
    while True:
        began = time.perf_counter()
        path = f"/api/executions?limit={PAGE}{before}"
        status, body = await line.ask("GET", path, Authorization=f"Bearer {OPERATOR}")
        assert status == 200, body
        took.append((time.perf_counter() - began) * 1000)
        rows = json.loads(body)
        seen += len(rows)
        if len(rows) < PAGE:
            break
        before = f"&before={rows[-1]['made_at'].replace('+', '%2B')}"
    return {
        "executions": seen,
        "pages": len(took),
        "first_ms": round(took[0], 1),
        "last_ms": round(took[-1], 1),
        "longest_ms": round(max(took), 1),
    }


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
            "ORCHESTRATOR_LOG_LEVEL": "error",
            "AGENT_SOCKET": f"{folder}/agent.sock",
        }
        program = [sys.executable, "-m", "orchestrator"]
        subprocess.run([*program, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
        began = time.perf_counter()
        subprocess.run([*program, "--check"], env=environment, check=True, stdout=subprocess.DEVNULL)
        imports = time.perf_counter() - began

        def start(took: float) -> dict[str, float]:
            return {"imports_s": round(imports, 2), "after_imports_s": round(max(0, took - imports), 2)}

        async with await asyncio.start_unix_server(agent, environment["AGENT_SOCKET"]):
            async with running(environment, port) as (process, took):
                found["start, nothing in the database"] = start(took)
                found["an execution, nothing in the database"] = await handed_over(port, "before")
            names = [str(uuid.uuid4()) for _ in range(EXECUTIONS)]
            ours = {"executions": "id", "turns": "execution_id", "execution_events": "execution_id"}
            multiplied(Path(folder, "hotline.db"), ours, names)
            theirs = {"workflow_status": "workflow_uuid", "operation_outputs": "workflow_uuid"}
            multiplied(Path(folder, "hotline-executions.db"), theirs, names)
            spread_out(Path(folder, "hotline.db"))
            async with running(environment, port) as (process, took):
                found[f"start, {EXECUTIONS:,} executions"] = start(took)
                found[f"an execution, {EXECUTIONS:,} before it"] = await handed_over(port, "behind")
                async with Connections(port, 1) as line:
                    found["GET /api/executions, page by page"] = await every_page(line)
                await under_load(found, port, seconds, engine, process)
    return found


def spread_out(path: Path) -> None:
    """Give the executions moments of their own, a second apart: pages go on behind a moment."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE executions SET made_at = "
            "strftime('%Y-%m-%d %H:%M:%f000', made_at, '-' || rowid || ' seconds')"
        )


async def under_load(
    found: dict[str, Any],
    port: int,
    seconds: float,
    engine: socket.socket,
    process: subprocess.Popen[bytes],
) -> None:
    """Authorisations, wishes for a call, event streams."""
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
