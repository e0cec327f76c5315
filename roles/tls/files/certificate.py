#!/usr/bin/env python3
"""Obtain the line's certificate from an ACME authority (RFC 8555), and renew it in time.

    certificate.py SETTINGS obtain   once, if it is due: prints `changed` or `unchanged`
    certificate.py SETTINGS watch    for as long as it runs; nginx reads what is new

SETTINGS is a JSON file of root's alone: what the role `tls` writes. What went wrong is a sentence with its
mend: on stderr, in the journal, and in `trouble` beside the account, where the orchestrator finds it.

The protocol is certbot's own library (`acme`), without certbot: no hooks, no log of its own, and refusals
come as RFC 8555's types, which are told apart here. What is due is decided by the certificate itself.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import http.server
import ipaddress
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dns_records
import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

LOOK_S = 3600.0
FIRST_PAUSE_S = 3600.0
LAST_PAUSE_S = 12 * 3600.0
"""Between failures: Let's Encrypt allows five an hour for a name."""
ORDER_S = 180.0
READ_S = 10.0
SHORT_LIFE = datetime.timedelta(days=10)
SINGLE_LINE = 400


class CertificateError(Exception):
    """A sentence that says what went wrong and what mends it."""


# -------------------------------------------------------------------------------------------------- deciding


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def renew_at(certificate: x509.Certificate) -> datetime.datetime:
    """Return when to renew: with a third of its life left, a half if it lives for days only."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - life / (2 if life < SHORT_LIFE else 3)


def names_of(certificate: x509.Certificate) -> set[str]:
    """Return the names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value).lower() for name in found}


def due(
    chain: bytes,
    key: ec.EllipticCurvePrivateKey | None,
    issued: Mapping[str, Any],
    settings: Mapping[str, Any],
    moment: datetime.datetime,
) -> str:
    """Why a certificate is to be obtained now; nothing if the one that is there serves.

    ``issued`` tells of the last one that was obtained: its fingerprint, and where it came from.
    """
    try:
        certificate = x509.load_pem_x509_certificate(chain)
    except ValueError:
        return "there is none"
    if key is None or certificate.public_key() != key.public_key():
        return "the key is another one"
    if names_of(certificate) != set(settings["names"]):
        return "the names are others"
    if issued.get("certificate") != certificate.fingerprint(hashes.SHA256()).hex() or any(
        issued.get(part) != settings[part] for part in ("directory", "profile")
    ):
        return "it comes from elsewhere"
    if moment >= renew_at(certificate):
        return f"it ends at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return ""


def pause_after(failures: int) -> float:
    """Return how many seconds to wait after so many failures in a row."""
    return float(min(FIRST_PAUSE_S * 2 ** (failures - 1), LAST_PAUSE_S))


# ------------------------------------------------------------------------------------------------- saying it


def _words(problem: messages.Error) -> str:
    """What an authority said, in one line."""
    parts = [problem.detail or problem.title or "no reason given"]
    parts += [str(part.detail) for part in problem.subproblems or ()]
    return " ".join(" ".join(parts).split())[:SINGLE_LINE].rstrip(".")


