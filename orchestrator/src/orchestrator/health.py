"""Is the line well? For people, for providers' probes, and for whoever mends it.

``/health``       ready: what callers need, seen without asking anybody. 200 when ok or degraded, else 503.
``/health/live``  503 only when waiting cannot help: every engine's circuit breaker is open.
``/health/deep``  asks the neighbours as well: engines and nginx by HTTP, the disk, nvidia-smi.

Every reason is a sentence that names what mends it. Judging is pure (the ``judge_…`` functions); a `Check`
does the looking, bounded in time, and never twice at once: a check that hangs is waited for again, not
started again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from orchestrator import __version__
from orchestrator.engines import Condition, Engine, EngineFiles, SocketsUnreadableError, sentence_of
from orchestrator.line import Line
from orchestrator.probes import (
    Gpu,
    NoNvidiaSmiError,
    ProbeError,
    Space,
    gpus,
    http_status,
    space_at,
    trust_nobody_needs,
)

CHECK_S = 2.0
MIB = 1 << 20
LITTLE_SPACE = 2048 * MIB  # less is worth a word: logs, downloads and the next update need room
NO_SPACE = 200 * MIB  # less, and the next write may be the one that fails

log = logging.getLogger("orchestrator.health")
router = APIRouter(include_in_schema=False)


class Status(str, Enum):
    """How well something is, from good to bad."""

    OK = "ok"
    DEGRADED = "degraded"
    STARTING = "starting"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class Verdict:
    """What one look says: a status, a sentence, and how long the look took."""

    status: Status
    detail: str
    ms: float = 0.0
    hopeless: bool = False  # waiting cannot help


def worst(statuses: Iterable[Status]) -> Status:
    """Return the worst of some statuses; of none, ok."""
    order = list(Status)
    return max(statuses, key=order.index, default=Status.OK)


def judge_engines(engines: Sequence[Engine], silent: Mapping[int, str]) -> Verdict:
    """Judge the engines. ``silent`` has, by number, why one whose port is open does not answer."""
    sentences = []
    for engine in engines:
        if engine.number in silent:
            sentences.append(
                f"{engine.name} does not answer: {silent[engine.number]}. "
                f"Mend, if it stays so: hotline restart {engine.name}"
            )
        elif engine.condition is not Condition.READY:
            sentences.append(sentence_of(engine))
    well = [e for e in engines if e.condition is Condition.READY and e.number not in silent]
    talking = sum(len(engine.callers) for engine in engines)
    if not sentences:
        told = all(engine.told is not None for engine in engines)
        room = f" of {sum(engine.conversations for engine in engines)}" if told else ""
        return Verdict(
            Status.OK, f"{len(well)} of {len(engines)} engines ready, {talking}{room} in conversation"
        )
    detail = "; ".join(sentences)
    if well:
        return Verdict(Status.DEGRADED, detail)
    if any(engine.condition is Condition.STARTING for engine in engines):
        return Verdict(Status.STARTING, detail)
    return Verdict(
        Status.UNHEALTHY, detail, hopeless=all(engine.condition is Condition.BROKEN for engine in engines)
    )


def judge_disk(space: Space, where: str) -> Verdict:
    """Judge the room that is left on the disk."""
    left = f"{space.free // MIB} MiB of {space.total // MIB} MiB are free where {where} lies"
    if space.free >= LITTLE_SPACE:
        return Verdict(Status.OK, left)
    mend = "Mend: make room (df -h; journalctl --vacuum-size=200M) or give the machine a larger disk"
    if space.free >= NO_SPACE:
        return Verdict(Status.DEGRADED, f"the disk is nearly full: {left}. {mend}")
    return Verdict(Status.UNHEALTHY, f"the disk is full: {left}. {mend}")


def judge_gpus(found: Sequence[Gpu], engines: Sequence[int]) -> Verdict:
    """Judge the GPUs: each engine needs its own."""
    missing = sorted(set(engines) - {gpu.number for gpu in found})
    if missing:
        return Verdict(
            Status.UNHEALTHY,
            f"nvidia-smi does not show GPU {', '.join(map(str, missing))}. "
            "Mend: reboot the machine; if it stays away, rent another",
        )

    def words(gpu: Gpu) -> str:
        known = gpu.used_mib is not None and gpu.total_mib is not None
        return f"{gpu.name}{f', {gpu.used_mib} of {gpu.total_mib} MiB used' if known else ''}"

    return Verdict(Status.OK, "; ".join(words(gpu) for gpu in found))


@dataclass
class Check:
    """One look, run at most once at a time and waited for at most ``limit`` seconds."""

    name: str
    look: Callable[[], Awaitable[Verdict]]
    clock: Callable[[], float]
    limit: float = CHECK_S
    _running: asyncio.Task[Verdict] | None = field(default=None, repr=False)

    async def verdict(self) -> Verdict:
        """Look, or wait for the look that still goes on."""
        began = self.clock()
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._look())
        try:
            seen = await asyncio.wait_for(asyncio.shield(self._running), self.limit)
        except asyncio.TimeoutError:
            seen = Verdict(
                Status.UNHEALTHY, f"the check of {self.name} did not come back within {self.limit:g} s"
            )
        return Verdict(seen.status, seen.detail, round((self.clock() - began) * 1000, 1), seen.hopeless)

    async def _look(self) -> Verdict:
        try:
            return await self.look()
        except (ProbeError, SocketsUnreadableError) as error:
            return Verdict(Status.UNHEALTHY, str(error))
        except Exception:
            log.exception("the check of %s failed", self.name)
            return Verdict(
                Status.UNHEALTHY,
                f"the check of {self.name} itself failed; hotline logs orchestrator says how",
            )

    async def stop(self) -> None:
        """End a look that still goes on."""
        if self._running is not None and not self._running.done():
            self._running.cancel()
            await asyncio.wait([self._running], timeout=1.0)


class Health:
    """The checks of one line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._noted = ""
        self._tls = None if line.settings.tls_provider == "none" else trust_nobody_needs()
        clock = line.surroundings.clock
        self._seen = [
            Check("the engines", self._see_engines, clock),
            Check("the disk", self._see_disk, clock),
        ]
        self._deep = {
            "moshi": Check("the engines", self._ask_engines, clock),
            "nginx": Check("nginx", self._ask_nginx, clock),
            "disk": Check("the disk", self._see_disk, clock),
            "gpu": Check("the GPU", self._ask_gpu, clock),
        }

    async def seen(self) -> list[Verdict]:
        """Look without asking anybody."""
        return list(await asyncio.gather(*(check.verdict() for check in self._seen)))

    async def asked(self) -> dict[str, Verdict]:
        """Ask everybody, all at the same time."""
        verdicts = await asyncio.gather(*(check.verdict() for check in self._deep.values()))
        return dict(zip(self._deep, verdicts, strict=True))

    def note(self, body: Mapping[str, Any]) -> None:
        """Log a state that is not the one seen before."""
        if body["status"] != self._noted:
            self._noted = body["status"]
            log.info("the line is %s", self._noted, extra={"reasons": body["reasons"]})

    async def stop(self) -> None:
        """End what still goes on."""
        await asyncio.gather(*(check.stop() for check in (*self._seen, *self._deep.values())))

    async def _engines(self) -> list[Engine]:
        seen = await self._line.look()
        files = await asyncio.to_thread(self._line.read_files)
        return [replace(engine, files=files.get(engine.number, EngineFiles())) for engine in seen.engines]

    async def _see_engines(self) -> Verdict:
        return judge_engines(await self._engines(), {})

    async def _ask_engines(self) -> Verdict:
        engines = await self._engines()

        async def silence_of(engine: Engine) -> str:
            try:
                # Without an upgrade an engine refuses at once, from the loop that carries its calls.
                await http_status(engine.port, "/api/chat", known_as=self._line.looks_in_from)
            except ProbeError as error:
                return str(error)
            return ""

        ready = [engine for engine in engines if engine.condition is Condition.READY]
        silences = await asyncio.gather(*(silence_of(engine) for engine in ready))
        return judge_engines(
            engines, {engine.number: why for engine, why in zip(ready, silences, strict=True) if why}
        )

    async def _ask_nginx(self) -> Verdict:
        mend = "Mend: hotline logs nginx, nginx -t, then run site.yml again"
        port = self._line.settings.line_port
        try:
            status = await http_status(port, "/health/startup", tls=self._tls)
        except ProbeError as error:
            return Verdict(Status.UNHEALTHY, f"nginx does not answer: {error}. {mend}")
        if status != 200:
            return Verdict(
                Status.UNHEALTHY,
                f"on port {port} something answers {status} where nginx says 200. {mend}",
            )
        return Verdict(Status.OK, f"answers on port {port}")

    async def _see_disk(self) -> Verdict:
        where = self._line.surroundings.state
        return judge_disk(await asyncio.to_thread(space_at, where), str(where))

    async def _ask_gpu(self) -> Verdict:
        if self._line.settings.moshi_device == "cpu":
            return Verdict(Status.OK, "not needed: the engine runs on the CPU")
        try:
            return judge_gpus(
                await gpus(self._line.surroundings.nvidia_smi), self._line.settings.line_engines
            )
        except NoNvidiaSmiError as error:
            return Verdict(
                Status.DEGRADED, f"{error}, so the GPU cannot be watched. Mend: run site.yml again"
            )
        except ProbeError as error:
            return Verdict(Status.UNHEALTHY, f"the GPU does not answer: {error}. Mend: reboot the machine")


