"""The orchestrator's side of the stand-in: links, places, tickets, the queue, a question, its execution.

It speaks what page and orchestrator agreed on, and remembers what it was asked, so that a test can hold the
page to it: a ticket is good once and for its own call, a key only for what its link opened.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web


def problem(status: int, code: str, detail: str = "") -> web.Response:
    """A refusal, as RFC 9457 has it."""
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json")


def _in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


@dataclass
class Place:
    """One call, as the line keeps it."""

    id: str
    key: str | None
    state: str = "ready"
    position: int = 0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    streams: int = 0
    """Event streams that are open now."""
    resumed_after: list[str] = field(default_factory=list)
    """The Last-Event-ID of each stream."""


@dataclass
class Desk:
    """What the page meets at the door. `access` None: a line from before links and places; it answers 404."""

    access: str | None = None
    kept_days: int = 30
    queue: int = 0
    """How many are before the next caller: he waits until `your_turn`."""
    ticket_s: float = 30.0
    question: dict[str, Any] | None = None
    execution: dict[str, Any] | None = None
    tasks: bool = False
    """An agent carries out what callers hand over."""
    proposal: list[dict[str, Any]] | None = None
    """What a call's words become, step by step. None: nothing was said."""
    links: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    called: dict[str, str | None] = field(default_factory=dict)
    """Call → key, also of those that are over."""
    tickets: dict[str, str] = field(default_factory=dict)
    """Ticket → call; spent ones are gone."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    handed: list[dict[str, Any]] = field(default_factory=list)
    redeemed: int = 0
    lose_answers: int = 0
    """So many answers arrive and are taken, but the caller is not told: his connection breaks."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    # --------------------------------------------------------------------------------------- for the tests

    def link(self, purpose: str = "talk", **more: Any) -> str:
        """Mint a link; its token."""
        token = secrets.token_urlsafe(32)
        self.links[token] = {"purpose": purpose, "uses": 1, **more}
        return token

    @property
    def place(self) -> Place:
        """The latest call."""
        return list(self.places.values())[-1]

    def tell(self, place: Place, event: str, **data: Any) -> None:
        """Say something on a call's event stream."""
        place.events.append((event, data))
        self._stir()

    def your_turn(self, place: Place) -> None:
        """The one who waits is next, and called."""
        place.state, place.position = "ready", 0
        self.tell(place, "ready", **self._ticket(place))

    def forget(self, place: Place) -> None:
        """The line lets a call go, as after the grace of a broken one."""
        self.places.pop(place.id, None)
        self._stir()

    def run(self, **execution: Any) -> None:
        """The execution goes on."""
        assert self.execution is not None
        self.execution |= execution
        self._stir()

    def _stir(self) -> None:
        def now() -> None:
            self._news.set()
            self._news = asyncio.Event()

        if self._loop is not None:
            self._loop.call_soon_threadsafe(now)

    # -------------------------------------------------------------------------------------- for the engine

    def admit(self, ticket: str | None) -> str | web.Response | None:
        """The call that a ticket opens, once. None on a line without tickets."""
        if self.access is None:
            return None
        call = self.tickets.pop(ticket or "", None)
        if call is None or call not in self.places:
            return problem(403, "not_allowed", "This call needs a ticket.")
        return call

    def _ticket(self, place: Place) -> dict[str, str]:
        ticket = secrets.token_urlsafe(24)
        self.tickets[ticket] = place.id
        return {"ticket": ticket, "ticket_expires_at": _in(self.ticket_s)}

    # ---------------------------------------------------------------------------------------- for the page

    def routes(self) -> list[web.RouteDef]:
        """The door."""
        if self._loop is None:
            self._loop = asyncio.get_event_loop()
        call = "/api/calls/{call}"
        question = "/api/questions/{question}"
        return [
            web.get("/api/line", self._line),
            web.post("/api/links/redeem", self._redeem),
            web.post("/api/calls", self._call),
            web.post(f"{call}/ticket", self._again),
            web.get(f"{call}/events", self._events),
            web.delete(call, self._leave),
            web.get(question, self._question),
            web.post(f"{question}/answer", self._answer),
            web.post(f"{question}/decline", self._decline),
            web.post("/api/instructions/propose", self._propose),
            web.post("/api/executions", self._hand_over),
            web.get("/api/executions/{execution}", self._execution),
            web.get("/api/executions/{execution}/events", self._progress),
        ]

    def _key(self, request: web.Request) -> str | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return given if given in self.keys else None

    def _closed(self, request: web.Request) -> web.Response | None:
        if self.access is None:
            return problem(404, "not_found")
        if self._key(request) is None and (self.access == "links" or "Authorization" in request.headers):
            return problem(401, "key_unknown", "This key opens nothing.")
        return None

    async def _line(self, _: web.Request) -> web.Response:
        if self.access is None:
            return problem(404, "not_found")
        return web.json_response({
            "version": "0.0+standin", "access": self.access, "engine": "duplex", "conversations": 1,
            "transcript": {"kept": self.kept_days > 0, "days": self.kept_days}, "words": True,
            "tasks": self.tasks,
        })  # fmt: skip

    async def _redeem(self, request: web.Request) -> web.Response:
        if self.access is None:
            return problem(404, "not_found")
        link = self.links.get((await request.json())["token"])
        if link is None or link["uses"] < 1:
            return problem(404, "link_invalid", "This link opens nothing, or nothing any more.")
        link["uses"] -= 1
        self.redeemed += 1
        key = secrets.token_urlsafe(32)
        self.keys[key] = link
        more = {name: link[name] for name in ("question_id", "execution_id") if name in link}
        return web.json_response(
            {"key": key, "expires_at": _in(3600), "purpose": link["purpose"], **more}, status=201
        )

    async def _call(self, request: web.Request) -> web.Response:
        if refusal := self._closed(request):
            return refusal
        place = Place(secrets.token_hex(8), self._key(request))
        self.places[place.id] = place
        self.called[place.id] = place.key
        if self.queue:
            place.state, place.position = "waiting", self.queue
            body = {"position": self.queue, "estimated_wait_s": 60 * self.queue}
        else:
            body = self._ticket(place)
        return web.json_response({"id": place.id, "state": place.state, **body}, status=201)

    def _found(self, request: web.Request) -> Place | web.Response:
        if refusal := self._closed(request):
            return refusal
        place = self.places.get(request.match_info["call"])
        if place is None or place.key != self._key(request):
            return problem(404, "not_found")
        return place

    async def _again(self, request: web.Request) -> web.Response:
        if refusal := self._closed(request):
            return refusal
        place = self.places.get(request.match_info["call"])
        if place is None:
            return problem(409, "call_over", "This call is over.")
        if place.state == "waiting":
            return problem(409, "call_waiting", "It is not your turn yet.")
        return web.json_response(self._ticket(place), status=201)

    async def _leave(self, request: web.Request) -> web.Response:
        place = self._found(request)
        if isinstance(place, web.Response):
            return place
        self.forget(place)
        return web.Response(status=204)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        place = self._found(request)
        if isinstance(place, web.Response):
            return place
        place.resumed_after.append(request.headers.get("Last-Event-ID", ""))
        sent = int(place.resumed_after[-1] or 0)
        place.streams += 1
        try:
            response = await _stream(request)
            while place.id in self.places:
                news = self._news
                for event, data in place.events[sent:]:
                    sent += 1
                    await _write(response, _event(sent, event, data))
                await _pause(response, news)
        finally:
            place.streams -= 1
        return response

    # ----------------------------------------------------------------------------------------- being asked

    def _asked(self, request: web.Request, then: Callable[[], web.Response]) -> web.Response:
        if refusal := self._closed(request):
            return refusal
        key = self._key(request)
        allowed = key is not None and self.keys[key].get("question_id") == request.match_info["question"]
        if not allowed or self.question is None:
            return problem(404, "not_found")
        return then()

    async def _question(self, request: web.Request) -> web.Response:
        return self._asked(request, lambda: web.json_response(self.question))

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()

        def take() -> web.Response:
            assert self.question is not None
            again = any(a["idempotency_key"] == body["idempotency_key"] for a in self.answers)
            if self.question["state"] != "open" and not again:
                return problem(409, "question_closed", "This question was answered already.")
            if not again:
                self.answers.append(body)
                self.question |= {"state": "answered", "answer": body["text"]}
            if self.lose_answers > 0:
                self.lose_answers -= 1
                if request.transport is not None:
                    request.transport.close()
            return web.json_response(self.question)

        return self._asked(request, take)

    async def _decline(self, request: web.Request) -> web.Response:
        def take() -> web.Response:
            assert self.question is not None
            self.question["state"] = "declined"
            return web.json_response(self.question)

        return self._asked(request, take)

    async def _propose(self, request: web.Request) -> web.Response:
        if refusal := self._closed(request):
            return refusal
        call = (await request.json())["call_id"]
        if self.called.get(call) != self._key(request):
            return problem(404, "not_found", "There is no such call, or it is not for this key.")
        if self.proposal is None:
            return problem(409, "nothing_said", "No words of the caller were heard in this call.")
        text = "\n".join(step["text"] for step in self.proposal)
        return web.json_response({
            "call_id": call, "instruction": text, "steps": self.proposal, "drafted_by": "words",
        })  # fmt: skip

    async def _hand_over(self, request: web.Request) -> web.Response:
        if refusal := self._closed(request):
            return refusal
        key = self._key(request)
        if key is None:
            return problem(401, "no_key", "An instruction needs a key.")
        if self.keys[key]["purpose"] != "talk":
            return problem(403, "wrong_scope", "This link is for one question, not for new ones.")
        body = await request.json()
        if not any(handed["idempotency_key"] == body["idempotency_key"] for handed in self.handed):
            self.handed.append(body)
            self.execution = {
                "id": f"task-{len(self.handed)}", "state": "pending", "instruction": body["instruction"],
                "question_id": None, "result": None, "error": None,
            }  # fmt: skip
        return web.json_response(self.execution, status=201)

    async def _execution(self, request: web.Request) -> web.Response:
        if refusal := self._closed(request):
            return refusal
        if self.execution is None or self.execution["id"] != request.match_info["execution"]:
            return problem(404, "not_found")
        return web.json_response(self.execution)

    async def _progress(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._closed(request):
            return refusal
        if self.execution is None:
            return problem(404, "not_found")
        response = await _stream(request)
        number, told = 0, None
        while True:
            news = self._news
            if self.execution != told:
                number, told = number + 1, dict(self.execution)
                await _write(response, _event(number, "execution", told))
            await _pause(response, news)


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(b": hello\n\n")
    return response


async def _pause(response: web.StreamResponse, news: asyncio.Event) -> None:
    """Until there is news; a sign of life now and then finds out who is gone."""
    try:
        await asyncio.wait_for(news.wait(), 1)
    except TimeoutError:
        await _write(response, b": still here\n\n")


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        await response.write(data)
    except ConnectionError:
        raise asyncio.CancelledError from None  # who asked is gone


def _event(number: int, event: str, data: dict[str, Any]) -> bytes:
    return f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode()