def refusal(problem: messages.Error, name: str, settings: Mapping[str, Any]) -> str:
    """Say what an authority's problem document means for this line, and what mends it."""
    kind = (problem.typ or "").rpartition(":")[2]
    said = _words(problem)
    who = settings["directory"]
    http = settings["challenge"] == "http"
    if kind == "rateLimited":
        return (
            f"{who} issues no more for now: {said}. Mend: wait until the time it names; tls_acme_directory "
            "can be a "
            "staging address while you try things out."
        )
    if kind in ("dns", "unknownHost") or (http and "resolve" in said):
        if http:
            return (
                f"{name} does not resolve: {said}. Mend: give it an A (or AAAA) record with this machine's "
                "address and "
                "wait until it is seen, or set tls_dns_provider, which does that; then run this again."
            )
        return (
            f"The authority could not ask DNS about {name}: {said}. Mend: see that the zone is delegated to "
            "your "
            "provider (`dig NS`) and answers, then run this again."
        )
    if kind in ("connection", "tls"):
        return (
            f"The authority cannot reach http://{name}/: {said}. Mend: port 80 of that name must be this "
            "machine's, from "
            "the whole internet; where it is not, set tls_acme_challenge: dns."
        )
    if kind in ("unauthorized", "incorrectResponse"):
        if http:
            return (
                f"Something else answers at http://{name}/: {said}. Mend: the name must point at this "
                "machine, and its "
                "port 80 belong to the line; else set tls_acme_challenge: dns."
            )
        return (
            f"The authority did not see our TXT record for {name}: {said}. Mend: see that the zone is "
            "delegated to the "
            "provider that tls_dns_provider names (`dig NS`), then run this again."
        )
    if kind == "caa":
        return (
            f"A CAA record forbids this authority to issue for {name}: {said}. Mend: add one that allows it, "
            "or set "
            "tls_acme_directory to the authority that is allowed."
        )
    if kind in ("rejectedIdentifier", "unsupportedIdentifier"):
        return (
            f"{who} issues nothing for {name or 'these names'}: {said}. Mend: line_name must be a public "
            "name of yours; "
            "addresses need an authority and a profile for them (Let's Encrypt: shortlived)."
        )
    if kind in ("invalidContact", "unsupportedContact", "invalidEmail"):
        return (
            f"{who} does not take tls_acme_email: {said}. Mend: set it to an address that receives mail, or "
            "leave it empty."
        )
    if kind == "externalAccountRequired":
        return (
            f"{who} wants an account that was made elsewhere: {said}. Mend: set tls_acme_directory to an "
            "authority that "
            "does not, such as Let's Encrypt."
        )
    if kind == "invalidProfile" or "profile" in said.lower():
        return (
            f"{who} has no such profile: {said}. Mend: set tls_acme_profile to one that it lists, or to "
            "nothing."
        )
    return f"{who} does not issue a certificate ({kind or 'no type'}): {said}. Mend: what it names."


def explain(error: Exception, settings: Mapping[str, Any]) -> str:
    """Turn what was raised into a sentence that names the mend."""
    who = settings["directory"]
    if isinstance(error, errors.ValidationError):
        for one in error.failed_authzrs:
            for challenge in one.body.challenges:
                if challenge.error is not None:
                    return refusal(challenge.error, one.body.identifier.value, settings)
    if isinstance(error, errors.IssuanceError):
        return refusal(error.error, "", settings)
    if isinstance(error, messages.Error):
        name = error.identifier.value if error.identifier else ""
        return refusal(error, name, settings)
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"The certificate of {who} itself is not trusted here. Mend: set tls_acme_ca_bundle to its "
            "authority's PEM file "
            "if it is an authority of your own; else look at this machine's clock and at what stands in "
            "between."
        )
    if isinstance(error, requests.exceptions.RequestException):
        return (
            f"{who} cannot be reached ({type(error).__name__}). Mend: see that this machine reaches it over "
            "https, and that "
            "tls_acme_directory has no typing mistake."
        )
    if isinstance(error, errors.TimeoutError):
        return f"{who} did not decide within {ORDER_S:.0f} s. Mend: run this again later."
    return (
        f"{who} does not speak ACME as expected ({type(error).__name__}: {str(error)[:SINGLE_LINE]}). Mend: "
        "tls_acme_directory must be the address of an ACME directory."
    )