def document(verdicts: Sequence[Verdict], **more: Any) -> dict[str, Any]:
    """Put verdicts together: the worst is the line's, what is not ok gives the reasons."""
    return {
        "status": worst(verdict.status for verdict in verdicts).value,
        "version": __version__,
        "reasons": [verdict.detail for verdict in verdicts if verdict.status is not Status.OK],
        **more,
    }


def ready_code(status: str) -> int:
    """Return the HTTP status for a line in this state."""
    return 200 if status in (Status.OK.value, Status.DEGRADED.value) else 503


def answer(body: Mapping[str, Any], code: int) -> JSONResponse:
    """Answer with a state, which is true now and not later."""
    return JSONResponse(body, status_code=code, headers={"Cache-Control": "no-store"})


@router.api_route("/health", methods=["GET", "HEAD"])
async def ready(request: Request) -> JSONResponse:
    """Say whether a caller can speak now."""
    health: Health = request.state.health
    body = document(await health.seen())
    health.note(body)
    return answer(body, ready_code(body["status"]))


@router.api_route("/health/live", methods=["GET", "HEAD"])
async def live(request: Request) -> JSONResponse:
    """Say whether waiting helps: a machine that only loads its weights must not be replaced."""
    health: Health = request.state.health
    verdicts = await health.seen()
    body = document(verdicts)
    health.note(body)
    return answer(body, 503 if any(verdict.hopeless for verdict in verdicts) else 200)


@router.api_route("/health/deep", methods=["GET", "HEAD"])
async def deep(request: Request) -> JSONResponse:
    """Say how every part is."""
    health: Health = request.state.health
    checks = await health.asked()
    body = document(
        list(checks.values()),
        checks={
            name: {"status": verdict.status.value, "detail": verdict.detail, "ms": verdict.ms}
            for name, verdict in checks.items()
        },
    )
    return answer(body, ready_code(body["status"]))
