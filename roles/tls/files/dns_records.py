#!/usr/bin/env python3
"""Records of the line's name in its owner's DNS: addresses when the node changes, TXT for an ACME challenge.

    dns_records.py FILE     FILE: {"provider": …, "token": …, "name": …, "addresses": […]}, `-` is stdin

prints `changed` or `unchanged`; what went wrong is one sentence on stderr with its mend, and exit status 1.
Keys come in a file, never on a command line. Four ways in, each over what its provider documents:

cloudflare  https://developers.cloudflare.com/api/resources/dns/  (API token: Zone Read, DNS Edit)
desec       https://desec.readthedocs.io/en/latest/dns/rrsets.html
duckdns     https://www.duckdns.org/spec.jsp  (the token travels in the query, as DuckDNS wants it)
rfc2136     dynamic update, signed with TSIG: BIND, Knot, PowerDNS and others

A record set is written whole: what stood there under the same name and type is replaced.
"""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.tsig
import dns.update
import httpx

TTL_S = 60
"""A name that moves with its node is asked for anew every minute."""
ANSWER_S = 20.0
PATIENCE_S = 90.0
"""How long throttling is waited out."""
SEEN_S = 180.0
"""How long the provider's name servers get to show what was written."""
UNSEEN_S = 60.0
LOOK_S = 2.0
MANY = 100


class RecordsError(Exception):
    """A sentence that says what went wrong and what mends it."""


class Records(Protocol):
    """The record sets of one owner."""

    def read(self, name: str, kind: str) -> set[str]:
        """Return the values of a record set as it is."""

    def write(self, name: str, kind: str, values: Sequence[str]) -> None:
        """Make a record set hold these values; without values, take it away."""


def plain(name: str) -> str:
    """Return a name in the one spelling that is compared: lower case, no dot at its end."""
    return name.strip().lower().rstrip(".")


def zones(name: str, zone: str) -> list[str]:
    """Return the zones that may hold a name, the longest first; just the one that was set, if it was.

    Raises RecordsError when the name is not in the zone that was set.
    """
    name, zone = plain(name), plain(zone)
    if zone:
        if name != zone and not name.endswith(f".{zone}"):
            raise RecordsError(
                f"{name} is not in the zone {zone}. Mend: set tls_dns_zone to the end of the name that your "
                "DNS provider lists as a zone, or line_name to a name in it."
            )
        return [zone]
    labels = name.split(".")
    return [".".join(labels[at:]) for at in range(len(labels) - 1)]


def below(name: str, zone: str) -> str:
    """Return the part of a name in front of its zone; nothing at the zone itself."""
    return "" if plain(name) == plain(zone) else plain(name).removesuffix(f".{plain(zone)}")


