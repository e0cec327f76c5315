"""One call: connect, speak in real time, write down what came when. What it means is measure.py's business.

The hot path does next to nothing, so that many callers fit into one process and the figures are the line's:
the messages are encoded before (speech.py), a message that comes in gets a time stamp and is put aside.

Times are time.monotonic() of this process. A frame's time is taken just before it is handed to the socket, so
this side's TLS and system call count as the line's; an answer's time when the event loop hands it over.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from json import JSONDecodeError, loads
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast
from urllib.parse import parse_qs, urlsplit, urlunsplit

import aiohttp

from caller.errors import AddressError
from caller.measure import FRAME_S
from caller.speech import Speech

Outcome = Literal["ok", "unreachable", "untrusted", "refused", "busy", "down", "silent", "broke", "garbage"]
"""How a call ended.

ok: to its end. unreachable: no connection, or something that is no voice line. untrusted: the certificate.
refused: this caller may not speak. busy: not now. down: the line answers, its engine does not. silent: the
connection stands and nothing comes. broke: it ended early. garbage: what came is no Ogg/Opus.
"""

HANDSHAKE, AUDIO, TEXT, METADATA, ERROR = 0, 1, 2, 4, 5
CLOSE_ABNORMAL, CLOSE_NOT_ALLOWED, CLOSE_TRY_LATER = 1006, 1008, 1013
CLOSE_WORDS = {
    1000: "closed in good order",
    1001: "going away: the server stops or restarts",
    1006: "cut without a closing frame: the engine was killed, or threw the call out for what it read",
    1008: "not allowed",
    1009: "a message was too big",
    1011: "the server failed",
    1012: "the server restarts",
    1013: "try again later",
}


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    connect_s: float = 10.0
    """Name, TCP, TLS and upgrade together."""
    engine_s: float = 10.0
    """From the upgrade to kind 0. moshi.server lets a second caller wait here for ever."""
    stall_s: float = 5.0
    """Without audio in the middle of the call."""
    quiet_s: float = 0.5
    """After the last frame: this long without audio means that the engine has said everything."""
    drain_s: float = 5.0
    """After the last frame at most."""


@dataclass
class Recording:
    """What came when. Times are seconds of one clock; None: it did not come to that."""

    url: str
    started_at: datetime
    outcome: Outcome = "ok"
    reason: str = ""
    dialled: float = 0.0
    resolved: float | None = None
    connected: float | None = None
    secured: float | None = None
    upgraded: float | None = None
    greeted: float | None = None
    tls: str | None = None
    """Protocol and cipher, for example `TLSv1.3 TLS_AES_256_GCM_SHA384`."""
    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    audio: list[tuple[float, bytes]] = field(default_factory=list)
    text: list[tuple[float, bytes]] = field(default_factory=list)
    metadata: list[tuple[float, bytes]] = field(default_factory=list)
    speech: str = ""
    unexpected: int = 0
    """Messages of no known kind, or text frames."""
    drained: bool = False
    """The engine had fallen silent when the call ended."""
    close_code: int | None = None
    close_reason: str = ""
    error: dict[str, str] | None = None
    """Kind 5: code and message."""


class Stop(Exception):  # noqa: N818 - not an error but the end of a call that did not reach its end
    """Ends a call early with an outcome and one sentence."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome: Outcome = outcome
        self.reason = reason


class _StopwatchContext(ssl.SSLContext):
    """A TLS context that knows when the TLS handshake began, which aiohttp does not tell."""

    began: float | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        self.began = time.monotonic()
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def tls(ca: Path | None, insecure: bool) -> _StopwatchContext:
    """Make the TLS settings of one call: the system's authorities and `ca`, or no check at all.

    Raises AddressError when `ca` is no certificate.
    """
    context = _StopwatchContext(ssl.PROTOCOL_TLS_CLIENT)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_default_certs()
    if ca is not None:
        try:
            context.load_verify_locations(cafile=str(ca))
        except FileNotFoundError as error:
            raise AddressError(f"{ca}: no such file; the line's own CA is at /hotline-ca.pem") from error
        except (ssl.SSLError, OSError) as error:
            raise AddressError(f"{ca}: not a certificate in PEM form ({error})") from error
    return context


def address(url: str) -> str:
    """Turn what a person types into the WebSocket URL of the line.

    `https://host:8998` and `host:8998` become `wss://host:8998/api/chat`, http becomes ws; a path and a query
    (a ticket) are kept. Raises AddressError.
    """
    schemes = {"https": "wss", "wss": "wss", "http": "ws", "ws": "ws"}
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        usable = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise AddressError(f"{url}: not the address of a line; give one like https://HOST:8998")
    path = parts.path if parts.path.strip("/") else "/api/chat"
    return urlunsplit((schemes[parts.scheme], parts.netloc, path, parts.query, ""))