# ----------------------------------------------------------------------------------------------------- doing


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is never there by halves."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(mode)
    beside.replace(path)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return the private key in a file; None when there is none of our kind."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as a file holds it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing when it is not there or broken."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def connect(settings: Mapping[str, Any], state: Path) -> client.ClientV2:
    """Return a client with an account at the authority; the account's key is made once and kept."""
    kept = read_key(state / "account.pem")
    if kept is None:
        kept = ec.generate_private_key(ec.SECP256R1())
        write(state / "account.pem", pem(kept), 0o600)
    net = client.ClientNetwork(
        JWKEC(key=kept),
        alg=ES256,
        user_agent="hotline",
        verify_ssl=settings["ca_bundle"] or True,
    )
    authority = client.ClientV2(client.ClientV2.get_directory(settings["directory"], net), net)
    wanted = messages.NewRegistration.from_data(email=settings["email"] or None, terms_of_service_agreed=True)
    try:
        authority.new_account(wanted)
    except errors.ConflictError as there:
        net.account = messages.RegistrationResource(uri=there.location, body=messages.Registration())
    return authority


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: what was asked is the authority's business."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, port: int, folder: Path) -> None:
        self.address_family = family
        super().__init__(("", port), functools.partial(_Quiet, directory=str(folder)))

    def server_bind(self) -> None:
        """Leave IPv4 to the other one."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


@contextlib.contextmanager
def served(folder: Path, port: int) -> Iterator[None]:
    """Serve a folder by http where the port is free: before nginx is there. Afterwards nginx does it."""
    servers = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            servers.append(_Server(family, port, folder))
        except OSError:
            continue
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@contextlib.contextmanager
def shown_over_http(
    settings: Mapping[str, Any],
    state: Path,
    answers: Sequence[tuple[str, messages.ChallengeBody]],
    key: JWK,
) -> Iterator[None]:
    """Show the answers of HTTP-01 challenges while the authority looks."""
    webroot = state / "www"
    folder = webroot / challenges.HTTP01.URI_ROOT_PATH
    folder.mkdir(parents=True, exist_ok=True)
    for made in (webroot, folder.parent, folder):
        made.chmod(0o755)
    files = []
    for _, challenge in answers:
        file = folder / challenge.chall.encode("token")
        write(file, challenge.chall.validation(key).encode(), 0o644)
        files.append(file)
    try:
        with served(webroot, settings["http_port"]):
            yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def shown_in_dns(
    settings: Mapping[str, Any], answers: Sequence[tuple[str, messages.ChallengeBody]], key: JWK
) -> Iterator[None]:
    """Show the answers of DNS-01 challenges while the authority looks."""
    wanted: dict[str, list[str]] = {}
    for name, challenge in answers:
        wanted.setdefault(challenge.chall.validation_domain_name(name), []).append(
            challenge.chall.validation(key)
        )
    where = dns_records.records(settings["dns"])
    try:
        for name, values in wanted.items():
            where.write(name, "TXT", values)
        dns_records.wait_until_seen(settings["dns"], wanted)
        yield
    finally:
        for name in wanted:
            # A record that stays is replaced by the next challenge and proves nothing by itself.
            with contextlib.suppress(dns_records.RecordsError):
                where.write(name, "TXT", [])


def order(settings: Mapping[str, Any], state: Path, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Have the authority issue a certificate for a key, and return it with its chain."""
    authority = connect(settings, state)
    addresses = [ipaddress.ip_address(name) for name in settings["names"] if is_address(name)]
    domains = [name for name in settings["names"] if not is_address(name)]
    request = crypto_util.make_csr(pem(key), domains=domains, ipaddrs=addresses)
    asked = authority.new_order(request, profile=settings["profile"] or None)
    kind = challenges.HTTP01 if settings["challenge"] == "http" else challenges.DNS01
    answers = []
    for one in asked.authorizations:
        if one.body.status == messages.STATUS_VALID:
            continue
        name = one.body.identifier.value
        fitting = [challenge for challenge in one.body.challenges if isinstance(challenge.chall, kind)]
        if not fitting:
            raise CertificateError(
                f"The authority does not let {name} be proven by {kind.typ}. Mend: set tls_acme_challenge to "
                "the other "
                "way; an address can be proven by http only, a name with * in front by dns only."
            )
        answers.append((name, fitting[0]))
    account_key = authority.net.key
    if account_key is None:
        raise CertificateError("There is no account key. Mend: run this again.")
    showing = (
        shown_over_http(settings, state, answers, account_key)
        if settings["challenge"] == "http"
        else shown_in_dns(settings, answers, account_key)
    )
    with showing:
        for _, challenge in answers:
            authority.answer_challenge(challenge, challenge.response(account_key))
        done = authority.poll_and_finalize(
            asked, datetime.datetime.now() + datetime.timedelta(seconds=ORDER_S)
        )
    return str(done.fullchain_pem).encode()


