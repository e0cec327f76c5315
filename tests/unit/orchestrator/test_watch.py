"""Trouble is told when it stays, and once a day."""

from __future__ import annotations

import asyncio
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from orchestrator.health import Status, Verdict
from orchestrator.watch import certificate_life, judge_certificate, told_now, why_not_renewed

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
WELL, DOWN = Verdict(Status.OK, "fine"), Verdict(Status.UNHEALTHY, "moshi@0 does not run. Mend: …")


def test_what_is_seen_twice_in_a_row_is_told() -> None:
    bad, events = told_now(frozenset(), {"engines": DOWN, "disk": WELL}, NOON)
    assert events == []  # it may be a restart
    bad, events = told_now(bad, {"engines": DOWN, "disk": WELL}, NOON)
    assert [(event.name, event.kind) for event in events] == [("trouble:engines:20261124", "trouble")]
    assert events[0].facts["detail"] == "moshi@0 does not run. Mend: …"
    bad, events = told_now(bad, {"engines": WELL, "disk": WELL}, NOON)
    assert (bad, events) == (frozenset(), [])


def test_the_same_trouble_is_the_same_event_until_the_next_day() -> None:
    names = {
        told_now(frozenset({"disk"}), {"disk": DOWN}, NOON + timedelta(hours=hours))[1][0].name
        for hours in (0, 6, 13)
    }
    assert names == {"trouble:disk:20261124", "trouble:disk:20261125"}


@pytest.mark.parametrize("status", [Status.STARTING, Status.OK])
def test_a_line_that_starts_is_in_no_trouble(status: Status) -> None:
    assert told_now(frozenset({"engines"}), {"engines": Verdict(status, "")}, NOON) == (frozenset(), [])


@pytest.mark.parametrize(
    ("life", "left", "status"),
    [
        (397, 60, Status.OK),
        (90, 14, Status.OK),
        (90, 13, Status.DEGRADED),
        (90, -1, Status.UNHEALTHY),
        (6, 3, Status.OK),
        (6, 1, Status.DEGRADED),
    ],
)
def test_how_long_a_certificate_holds(life: int, left: int, status: Status) -> None:
    ends = NOON + timedelta(days=left)
    assert judge_certificate(ends - timedelta(days=life), ends, NOON).status is status


def test_a_certificate_that_is_not_renewed_is_told_at_once_and_why(tmp_path: Path) -> None:
    assert why_not_renewed(tmp_path / "trouble") == ""
    (tmp_path / "trouble").write_text("Cloudflare refuses the key. Mend: set tls_dns_token to another.\n")
    trouble = why_not_renewed(tmp_path / "trouble")
    told = judge_certificate(NOON - timedelta(days=61), NOON + timedelta(days=29), NOON, trouble)
    assert told.status is Status.DEGRADED
    assert told.detail == (
        "the certificate holds until 2026-12-23 12:00 UTC and is not renewed. "
        "Cloudflare refuses the key. Mend: set tls_dns_token to another."
    )


async def test_the_certificate_is_read_from_the_port_whoever_signed_it(tmp_path: Path) -> None:
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOON - timedelta(days=900))
        .not_valid_after(NOON - timedelta(days=800))  # it ran out: that is what is to be seen
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + made.public_bytes(serialization.Encoding.PEM)
    (tmp_path / "both.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    async with await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        assert await certificate_life(port) == (NOON - timedelta(days=900), NOON - timedelta(days=800))
    assert await certificate_life(port) is None
