"""The door: Moshi's wire protocol over WebSocket for many callers, and what the engine tells about itself.

One asyncio loop moves bytes; the engine's thread (``conductor.py``) steps; Opus is in worker processes
(``opus.py``). Every queue is bounded. Who sends or reads at the wrong speed loses his own oldest audio and is
told so.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import random
import re
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from duplex.conductor import Conductor, Ear, Stepped, Stepper
from duplex.engine import NoRoom, Sampling, Sound
from duplex.metrics import Metrics
from duplex.opus import BadAudio, Codec, CodecDied, Codecs
from duplex.words import Hearing, Sentences, Transcriber

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)
START, END_TURN, PAUSE, RESTART = range(4)

MESSAGE_BYTES = 64 * 1024
ANSWERS_WAITING = 12
"""Answers that wait for a slow page: about a second."""
SEND_BUFFER = 16 * 1024
"""Bytes the kernel may hold for one page: a few seconds of Opus, so that a slow page is noticed."""
HEARTBEAT_S = 5.0
BURST_FRAMES = 50
"""A caller may be this much ahead of real time before reading from him slows down."""
NOT_ALLOWED, TRY_LATER = WSCloseCode.POLICY_VIOLATION, WSCloseCode.TRY_AGAIN_LATER
EVENTS_KEPT = 4000
"""With 64 callers who talk, a quarter of a minute."""
SILENT_PIECES = (0, 3)
"""Padding: nothing is said."""

Pieces = Callable[[int], str]
"""From a text token to its piece."""


@dataclass(frozen=True)
class Rules:
    """How long what may take; seconds."""

    resume_grace: float = 15.0
    idle_timeout: float = 60.0
    max_call_seconds: float = 0.0
    """0: no limit."""
    drain_seconds: float = 30.0
    prefilled: int = 0
    """Frames that every new call counts as spoken: for measuring."""
    mixed_ages: bool = False
    """Anything from 0 to ``prefilled`` instead."""


class Words:
    """Text tokens into text: byte pieces are put together to characters."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: int) -> str:
        """Return what can be said after ``token``."""
        if token in SILENT_PIECES:
            return ""
        piece = self._pieces(token)
        if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
            return self._decoder.decode(bytes([int(byte[1], 16)]))
        return self._decoder.decode(b"", final=True) + piece.replace("\u2581", " ")


@dataclass
class Waiting:
    """An answer on its way to the page."""

    pcm: Sound | None
    text: str
    came: float