def token_of(link: str) -> str | None:
    """Return what a link (`https://HOST:8998/#t=…`) holds; None of an address that is no link."""
    try:
        return parse_qs(urlsplit(link).fragment).get("t", [None])[0]
    except ValueError:
        return None


def _printable_url(url: str) -> str:
    """The URL as it may be printed: a query holds a ticket, and a user may come with a password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


async def metronome(
    beats: int,
    start: float,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
    strike: Callable[[int, float], Awaitable[object]],
) -> None:
    """Call `strike(i, due)` at `start + i * 80 ms` for i in 0 … beats - 1, without drift.

    A late beat does not move the ones after it: they come at once until the clock is caught up, as a
    microphone's frames do.
    """
    for beat in range(beats):
        due = start + beat * FRAME_S
        wait = due - now()
        if wait > 0:
            await sleep(wait)
        await strike(beat, due)


async def call(
    url: str,
    speech: Speech,
    *,
    ca: Path | None = None,
    insecure: bool = False,
    patience: Patience | None = None,
    origin: str | None = None,
    start_at: float | None = None,
    token: str | None = None,
) -> Recording:
    """Call the line at `url` (see `address`), say `speech`, hang up. Its failures are in the recording.

    `token` is a link's (see `token_of`): it is redeemed first, and the call made with the key that it gives.
    `origin` is the Origin header, by default that of the URL, as a browser on the line's own page sends it.
    `start_at` is the time.monotonic() of the first frame, by default that of the greeting: so several callers
    can be set against each other by less than a frame. Raises AddressError for a URL or CA file that cannot
    be used.
    """
    target = address(url)
    parts = urlsplit(target)
    secure = parts.scheme == "wss"
    context = tls(ca, insecure) if secure else None
    recording = Recording(_printable_url(target), datetime.now(timezone.utc), speech=speech.name)
    conversation = _Conversation(recording, speech, patience or Patience(), context, start_at)
    own_origin = f"{'https' if secure else 'http'}://{parts.netloc.rpartition('@')[2]}"
    try:
        await conversation.hold(target, origin or own_origin, token)
    except Stop as stop:
        recording.outcome, recording.reason = stop.outcome, stop.reason
    return recording


class _Conversation:
    def __init__(
        self,
        recording: Recording,
        speech: Speech,
        patience: Patience,
        context: _StopwatchContext | None,
        start_at: float | None,
    ) -> None:
        self.start_at = start_at
        self.recording = recording
        self.speech = speech
        self.patience = patience
        self.context = context
        self.last_heard = 0.0
        self.longest_pause = 0.0
        self.hanging_up = False

    async def hold(self, target: str, origin: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {await self._redeem(target, origin, token)}"} if token else {}
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self.context if self.context is not None else True),
            trace_configs=[self._stopwatch()],
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            socket = await self._dial(session, target, origin, headers)
            try:
                await self._talk(socket)
            finally:
                await self._hang_up(socket)

    def _stopwatch(self) -> aiohttp.TraceConfig:
        recording = self.recording

        async def resolved(*_: object) -> None:
            recording.resolved = time.monotonic()

        async def connected(*_: object) -> None:
            at = time.monotonic()
            began = self.context.began if self.context is not None else None
            recording.connected = at if began is None else began
            recording.secured = at if began is not None else None

        trace = aiohttp.TraceConfig(trace_config_ctx_factory=SimpleNamespace)
        trace.on_dns_resolvehost_end.append(resolved)
        trace.on_connection_create_end.append(connected)
        return trace

    async def _redeem(self, target: str, origin: str, token: str) -> str:
        """Open a link as the page does; return the key. Over a connection of its own: the call's is timed."""
        parts = urlsplit(target)
        url = urlunsplit((parts.scheme.replace("ws", "http"), parts.netloc, "/api/links/redeem", "", ""))
        place = parts.netloc.rpartition("@")[2]
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self.context if self.context is not None else True),
                    timeout=aiohttp.ClientTimeout(total=self.patience.connect_s),
                ) as session,
                session.post(url, json={"token": token}, headers={"Origin": origin}) as answered,
            ):
                body = await answered.json(content_type=None)
                if answered.ok:
                    return str(body["key"])
                words = str(body.get("detail") or f"HTTP {answered.status}")
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._explain(error) from error
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Stop(
                "unreachable", f"{place} does not know what a link is: no orchestrator answers there"
            ) from None
        busy = answered.status in (429, 502, 503, 504)
        raise Stop("busy" if busy else "refused", f"the link was not taken: {words}")

    async def _dial(
        self, session: aiohttp.ClientSession, target: str, origin: str, headers: dict[str, str]
    ) -> aiohttp.ClientWebSocketResponse:
        recording = self.recording
        recording.dialled = time.monotonic()
        try:
            socket = await asyncio.wait_for(
                session.ws_connect(target, origin=origin, headers=headers, max_msg_size=1 << 20),
                self.patience.connect_s,
            )
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            raise self._explain(error) from error
        recording.upgraded = time.monotonic()
        secured = socket.get_extra_info("ssl_object")
        if secured is not None:
            recording.tls = f"{secured.version()} {secured.cipher()[0]}"
        return socket

    def _explain(self, error: Exception) -> Stop:
        place = urlsplit(self.recording.url).netloc
        if isinstance(error, asyncio.TimeoutError):
            reached = (
                "accepts connections but does not answer" if self.recording.connected else "does not answer"
            )
            mend = "is a firewall in the way, or is it the wrong address?"
            return Stop("unreachable", f"{place} {reached} within {self.patience.connect_s:g} s: {mend}")
        if self.context is None and isinstance(error, aiohttp.ClientSSLError):
            return Stop("unreachable", f"{place} sends plain http on to https: give https:// or wss://")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            cause = error.certificate_error
            why = getattr(cause, "verify_message", "") or str(cause)
            mend = "give its own CA with --ca (it is at /hotline-ca.pem), or do not check with --insecure"
            return Stop("untrusted", f"the certificate of {place} is not trusted ({why}): {mend}")
        if isinstance(error, aiohttp.ClientSSLError):
            return Stop(
                "unreachable", f"{place} does not speak TLS: is it a plain line? Then give http:// or ws://"
            )
        if isinstance(error, aiohttp.WSServerHandshakeError):
            return _refused_upgrade(place, error.status)
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
            error.os_error, ConnectionRefusedError
        ):
            return Stop(
                "unreachable", f"nothing listens on {place}: is nginx running there (hotline logs nginx)?"
            )
        if isinstance(error, aiohttp.ClientConnectorError):
            return Stop(
                "unreachable", f"{place} cannot be reached: {error.os_error.strerror or error.os_error}"
            )
        what = str(error) or type(error).__name__
        return Stop("unreachable", f"{place} is no voice line, it broke off during the upgrade: {what}")

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        recording, patience = self.recording, self.patience
        try:
            await asyncio.wait_for(self._greeting(socket), patience.engine_s)
        except asyncio.TimeoutError:
            raise Stop(
                "silent",
                f"the line took the call and then said nothing for {patience.engine_s:g} s: its engine talks "
                "with somebody else (moshi.server carries one conversation and lets a second caller wait "
                "without a word), or it hangs",
            ) from None
        start = max(cast(float, recording.greeted), self.start_at or 0.0)
        self.last_heard = start
        listening = asyncio.create_task(self._listen(socket))
        speaking = asyncio.create_task(self._speak(socket, start))
        watching = asyncio.create_task(self._watch())
        tasks = (listening, speaking, watching)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done() and not (listening.done() or watching.done()):
                if speaking.exception() is None:
                    await self._drain(listening)
                    await self._hang_up(socket)
                else:  # writing failed: what was read at the end says why
                    await asyncio.wait({listening}, timeout=1)
            for task in tasks:
                if task.done():
                    task.result()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Stop("broke", self._broken(1006, str(error))) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _greeting(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while self.recording.greeted is None:
            self._note(await socket.receive(), time.monotonic())

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while not self.hanging_up:
            message = await socket.receive()
            self._note(message, time.monotonic())

    async def _speak(self, socket: aiohttp.ClientWebSocketResponse, start: float) -> None:
        recording, messages = self.recording, self.speech.messages

        async def strike(beat: int, due: float) -> None:
            recording.due.append(due)
            recording.sent.append(time.monotonic())
            await socket.send_bytes(messages[beat])

        await metronome(len(messages), start, time.monotonic, asyncio.sleep, strike)

    async def _hang_up(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Close; an engine that is too busy to say goodbye leaves no close code behind."""
        self.hanging_up = True
        with suppress(asyncio.TimeoutError, aiohttp.ClientError, ConnectionError):
            await asyncio.wait_for(socket.close(), 2)
        if self.recording.close_code is None and socket.close_code != CLOSE_ABNORMAL:
            self.recording.close_code = socket.close_code

    async def _watch(self) -> None:
        """Give up when the engine has said nothing for too long."""
        stall = self.patience.stall_s
        while True:
            left = self.last_heard + stall - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(left)
        said = len(self.recording.audio)
        since = f"after {said} messages of audio the engine" if said else "the engine greeted and then"
        raise Stop("silent", f"{since} fell silent for {stall:g} s while it was spoken to: it hangs")

    async def _drain(self, listening: asyncio.Task[None]) -> None:
        """Wait until the engine has said everything, or the patience is at its end.

        Silence counts as the end only when it is twice as long as any pause the engine made before.
        """
        last_sent = time.monotonic()
        end = last_sent + self.patience.drain_s
        while not listening.done():
            now = time.monotonic()
            quiet = max(self.patience.quiet_s, 2 * self.longest_pause)
            silent_at = max(self.last_heard, last_sent) + quiet
            if now >= min(silent_at, end):
                self.recording.drained = now >= silent_at
                return
            await asyncio.wait({listening}, timeout=min(silent_at, end) - now)

    def _note(self, message: aiohttp.WSMessage, at: float) -> None:
        recording = self.recording
        if message.type is aiohttp.WSMsgType.BINARY and message.data:
            kind, payload = message.data[0], message.data[1:]
            if kind == AUDIO:
                if recording.audio:
                    self.longest_pause = max(self.longest_pause, at - self.last_heard)
                recording.audio.append((at, payload))
                self.last_heard = at
            elif kind == TEXT:
                recording.text.append((at, payload))
            elif kind == HANDSHAKE:
                recording.greeted = recording.greeted or at
            elif kind == METADATA:
                recording.metadata.append((at, payload))
            elif kind == ERROR:
                self._refusal(payload)
            else:
                recording.unexpected += 1
        elif message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            if self.hanging_up:
                return
            code = message.data if isinstance(message.data, int) else 1006
            recording.close_code, recording.close_reason = code, str(message.extra or "")
            raise Stop(self._closed_outcome(code), self._broken(code, recording.close_reason))
        elif message.type is aiohttp.WSMsgType.ERROR:
            recording.close_code = 1006
            raise Stop("broke", self._broken(1006, str(message.data)))
        else:
            recording.unexpected += 1

    def _refusal(self, payload: bytes) -> None:
        """Kind 5: the line says in words why not."""
        try:
            body = loads(payload)
            code, words = str(body["code"]), str(body["message"])
        except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            code, words = "unknown", payload.decode("utf-8", errors="replace")
        self.recording.error = {"code": code, "message": words}
        outcomes: dict[str, Outcome] = {
            "line_full": "busy",
            "not_allowed": "refused",
            "line_down": "down",
            "starting": "down",
        }
        fallback: Outcome = "broke" if self.recording.greeted else "refused"
        raise Stop(outcomes.get(code, fallback), f"the line said: {words} ({code})")

    def _closed_outcome(self, code: int) -> Outcome:
        if self.recording.greeted is None:
            early: dict[int, Outcome] = {CLOSE_NOT_ALLOWED: "refused", CLOSE_TRY_LATER: "busy"}
            return early.get(code, "broke")
        return "broke"

    def _broken(self, code: int, why: str) -> str:
        recording = self.recording
        if recording.greeted is None:
            moment = "before the engine greeted"
        else:
            moment = f"after {len(recording.sent)} of {len(self.speech.messages)} frames"
        words = CLOSE_WORDS.get(code, "no meaning is known for this code")
        return f"the line closed {moment} with code {code} ({words}{': ' + why if why else ''})"


def _refused_upgrade(place: str, status: int) -> Stop:
    """Say what an HTTP status in the place of 101 means."""
    if status in (401, 403):
        return Stop(
            "refused", f"{place} does not let this caller in (HTTP {status}): a link's ticket is needed"
        )
    if status == 404:
        return Stop("unreachable", f"{place} has no voice line at this path (HTTP 404); it is /api/chat")
    if status in (429, 503):
        return Stop(
            "busy", f"{place} takes no call now (HTTP {status}): the line is busy or starting, try again"
        )
    if status in (502, 504):
        return Stop("down", f"{place} answers but its engine does not (HTTP {status}): hotline logs moshi@0")
    return Stop(
        "unreachable", f"{place} answers, but not as a voice line (HTTP {status} in the place of 101)"
    )
