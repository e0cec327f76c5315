"""What is remembered of calls: written behind the switchboard's back, many changes in one transaction.

The switchboard lives in memory, and answers before the disk does. A change is the whole row as it is now, so
of several that wait for the same call only the last is written, and writing one twice does no harm. While the
database does not answer, changes wait; nothing that a caller hears depends on them, but that a new call is
remembered before it is told its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from orchestrator import tables
from orchestrator.storage import Storage, now

AGAIN_S = 1.0
SAVED_S = 5.0
"""How long a new call waits for the database."""
LINKS_KEPT_DAYS = 30
"""Links that are over are listed for so long."""

Row = dict[str, Any]
log = logging.getLogger("orchestrator.records")


class NotSavedError(Exception):
    """The database did not take a change in time."""


class Records:
    """The writer. ``start`` and ``stop`` it; changes that wait when it stops are still written."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._rows: dict[str, Row] = {}
        self._said: list[Row] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Write what waits and end."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    def save(self, row: Row) -> None:
        """Have a call's row written, soon."""
        self._rows[row["id"]] = row
        self._wake.set()

    async def saved(self, row: Row) -> None:
        """Have it written now. Raises NotSavedError."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self.save(row)
        try:
            await asyncio.wait_for(done, SAVED_S)
        except asyncio.TimeoutError:
            raise NotSavedError from None

    def add(self, said: Row) -> None:
        """Have an utterance written, after its call's row."""
        self._said.append(said)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            rows, said, waiting = self._rows, self._said, self._waiting
            self._rows, self._said, self._waiting = {}, [], []
            try:
                if rows or said:
                    await self._flush(list(rows.values()), said)
            except IntegrityError:
                await self._flush_one_by_one(list(rows.values()), said)
            except (SQLAlchemyError, OSError) as error:
                log.error("calls could not be written down; it is tried again: %s", error)
                self._rows = rows | self._rows
                self._said = said + self._said
                self._waiting = waiting + self._waiting
                if self._stopping:
                    return
                await asyncio.sleep(AGAIN_S)
                self._wake.set()
                continue
            for done in waiting:
                if not done.done():
                    done.set_result(None)
            if self._stopping and not self._rows and not self._said:
                return

    async def _flush_one_by_one(self, rows: Sequence[Row], said: Sequence[Row]) -> None:
        """Keep one row that cannot be written (its link was deleted) from holding up the others."""
        parts: list[tuple[list[Row], list[Row]]] = [([row], []) for row in rows]
        parts += [([], [one]) for one in said]
        for one_row, one_said in parts:
            try:
                await self._flush(one_row, one_said)
            except IntegrityError as error:
                log.error("one record was given up: %s", error.orig)

    async def _flush(self, rows: Sequence[Row], said: Sequence[Row]) -> None:
        make = sqlite.insert if self._storage.is_sqlite else postgresql.insert
        async with self._storage.writing() as session:
            if rows:
                calls: Any = tables.Call.__table__
                statement: Any = make(calls)
                changed = {name: statement.excluded[name] for name in rows[0] if name != "id"}
                await session.execute(
                    statement.on_conflict_do_update(index_elements=["id"], set_=changed), list(rows)
                )
            if said:
                # Of a call whose record was deleted meanwhile nothing is kept.
                known = set(
                    (
                        await session.execute(
                            select(tables.Call.id).where(tables.Call.id.in_({one["call_id"] for one in said}))
                        )
                    ).scalars()
                )
                kept = [one for one in said if one["call_id"] in known]
                if kept:
                    await session.execute(insert(tables.Said), kept)


async def unfinished(storage: Storage) -> list[tables.Call]:
    """Return the calls that had not ended when this program last stopped, in the order of asking."""
    async with storage.reading() as session:
        found = await session.execute(
            select(tables.Call).where(tables.Call.state != "ended").order_by(tables.Call.asked_at)
        )
        return list(found.scalars())


async def lengths(storage: Storage, number: int) -> list[float]:
    """Return how long the last calls took, oldest first; seconds."""
    async with storage.reading() as session:
        found = await session.execute(
            select(tables.Call.began_at, tables.Call.ended_at)
            .where(tables.Call.state == "ended", tables.Call.began_at.is_not(None))
            .order_by(tables.Call.ended_at.desc())
            .limit(number)
        )
        return [(ended - began).total_seconds() for began, ended in found.all()][::-1]


async def last_said(storage: Storage, ids: Sequence[str]) -> Mapping[str, tuple[int, datetime]]:
    """Return, by call, the number and the moment of the last utterance that is written down."""
    async with storage.reading() as session:
        found = await session.execute(
            select(tables.Said).where(tables.Said.call_id.in_(ids)).order_by(tables.Said.number)
        )
        return {said.call_id: (said.number, said.said_at) for said in found.scalars()}


async def transcript(storage: Storage, call_id: str) -> list[tables.Said]:
    """Return what was said in a call, in order."""
    async with storage.reading() as session:
        found = await session.execute(
            select(tables.Said).where(tables.Said.call_id == call_id).order_by(tables.Said.number)
        )
        return list(found.scalars())


async def forget(storage: Storage, call_id: str) -> bool:
    """Delete what is remembered of a call that has ended; False when there is nothing."""
    async with storage.writing() as session:
        found = await session.execute(
            delete(tables.Call)
            .where(tables.Call.id == call_id, tables.Call.state == "ended")
            .returning(tables.Call.id)
        )
        return found.scalar_one_or_none() is not None


async def forget_old(storage: Storage, days: int) -> int:
    """Delete the calls that ended more than ``days`` days ago, and links that are long over."""
    moment = now()
    long_over = moment - timedelta(days=LINKS_KEPT_DAYS)
    async with storage.writing() as session:
        gone = await session.execute(
            delete(tables.Call)
            .where(tables.Call.state == "ended", tables.Call.ended_at < moment - timedelta(days=days))
            .returning(tables.Call.id)
        )
        number = len(gone.scalars().all())
        await session.execute(
            delete(tables.Link).where(
                or_(tables.Link.expires_at < long_over, tables.Link.revoked_at < long_over)
            )
        )
    return number
