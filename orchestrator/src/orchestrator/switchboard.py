"""The calls of this line while they wait and last: who is called, who talks, who has gone.

How much room there is the engines say themselves, at every look: `Switchboard.look` compares what they carry
with what is known of the calls, and believes the engines. So a lost event, a killed engine or a killed
orchestrator can cost a record its last detail, never a slot: a call that no engine carries has ended, and one
that was called and did not come is passed over.

The state of a call:

    waiting ── called (10 s, with a ticket) ── connecting (until its engine has it) ── talking ── ended
       └──────────── did not come: passed over, keeps its place ────┘

Everything here belongs to one event loop; nothing awaits between looking and deciding.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from itertools import count
from typing import Any

import httpx

from orchestrator import records
from orchestrator.authorize import RESERVED_S, Granted, Ledger, Refused, answer
from orchestrator.ending import end
from orchestrator.engines import Caller, Condition, Engine, SocketsUnreadableError
from orchestrator.events import Log
from orchestrator.line import Line
from orchestrator.records import Records
from orchestrator.refusal import Refusal
from orchestrator.scopes import Identity
from orchestrator.storage import Storage, now
from orchestrator.tickets import Ticket, Tickets
from orchestrator.waiting import (
    ANSWERS_FIRST,
    CALLED_S,
    REMEMBERED,
    Waiting,
    again_after,
    estimate_s,
    line_up,
    next_to_call,
    positions,
)

LOOK_S = 0.5
CONNECTING_S = RESERVED_S + 1.0
"""From an answer to nginx until the engine must have the call."""
PRESENT_S = 15.0
"""So long a page counts as there that asked and does not listen yet, or stopped listening just now."""
LEFT_S = 300.0
"""So long a page that does not listen keeps its place."""
REASON_S = 1.0
"""So long it is waited for the engine to say why a call ended."""
QUEUE = 5000
ENDED_KEPT_S = 60.0
"""So long the events of a call that ended can still be read."""
SAID_AT_ONCE = 400
PAUSE_S = 1.5
SAMPLES = 4000

log = logging.getLogger("orchestrator.switchboard")


class State(str, Enum):
    """Where a call stands."""

    WAITING = "waiting"
    CALLED = "called"
    CONNECTING = "connecting"
    TALKING = "talking"
    ENDED = "ended"


class QueueFullError(Exception):
    """More callers wait than this line keeps places for."""


@dataclass
class Utterance:
    """What somebody says, until he stops."""

    text: str
    began_at: float
    ended_at: float


@dataclass(eq=False)
class Call:
    """One call that has not been forgotten yet."""

    id: str
    through: str
    number: int
    asked_at: datetime
    heard: float
    """When its page was last there, by the clock."""
    asked: float
    session_id: str | None = None
    link_id: str | None = None
    question_id: str | None = None
    priority: int = 0
    state: State = State.WAITING
    log: Log = field(default_factory=Log)
    listeners: int = 0
    missed: int = 0
    not_before: float = 0.0
    until: float = 0.0
    """Of a call that was called or connects: when it is too late."""
    told: tuple[int, int | None] | None = None
    """The position and estimate that its page knows."""
    engine: int | None = None
    peer: Caller | None = None
    """Its connection, at an engine that does not name calls."""
    gone: float | None = None
    """Since when its engine has not carried it any more."""
    called_at: datetime | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    ended: float = 0.0
    reason: str = ""
    turnarounds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    dropped: Mapping[str, int] = field(default_factory=dict)
    moshi: Utterance | None = None
    said: int = 0
    said_until: float = 0.0
    """Events of the engine up to this moment (seconds since 1970) are in the transcript."""

    @property
    def keeps_place(self) -> bool:
        """Whether it waits for its turn again when it does not come; others have to ask again."""
        return self.through == "page"

    def facts(self) -> dict[str, Any]:
        """Return what is remembered of it."""
        return {
            "id": self.id,
            "session_id": self.session_id,
            "link_id": self.link_id,
            "question_id": self.question_id,
            "through": self.through,
            "state": self.state.value,
            "priority": self.priority,
            "asked_at": self.asked_at,
            "called_at": self.called_at,
            "began_at": self.began_at,
            "ended_at": self.ended_at,
            "reason": self.reason or None,
            "engine": self.engine,
            "voice": None,
            "latency": latency_of(self.turnarounds, self.dropped),
        }


def latency_of(turnarounds: Sequence[float], dropped: Mapping[str, int]) -> dict[str, Any] | None:
    """Sum up what the engine said about a call's frames; None when it said nothing."""
    if not turnarounds:
        return None
    ordered = sorted(turnarounds)
    spread = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}
    return {"turnaround_ms": spread, "dropped": dict(dropped), "samples": len(ordered)}