def obtain(settings: Mapping[str, Any]) -> str:
    """Obtain a certificate if that is due. Return why it was; nothing if it was not.

    Raises CertificateError with the sentence that is to be told.
    """
    state = Path(settings["state"])
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a run of the role and the one that watches
        return _obtain(settings, state)


def _obtain(settings: Mapping[str, Any], state: Path) -> str:
    key_path, chain_path = Path(settings["key"]), Path(settings["certificate"])
    key = read_key(key_path)
    chain = chain_path.read_bytes() if chain_path.exists() else b""
    reason = due(chain, key, read_json(state / "issued.json"), settings, _now())
    if not reason:
        return ""
    made = key is None
    key = key or ec.generate_private_key(ec.SECP256R1())
    try:
        issued = order(settings, state, key)
    except CertificateError:
        raise
    except dns_records.RecordsError as error:
        raise CertificateError(str(error)) from error
    except (errors.Error, JoseError, requests.exceptions.RequestException, ValueError) as error:
        raise CertificateError(explain(error, settings)) from error
    if made:  # the key first: nginx takes no certificate without its key
        write(key_path, pem(key), 0o600)
    write(chain_path, issued, 0o644)
    leaf = x509.load_pem_x509_certificate(issued)
    told = {
        "certificate": leaf.fingerprint(hashes.SHA256()).hex(),
        "directory": settings["directory"],
        "profile": settings["profile"],
    }
    write(state / "issued.json", json.dumps(told).encode(), 0o644)
    return reason


def shown(port: int) -> bytes:
    """Return the certificate (DER) that a port of this machine shows; nothing when it shows none."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""
    except (OSError, ValueError):
        return b""


def reload_nginx(pid_file: Path, port: int, leaf: bytes) -> str:
    """Have nginx read its files anew, as `nginx -s reload` does; return what came of it.

    Only while the line's port answers is it certain that the file names nginx: this runs without the right to
    look at other processes.
    """
    if not shown(port):
        return "nginx does not run"
    try:
        os.kill(int(pid_file.read_text("ascii")), signal.SIGHUP)
    except (OSError, ValueError) as error:
        return f"nginx could not be told ({error}): run site.yml again"
    until = time.monotonic() + READ_S
    while time.monotonic() < until:
        if shown(port) == leaf:
            return "nginx shows it"
        time.sleep(0.2)
    return "nginx does not show it: run site.yml again"


def look(settings: Mapping[str, Any], failures: int) -> tuple[int, float]:
    """Obtain if it is due, tell of it, and return the failures in a row and the seconds to the next look."""
    trouble = Path(settings["state"]) / "trouble"
    try:
        reason = obtain(settings)
    except CertificateError as error:
        failures += 1
        write(trouble, f"{error}\n".encode(), 0o644)
        print(f"the certificate was not renewed, attempt {failures}: {error}", flush=True)
        return failures, pause_after(failures)
    trouble.unlink(missing_ok=True)
    certificate = x509.load_pem_x509_certificate(Path(settings["certificate"]).read_bytes())
    if reason:
        leaf = certificate.public_bytes(serialization.Encoding.DER)
        read = reload_nginx(Path(settings["nginx_pid"]), settings["port"], leaf)
        print(f"a new certificate, since {reason}; {read}", flush=True)
    left = (renew_at(certificate) - _now()).total_seconds()
    return 0, max(1.0, min(LOOK_S, left))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit status."""
    if len(arguments) != 2 or arguments[1] not in ("obtain", "watch"):
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0])
    if arguments[1] == "obtain":
        try:
            reason = obtain(json.loads(path.read_bytes()))
        except CertificateError as error:
            print(error, file=sys.stderr)
            return 1
        print("changed" if reason else "unchanged")
        return 0
    failures = 0
    while True:
        failures, pause = look(json.loads(path.read_bytes()), failures)
        time.sleep(pause)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