class Web:
    """One HTTP interface: waits when throttled, and says in words what does not work."""

    def __init__(
        self,
        who: str,
        base: str,
        headers: Mapping[str, str],
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.who = who
        self._sleep = sleep
        self._client = httpx.Client(base_url=base, headers=headers, timeout=ANSWER_S, transport=transport)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask, again after throttling and after a fault of theirs for a while; return the answer.

        Raises RecordsError for a key that is refused and for no answer.
        """
        waited, pause = 0.0, 2.0
        while True:
            try:
                answer = self._client.request(method, path, **more)
                said = f"status {answer.status_code}"
                if answer.status_code in (401, 403):
                    raise RecordsError(
                        f"{self.who} refuses the key ({said}). Mend: set tls_dns_token to a token that may "
                        "read "
                        "the zone and edit its records; make a new one if this one expired."
                    )
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not answer.is_server_error:
                    return answer
                pause = _seconds(answer.headers.get("retry-after", ""), pause)
            except httpx.HTTPError as error:
                # Not the error's own words: they may hold the address with a token in its query.
                said = type(error).__name__
            if waited + pause > PATIENCE_S:
                raise RecordsError(
                    f"{self.who} does not serve requests now ({said}). Mend: try again later; if this "
                    "machine "
                    "reaches nothing else either, look at its network."
                )
            self._sleep(pause)
            waited, pause = waited + pause, pause * 2


def _seconds(text: str, otherwise: float) -> float:
    try:
        return max(float(text), 1.0)
    except ValueError:
        return otherwise


def _body(answer: httpx.Response, who: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise RecordsError(
            f"{who} answered with something that is not JSON (status {answer.status_code}). Mend: look "
            "whether "
            "something stands between this machine and it; else try again later."
        ) from error


def _not_ours(who: str, name: str, zone: str) -> RecordsError:
    return RecordsError(
        f"This key sees no zone at {who} that holds {name}{f' (tls_dns_zone: {zone})' if zone else ''}. "
        "Mend: "
        "add the zone to that account, or take a key that has it among its permissions."
    )


def _quoted(kind: str, values: Iterable[str]) -> list[str]:
    return [f'"{value}"' if kind == "TXT" else value for value in values]


class Cloudflare:
    """Zones at Cloudflare, not proxied: its proxy does not carry the line's port."""

    def __init__(self, token: str, zone: str = "", base: str = "", **web: Any) -> None:
        self._zone = zone
        self._web = Web(
            "Cloudflare",
            base or "https://api.cloudflare.com/client/v4",
            {"Authorization": f"Bearer {token}"},
            **web,
        )

    def _result(self, answer: httpx.Response) -> Any:
        body = _body(answer, "Cloudflare")
        if body.get("success"):
            return body["result"]
        errors = body.get("errors") or [{}]
        said = "; ".join(str(error.get("message", "")) for error in errors)
        if {error.get("code") for error in errors} & {1000, 6003, 6111, 9106, 9109, 10000, 10001}:
            raise RecordsError(
                f"Cloudflare refuses the key: {said}. Mend: set tls_dns_token to an API token (not the "
                "global "
                "key) with Zone Read and DNS Edit for the zone."
            )
        raise RecordsError(f"Cloudflare does not take this: {said}. Mend: what it names.")

    def _zone_id(self, name: str) -> str:
        for zone in zones(name, self._zone):
            found = self._result(self._web.call("GET", "/zones", params={"name": zone}))
            if found:
                return str(found[0]["id"])
        raise _not_ours("Cloudflare", name, self._zone)

    def _present(self, zone: str, name: str, kind: str) -> dict[str, str]:
        """Values of a record set, and the id of the record of each."""
        wanted = {"type": kind, "name": plain(name), "per_page": MANY}
        answer = self._web.call("GET", f"/zones/{zone}/dns_records", params=wanted)
        return {str(one["content"]).strip('"'): str(one["id"]) for one in self._result(answer)}

    def read(self, name: str, kind: str) -> set[str]:
        """Return the values of a record set as it is."""
        return set(self._present(self._zone_id(name), name, kind))

    def write(self, name: str, kind: str, values: Sequence[str]) -> None:
        """Make a record set hold these values; first what is new, so that the name never stands empty."""
        zone = self._zone_id(name)
        present = self._present(zone, name, kind)
        for value, content in zip(values, _quoted(kind, values), strict=True):
            if value not in present:
                record = {"type": kind, "name": plain(name), "content": content, "ttl": TTL_S}
                self._result(
                    self._web.call("POST", f"/zones/{zone}/dns_records", json=record | {"proxied": False})
                )
        for value, number in present.items():
            if value not in values:
                self._result(self._web.call("DELETE", f"/zones/{zone}/dns_records/{number}"))


class Desec:
    """Domains at deSEC (https://desec.io), dedyn.io's included."""

    def __init__(self, token: str, zone: str = "", base: str = "", **web: Any) -> None:
        self._zone = zone
        self._web = Web(
            "deSEC", base or "https://desec.io/api/v1", {"Authorization": f"Token {token}"}, **web
        )

    def _domain(self, name: str) -> tuple[str, int]:
        """Return the domain of ours that holds a name, and the shortest TTL that it takes."""
        asked = zones(name, self._zone)[0]
        found = _body(self._web.call("GET", "/domains/", params={"owns_qname": asked}), "deSEC")
        if not isinstance(found, list) or not found:
            raise _not_ours("deSEC", name, self._zone)
        return str(found[0]["name"]), int(found[0].get("minimum_ttl", TTL_S))

    def read(self, name: str, kind: str) -> set[str]:
        """Return the values of a record set as it is."""
        domain, _ = self._domain(name)
        wanted = {"subname": below(name, domain), "type": kind}
        found = _body(self._web.call("GET", f"/domains/{domain}/rrsets/", params=wanted), "deSEC")
        return {str(value).strip('"') for rrset in found for value in rrset["records"]}

    def write(self, name: str, kind: str, values: Sequence[str]) -> None:
        """Make a record set hold these values; an empty one is deleted."""
        domain, least = self._domain(name)
        rrset = {
            "subname": below(name, domain),
            "type": kind,
            "ttl": max(TTL_S, least),
            "records": _quoted(kind, values),
        }
        answer = self._web.call("PUT", f"/domains/{domain}/rrsets/", json=[rrset])
        if answer.status_code != httpx.codes.OK:
            raise RecordsError(
                f"deSEC does not take {kind} records for {name}: {answer.text[:300]} Mend: what it names (a "
                "CNAME "
                "of the same name has to go first)."
            )


class DuckDns:
    """One name below duckdns.org. It tells nobody what a record holds, so what is there is asked of DNS."""

    def __init__(
        self,
        token: str,
        zone: str = "",
        base: str = "",
        look_up: Callable[[str, str], set[str]] | None = None,
        **web: Any,
    ) -> None:
        del zone  # there is only one
        self._token = token
        self._look_up = look_up or public
        self._written: dict[str, str] = {}
        self._web = Web("DuckDNS", base or "https://www.duckdns.org", {}, **web)

    def _domain(self, name: str) -> str:
        if not plain(name).endswith(".duckdns.org"):
            raise RecordsError(
                f"{name} is not a name of DuckDNS. Mend: set line_name to YOURS.duckdns.org, or "
                "tls_dns_provider "
                "to whoever has the name."
            )
        return plain(name).split(".")[-3]

    def _update(self, name: str, **parameters: str) -> None:
        domain = self._domain(name)
        asked = {"domains": domain, "token": self._token, "verbose": "true"} | parameters
        if not self._web.call("GET", "/update", params=asked).text.startswith("OK"):
            raise RecordsError(
                f"DuckDNS refuses (KO): the token is wrong, or {domain}.duckdns.org is not that account's. "
                "Mend: "
                "copy token and name from the top of https://www.duckdns.org/domains."
            )

    def read(self, name: str, kind: str) -> set[str]:
        """Return the values of a record set as DNS shows it."""
        self._domain(name)
        return self._look_up(plain(name), kind)

    def write(self, name: str, kind: str, values: Sequence[str]) -> None:
        """Make a record set hold one value; it can hold no more."""
        if len(values) > 1:
            raise RecordsError(
                f"DuckDNS holds one {kind} record a name, not {len(values)}. Mend: leave line_names empty, "
                "and give "
                "line_addresses one address of each kind."
            )
        if kind == "TXT":
            self._update(name, txt=values[0]) if values else self._update(name, txt="", clear="true")
            return
        if not values:
            # It forgets both kinds at once: what was written of the other goes back.
            self._update(name, clear="true")
        for address in [*values, *([] if values else self._written.values())]:
            self._update(name, **({"ipv6": address} if ":" in address else {"ip": address}))
            self._written[kind] = address


class Rfc2136:
    """A name server that takes dynamic updates (RFC 2136) signed with a TSIG key (RFC 8945)."""

    def __init__(
        self,
        server: str,
        zone: str = "",
        key_name: str = "",
        secret: str = "",
        algorithm: str = "hmac-sha256",
    ) -> None:
        self._host, self._port = server_and_port(server)
        self._zone = zone
        self._key: dns.tsig.Key | None = None
        if key_name:
            try:
                self._key = dns.tsig.Key(key_name, secret, algorithm)
            except (ValueError, NotImplementedError, dns.exception.DNSException) as error:
                raise RecordsError(
                    f"The TSIG key {key_name} cannot be used ({type(error).__name__}). Mend: tls_dns_token "
                    "is its "
                    "secret in base64 as the server's configuration has it, tls_dns_key_algorithm its "
                    "algorithm, "
                    "such as hmac-sha256."
                ) from error

    def _ask(self, message: dns.message.Message) -> dns.message.Message:
        server = f"{self._host} port {self._port}"
        try:
            return dns.query.tcp(message, self._host, timeout=ANSWER_S, port=self._port)
        except (dns.tsig.PeerBadKey, dns.tsig.PeerBadSignature, dns.tsig.BadSignature) as error:
            raise RecordsError(
                f"The name server {server} refuses the TSIG key: {error}. Mend: tls_dns_key_name, "
                "tls_dns_key_algorithm and tls_dns_token must be name, algorithm and secret of a key in that "
                "server's configuration."
            ) from error
        except (dns.tsig.PeerBadTime, dns.tsig.BadTime) as error:
            raise RecordsError(
                f"This machine's clock and that of {server} are minutes apart. Mend: set the wrong one."
            ) from error
        except (OSError, EOFError, dns.exception.DNSException) as error:
            raise RecordsError(
                f"The name server {server} does not answer ({type(error).__name__}). Mend: tls_dns_server is "
                "the "
                "zone's primary, ADDRESS or ADDRESS:PORT, and must be reachable over TCP from here."
            ) from error

    def _zone_of(self, name: str) -> dns.name.Name:
        for zone in zones(name, self._zone):
            answer = self._ask(dns.message.make_query(zone, "SOA"))
            origin = dns.name.from_text(zone)
            if answer.flags & dns.flags.AA and any(
                found.name == origin and found.rdtype == dns.rdatatype.SOA for found in answer.answer
            ):
                return origin
        raise RecordsError(
            f"The name server {self._host} port {self._port} has no zone for {name}"
            f"{f' called {self._zone}' if self._zone else ''}. Mend: tls_dns_server must be the primary of "
            "that zone."
        )

    def read(self, name: str, kind: str) -> set[str]:
        """Return the values of a record set as this server has it."""
        self._zone_of(name)
        return _values(self._ask(dns.message.make_query(plain(name), kind)), name, kind)

    def write(self, name: str, kind: str, values: Sequence[str]) -> None:
        """Replace a record set in one update."""
        update = dns.update.UpdateMessage(self._zone_of(name))
        if self._key is not None:
            update.use_tsig(self._key)
        owner = dns.name.from_text(plain(name))
        update.delete(owner, kind)
        for content in _quoted(kind, values):
            update.add(owner, TTL_S, kind, content)
        code = self._ask(update).rcode()
        if code in (dns.rcode.REFUSED, dns.rcode.NOTAUTH):
            raise RecordsError(
                f"The name server {self._host} does not let this key change {name} "
                f"({dns.rcode.to_text(code)}). "
                "Mend: allow it updates of that name there (BIND: update-policy, Knot: acl), and set "
                "tls_dns_key_name."
            )
        if code != dns.rcode.NOERROR:
            raise RecordsError(
                f"The name server {self._host} does not take the update of {name}: "
                f"{dns.rcode.to_text(code)}. Mend: "
                "its log says why."
            )


def server_and_port(server: str) -> tuple[str, int]:
    """Split ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. Raises RecordsError for what is neither."""
    try:
        if server.count(":") > 1 and not server.startswith("["):
            return str(ipaddress.ip_address(server)), 53
        parts = urlsplit(f"//{server}")
        if parts.hostname and not parts.path:
            return str(ipaddress.ip_address(parts.hostname)), parts.port or 53
    except ValueError:
        pass
    raise RecordsError(
        f"tls_dns_server is {server!r}. Mend: the address of the zone's primary name server, such as "
        "192.0.2.53 "
        "or 192.0.2.53:5353."
    )


def _values(answer: dns.message.Message, name: str, kind: str) -> set[str]:
    owner = dns.name.from_text(plain(name))
    wanted = dns.rdatatype.from_text(kind)
    return {
        b"".join(value.strings).decode() if kind == "TXT" else value.to_text()
        for rrset in answer.answer
        if rrset.name == owner and rrset.rdtype == wanted
        for value in rrset
    }


def public(name: str, kind: str) -> set[str]:
    """Return what DNS shows for a name, as this machine's resolver sees it; nothing when it shows nothing."""
    try:
        found = dns.resolver.resolve(name, kind, lifetime=ANSWER_S)
    except (dns.exception.DNSException, OSError):
        return set()
    return _values(found.response, found.canonical_name.to_text(), kind)


def name_servers(name: str) -> list[tuple[str, int]]:
    """Return where the name servers listen that decide what a name holds; none if they cannot be found."""
    try:
        zone = dns.resolver.zone_for_name(name, lifetime=ANSWER_S)
        servers = [one.target.to_text() for one in dns.resolver.resolve(zone, "NS", lifetime=ANSWER_S)]
    except (dns.exception.DNSException, OSError):
        return []
    return [(address, 53) for server in servers for address in sorted(public(server, "A"))]


def lacks(server: tuple[str, int], name: str, values: Iterable[str]) -> bool | None:
    """Whether a name server does not show TXT values yet; None when it does not answer."""
    host, port = server
    try:
        answer = dns.query.tcp(dns.message.make_query(name, "TXT"), host, timeout=5, port=port)
    except (OSError, EOFError, dns.exception.DNSException):
        return None
    return not set(values) <= _values(answer, name, "TXT")


def wait_until_seen(
    settings: Mapping[str, Any],
    wanted: Mapping[str, Sequence[str]],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the name servers show TXT records, by name: an authority that looks too early has failed.

    Where no name server can be asked from here (port 53 is closed on some machines), a minute is waited.
    Raises RecordsError when they can, and do not show it.
    """
    direct = [server_and_port(settings["server"])] if settings["provider"] == "rfc2136" else []
    for name, values in wanted.items():
        servers = direct or name_servers(name)
        waited = 0.0
        while True:
            looks = {server[0]: lacks(server, name, values) for server in servers}
            behind = sorted(host for host, lacking in looks.items() if lacking)
            if all(lacking is None for lacking in looks.values()):
                sleep(UNSEEN_S)
                break
            if not behind:
                break
            if waited >= SEEN_S:
                raise RecordsError(
                    f"After {SEEN_S:.0f} s {', '.join(behind)} still shows no TXT record of {name}. Mend: "
                    "look whether "
                    f"the zone is delegated to {settings['provider']} (`dig NS`), and try again."
                )
            sleep(LOOK_S)
            waited += LOOK_S


def records(settings: Mapping[str, Any], **web: Any) -> Records:
    """Return the way in that settings name. Raises RecordsError when something is missing."""
    provider, token = settings.get("provider", ""), settings.get("token", "")
    zone, base = settings.get("zone", ""), settings.get("url", "")
    if provider == "rfc2136":
        name, algorithm = settings.get("key_name", ""), settings.get("key_algorithm") or "hmac-sha256"
        if bool(name) != bool(token):
            raise RecordsError(
                "A TSIG key has a name and a secret, and one is missing. Mend: set tls_dns_key_name and "
                "tls_dns_token, or neither where the server trusts this machine's address."
            )
        return Rfc2136(settings.get("server", ""), zone, name, token, algorithm)
    kinds: dict[str, Callable[..., Records]] = {"cloudflare": Cloudflare, "desec": Desec, "duckdns": DuckDns}
    if provider not in kinds:
        raise RecordsError(f"tls_dns_provider is {provider!r}. Mend: one of {', '.join(kinds)}, rfc2136.")
    if not token:
        raise RecordsError(f"There is no key for {provider}. Mend: set tls_dns_token, best from a vault.")
    return kinds[provider](token, zone, base, **web)


def set_addresses(where: Records, name: str, addresses: Iterable[str]) -> bool:
    """Make a name point at exactly these addresses, IPv4 and IPv6. Return whether anything was changed.

    Raises RecordsError for what is no address.
    """
    wanted: dict[str, list[str]] = {"A": [], "AAAA": []}
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise RecordsError(
                f"{text!r} is no address that {name} could point at. Mend: set line_addresses to the "
                "addresses "
                "under which the outside reaches this node."
            ) from error
        wanted["A" if address.version == 4 else "AAAA"].append(str(address))
    if not any(wanted.values()):
        raise RecordsError(f"There is no address that {name} could point at. Mend: set line_addresses.")
    changed = False
    for kind, values in wanted.items():
        if where.read(name, kind) != set(values):
            where.write(name, kind, values)
            changed = True
    return changed


def main(arguments: Sequence[str]) -> int:
    """Make a name point at its addresses; return the exit status."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    settings = json.loads(sys.stdin.read() if arguments[0] == "-" else Path(arguments[0]).read_text("utf-8"))
    try:
        changed = set_addresses(records(settings), settings["name"], settings["addresses"])
    except RecordsError as error:
        print(error, file=sys.stderr)
        return 1
    print("changed" if changed else "unchanged")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
