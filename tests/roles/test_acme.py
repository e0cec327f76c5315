"""A certificate from an authority, for real: pebble issues it, knot has the names, nginx shows it.

What only Let's Encrypt has (limits, profiles) is told from problem documents as RFC 8555 writes them.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acme import messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.roles.acme import (  # noqa: F401 (fixtures)
    Authority,
    NameServer,
    authority,
    free_port,
    name_server,
    running,
)
from tests.roles.test_tls import Machine

ROOT = Path(__file__).parents[2]
FILES = ROOT / "roles/tls/files"
NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)

sys.path.insert(0, str(FILES))
_spec = importlib.util.spec_from_file_location("certificate", FILES / "certificate.py")
assert _spec
assert _spec.loader
certificate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(certificate)


class Line:
    """What the role lays down, and the program that it starts."""

    def __init__(self, folder: Path, one: Authority, names: NameServer) -> None:
        self.folder = folder
        (folder / "state").mkdir()
        self.chain, self.key = folder / "fullchain.pem", folder / "privkey.pem"
        self.trouble = folder / "state" / "trouble"
        self.settings: dict[str, Any] = {
            "directory": one.directory,
            "ca_bundle": str(one.bundle),
            "email": "",
            "profile": "",
            "challenge": "dns",
            "names": ["call.line.test"],
            "http_port": one.http_port,
            "key": str(self.key),
            "certificate": str(self.chain),
            "state": str(folder / "state"),
            "nginx_pid": str(folder / "nginx.pid"),
            "port": free_port(),
            "dns": names.settings(),
        }

    def command(self, what: str, **changes: Any) -> list[str]:
        """The command line, its settings written."""
        self.settings |= changes
        (self.folder / "settings.json").write_text(json.dumps(self.settings))
        return [sys.executable, str(FILES / "certificate.py"), str(self.folder / "settings.json"), what]

    def obtain(self, **changes: Any) -> tuple[int, str]:
        """Run it once: exit status, and what it said."""
        ran = subprocess.run(
            self.command("obtain", **changes), capture_output=True, text=True, timeout=300, check=False
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran.returncode, (ran.stdout + ran.stderr).strip()

    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain.read_bytes())


@pytest.fixture
def line(tmp_path: Path, authority: Authority, name_server: NameServer) -> Line:  # noqa: F811
    return Line(tmp_path, authority, name_server)


def test_a_name_is_proven_by_dns(line: Line, authority: Authority, name_server: NameServer) -> None:  # noqa: F811
    assert line.obtain(names=["call.line.test", "line.test"]) == (0, "changed")
    leaf = line.leaf()
    assert certificate.names_of(leaf) == {"call.line.test", "line.test"}
    assert leaf.public_key() == certificate.read_key(line.key).public_key()
    middle = x509.load_pem_x509_certificates(line.chain.read_bytes())[1]
    leaf.verify_directly_issued_by(middle)
    middle.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.root()))
    assert line.key.stat().st_mode & 0o777 == 0o600
    assert (line.folder / "state/account.pem").stat().st_mode & 0o777 == 0o600
    # nothing of the proof is left, and what serves is not asked for again
    assert name_server.ask("_acme-challenge.call", "TXT") == set()
    assert line.obtain() == (0, "unchanged")
    assert line.leaf() == leaf


def test_what_makes_a_certificate_due_keeps_the_key(line: Line) -> None:
    line.obtain()
    key, serials = line.key.read_bytes(), {line.leaf().serial_number}
    for changes in ({"names": ["other.line.test"]}, {"profile": "another"}):
        assert line.obtain(**changes) == (0, "changed")
        serials.add(line.leaf().serial_number)
    line.chain.write_text("-----BEGIN CERT")
    assert line.obtain() == (0, "changed")
    assert line.key.read_bytes() == key
    line.key.write_text("")
    assert line.obtain() == (0, "changed")
    assert line.key.read_bytes() not in (b"", key)
    assert len(serials) == 3


def test_a_name_is_proven_by_http_before_nginx_is_there(line: Line) -> None:
    assert line.obtain(challenge="http", dns={}, names=["here.line.test"]) == (0, "changed")
    assert certificate.names_of(line.leaf()) == {"here.line.test"}


def test_an_address_is_proven_by_http(line: Line) -> None:
    assert line.obtain(challenge="http", dns={}, names=["127.0.0.1"]) == (0, "changed")
    assert certificate.names_of(line.leaf()) == {"127.0.0.1"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the name does not resolve yet": (
        {"challenge": "http", "names": ["nowhere.line.test"]},
        "nowhere.line.test does not resolve",
    ),
    "port 80 is not ours": (
        {"challenge": "http", "names": ["here.line.test"], "http_port": 1},
        "cannot reach http://here.line.test/",
    ),
    "an address by dns": ({"names": ["127.0.0.1"]}, "set tls_acme_challenge to the other way"),
    "an authority that nobody trusts": ({"ca_bundle": ""}, "set tls_acme_ca_bundle"),
    "nobody there": ({"directory": "https://localhost:1/dir"}, "cannot be reached"),
    "mail to nobody": ({"email": "nonsense"}, "tls_acme_email"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_had_is_said_with_the_mend(line: Line, fault: str) -> None:
    changes, words = REFUSED[fault]
    status, said = line.obtain(**changes)
    assert status == 1
    assert words in said
    assert "Mend:" in said
    assert not line.chain.exists()


def test_a_wrong_key_of_the_dns_provider_is_said(line: Line, name_server: NameServer) -> None:  # noqa: F811
    status, said = line.obtain(dns=name_server.settings(token="d3Jvbmc="))
    assert status == 1
    assert "refuses the TSIG key" in said
    assert "d3Jvbmc=" not in said


def test_no_directory_at_all(line: Line, authority: Authority) -> None:  # noqa: F811
    status, said = line.obtain(directory=authority.directory + "/x")
    assert status == 1
    assert "must be the address of an ACME directory" in said


@contextlib.contextmanager
def nginx(line: Line) -> Iterator[None]:
    """A real nginx that shows the line's certificate."""
    (line.folder / "nginx.conf").write_text(f"""
pid {line.folder}/nginx.pid;
error_log stderr;
daemon off;
events {{}}
http {{
  access_log off;
  client_body_temp_path {line.folder}/body; proxy_temp_path {line.folder}/proxy;
  fastcgi_temp_path {line.folder}/fastcgi; uwsgi_temp_path {line.folder}/uwsgi;
  scgi_temp_path {line.folder}/scgi;
  server {{
    listen 127.0.0.1:{line.settings["port"]} ssl;
    ssl_certificate {line.chain};
    ssl_certificate_key {line.key};
  }}
}}
""")
    with running(["/usr/sbin/nginx", "-c", str(line.folder / "nginx.conf")], line.folder, "nginx.log"):
        until(lambda: shown(line.settings["port"]) is not None)
        yield