class Switchboard:
    """All calls of one line. ``start`` and ``stop`` it."""

    def __init__(self, line: Line, storage: Storage) -> None:
        self.line = line
        self.settings = line.settings
        self.storage = storage
        self.clock = line.surroundings.clock
        self.ledger = Ledger()
        self.records = Records(storage)
        self.tickets = Tickets(self.clock)
        self.calls: dict[str, Call] = {}
        self.slots = 0
        """How many conversations the engines that answer carry."""
        self.lengths: deque[float] = deque(maxlen=REMEMBERED)
        self._numbers = count(1)
        self._nudge = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._http = httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(2.0))

    # ------------------------------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """Take up what was going on when the program last stopped, and begin to look."""
        moment = self.clock()
        self.lengths.extend(await records.lengths(self.storage, REMEMBERED))
        rows = await records.unfinished(self.storage)
        said = await records.last_said(self.storage, [row.id for row in rows])
        for row in rows:
            call = Call(
                row.id,
                row.through,
                next(self._numbers),
                row.asked_at,
                heard=moment,
                # The wait so far counts; a clock that was set back does not lengthen it.
                asked=moment - max(0.0, (now() - row.asked_at).total_seconds()),
                session_id=row.session_id,
                link_id=row.link_id,
                question_id=row.question_id,
                priority=row.priority,
                called_at=row.called_at,
                began_at=row.began_at,
            )
            if row.engine is not None and row.state in (State.CONNECTING.value, State.TALKING.value):
                # Its engine may have it: the first looks say.
                call.engine, call.state, call.until = row.engine, State.CONNECTING, moment + CONNECTING_S
            elif not call.keeps_place:
                call.state, call.until = State.CONNECTING, moment
            call.said, at = said.get(row.id, (0, None))
            call.said_until = at.timestamp() if at else 0.0
            self.calls[call.id] = call
        self.records.start()
        self._tasks.append(asyncio.create_task(self._watch()))
        self._tasks.append(asyncio.create_task(self._forget_old()))
        if self.line.tells:
            for engine in self.settings.line_engines:
                self._tasks.append(asyncio.create_task(self._listen(engine)))

    async def stop(self) -> None:
        """Stop looking; write down what is not written yet. Calls go on: engines talk without us."""
        await end(self._tasks)
        self.say_goodbye()
        await self.records.stop()
        await self.line.stop()
        await self._http.aclose()

    def say_goodbye(self) -> None:
        """End the streams of all calls; their pages come back to the next process."""
        for call in self.calls.values():
            call.log.close()

    async def _watch(self) -> None:
        while True:
            self._nudge.clear()
            try:
                await self.look()
            except SocketsUnreadableError as error:
                log.error("the engines cannot be seen: %s", error)
            except Exception:
                log.exception("a look at the calls failed")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), LOOK_S)

    async def _forget_old(self) -> None:
        while True:
            try:
                days = self.settings.transcript_retention_days
                if number := await records.forget_old(self.storage, days):
                    log.info("old calls were forgotten", extra={"calls": number, "days": days})
            except Exception:
                log.exception("old calls could not be forgotten")
            await asyncio.sleep(3600)

    # ------------------------------------------------------------------------------------------------ looking

    async def look(self) -> None:
        """Look at the engines, and do what follows from it."""
        seen = await self.line.look()
        self.settle(seen.engines, self.clock(), seen.at)

    def settle(self, engines: Sequence[Engine], moment: float, seen_at: float | None = None) -> None:
        """Bring the calls into agreement with what the engines carry; call who is next."""
        self.ledger.see(engines, moment if seen_at is None else seen_at)
        by_number = {engine.number: engine for engine in engines}
        carrying = {name: engine.number for engine in engines if engine.told for name in engine.told.calls}
        attached = {call.peer for call in self.calls.values() if call.peer is not None}
        for call in list(self.calls.values()):
            if call.state in (State.WAITING, State.CALLED) and call.id in carrying:
                # We were killed between letting it in and writing that down.
                call.state, call.engine, call.told = State.CONNECTING, carrying[call.id], None
            if call.state in (State.CONNECTING, State.TALKING):
                self._follow(
                    call, by_number.get(call.engine if call.engine is not None else -1), attached, moment
                )
            elif call.state is State.CALLED and moment > call.until:
                self._did_not_come(call, moment)
            elif call.state is State.WAITING and not call.listeners and moment - call.heard > LEFT_S:
                self._end(call, "left")
            elif call.state is State.WAITING and moment - call.asked > self.settings.queue_patience_s:
                self._end(call, "no_patience")
            elif call.state is State.ENDED and moment - call.ended > ENDED_KEPT_S and not call.listeners:
                del self.calls[call.id]
        ready = [engine for engine in engines if engine.condition is Condition.READY]
        self.slots = sum(engine.conversations for engine in ready)
        free = sum(max(0, e.conversations - self.ledger.seats[e.number].taken) for e in ready) - self.held()
        self._call_next(free, moment)

    def _follow(self, call: Call, engine: Engine | None, attached: set[Caller], moment: float) -> None:
        """See whether an engine carries a call."""
        carried = False
        if engine is not None and engine.told is not None:
            if engine.listening and engine.told.silence:
                return  # it lives and says nothing: nobody knows
            carried = engine.listening and call.id in engine.told.calls
            if call.moshi is not None and now().timestamp() - call.moshi.ended_at > PAUSE_S:
                self._said_by_moshi(call)
            if carried and (measured := engine.told.measured.get(call.id)) is not None:
                call.turnarounds.append(measured.turnaround_ms)
                call.dropped = measured.dropped
        elif engine is not None:
            if call.peer is None:
                call.peer = min(
                    (peer for peer in engine.peers if peer not in attached), key=str, default=None
                )
                if call.peer is not None:
                    attached.add(call.peer)
            carried = call.peer in engine.peers
        if carried:
            call.gone = None
            if call.state is State.CONNECTING:
                self._begin(call)
        elif call.state is State.TALKING:
            call.gone = moment if call.gone is None else call.gone
            alive = engine is not None and engine.listening
            if (
                call.reason
                or not alive
                or engine is None
                or engine.told is None
                or moment - call.gone > REASON_S
            ):
                self._end(call, call.reason or ("hung_up" if alive else "engine_lost"))
        elif moment > call.until:
            if call.began_at is not None:
                self._end(call, call.reason or "lost")
            else:
                self._did_not_come(call, moment)

    def held(self, but: Call | None = None) -> int:
        """Return how many slots are kept for calls that were called and are on their way."""
        return sum(1 for call in self.calls.values() if call.state is State.CALLED and call is not but)

    @staticmethod
    def _is_there(call: Call, moment: float) -> bool:
        """Say whether its page would hear that it is called, as far as one can tell."""
        return bool(call.listeners) or moment - call.heard < PRESENT_S

    def _queue(self) -> list[Waiting]:
        moment = self.clock()
        return line_up(
            Waiting(
                call.id,
                call.priority,
                call.number,
                self._is_there(call, moment),
                call.missed,
                call.not_before,
            )
            for call in self.calls.values()
            if call.state is State.WAITING
        )

    def _call_next(self, free: int, moment: float) -> None:
        queue = self._queue()
        for one in next_to_call(queue, free, moment):
            call = self.calls[one.id]
            call.state, call.until, call.told = State.CALLED, moment + CALLED_S, None
            call.called_at = now()
            self._save(call)
            call.log.say("ready", ticket_facts(self.tickets.issue(call.id)))
            log.info("a caller is called", extra={"call": call.id, "missed": call.missed})
        places = positions([one for one in queue if self.calls[one.id].state is State.WAITING])
        for call_id, position in places.items():
            call = self.calls[call_id]
            told = (position, estimate_s(position, self.slots, self.lengths))
            if call.told != told:
                call.told = told
                call.log.say("waiting", {"position": told[0], "estimated_wait_s": told[1]})

    # ------------------------------------------------------------------------------------- a call's own steps

    async def ask(self, who: Identity, question_id: str | None) -> Call:
        """Take a wish for a call: it is called at once if there is room, and waits otherwise.

        A session that already waits gets its place again: its page was loaded anew. Raises QueueFullError,
        records.NotSavedError.
        """
        moment = self.clock()
        call = self._waiting_of(who)
        if call is None:
            if sum(1 for call in self.calls.values() if call.state is State.WAITING) >= QUEUE:
                raise QueueFullError
            call = self._new("page", who, question_id)
            try:
                await self.records.saved(call.facts())
            except records.NotSavedError:
                del self.calls[call.id]
                raise
        call.heard = moment
        ahead = any(
            other.state is State.WAITING
            and other is not call
            and other.number < call.number
            and other.not_before <= moment  # who is passed over does not stand in the way
            and self._is_there(other, moment)
            for other in self.calls.values()
        )
        if call.state is State.WAITING and (not ahead or call.priority):
            with contextlib.suppress(SocketsUnreadableError):
                await self.look()
        elif call.state is State.WAITING and call.told is None:
            self._tell_place(call)
        return call

    def _tell_place(self, call: Call) -> None:
        """Say its position to one that joins the end of a line that does not move just now."""
        moment = self.clock()
        ahead = sum(
            1
            for other in self.calls.values()
            if other.state is State.WAITING
            and (-other.priority, other.number) < (-call.priority, call.number)
            and self._is_there(other, moment)
        )
        call.told = (ahead + 1, estimate_s(ahead + 1, self.slots, self.lengths))
        call.log.say("waiting", {"position": call.told[0], "estimated_wait_s": call.told[1]})

    def _waiting_of(self, who: Identity) -> Call | None:
        if who.session_id is None:
            return None
        for call in self.calls.values():
            if call.session_id == who.session_id and call.state in (State.WAITING, State.CALLED):
                return call
        return None

    def _new(self, through: str, who: Identity | None, question_id: str | None = None) -> Call:
        moment = self.clock()
        call = Call(
            self.line.surroundings.new_call_id(),
            through,
            next(self._numbers),
            now(),
            heard=moment,
            asked=moment,
            session_id=who.session_id if who else None,
            link_id=who.link_id if who else None,
            question_id=question_id,
            priority=ANSWERS_FIRST if question_id else 0,
        )
        self.calls[call.id] = call
        return call

    def new_ticket(self, who: Identity) -> tuple[Call, Ticket]:
        """Make a ticket for a native client: it gets a slot when it comes, or is refused."""
        call = self._new("ticket", who)
        call.state, call.until = State.CONNECTING, self.clock() + 30.0 + CONNECTING_S
        self._save(call)
        return call, self.tickets.issue(call.id)

    def by_ticket(self, word: str) -> Call | None:
        """Spend a ticket; return its call."""
        call = self.calls.get(self.tickets.take(word) or "")
        return call if call is not None and call.state is not State.ENDED else None

    async def connect(
        self, call: Call | None, through: str, who: Identity | None
    ) -> tuple[Call, Granted | Refused]:
        """Give a call an engine; one that did not ask before (None) gets one if nobody waits.

        Raises SocketsUnreadableError.
        """
        resumed = call is not None and call.state is State.TALKING
        if call is not None and resumed and call.engine is not None:
            seen = await self.line.look()
            engine = next((e for e in seen.engines if e.number == call.engine), None)
            if engine is not None and engine.told is not None and call.id in engine.told.calls:
                return call, Granted(engine.number)  # the engine has kept it, with its memory
            return call, Refused(Refusal.LINE_FULL)  # it is about to be seen that it is over
        asks = call is None or call.through != "page"
        made = self._new(through, who) if call is None else call
        made.state = State.CONNECTING if asks else made.state
        made.until = max(made.until, self.clock() + CONNECTING_S)

        def held() -> int:
            waiting = sum(one.listens for one in self._queue()) if asks else 0
            return self.held(but=made) + waiting

        try:
            decision = await answer(
                self.ledger, admitted=True, look=self.line.glance, clock=self.clock, held=held
            )
        except BaseException:
            self._drop(made)
            raise
        if isinstance(decision, Granted):
            made.state, made.engine, made.until = (
                State.CONNECTING,
                decision.engine,
                self.clock() + CONNECTING_S,
            )
            self._save(made)
        elif asks:
            self._drop(made)
        else:
            self._did_not_come(made, self.clock())
        return made, decision

    def _drop(self, call: Call) -> None:
        """Forget a call that never got anywhere, unless it has a place to go back to."""
        if call.keeps_place:
            self._did_not_come(call, self.clock())
        elif call.through == "ticket":
            self._end(call, "refused")
        else:
            self.calls.pop(call.id, None)

    def _begin(self, call: Call) -> None:
        call.state, call.missed = State.TALKING, 0
        call.began_at = call.began_at or now()
        self._save(call)
        call.log.say("began", {"engine": call.engine})
        log.info("a call begins", extra={"call": call.id, "engine": call.engine})

    def _did_not_come(self, call: Call, moment: float) -> None:
        """Take the slot back; the caller keeps his place, and others get their chance first."""
        self.tickets.forget(call.id)
        if not call.keeps_place:
            self._end(call, "did_not_come")
            return
        call.missed += 1
        call.state, call.engine, call.peer, call.told = State.WAITING, None, None, None
        call.not_before = moment + again_after(call.missed)
        self._save(call)
        log.info("a caller did not come", extra={"call": call.id, "missed": call.missed})

    def _end(self, call: Call, reason: str) -> None:
        if call.state is State.ENDED:
            return
        self._said_by_moshi(call)
        self.tickets.forget(call.id)
        call.state, call.reason, call.ended_at, call.ended = State.ENDED, reason, now(), self.clock()
        if call.began_at is not None:
            self.lengths.append((call.ended_at - call.began_at).total_seconds())
        self._save(call)
        call.log.say("ended", {"reason": reason})
        call.log.close()
        log.info("a call ends", extra={"call": call.id, "reason": reason})
        self._nudge.set()

    def _save(self, call: Call) -> None:
        self.records.save(call.facts() | {"voice": self.settings.moshi_voice})

    async def hang_up(self, call: Call, reason: str) -> bool:
        """End a call, wherever it stands; False when its engine would not. The first reason counts."""
        if call.state in (State.WAITING, State.CALLED) or call.engine is None:
            self._end(call, reason)
            return True
        before, call.reason = call.reason, call.reason or reason
        port = self.settings.line_status_port + call.engine
        try:
            answered = await self._http.post(
                f"http://127.0.0.1:{port}/calls/{call.id}/end", json={"reason": call.reason}
            )
            done = answered.status_code in (200, 202, 204, 404)
        except httpx.HTTPError as error:
            log.warning("an engine was not told to end a call: %r", error, extra={"call": call.id})
            done = False
        if not done:
            call.reason = before
        self._nudge.set()
        return done

    async def revoke(self, link_id: str) -> None:
        """End the calls of a link that was revoked."""
        for call in list(self.calls.values()):
            if call.link_id == link_id and call.state is not State.ENDED:
                await self.hang_up(call, "revoked")

    def tell(self, kind: str, content: Mapping[str, Any], chosen: Callable[[Call], bool]) -> None:
        """Say something to the pages of some calls: that a question was answered, how an execution goes."""
        for call in self.calls.values():
            if call.state is not State.ENDED and chosen(call):
                call.log.say(kind, content)

    # ------------------------------------------------------------------------------- what engines say unasked

    async def _listen(self, engine: int) -> None:
        """Follow the events of one engine, over its restarts and ours."""
        url = f"http://127.0.0.1:{self.settings.line_status_port + engine}/events"
        heard = (0.0, 0)
        while True:
            try:
                # From the beginning: an engine that was started anew counts anew. What was heard is
                # passed over.
                async with self._http.stream(
                    "GET", url, params={"after": "0"}, timeout=httpx.Timeout(2.0, read=40.0)
                ) as answered:
                    if answered.status_code == 200:
                        async for number, kind, content in events_in(answered):
                            mark = (float(content.get("at", 0.0)), number)
                            if mark > heard:
                                heard = mark
                                self.hear(kind, content)
            except (httpx.HTTPError, ValueError) as error:
                log.debug("the events of engine %s broke off: %r", engine, error)
            except Exception:
                log.exception("an event of engine %s was not understood", engine)
            await asyncio.sleep(1.0)

    def hear(self, kind: str, content: Mapping[str, Any]) -> None:
        """Take one event of an engine. None of them decides whether a slot is free."""
        call = self.calls.get(str(content.get("call", "")))
        if call is None or call.state is State.ENDED:
            return
        at = float(content.get("at", 0.0))
        if kind == "ended":
            call.reason = call.reason or str(content.get("reason", ""))[:40]
            self._nudge.set()
        elif kind == "started":
            self._nudge.set()
        elif at <= call.said_until:
            return
        elif kind == "text":
            self._moshi_says(call, str(content.get("text", "")), at)
        elif kind in ("transcript", "turn_end"):
            facts = {name: value for name, value in content.items() if name not in ("call", "at")}
            call.log.say(kind, facts)
            if kind == "transcript" and content.get("final"):
                self._said(call, facts, at)

    def _moshi_says(self, call: Call, text: str, at: float) -> None:
        """Gather pieces of words to utterances: one ends with a pause, or when it is long."""
        if call.moshi is not None and (
            at - call.moshi.ended_at > PAUSE_S or len(call.moshi.text) > SAID_AT_ONCE
        ):
            self._said_by_moshi(call)
        if call.moshi is None:
            call.moshi = Utterance("", at, at)
        call.moshi.text += text
        call.moshi.ended_at = at

    def _said_by_moshi(self, call: Call) -> None:
        said, call.moshi = call.moshi, None
        if said is None or not said.text.strip():
            return
        began = call.began_at.timestamp() if call.began_at else said.began_at
        start, end = (max(0, round((at - began) * 1000)) for at in (said.began_at, said.ended_at))
        text = " ".join(said.text.split())
        facts = {"who": "moshi", "text": text, "final": True, "start_ms": start, "end_ms": end}
        call.log.say("transcript", facts)
        self._said(call, facts, said.ended_at)

    def _said(self, call: Call, facts: Mapping[str, Any], at: float) -> None:
        text, start_ms, end_ms = str(facts.get("text", "")), facts.get("start_ms"), facts.get("end_ms")
        if not self.settings.transcript_retention_days or not text.strip():
            return
        call.said += 1
        self.records.add(
            {
                "call_id": call.id,
                "number": call.said,
                "who": str(facts.get("who", "caller"))[:20],
                "text": text[:4000],
                "start_ms": start_ms if isinstance(start_ms, int) else None,
                "end_ms": end_ms if isinstance(end_ms, int) else None,
                "said_at": datetime.fromtimestamp(at, now().tzinfo),
            }
        )


def ticket_facts(ticket: Ticket) -> dict[str, Any]:
    """Return a ticket as pages get it."""
    return {"ticket": ticket.word, "ticket_expires_at": ticket.expires_at.isoformat()}


async def events_in(answered: httpx.Response) -> Any:
    """Yield (number, kind, content) of a stream of events. Raises ValueError on one that is no object."""
    number, kind = 0, ""
    async for text in answered.aiter_lines():
        name, _, value = text.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            content = json.loads(value)
            if not isinstance(content, dict):
                raise ValueError("an event without an object")
            yield number, kind, content
