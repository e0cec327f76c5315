"""The database: both kinds in the same state, brought there without losing anything."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from orchestrator.storage import (
    Storage,
    StorageError,
    check,
    connect,
    database,
    migrate,
    scripts,
)
from sqlalchemy import func, select

from orchestrator import storage as module
from orchestrator import tables

MOMENT = datetime(2026, 3, 29, 3, 30, tzinfo=timezone(timedelta(hours=2)))


def a_link(name: str = "one", **changed: object) -> tables.Link:
    given: dict[str, object] = {
        "id": name,
        "token_hash": name.encode(),
        "purpose": "talk",
        "made_by": "operator",
        "made_at": MOMENT,
        "expires_at": MOMENT,
        "uses": 1,
        "uses_left": 1,
    }
    return tables.Link(**given | changed)


async def test_the_migrations_make_what_the_tables_say(database_url: str) -> None:
    with connect(database(database_url), 0) as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.Table.metadata) == []
    check(database_url)
    assert migrate(database_url) == []


async def test_a_moment_comes_back_in_utc(storage: Storage) -> None:
    async with storage.writing() as session:
        session.add(a_link())
    async with storage.reading() as session:
        kept = (await session.execute(select(tables.Link))).scalar_one()
    assert kept.made_at == MOMENT
    assert kept.made_at.utcoffset() == timedelta(0)


async def test_a_moment_without_a_zone_is_refused(storage: Storage) -> None:
    with pytest.raises(Exception, match="a moment needs its zone"):
        async with storage.writing() as session:
            session.add(a_link(made_at=datetime(2026, 1, 1)))


async def test_what_raises_changes_nothing(storage: Storage) -> None:
    with pytest.raises(RuntimeError):
        async with storage.writing() as session:
            session.add(a_link())
            await session.flush()
            raise RuntimeError
    async with storage.reading() as session:
        assert (await session.execute(select(func.count()).select_from(tables.Link))).scalar() == 0


async def test_a_hundred_writers_at_once_all_write(storage: Storage) -> None:
    async def write(number: int) -> None:
        async with storage.writing() as session:
            session.add(a_link(str(number)))

    await asyncio.gather(*(write(number) for number in range(100)))
    async with storage.reading() as session:
        assert (await session.execute(select(func.count()).select_from(tables.Link))).scalar() == 100


async def test_what_belongs_to_a_link_goes_with_it(storage: Storage) -> None:
    """Foreign keys hold on SQLite too, where they are off until asked for."""
    async with storage.writing() as session:
        link = a_link()
        session.add(link)
        await session.flush()
        session.add(tables.Session(id="s", key_hash=b"k", link_id="one", made_at=MOMENT, expires_at=MOMENT))
    async with storage.writing() as session:
        await session.delete(await session.get_one(tables.Link, "one"))
    async with storage.reading() as session:
        assert (await session.execute(select(tables.Session))).all() == []


@pytest.mark.parametrize(
    "url", ["", "x", "sqlite://", "sqlite:///:memory:", "mysql://a/b", "postgresql://host"]
)
def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be sqlite:////"):
        database(url)


def test_a_newer_database_is_refused_with_the_mend(sqlite_url: str) -> None:
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for program in (migrate, check):
        with pytest.raises(StorageError, match=r"newer than this program.*9999.*Mend: install the newer"):
            program(sqlite_url)


def test_a_database_that_was_not_migrated_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Mend: hotline-orchestrator migrate"):
        check(f"sqlite:///{tmp_path / 'none.db'}")


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(StorageError, match=r"cannot be opened.*Mend") as raised:
        migrate("postgresql://somebody:geheim@127.0.0.1:1/hotline")
    assert "geheim" not in str(raised.value)


def test_an_older_sqlite_database_is_copied_before_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the last migration were new: the copy is of before, and the last three are kept."""
    path = tmp_path / "hotline.db"
    url = f"sqlite:///{path}"
    migrate(url)
    monkeypatch.setattr(module, "state_of", lambda _: "0000")
    monkeypatch.setattr(module.command, "upgrade", lambda *_: None)
    monkeypatch.setattr(type(scripts()), "iterate_revisions", lambda *_: [])
    moments = iter(MOMENT + timedelta(hours=hour) for hour in range(5))
    monkeypatch.setattr(module, "now", lambda: next(moments))
    for _ in range(5):
        migrate(url)
    copies = sorted(tmp_path.glob("hotline.db.before-*"))
    assert len(copies) == 3
    with closing(sqlite3.connect(copies[0])) as connection:
        assert connection.execute("SELECT count(*) FROM links").fetchone() == (0,)


def half_way(path: str) -> None:
    """Die as if by kill -9, in the middle of a migration."""
    original = module.connect

    def connecting(*given: object) -> object:
        connection = original(*given)  # type: ignore[arg-type]
        seen = iter(range(10_000))
        module.event.listen(
            connection.engine,
            "before_cursor_execute",
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(seen) > 12 else None,
        )
        return connection

    module.connect = connecting  # type: ignore[assignment]
    migrate(f"sqlite:///{path}")


def test_a_migration_that_was_killed_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "hotline.db"
    process = multiprocessing.get_context("spawn").Process(target=half_way, args=(str(path),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert migrate(f"sqlite:///{path}") == [s.revision for s in scripts().walk_revisions()][::-1]
    check(f"sqlite:///{path}")