@dataclass(eq=False)
class Call:
    """A conversation, with a socket or, for the grace, without."""

    id: str
    ear: Ear
    words: Words
    sentences: Sentences
    sampling: Sampling
    started: float
    resumable: bool
    last_audio: float
    socket: web.WebSocketResponse | None = None
    transport: asyncio.Transport | None = None
    codec: Codec | None = None
    hearing: Hearing | None = None
    """Of its words; None: nobody transcribes."""
    answers: deque[Waiting] = field(default_factory=deque)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    broken_at: float | None = None
    ended: str = ""
    farewell: asyncio.Future[tuple[str, str, int]] | None = None
    """Of a call with a socket: why it is to end, in a code, in words, as a close code. Its own task then says
    it.
    """
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there is no socket."""
    wants_metadata: bool = False
    resumed: bool = False
    """Whether it broke and was taken up again."""
    paused: bool = False
    frames: int = 0
    dropped_in: int = 0
    dropped_out: int = 0
    told: tuple[int, int] = (0, 0)
    turnaround_ms: float = 0.0
    ahead: float = 0.0
    """Frames sent beyond real time."""
    ahead_at: float = 0.0

    def clock(self, now: float) -> float:
        """Return milliseconds since the call began."""
        return (now - self.started) * 1000


def sampling_of(query: Mapping[str, str], base: Sampling) -> Sampling:
    """Read what kyutai's own page puts into the URL. Raises ValueError with the mend."""

    def number(name: str, kind: type[int] | type[float], low: float, high: float, default: float) -> float:
        if name not in query:
            return default
        try:
            value = kind(query[name])
        except ValueError:
            raise ValueError(f"{name} is a number from {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"{name} is a number from {low:g} to {high:g}")
        return value

    seed = number("seed", int, -1, 2**32 - 1, number("audio_seed", int, -1, 2**32 - 1, -1))
    return Sampling(
        temperature=number("audio_temperature", float, 0, 10, base.temperature),
        top_k=int(number("audio_topk", int, 1, 100_000, base.top_k)),
        text_temperature=number("text_temperature", float, 0, 10, base.text_temperature),
        text_top_k=int(number("text_topk", int, 1, 100_000, base.text_top_k)),
        seed=base.seed if seed < 0 else int(seed),
    )


class Server:
    """All calls of one engine."""

    def __init__(
        self,
        build: Callable[[], Stepper],
        codecs: Codecs,
        pieces: Pieces,
        *,
        transcriber: Transcriber | None = None,
        rules: Rules | None = None,
        sampling: Sampling | None = None,
        describe: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """``build`` makes the engine in its own thread; ``describe`` adds to /status."""
        self.rules = rules or Rules()
        self.sampling = sampling or Sampling()
        self.codecs = codecs
        self.pieces = pieces
        self.transcriber = transcriber
        self.describe = describe
        self.metrics = Metrics()
        self.calls: dict[str, Call] = {}
        self.by_ear: dict[int, Call] = {}
        self.events: deque[tuple[int, str, dict[str, Any]]] = deque(maxlen=EVENTS_KEPT)
        self.sequence = 0
        self.news = asyncio.Condition()
        self.listening = 0
        """Readers of /events."""
        self.draining = False
        self.failure: BaseException | None = None
        self.over = asyncio.Event()
        """Set when the process has to end."""
        self.conductor = Conductor(build, asyncio.get_running_loop(), self._stepped, self._failed)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self.began = time.monotonic()

    # ------------------------------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """Start workers and engine; return when the first step may come."""
        self.conductor.start()
        await self.codecs.start()
        if self.transcriber is not None:
            await self.transcriber.start()
        ready = self.conductor.do(lambda engine: engine)
        over = asyncio.create_task(self.over.wait())
        await asyncio.wait([ready, over], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if self.failure is not None:
            raise self.failure
        self._ticker = asyncio.create_task(self._tick())

    async def drain(self) -> None:
        """Take no new calls, tell the running ones, give them ``drain_seconds``, end."""
        if self.draining:
            self.over.set()
            return
        self.draining = True
        self._event("draining", {"seconds": self.rules.drain_seconds})
        for call in self.calls.values():
            self._metadata(call, {"type": "draining", "seconds": self.rules.drain_seconds})
        talking = [call.gone.wait() for call in self.calls.values() if call.socket is not None]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*talking), self.rules.drain_seconds)
        self.over.set()

    async def stop(self) -> None:
        """End every call and everything that was started."""
        code, words = ("engine_failed", "The engine failed and is being started anew.") if self.failure else (
            "going_away", "The engine is being stopped. Call again in a moment.")  # fmt: skip
        calls = list(self.calls.values())
        for call in calls:
            self._dismiss(call, code, words, TRY_LATER)
        waits = [call.gone.wait() for call in calls if call.socket is not None]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waits), 5)
        if self._ticker is not None:
            self._ticker.cancel()
        self.conductor.stop()
        await self.codecs.stop()
        if self.transcriber is not None:
            await self.transcriber.stop()
        async with self.news:
            self.news.notify_all()

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        self.over.set()

    @property
    def ready(self) -> bool:
        """Whether calls are taken."""
        return self._ticker is not None and not self.draining and self.failure is None

    # -------------------------------------------------------------------------------------------------- calls

    async def chat(self, request: web.Request) -> web.WebSocketResponse:
        """Hold one call: GET /api/chat with an upgrade."""
        ws = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES, compress=False, writer_limit=4096
        )
        await ws.prepare(request)
        transport = request.transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        try:
            call = await self._admit(request, ws)
        except Refused as refused:
            self.metrics.refused[refused.code] += 1
            await self._say_and_close(ws, transport, refused.code, str(refused), refused.close)
            return ws
        call.transport = transport
        call.gone.clear()
        call.farewell = farewell = asyncio.get_running_loop().create_future()
        sender = asyncio.create_task(self._send(call, ws))
        receiver = asyncio.create_task(self._receive(call, ws))
        try:
            await asyncio.wait([receiver, farewell], return_when=asyncio.FIRST_COMPLETED)
            # Closing while another task reads would cut the connection under the farewell.
            receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError, RuntimeError):
                try:
                    await receiver
                except BadAudio as error:
                    self._dismiss(call, "bad_audio", f"This is no Ogg/Opus stream ({error}).", NOT_ALLOWED)
                except CodecDied as error:
                    self._dismiss(call, "codec_failed", f"{error}: call again in a moment.", TRY_LATER)
            sender.cancel()
            if farewell.done():
                await self._say_and_close(ws, transport, *farewell.result())
        finally:
            sender.cancel()
            receiver.cancel()
            farewell.cancel()
            await self._gone(call, ws)
            call.gone.set()
        return ws

    def _dismiss(self, call: Call, code: str, words: str, close: int) -> None:
        """Have the task of a call say why it ends, and end it."""
        if call.farewell is not None and not call.farewell.done():
            call.farewell.set_result((code, words, close))
        self._keep(asyncio.create_task(self._end(call, code)))

    async def _admit(self, request: web.Request, ws: web.WebSocketResponse) -> Call:
        if self.draining or self.failure is not None:
            raise Refused("going_away", "The engine is being stopped. Call again in a moment.", TRY_LATER)
        given = request.headers.get("X-Call-Id", "")[:200]
        old = self.calls.get(given) if given else None
        if old is not None:
            if old.socket is not None or old.ended:
                raise Refused("call_in_use", "This call is being held from somewhere else.", NOT_ALLOWED)
            return self._resume(old, ws)
        try:
            sampling = sampling_of(request.query, self.sampling)
        except ValueError as error:
            raise Refused("bad_setting", str(error), NOT_ALLOWED) from None
        prefilled = self.rules.prefilled
        if self.rules.mixed_ages:
            prefilled = random.randint(0, prefilled)  # noqa: S311 - ages to measure with, no secret
        try:
            slot = await self.conductor.do(lambda engine: engine.join(sampling, prefilled))
        except NoRoom:
            words = "All conversations of this line are taken. Try again in a moment."
            raise Refused("line_full", words, TRY_LATER) from None
        now = time.monotonic()
        call = Call(
            given or uuid.uuid4().hex,
            Ear(slot),
            Words(self.pieces),
            Sentences(),
            sampling,
            now,
            bool(given),
            now,
            socket=ws,
        )
        if (
            call.id in self.calls
        ):  # another socket with the same id was quicker, while this one waited for its slot
            await self.conductor.do(lambda engine: engine.leave(slot))
            raise Refused("call_in_use", "This call is being held from somewhere else.", NOT_ALLOWED)
        self.calls[call.id] = call
        self.by_ear[id(call.ear)] = call
        try:
            call.codec = self.codecs.open()
        except CodecDied as error:
            await self._end(call, "codec_failed")
            raise Refused("codec_failed", f"{error}: call again in a moment.", TRY_LATER) from None
        self.metrics.started += 1
        self._event("started", {"call": call.id})
        if self.transcriber is not None:
            call.hearing = self.transcriber.open(lambda event: self._tell_words(call, event))
        return call

    def _resume(self, call: Call, ws: web.WebSocketResponse) -> Call:
        try:
            call.codec = self.codecs.open()
        except CodecDied as error:
            raise Refused("codec_failed", f"{error}: call again in a moment.", TRY_LATER) from None
        call.socket, call.broken_at, call.last_audio = ws, None, time.monotonic()
        call.answers.clear()
        call.wants_metadata = False
        call.resumed = True
        self.metrics.resumed += 1
        self._event("resumed", {"call": call.id})
        return call

    async def _gone(self, call: Call, ws: web.WebSocketResponse) -> None:
        """The socket of a call is closed: end the call, or keep it for the grace if it may come back."""
        call.socket = call.transport = None
        if call.codec is not None:
            call.codec.close()
            call.codec = None
        if call.ended:
            return
        if (
            ws.close_code == WSCloseCode.OK
            or not call.resumable
            or self.draining
            or not self.rules.resume_grace
        ):
            await self._end(
                call, "hung_up" if ws.close_code in (WSCloseCode.OK, WSCloseCode.GOING_AWAY) else "broke"
            )
        else:
            call.broken_at = time.monotonic()
            self._event("broke", {"call": call.id, "grace_seconds": self.rules.resume_grace})

    async def _end(self, call: Call, reason: str) -> None:
        if call.ended:
            return
        call.ended = reason
        self.conductor.forget(call.ear)
        self.by_ear.pop(id(call.ear), None)
        if call.codec is not None:
            call.codec.close()
            call.codec = None
        for event in call.sentences.end():
            self._tell_words(call, event)
        if call.hearing is not None:
            call.hearing.close()
        if self.failure is None:
            slot = call.ear.slot
            await self.conductor.do(lambda engine: engine.leave(slot))
        self.calls.pop(call.id, None)
        self.metrics.ended[reason] += 1
        self._event(
            "ended", {"call": call.id, "reason": reason, "seconds": round(time.monotonic() - call.started, 1)}
        )

    async def _say_and_close(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        code: str,
        words: str,
        close: int,
    ) -> None:
        async def say() -> None:
            await ws.send_bytes(bytes([ERROR]) + json.dumps({"code": code, "message": words}).encode())
            await ws.close(code=close, message=code.encode())

        try:
            await asyncio.wait_for(say(), 2)
        except (ConnectionError, RuntimeError, asyncio.TimeoutError):
            if transport is not None:
                transport.abort()

    # ---------------------------------------------------------------------------------------------- receiving

    async def _receive(self, call: Call, ws: web.WebSocketResponse) -> None:
        await ws.send_bytes(bytes([HANDSHAKE]))
        async for message in ws:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue  # text frames and empty messages mean nothing in this protocol
            kind, payload = message.data[0], message.data[1:]
            if kind == AUDIO:
                await self._hear(call, payload)
            elif kind == CONTROL and payload:
                await self._control(call, payload[0])
            elif kind == METADATA:
                self._hello(call, payload)
            elif kind == PING:
                await ws.send_bytes(bytes([PING]))

    async def _hear(self, call: Call, payload: bytes) -> None:
        came = time.monotonic()
        if call.codec is None:
            return
        frames = await call.codec.decode(payload)
        if not frames:
            return
        call.last_audio = came
        if not call.paused:
            for pcm in frames:
                if call.hearing is not None:
                    call.hearing.hear(pcm, call.clock(came))
                dropped = self.conductor.hear(call.ear, pcm, came)
                if dropped:
                    call.dropped_in += dropped
                    self.metrics.dropped_in += dropped
                    self.metrics.caught_up += 1
        call.ahead = max(0.0, call.ahead - (came - call.ahead_at) * 12.5) + len(frames)
        call.ahead_at = came
        if call.ahead > BURST_FRAMES:
            # Reading slows down, the caller's own buffers fill up; decoding a flood would cost the others.
            await asyncio.sleep((call.ahead - BURST_FRAMES) / 125)

    async def _control(self, call: Call, what: int) -> None:
        if what == START:
            call.paused = False
        elif what == PAUSE:
            call.paused = True
        elif what == RESTART:
            call.paused = False
            slot, sampling = call.ear.slot, call.sampling
            call.answers.clear()
            call.words = Words(self.pieces)
            for event in call.sentences.end():
                self._tell_words(call, event)
            await self.conductor.do(lambda engine: engine.restart(slot, sampling))
            self._event("restarted", {"call": call.id})

    def _hello(self, call: Call, payload: bytes) -> None:
        try:
            content = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if isinstance(content, dict) and content.get("type") == "hello" and not call.wants_metadata:
            call.wants_metadata = True
            self._metadata(
                call,
                {
                    "type": "welcome",
                    "engine": "duplex",
                    "call": call.id,
                    "age_s": round(time.monotonic() - call.started, 1),
                    "resumed": call.resumed,
                },
            )
            hearing = call.hearing
            available, reason = (hearing.available, hearing.reason) if hearing else (False, "off")
            self._metadata(
                call,
                {"type": "words", "available": available, **({} if available else {"reason": reason})},
            )

    # ------------------------------------------------------------------------------------------------ sending

    def _stepped(self, step: Stepped) -> None:
        """Take what a step made (called in the event loop)."""
        self.metrics.step_ms.add(step.seconds * 1000)
        self.metrics.batch.add(len(step.answers))
        self.metrics.backlog = step.waiting
        for ear, answer, came in step.answers:
            call = self.by_ear.get(id(ear))
            if call is None:
                continue
            call.frames += 1
            if call.hearing is not None:
                call.hearing.say(answer.pcm)
            if answer.tokens is None:
                continue
            text = call.words.take(answer.tokens[0])
            if text:
                self._event("text", {"call": call.id, "text": text})
            self._said(call, text)
            if call.socket is None:
                continue
            call.answers.append(Waiting(answer.pcm, text, came))
            if len(call.answers) > ANSWERS_WAITING:
                lost = call.answers.popleft()
                call.answers[0].text = lost.text + call.answers[0].text
                call.dropped_out += 1
                self.metrics.dropped_out += 1
            call.more.set()

    def _said(self, call: Call, text: str) -> None:
        """Take what Moshi said with a frame, mostly nothing."""
        at = call.clock(time.monotonic())
        if text and call.hearing is not None:
            call.hearing.tell(text, at)
        for event in call.sentences.take(text, at):
            self._tell_words(call, event)

    def _tell_words(self, call: Call, event: dict[str, Any]) -> None:
        """Pass a transcript, the end of a turn, or whether there are words, to the page and to /events."""
        self._event(event["type"], {"call": call.id, **{k: v for k, v in event.items() if k != "type"}})
        self._metadata(call, event)

    async def _send(self, call: Call, ws: web.WebSocketResponse) -> None:
        """Encode and send what waits, one answer at a time, as fast as the page takes it."""
        with contextlib.suppress(ConnectionError, RuntimeError, CodecDied, BadAudio):
            while True:
                await call.more.wait()
                call.more.clear()
                while call.answers and call.codec is not None:
                    answer = call.answers.popleft()
                    if answer.pcm is not None:
                        await self._send_audio(call, ws, answer)
                    if answer.text:
                        await ws.send_bytes(bytes([TEXT]) + answer.text.encode())

    async def _send_audio(self, call: Call, ws: web.WebSocketResponse, answer: Waiting) -> None:
        """Send a frame in as many messages as the codec likes: one leaves before the next is encoded."""
        first = True
        if answer.pcm is None or call.codec is None:
            return
        length = len(answer.pcm) // call.codec.parts
        for start in range(0, len(answer.pcm), length):
            if call.codec is None:
                return
            part = answer.pcm[start : start + length]
            pages = await call.codec.encode(part)
            if not pages:
                continue
            await ws.send_bytes(bytes([AUDIO]) + pages)
            if first:
                first = False
                taken = time.monotonic() - answer.came
                call.turnaround_ms = 1000 * taken
                self.metrics.answered(taken)

    def _metadata(self, call: Call, content: dict[str, Any]) -> None:
        if call.wants_metadata and call.socket is not None and not call.ended:
            self._keep(
                asyncio.create_task(
                    self._try_send(call.socket, bytes([METADATA]) + json.dumps(content).encode())
                )
            )

    @staticmethod
    async def _try_send(ws: web.WebSocketResponse, data: bytes) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            await ws.send_bytes(data)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------------------ once a second

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for call in list(self.calls.values()):
                if call.ended:
                    continue
                if call.broken_at is not None:
                    if now - call.broken_at > self.rules.resume_grace:
                        self._keep(asyncio.create_task(self._end(call, "broke")))
                elif self.rules.max_call_seconds and now - call.started > self.rules.max_call_seconds:
                    words = f"A call on this line lasts at most {self.rules.max_call_seconds:g} seconds."
                    self._dismiss(call, "too_long", words, NOT_ALLOWED)
                elif self.rules.idle_timeout and now - call.last_audio > self.rules.idle_timeout:
                    words = f"Nothing was heard for {self.rules.idle_timeout:g} seconds."
                    self._dismiss(call, "idle", words, NOT_ALLOWED)
                else:
                    self._report(call)

    def _report(self, call: Call) -> None:
        lag = 80 * len(call.ear.frames)
        self._metadata(call, {"type": "status", "turnaround_ms": round(call.turnaround_ms, 1), "lag_ms": lag})
        if (call.dropped_in, call.dropped_out) != call.told:
            call.told = (call.dropped_in, call.dropped_out)
            self._metadata(
                call, {"type": "dropped", "heard_frames": call.dropped_in, "said_frames": call.dropped_out}
            )

    # ------------------------------------------------------------------------------------------ seeing inside

    def _event(self, kind: str, content: dict[str, Any]) -> None:
        self.sequence += 1
        self.events.append((self.sequence, kind, {"at": round(time.time(), 3), **content}))
        if self.listening:
            self._keep(asyncio.create_task(self._announce()))

    async def _announce(self) -> None:
        async with self.news:
            self.news.notify_all()

    def status(self) -> dict[str, Any]:
        """Return what /status says."""
        now, engine = time.monotonic(), self.conductor.engine
        calls = [
            {
                "id": call.id,
                "age_s": round(now - call.started, 1),
                "frames": call.frames,
                "lag_ms": 80 * len(call.ear.frames),
                "turnaround_ms": round(call.turnaround_ms, 1),
                "connected": call.socket is not None,
                "dropped": {"heard": call.dropped_in, "said": call.dropped_out},
            }
            for call in self.calls.values()
        ]
        names = {
            "turnaround_ms": self.metrics.turnaround_ms,
            "step_ms": self.metrics.step_ms,
            "batch": self.metrics.batch,
        }
        spread = {
            name: {f"p{p}": values.percentile(p) for p in (50, 95, 99)} for name, values in names.items()
        }
        slots = engine.slots if engine is not None else 0
        return {
            "engine": "duplex",
            "ready": self.ready,
            "draining": self.draining,
            "uptime_s": round(now - self.began, 1),
            "slots": slots,
            "free": slots - len(self.calls),
            "missed_deadlines": self.metrics.missed,
            **spread,
            "calls": calls,
            "words": {"engine": "off"} if self.transcriber is None else self.transcriber.status(),
            **self.describe(),
        }

    async def _health(self, request: web.Request) -> web.Response:
        words = (
            {"status": "ok"} if self.failure is None else {"status": "failed", "reason": str(self.failure)}
        )
        return web.json_response(words, status=200 if self.failure is None else 503)

    async def _ready(self, request: web.Request) -> web.Response:
        return web.json_response({"ready": self.ready}, status=200 if self.ready else 503)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def _hang_up(self, request: web.Request) -> web.Response:
        """End a call from outside. 404 when it is over already."""
        call = self.calls.get(request.match_info["id"])
        if call is None or call.ended:
            return web.json_response({"code": "call_unknown"}, status=404)
        try:
            given = await request.json() if request.can_read_body else {}
            reason = str(given.get("reason", "operator"))
        except (ValueError, AttributeError):
            return web.json_response({"code": "bad_request"}, status=400)
        known = {
            "operator": "Whoever runs this line has ended the call.",
            "revoked": "The link that opened this call was taken back.",
            "hung_up": "The call was hung up.",
        }
        code = reason if reason in known else "operator"
        self._dismiss(call, code, known[code], NOT_ALLOWED)
        return web.json_response({"id": call.id, "reason": code}, status=202)

    async def _metrics(self, request: web.Request) -> web.Response:
        status = self.status()
        gauges = {
            "slots": ("Conversations there is room for.", status["slots"]),
            "slots_free": ("Of those, free.", status["free"]),
            "calls": ("Conversations, broken ones in their grace included.", len(self.calls)),
            "backlog": ("Conversations that waited when the last step ended.", self.metrics.backlog),
            "gpu_memory_bytes": ("GPU memory in use.", status.get("gpu_memory_bytes", 0)),
            "draining": ("1 while no new calls are taken.", int(self.draining)),
        }
        counters = {}
        if self.transcriber is not None:
            words = status["words"]
            gauges |= {
                "words_lag_seconds": ("How long callers' words wait at most.", words["lag_s"]),
                "words_unavailable_calls": ("Calls without words at the moment.", words["unavailable"]),
                "words_workers": ("Processes that transcribe.", words["workers"]),
            }
            counters = {
                "words_lost_frames": ("Frames that were not transcribed.", words["lost_frames"]),
                "words_restarts": ("Transcribing processes that ended and were replaced.", words["restarts"]),
            }
        return web.Response(
            text=self.metrics.text(gauges, counters), content_type="text/plain", charset="utf-8"
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-Sent Events; ``Last-Event-ID`` or ``?after=`` replays what is still kept."""
        try:
            after = int(request.headers.get("Last-Event-ID") or request.query.get("after") or self.sequence)
        except ValueError:
            raise web.HTTPBadRequest(text="Last-Event-ID is the number of an event") from None
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        self.listening += 1
        try:
            await self._tell(response, after)
        finally:
            self.listening -= 1
        return response

    async def _tell(self, response: web.StreamResponse, after: int) -> None:
        """Write events after number ``after`` as they come, until the engine or the reader ends."""
        while not self.over.is_set():
            new = min(self.sequence - after, len(self.events))
            for number, kind, content in list(islice(reversed(self.events), new))[::-1]:
                await response.write(f"id: {number}\nevent: {kind}\ndata: {json.dumps(content)}\n\n".encode())
                after = number
            async with self.news:
                if self.sequence == after:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self.news.wait(), 15)
            if self.sequence == after:
                await response.write(b": still here\n\n")

    def door(self) -> web.Application:
        """Return what callers reach."""
        app = web.Application()
        app.router.add_get("/api/chat", self.chat)
        return app

    def window(self) -> web.Application:
        """Return what operators see; nginx does not publish it."""
        app = web.Application()
        for path, handler in (
            ("/health", self._health), ("/ready", self._ready), ("/status", self._status),
            ("/metrics", self._metrics), ("/events", self._stream),
        ):  # fmt: skip
            app.router.add_get(path, handler)
        app.router.add_post("/calls/{id}/end", self._hang_up)
        return app


class Refused(Exception):  # noqa: N818 - what happens to the caller
    """A call is not taken; the message is for the caller."""

    def __init__(self, code: str, message: str, close: int) -> None:
        super().__init__(message)
        self.code = code
        self.close = close
