"""What surrounds the orchestrator, under the tests' control: the kernel's sockets, the notes, the clock."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from orchestrator.__main__ import bound, server_of
from orchestrator.app import create_app
from orchestrator.line import Surroundings
from orchestrator.settings import Settings
from orchestrator.storage import Storage, migrate

from .databases import Postgres, postgres

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
STATES = {"established": "01", "time_wait": "06", "close_wait": "08", "listen": "0A"}


def words_of(address: str) -> str:
    """An address as the kernel prints it: words of 32 bits, little-endian."""
    packed = ipaddress.ip_address(address).packed
    return b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4)).hex().upper()


@dataclass
class Kernel:
    """A stand-in for /proc/net."""

    folder: Path
    rows: list[tuple[str, int, str, int, str]] = field(default_factory=list)
    _ports: Iterator[int] = field(default_factory=lambda: count(40000))

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.write()

    def write(self) -> None:
        for name, version in (("tcp", 4), ("tcp6", 6)):
            rows = [row for row in self.rows if ipaddress.ip_address(row[0]).version == version]
            (self.folder / name).write_text(
                HEADING
                + "".join(
                    f"{place:4}: {words_of(here)}:{port:04X} {words_of(there)}:{far:04X} {STATES[state]} "
                    f"00000000:00000000 00:00000000 00000000   998        0 {24000 + place} 1 0000000000\n"
                    for place, (here, port, there, far, state) in enumerate(rows)
                )
            )

    def listen(self, *ports: int, address: str = "127.0.0.1") -> None:
        anywhere = "::" if ":" in address else "0.0.0.0"
        self.rows += [(address, port, anywhere, 0, "listen") for port in ports]
        self.write()

    def close(self, port: int) -> None:
        self.rows = [row for row in self.rows if row[1] != port and row[3] != port]
        self.write()

    def connect(self, port: int, *, state: str = "established") -> int:
        """A caller's connection, both ends, as loopback shows it; returns the caller's port."""
        far = next(self._ports)
        self.rows.append(("127.0.0.1", port, "127.0.0.1", far, state))
        self.rows.append(("127.0.0.1", far, "127.0.0.1", port, "established"))
        self.write()
        return far

    def hang_up(self, far: int) -> None:
        self.rows = [row for row in self.rows if far not in (row[1], row[3])]
        self.write()


@dataclass
class Notes:
    """A stand-in for /var/lib/hotline, where the engines' units leave their notes."""

    folder: Path

    def leave(self, engine: int, name: str, **content: Any) -> None:
        (self.folder / "moshi" / str(engine)).mkdir(parents=True, exist_ok=True)
        (self.folder / "moshi" / str(engine) / f"{name}.json").write_text(json.dumps(content))


@dataclass
class Clock:
    """Time that passes only when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "net")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    (tmp_path / "state").mkdir()
    return Notes(tmp_path / "state")


@pytest.fixture
def surroundings(kernel: Kernel, notes: Notes) -> Surroundings:
    numbers = count(1)
    return Surroundings(
        proc_net=kernel.folder,
        state=notes.folder,
        nvidia_smi="/nonexistent/nvidia-smi",
        new_call_id=lambda: f"call-{next(numbers)}",
        shared_s=0,  # what a test changes is seen at once
    )


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("LINE_", "MOSHI_", "ORCHESTRATOR_", "TLS_", "MAX_MOSHI", "DATABASE_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def a_database_for_whoever_names_none(
    no_settings_of_this_machine: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that a test makes finds an SQLite database of its own."""
    if "surroundings" in request.fixturenames or "notes" in request.fixturenames:
        monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("sqlite_url"))


OPERATOR, AGENT = "o" * 43, "a" * 43
TOKENS = {"orchestrator_operator_token": OPERATOR, "orchestrator_agent_token": AGENT}


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def settings(**changed: Any) -> Settings:
    """Settings of a line on the CPU to which everybody has access, with what a test changes."""
    usual = {"moshi_url": "https://line.example.org:8998", "moshi_device": "cpu", "line_access": "open"}
    return Settings(**usual | changed)


@asynccontextmanager
async def asking(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a socket; what its lifespan makes is handed to each request."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(app=with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://orchestrator") as client:
            yield client


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[int]:
    """A real server on a free port of loopback, as `python -m orchestrator` runs it."""
    listener = bound(0)
    server = server_of(app)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(running, 10)
        listener.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database that was migrated once, to be copied."""
    path = tmp_path_factory.mktemp("database") / "hotline.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """PostgreSQL, started when the first test wants it."""
    with postgres() as running:
        yield running


@pytest.fixture
def sqlite_url(migrated: Path, tmp_path: Path) -> str:
    """An SQLite database of one's own."""
    return f"sqlite:///{shutil.copy(migrated, tmp_path / 'hotline.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated, empty database of one's own: the test runs once on each kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    running: Postgres = request.getfixturevalue("server")
    url = running.copy()
    yield url
    running.drop(url)


@pytest.fixture
async def storage(database_url: str) -> AsyncIterator[Storage]:
    """Both databases in turn, as the application has them."""
    made = Storage(database_url)
    yield made
    await made.close()


@pytest.fixture
def make_app(surroundings: Surroundings, sqlite_url: str) -> Any:
    """Make the application of a line with changed settings, in the tests' surroundings, on SQLite."""
    return lambda **changed: create_app(settings(**{"database_url": sqlite_url} | changed), surroundings)
