"""An authority and a name server on loopback, both real: Debian's pebble (ACME) and knot (RFC 2136)."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECRET = "dGhpcyBpcyBub3QgYSBzZWNyZXQsIGp1c3QgYSB0ZXN0"
KEY_NAME = "hotline"
ZONE = "line.test"


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for localhost that vouches for itself: what pebble itself is reached with."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pebble of a test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, file = folder / "pebble-key.pem", folder / "pebble.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, file


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, log: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program for as long as it is needed; what it says is in a file of the folder."""
    with (folder / log).open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


class NameServer:
    """Knot, primary of one zone that a TSIG key may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Knot runs, and answers for its zone."""
        (self.folder / "zone").write_text(
            f"$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns.{ZONE}. nobody.{ZONE}. 1 60 60 600 1\n@ NS ns.{ZONE}.\n"
            "ns A 127.0.0.1\nhere A 127.0.0.1\n"
        )
        (self.folder / "knot.conf").write_text(f"""
server:
  rundir: "{self.folder}/run"
  listen: 127.0.0.1@{self.port}
database:
  storage: "{self.folder}/db"
key:
  - id: {KEY_NAME}
    algorithm: hmac-sha256
    secret: {SECRET}
acl:
  - id: change
    key: {KEY_NAME}
    action: update
zone:
  - domain: {ZONE}
    file: "{self.folder}/zone"
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
    acl: change
""")
        (self.folder / "run").mkdir()
        with running(["/usr/sbin/knotd", "-c", str(self.folder / "knot.conf")], self.folder, "knot.log"):
            for _ in range(200):
                with contextlib.suppress(OSError):
                    if self.ask("here", "A"):
                        break
                time.sleep(0.05)
            yield

    def ask(self, below: str, kind: str) -> set[str]:
        """The values of a record set below the zone."""
        answer = dns.query.tcp(
            dns.message.make_query(f"{below}.{ZONE}" if below else ZONE, kind), "127.0.0.1", 5, self.port
        )
        return {value.to_text().strip('"') for rrset in answer.answer for value in rrset}

    def settings(self, **more: str) -> dict[str, str]:
        """How a key of ours reaches it."""
        return {
            "provider": "rfc2136",
            "server": self.address,
            "key_name": KEY_NAME,
            "key_algorithm": "hmac-sha256",
            "token": SECRET,
            "zone": "",
            "url": "",
            **more,
        }


class Authority:
    """Pebble, which looks names up at our name server and connects to a port of ours instead of 80."""

    def __init__(self, folder: Path, name_server: NameServer) -> None:
        self.folder, self._name_server = folder, name_server
        self.port, self.management, self.http_port = free_port(), free_port(), free_port()
        self.directory = f"https://localhost:{self.port}/dir"
        self.key_file, self.bundle = own_certificate(folder)

    @contextlib.contextmanager
    def serving(self, life_s: int = 90 * 86400) -> Iterator[None]:
        """Pebble runs; what it issues lives for so long."""
        (self.folder / "pebble.json").write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"127.0.0.1:{self.port}",
                        "managementListenAddress": f"127.0.0.1:{self.management}",
                        "certificate": str(self.bundle),
                        "privateKey": str(self.key_file),
                        "httpPort": self.http_port,
                        "tlsPort": free_port(),
                        "ocspResponderURL": "",
                        "externalAccountBindingRequired": False,
                        "certificateValidityPeriod": life_s,
                    }
                }
            )
        )
        command = ["pebble", "-strict", "-config", "pebble.json", "-dnsserver", self._name_server.address]
        with running(command, self.folder, "pebble.log", PEBBLE_VA_NOSLEEP="1", PEBBLE_WFE_NONCEREJECT="0"):
            for _ in range(200):
                with contextlib.suppress(requests.exceptions.ConnectionError):
                    requests.get(self.directory, verify=str(self.bundle), timeout=5)
                    break
                time.sleep(0.05)
            yield

    def root(self) -> bytes:
        """The certificate that what it issues leads to; another one each time that it starts."""
        return requests.get(
            f"https://localhost:{self.management}/roots/0", verify=str(self.bundle), timeout=5
        ).content


@pytest.fixture(scope="module")
def name_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NameServer]:
    """A name server for the tests of one file."""
    server = NameServer(tmp_path_factory.mktemp("knot"))
    with server.serving():
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, name_server: NameServer) -> Iterator[Authority]:
    """An authority for the tests of one file."""
    one = Authority(tmp_path_factory.mktemp("pebble"), name_server)
    with one.serving():
        yield one
