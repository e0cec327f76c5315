"""The database: SQLite beside the program unless DATABASE_URL names a PostgreSQL.

A `Storage` is made in the application's lifespan and handed down. Work goes through `reading` and `writing`:
SQLite has one writer at a time, and whoever comes second is put to sleep by its library in steps of up to
0.1 s; here writers wait for each other in order, and no longer than the others take.

Migrations are Alembic's, inside the package; `migrate` is what ``hotline-orchestrator migrate`` runs. Before
it changes an SQLite database that has something in it, it copies it beside itself.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

BACKUPS_KEPT = 3
BUSY_S = 5.0
"""How long a writer waits for another process (a migration, a backup)."""

log = logging.getLogger("orchestrator.storage")


class StorageError(Exception):
    """The database cannot be used; the text says why and what mends it."""


def now() -> datetime:
    """Return this moment, in UTC."""
    return datetime.now(timezone.utc)


def database(text: str) -> URL:
    """Read a DATABASE_URL: ``sqlite:////path`` or ``postgresql://user:password@host/name``.

    Raises ValueError.
    """
    wanted = "must be sqlite:////path/to/file.db or postgresql://user:password@host:5432/name"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(wanted) from None
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres") and url.database:
        return url.set(drivername="postgresql+psycopg")
    raise ValueError(wanted)


def prepare(connection: Any, _: Any) -> None:
    """Set up one connection of SQLite.

    WAL lets readers read while one writes; NORMAL loses no finished transaction when the program is killed
    (it may when the power fails, https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
        f"busy_timeout = {int(BUSY_S * 1000)}",
        "temp_store = MEMORY",
        "cache_size = -16000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Storage:
    """One database. ``close`` it."""

    def __init__(self, url: str) -> None:
        self.url = database(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        more: dict[str, Any] = {} if self.is_sqlite else {"pool_size": 10, "pool_pre_ping": True}
        self.engine = create_async_engine(self.url, **more)
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", prepare)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._turn: asyncio.Lock | None = asyncio.Lock() if self.is_sqlite else None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Look something up."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """Change something: all of it when the block ends, nothing when it raises."""
        async with self._turn or nullcontext(), self._sessions.begin() as session:
            yield session

    async def close(self) -> None:
        """Let go of all connections."""
        await self.engine.dispose()


# ---------------------------------------------------------------------------------------------- migrations


def scripts() -> ScriptDirectory:
    """Return the migrations that this program brings."""
    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


def shown(url: URL) -> str:
    """Return a URL as people may see it."""
    return url.render_as_string(hide_password=True)


def state_of(connection: Connection) -> str | None:
    """Return the last migration that a database has had; None when it has had none.

    Raises StorageError when it is one that this program does not know.
    """
    has = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts().walk_revisions()}
    if has is not None and has not in known:
        raise StorageError(
            f"the database is newer than this program: it has had migration {has}, and the last that this "
            f"program knows is {scripts().get_current_head()}. Mend: install the newer Hotline again, or "
            "restore the backup that was made before the update (hotline.db.before-…, beside the database)"
        )
    return has


def connect(url: URL, wait_s: float) -> Connection:
    """Open a connection outside of any event loop, and wait for a database that is being started.

    Raises StorageError.
    """
    plain = url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url
    engine = create_engine(plain, poolclass=NullPool)
    if url.get_backend_name() == "sqlite":
        # Its library begins no transaction before CREATE TABLE; half a migration would be what a kill leaves.
        event.listen(engine, "connect", lambda made, _: setattr(made, "isolation_level", None))
        event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    until = time.monotonic() + wait_s
    while True:
        try:
            return engine.connect()
        except DBAPIError as error:
            if isinstance(error, OperationalError) and time.monotonic() < until:
                time.sleep(0.5)
                continue
            why = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
            raise StorageError(
                f"the database {shown(url)} cannot be opened: {why}. Mend: see that it runs and that "
                "DATABASE_URL (orchestrator_database_url) names it"
            ) from None


def back_up(path: Path, revision: str) -> Path:
    """Copy an SQLite database beside itself, consistently, and keep the last BACKUPS_KEPT copies."""
    stamp = now().strftime("%Y%m%dT%H%M%S")
    copy = path.with_name(f"{path.name}.before-{stamp}-from-{revision}")
    draft = copy.with_suffix(copy.suffix + ".part")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(draft)) as target:
        source.backup(target)
    draft.chmod(0o640)
    draft.replace(copy)
    copies = sorted(path.parent.glob(f"{path.name}.before-*-from-*"))
    for old in copies[:-BACKUPS_KEPT]:
        old.unlink()
    return copy


def migrate(text: str, *, wait_s: float = 0.0) -> list[str]:
    """Bring a database to this program's state; return the migrations that it had to be given, in order.

    Raises StorageError.
    """
    url = database(text)
    path = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    if path is not None and not path.parent.is_dir():
        raise StorageError(
            f"{path.parent}, where the database is to lie, is not there. Mend: run site.yml again"
        )
    with connect(url, wait_s) as connection:
        has = state_of(connection)
        head = scripts().get_current_head()
        if has == head:
            return []
        wanted = [s.revision for s in scripts().iterate_revisions(head, has or "base")][::-1]
        if path is not None and has is not None:
            log.info("the database was copied before it is changed", extra={"copy": str(back_up(path, has))})
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return wanted


def check(text: str) -> None:
    """See that a database is in this program's state. Raises StorageError."""
    url = database(text)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        has = None
    else:
        with connect(url, 0.0) as connection:
            has = state_of(connection)
    if has != scripts().get_current_head():
        raise StorageError(
            f"the database {shown(url)} is not in this program's state (it has {has or 'nothing'}, "
            f"{scripts().get_current_head()} is needed). Mend: hotline-orchestrator migrate"
        )