def shown(port: int) -> int | None:
    """The serial number of the certificate that a port shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as secured:
            found = secured.getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(found).serial_number if found else None
    except OSError:
        return None


def until(so: Any, patience_s: float = 60) -> None:
    """Wait for something that is going to be so."""
    end = time.monotonic() + patience_s
    while not so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.1)


def test_it_is_renewed_in_time_and_nginx_shows_it(
    tmp_path: Path,
    name_server: NameServer,  # noqa: F811
) -> None:
    """Certificates of twelve seconds: each is renewed after six, by the program that watches."""
    (tmp_path / "pebble").mkdir()
    short = Authority(tmp_path / "pebble", name_server)
    line = Line(tmp_path, short, name_server)
    with short.serving(life_s=12):
        assert line.obtain() == (0, "changed")
        first = line.leaf().serial_number
        with nginx(line), running(line.command("watch"), tmp_path, "watch.log"):
            until(lambda: shown(line.settings["port"]) not in (None, first))
            until(lambda: "nginx shows it" in (tmp_path / "watch.log").read_text())
    assert not line.trouble.exists()


def test_a_renewal_that_fails_is_told(line: Line, name_server: NameServer) -> None:  # noqa: F811
    changes = {"names": ["new.line.test"], "dns": name_server.settings(key_name="", token="")}
    with running(line.command("watch", **changes), line.folder, "watch.log"):
        until(line.trouble.exists)
    assert "does not let this key change _acme-challenge.new.line.test" in line.trouble.read_text()
    assert line.trouble.stat().st_mode & 0o777 == 0o644
    # and once it works, it is told no longer
    with running(line.command("watch", dns=name_server.settings()), line.folder, "watch.log"):
        until(lambda: not line.trouble.exists())
    assert certificate.names_of(line.leaf()) == {"new.line.test"}


# ------------------------------------------------------------------------------------------------ deciding


def made(life: datetime.timedelta, begins: datetime.datetime = NOW) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins + life)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("call.line.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )


@pytest.mark.parametrize(
    ("life", "left"),
    [
        (90 * DAY, 30 * DAY),
        (45 * DAY, 15 * DAY),
        (datetime.timedelta(hours=160), datetime.timedelta(hours=80)),
    ],
)
def test_when_it_is_renewed(life: datetime.timedelta, left: datetime.timedelta) -> None:
    one = made(life)
    assert one.not_valid_after_utc - certificate.renew_at(one) == left


def test_failures_are_spaced() -> None:
    hours = [certificate.pause_after(failures) / 3600 for failures in (1, 2, 3, 4, 5, 9)]
    assert hours == [1, 2, 4, 8, 12, 12]


@pytest.mark.parametrize(
    ("kind", "detail", "challenge", "words"),
    [
        (
            "rateLimited",
            "too many certificates (5) already issued for this exact set of identifiers in the last "
            "168h0m0s, retry "
            "after 2026-11-25 10:00:00 UTC",
            "dns",
            "retry after 2026-11-25 10:00:00 UTC. Mend: wait until the time it names",
        ),
        (
            "dns",
            "DNS problem: NXDOMAIN looking up A for call.line.test",
            "http",
            "does not resolve",
        ),
        (
            "dns",
            "DNS problem: SERVFAIL looking up TXT for _acme-challenge.call.line.test",
            "dns",
            "could not ask DNS",
        ),
        (
            "unauthorized",
            "Invalid response from http://call.line.test/x: 404",
            "http",
            "Something else answers",
        ),
        (
            "unauthorized",
            "No TXT record found at _acme-challenge.call.line.test",
            "dns",
            "did not see our TXT record",
        ),
        ("caa", "CAA record for call.line.test prevents issuance", "dns", "add one that allows it"),
        (
            "rejectedIdentifier",
            'Cannot issue for "call.local": Domain name does not end with a valid public suffix (TLD)',
            "dns",
            "must be a public name of yours",
        ),
        ("malformed", 'profile "x" not recognized', "dns", "no such profile"),
        ("externalAccountRequired", "bind it", "dns", "Let's Encrypt"),
        ("serverInternal", "oh", "dns", "does not issue a certificate (serverInternal): oh"),
    ],
)
def test_what_an_authority_refuses_is_said_with_the_mend(
    kind: str, detail: str, challenge: str, words: str
) -> None:
    problem = messages.Error(typ=f"urn:ietf:params:acme:error:{kind}", detail=detail)
    settings = {"directory": "https://ca.example/dir", "challenge": challenge}
    said = certificate.refusal(problem, "call.line.test", settings)
    assert words in said
    assert said.count("Mend:") == 1


# ------------------------------------------------------------------------------------------------ the role


class AcmeMachine(Machine):
    """A host that has what obtains certificates: the role's install phase is molecule's matter."""

    tags = "tls_preflight,tls_name,tls_configure"

    def __init__(self, folder: Path, one: Authority, names: NameServer) -> None:
        super().__init__(folder)
        home = folder / "home"
        home.mkdir()
        (home / "venv").symlink_to(Path(sys.prefix))
        for name in ("certificate.py", "dns_records.py"):
            (home / name).symlink_to(FILES / name)
        (folder / "etc" / "secrets").mkdir()
        self.acme = {
            "tls_provider": "acme",
            "tls_acme_directory": one.directory,
            "tls_acme_ca_bundle": str(one.bundle),
            "tls_acme_terms_accepted": True,
            "tls_acme_http_port": one.http_port,
            "line_name": "stays.line.test",
            "line_host": "stays.line.test",
            "line_addresses": ["203.0.113.7"],
            "tls_dns_provider": "rfc2136",
            "tls_dns_server": names.address,
            "tls_dns_key_name": "hotline",
            "tls_dns_token": names.settings()["token"],
            "_tls_acme_home": str(home),
            "_tls_acme_state": str(folder / "state"),
        }


@pytest.mark.timeout(600)
def test_a_line_goes_from_its_own_authority_to_a_public_one_and_back(
    tmp_path: Path,
    authority: Authority,  # noqa: F811
    name_server: NameServer,  # noqa: F811
) -> None:
    machine = AcmeMachine(tmp_path, authority, name_server)
    assert not machine.run(line_host="stays.line.test").failed
    own, key = machine.leaf(), (machine.tls / "privkey.pem").read_bytes()

    ran = machine.run("--diff", **machine.acme)
    assert not ran.failed, ran.text
    assert machine.leaf().issuer != own.issuer
    assert machine.names() == {"stays.line.test"}
    assert (machine.tls / "privkey.pem").read_bytes() == key
    assert not (machine.tls / "ca.pem").exists()
    assert name_server.ask("stays", "A") == {"203.0.113.7"}
    settings = machine.tls.parent / "secrets/certificate.json"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert machine.acme["tls_dns_token"] in settings.read_text()
    assert machine.acme["tls_dns_token"] not in ran.text

    # another node: the name follows, and links already sent still work
    moved = machine.run(**machine.acme | {"line_addresses": ["203.0.113.8", "2001:db8::8"]})
    assert not moved.failed, moved.text
    assert len(moved.changed) == 1, "the name moved, and nothing else changed in a second run"
    assert (name_server.ask("stays", "A"), name_server.ask("stays", "AAAA")) == (
        {"203.0.113.8"},
        {"2001:db8::8"},
    )

    back = machine.run(line_host="stays.line.test")
    assert not back.failed, back.text
    assert machine.leaf().issuer == own.issuer
    assert (machine.tls / "ca.pem").exists()


CANNOT_WORK: dict[str, tuple[dict[str, Any], str]] = {
    "terms": ({"tls_acme_terms_accepted": False}, "set tls_acme_terms_accepted: true"),
    "no_provider": ({"tls_dns_provider": ""}, "set line_name to a public name of yours"),
    "address": ({"line_names": ["203.0.113.7"]}, "where port 80 is this machine"),
    "loopback": ({"line_host": "localhost"}, "localhost is nobody"),
    "bundle": ({"tls_acme_ca_bundle": "/nowhere/ca.pem"}, "There is no file /nowhere/ca.pem"),
    "wrong_key": ({"tls_dns_token": "d3Jvbmc="}, "refuses the TSIG key"),
    "not_its_zone": ({"line_name": "x.elsewhere.test"}, "has no zone for x.elsewhere.test"),
    "gateway": ({"tls_provider": "none"}, "a gateway ends TLS here"),
}


@pytest.mark.timeout(600)
def test_what_cannot_work_is_refused_with_the_mend(
    tmp_path: Path,
    authority: Authority,  # noqa: F811
    name_server: NameServer,  # noqa: F811
) -> None:
    """One run over a host for each."""
    machine = AcmeMachine(tmp_path, authority, name_server)
    ran = machine.run(
        hosts={name: machine.acme | changes for name, (changes, _) in CANNOT_WORK.items()}, line_host=None
    )
    assert ran.failed
    for name, (_, words) in CANNOT_WORK.items():
        said = " ".join(line for line in ran.text.splitlines() if line.startswith(f"fatal: [{name}]"))
        assert words in said.replace("\\n", " "), f"{name}: {ran.text}"
        assert "Mend:" in said
    assert "d3Jvbmc=" not in ran.text
