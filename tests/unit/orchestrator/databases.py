"""Both databases for the tests: SQLite in a file, PostgreSQL from Debian's packages on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from orchestrator.storage import migrate

NOBODY = "postgres"
"""PostgreSQL refuses to run as root; Debian's package makes this user."""


def programs() -> Path:
    """The folder of initdb and postgres. Raises FileNotFoundError with the mend."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise FileNotFoundError(
            "the tests need PostgreSQL. Mend: make unit, which installs it (apt-get install postgresql)"
        )
    return found[-1].parent


class Postgres:
    """One server, with a database that was migrated once; each test gets a copy of that."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._numbers = count(1)
        self.make("migrated")
        migrate(self.url("migrated"))

    def url(self, name: str) -> str:
        return f"postgresql://{NOBODY}@127.0.0.1:{self.port}/{name}"

    def _do(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload] # made of names of our own

    def make(self, name: str, template: str = "template0") -> str:
        self._do(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def copy(self) -> str:
        """A migrated database of one's own."""
        return self.make(f"copy{next(self._numbers)}", "migrated")

    def cut(self, url: str) -> None:
        """End every connection to a database, as a server that is restarted does."""
        name = url.rpartition("/")[2]
        self._do(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608

    def drop(self, url: str) -> None:
        self._do(f'DROP DATABASE "{url.rpartition("/")[2]}" WITH (FORCE)')


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="hotline-postgres-"))
    root = os.geteuid() == 0
    if root:
        shutil.chown(folder, NOBODY)
    as_user = {"user": NOBODY, "extra_groups": []} if root else {}

    def run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [programs() / program, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("ab"),
            cwd=folder,
            **as_user,
        )

    try:
        made = run(
            "initdb", "-D", str(folder / "data"), "-U", NOBODY, "--auth=trust", "--no-sync", "-E", "UTF8"
        )
        assert made.wait(60) == 0, (folder / "log").read_text()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        settings = (
            "fsync=off",
            "full_page_writes=off",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
        )
        server = run("postgres", "-D", str(folder / "data"), "-p", str(port), *(f"--{s}" for s in settings))
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    psycopg.connect(f"postgresql://{NOBODY}@127.0.0.1:{port}/postgres").close()
                    break
                except psycopg.OperationalError:
                    assert server.poll() is None and time.monotonic() < until, (folder / "log").read_text()
                    time.sleep(0.05)
            yield Postgres(port)
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
