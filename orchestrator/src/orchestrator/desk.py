"""What lies between agents and the person: questions, messages and tools, made together and run together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from orchestrator import links, tools
from orchestrator.agents import agents_of
from orchestrator.ending import end
from orchestrator.executions import Executions
from orchestrator.health import Health
from orchestrator.messages import Texts
from orchestrator.outbox import Outbox, Quiet, Reminders, Rules
from orchestrator.questions import Questions
from orchestrator.senders import senders_of
from orchestrator.settings import Settings
from orchestrator.storage import Storage, now
from orchestrator.watch import LOOK_S, Watch

EXPIRE_S = 5.0
"""How often questions are looked at whose deadline has passed."""

log = logging.getLogger("orchestrator.desk")


@dataclass(frozen=True)
class Desk:
    """What requests find in ``request.state``."""

    questions: Questions
    outbox: Outbox
    executions: Executions | None
    """None where no agent is set up."""


class MessageLinks:
    """Makes the links that messages carry."""

    def __init__(self, storage: Storage, line: str) -> None:
        self._storage = storage
        self._line = line

    async def mint(
        self,
        *,
        purpose: links.Purpose,
        question_id: str | None,
        execution_id: str | None,
        uses: int,
        expires_at: datetime,
        note: str,
    ) -> tuple[str, str]:
        """Make a link; return its id and its URL."""
        left = (expires_at - now()).total_seconds()
        wish = links.Wish(
            purpose=purpose,
            question_id=question_id,
            execution_id=execution_id,
            uses=uses,
            expires_in_s=max(60, min(int(left), 366 * 86400)),
            note=note,
        )
        made = await links.mint(self._storage, self._line, wish, "agent")
        return made.id, made.url

    async def revoke(self, link_id: str) -> None:
        """Take a link back."""
        await links.revoke(self._storage, link_id)


def rules_of(settings: Settings) -> Rules:
    """Read what the operator wants to be told, and when."""
    quiet = None
    if settings.notify_quiet_hours:
        begins, ends = (time.fromisoformat(part) for part in settings.notify_quiet_hours.split("-"))
        quiet = Quiet(begins, ends, ZoneInfo(settings.tz)) if begins != ends else None
    return Rules(
        on_question=settings.notify_on_question,
        on_complete=settings.notify_on_complete,
        quiet=quiet,
        reminders=Reminders(timedelta(minutes=settings.notify_reminder_minutes), settings.notify_reminders),
    )


async def again_and_again(work: Callable[[], Awaitable[object]], every_s: float) -> None:
    """Do something for ever; that it fails once must not end it."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a round failed; it is done again")
        await asyncio.sleep(every_s)


@asynccontextmanager
async def opened(
    settings: Settings, storage: Storage, door: tools.Door, health: Health
) -> AsyncIterator[Desk]:
    """Open the desk of one line."""
    outbox = Outbox(
        storage,
        senders_of(settings),
        Texts(ZoneInfo(settings.tz)),
        MessageLinks(storage, settings.moshi_url),
        rules_of(settings),
        line=settings.moshi_url,
    )
    questions = Questions(storage, outbox, timeout=timedelta(minutes=settings.execution_timeout_minutes))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(door.runs(tools.server_of(storage, questions, outbox, health)))
        executions = await stack.enter_async_context(carrying(settings, storage, questions, outbox))
        work = [
            asyncio.create_task(outbox.run()),
            asyncio.create_task(again_and_again(questions.expire, EXPIRE_S)),
            asyncio.create_task(again_and_again(Watch(settings, health, outbox).look, LOOK_S)),
        ]
        try:
            yield Desk(questions, outbox, executions)
        finally:
            await end(work)


@asynccontextmanager
async def carrying(
    settings: Settings, storage: Storage, questions: Questions, outbox: Outbox
) -> AsyncIterator[Executions | None]:
    """Carry out instructions, where there is an agent for them."""
    agents = agents_of(settings)
    if not agents:
        yield None
        return
    timeout = timedelta(minutes=settings.execution_timeout_minutes)
    executions = Executions(storage, questions, outbox, agents, timeout=timeout)
    async with executions.open(settings.database_url.get_secret_value()):
        yield executions
