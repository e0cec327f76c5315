"""Trouble becomes a message: engines that stay down, a disk that fills, a certificate that runs out.

What is seen at two looks in a row is trouble (a restart is not), and is told once a day for as long as it is
so. Deciding is pure: `told_now`, `judge_certificate`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from orchestrator.health import Health, Status, Verdict
from orchestrator.outbox import Event, Outbox
from orchestrator.probes import trust_nobody_needs
from orchestrator.settings import Settings
from orchestrator.storage import now

LOOK_S = 60.0
CERTIFICATE_S = 3.0
LITTLE_TIME = timedelta(days=14)
"""A certificate that renews itself is renewed well before; one of some days has a fifth of its life."""
NOT_RENEWED = Path("/var/lib/hotline/certificate/trouble")
"""Where what renews certificates (role `tls`) says why it could not; not there while it could."""

TITLES = {
    "engines": "The voice of your line is in trouble",
    "disk": "The disk of your line is nearly full",
    "certificate": "The certificate of your line is in trouble",
}

log = logging.getLogger("orchestrator.watch")


def judge_certificate(begins: datetime, ends: datetime, moment: datetime, trouble: str = "") -> Verdict:
    """Judge how long a certificate still holds; ``trouble`` is why it could not be renewed, if so."""
    left = ends - moment
    mend = trouble or "Mend: run site.yml again, or renew the certificate that tls_provider: manual was given"
    if left <= timedelta(0):
        return Verdict(Status.UNHEALTHY, f"the certificate ran out on {ends:%Y-%m-%d}. {mend}")
    if trouble:
        return Verdict(
            Status.DEGRADED,
            f"the certificate holds until {ends:%Y-%m-%d %H:%M} UTC and is not renewed. {mend}",
        )
    if left < min(LITTLE_TIME, (ends - begins) / 5):
        return Verdict(
            Status.DEGRADED, f"the certificate holds for {left.days} more days, until {ends:%Y-%m-%d}. {mend}"
        )
    return Verdict(Status.OK, f"the certificate holds until {ends:%Y-%m-%d}")


def told_now(
    before: frozenset[str], seen: Mapping[str, Verdict], moment: datetime
) -> tuple[frozenset[str], list[Event]]:
    """Return what is in trouble at this look, and the events of what was so at the last one as well."""
    bad = {what for what, seen_so in seen.items() if seen_so.status in (Status.DEGRADED, Status.UNHEALTHY)}
    events = [Event.trouble(what, moment, TITLES[what], seen[what].detail) for what in sorted(bad & before)]
    return frozenset(bad), events


async def certificate_life(port: int) -> tuple[datetime, datetime] | None:
    """Return from when to when the certificate on a port of this machine holds; None if none is seen."""
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", port, ssl=trust_nobody_needs(), server_hostname="localhost"),
            CERTIFICATE_S,
        )
    except (OSError, asyncio.TimeoutError, ssl.SSLError):
        return None
    try:
        secured = writer.get_extra_info("ssl_object")
        der = secured.getpeercert(binary_form=True) if secured is not None else None
        if not der:
            return None
        shown = x509.load_der_x509_certificate(der)
        return shown.not_valid_before_utc, shown.not_valid_after_utc
    except ValueError:
        return None
    finally:
        writer.close()


def why_not_renewed(file: Path = NOT_RENEWED) -> str:
    """Return why the certificate could not be renewed; nothing while it could."""
    try:
        return file.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


class Watch:
    """Looks at the line every minute and tells of trouble."""

    def __init__(
        self, settings: Settings, health: Health, outbox: Outbox, *, clock: Callable[[], datetime] = now
    ) -> None:
        self._settings = settings
        self._health = health
        self._outbox = outbox
        self._clock = clock
        self._before: frozenset[str] = frozenset()

    async def look(self) -> None:
        """Look once."""
        engines, disk = await self._health.seen()
        seen = {"engines": engines, "disk": disk}
        if self._settings.tls_provider != "none":
            life = await certificate_life(self._settings.line_port)
            trouble = why_not_renewed() if self._settings.tls_provider == "acme" else ""
            if life is not None:
                seen["certificate"] = judge_certificate(*life, self._clock(), trouble)
        self._before, events = told_now(self._before, seen, self._clock())
        for event in events:
            if await self._outbox.tell(event):
                log.warning("trouble is told", extra={"event": event.name})
