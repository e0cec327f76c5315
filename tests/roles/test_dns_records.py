"""The line's name at its DNS provider: Cloudflare, deSEC and DuckDNS as documented, and a real Knot.

The three are stand-ins that answer what the documents named in roles/tls/files/dns_records.py say.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.roles.acme import NameServer, name_server  # noqa: F401 (a fixture)

FILE = Path(__file__).parents[2] / "roles/tls/files/dns_records.py"
_spec = importlib.util.spec_from_file_location("dns_records", FILE)
assert _spec
assert _spec.loader
dns_records = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dns_records)
sys.modules.setdefault("dns_records", dns_records)

TOKEN = "right"
NAME = "call.example.org"


class StandIn:
    """A provider with the zone example.org, and what it holds: (name, kind) → values."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], set[str]] = {}
        self.asked: list[httpx.Request] = []
        self.throttled = 0
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self.throttled:
            self.throttled -= 1
            return httpx.Response(429, headers={"Retry-After": "7"})
        return self.answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        raise NotImplementedError

    def records(self, token: str = TOKEN, **more: str) -> Any:
        settings = {"provider": self.provider, "token": token} | more
        return dns_records.records(
            settings, transport=httpx.MockTransport(self), sleep=self.slept.append, **self.more()
        )

    provider = ""

    def more(self) -> dict[str, Any]:
        return {}


class CloudflareStandIn(StandIn):
    provider = "cloudflare"

    def answer(self, request: httpx.Request) -> httpx.Response:
        def no(status: int, code: int, message: str) -> httpx.Response:
            errors = [{"code": code, "message": message}]
            return httpx.Response(
                status, json={"success": False, "errors": errors, "messages": [], "result": None}
            )

        def yes(result: Any) -> httpx.Response:
            return httpx.Response(200, json={"success": True, "errors": [], "messages": [], "result": result})

        if request.headers["authorization"] == "Bearer malformed":
            return no(400, 6003, "Invalid request headers")
        if request.headers["authorization"] != f"Bearer {TOKEN}":
            return no(403, 9109, "Invalid access token")
        path = request.url.path.removeprefix("/client/v4")
        query = request.url.params
        if path == "/zones":
            return yes([{"id": "z1", "name": "example.org"}] if query["name"] == "example.org" else [])
        assert path.startswith("/zones/z1/dns_records"), path
        if request.method == "GET":
            found = self.held.get((query["name"], query["type"]), set())
            return yes([{"id": value.encode().hex(), "content": value} for value in sorted(found)])
        if request.method == "POST":
            record = json.loads(request.content)
            assert record["proxied"] is False
            assert record["ttl"] == 60
            self.held.setdefault((record["name"], record["type"]), set()).add(record["content"])
            return yes(record | {"id": "new"})
        assert request.method == "DELETE"
        gone = bytes.fromhex(path.rpartition("/")[2]).decode()
        for values in self.held.values():
            values.discard(gone)
        return yes({"id": "gone"})


class DesecStandIn(StandIn):
    provider = "desec"

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] != f"Token {TOKEN}":
            return httpx.Response(401, json={"detail": "Invalid token."})
        path, query = request.url.path.removeprefix("/api/v1"), request.url.params
        if path == "/domains/":
            ours = query["owns_qname"] == "example.org" or query["owns_qname"].endswith(".example.org")
            return httpx.Response(200, json=[{"name": "example.org", "minimum_ttl": 3600}] if ours else [])
        assert path == "/domains/example.org/rrsets/", path

        def whole(subname: str) -> str:
            return f"{subname}.example.org" if subname else "example.org"

        if request.method == "GET":
            found = self.held.get((whole(query["subname"]), query["type"]), set())
            rrset = {
                "subname": query["subname"],
                "type": query["type"],
                "ttl": 3600,
                "records": sorted(found),
            }
            return httpx.Response(200, json=[rrset] if found else [])
        assert request.method == "PUT"
        [rrset] = json.loads(request.content)
        if rrset["ttl"] < 3600:
            return httpx.Response(
                400, json=[{"ttl": ["Ensure this value is greater than or equal to 3600."]}]
            )
        if rrset["type"] == "TXT" and not all(value[0] == value[-1] == '"' for value in rrset["records"]):
            return httpx.Response(400, json=[{"records": ["Data for TXT must be quoted."]}])
        self.held[(whole(rrset["subname"]), rrset["type"])] = set(rrset["records"])
        return httpx.Response(200, json=[rrset])


class DuckDnsStandIn(StandIn):
    provider = "duckdns"

    def answer(self, request: httpx.Request) -> httpx.Response:
        query = request.url.params
        if query["token"] != TOKEN or query["domains"] != "talk":
            return httpx.Response(200, text="KO")
        name = "talk.duckdns.org"
        if query.get("clear") == "true":
            for kind in ["TXT"] if "txt" in query else ["A", "AAAA"]:
                self.held.pop((name, kind), None)
            return httpx.Response(200, text="OK")
        for parameter, kind in (("ip", "A"), ("ipv6", "AAAA"), ("txt", "TXT")):
            if parameter in query:
                self.held[(name, kind)] = {query[parameter]}
        return httpx.Response(200, text="OK\n203.0.113.7\n\nUPDATED")

    def more(self) -> dict[str, Any]:
        return {"look_up": lambda name, kind: set(self.held.get((name, kind), set()))}


WITH_ZONES: list[Callable[[], StandIn]] = [CloudflareStandIn, DesecStandIn]


def bare(values: set[str]) -> set[str]:
    return {value.strip('"') for value in values}


@pytest.mark.parametrize("make", WITH_ZONES)
def test_a_name_follows_its_node(make: Callable[[], StandIn]) -> None:
    provider = make()
    provider.held[(NAME, "AAAA")] = {"2001:db8::1"}
    assert dns_records.set_addresses(provider.records(), NAME, ["203.0.113.7"])
    assert provider.held[(NAME, "A")] == {"203.0.113.7"}
    assert provider.held[(NAME, "AAAA")] == set(), "the node before had one; this one has none"
    assert dns_records.set_addresses(provider.records(), NAME, ["203.0.113.8", "2001:db8::8"])
    assert (provider.held[(NAME, "A")], provider.held[(NAME, "AAAA")]) == ({"203.0.113.8"}, {"2001:db8::8"})
    provider.asked.clear()
    assert not dns_records.set_addresses(provider.records(), NAME, ["203.0.113.8", "2001:db8:0::8"])
    assert {asked.method for asked in provider.asked} == {"GET"}, "nothing to change"


@pytest.mark.parametrize("make", WITH_ZONES)
def test_a_challenge_is_shown_and_taken_away(make: Callable[[], StandIn]) -> None:
    provider = make()
    where, name = provider.records(zone="example.org"), f"_acme-challenge.{NAME}"
    where.write(name, "TXT", ["one", "two"])
    assert bare(provider.held[(name, "TXT")]) == {"one", "two"}
    assert where.read(name, "TXT") == {"one", "two"}
    where.write(name, "TXT", [])
    assert provider.held[(name, "TXT")] == set()


def test_duckdns_follows_too() -> None:
    provider, name = DuckDnsStandIn(), "talk.duckdns.org"
    provider.held[(name, "AAAA")] = {"2001:db8::1"}
    assert dns_records.set_addresses(provider.records(), name, ["203.0.113.7"])
    assert provider.held == {(name, "A"): {"203.0.113.7"}}
    assert not dns_records.set_addresses(provider.records(), name, ["203.0.113.7"])
    provider.records().write(f"_acme-challenge.{name}", "TXT", ["proof"])
    assert provider.held[(name, "TXT")] == {"proof"}
    provider.records().write(f"_acme-challenge.{name}", "TXT", [])
    assert provider.held == {(name, "A"): {"203.0.113.7"}}


@pytest.mark.parametrize("make", [*WITH_ZONES, DuckDnsStandIn])
def test_throttling_is_waited_out_as_long_as_it_says(make: Callable[[], StandIn]) -> None:
    provider = make()
    provider.throttled = 2
    name = "talk.duckdns.org" if provider.provider == "duckdns" else NAME
    assert dns_records.set_addresses(provider.records(), name, ["203.0.113.7"])
    assert provider.slept == [7, 7]


@pytest.mark.parametrize("make", [*WITH_ZONES, DuckDnsStandIn])
def test_throttling_without_end_is_said(make: Callable[[], StandIn]) -> None:
    provider = make()
    provider.throttled = 1000
    name = "talk.duckdns.org" if provider.provider == "duckdns" else NAME
    with pytest.raises(dns_records.RecordsError, match=r"does not serve requests now.*Mend: try again later"):
        dns_records.set_addresses(provider.records(), name, ["203.0.113.7"])
    assert sum(provider.slept) <= dns_records.PATIENCE_S


@pytest.mark.parametrize(
    ("make", "settings", "name", "words"),
    [
        (CloudflareStandIn, {"token": ""}, NAME, "There is no key for cloudflare"),
        (CloudflareStandIn, {"token": "wrong"}, NAME, "Cloudflare refuses the key"),
        (CloudflareStandIn, {"token": "malformed"}, NAME, "to an API token (not the global key)"),
        (
            CloudflareStandIn,
            {},
            "call.other.org",
            "This key sees no zone at Cloudflare that holds call.other.org",
        ),
        (CloudflareStandIn, {"zone": "other.org"}, NAME, "call.example.org is not in the zone other.org"),
        (DesecStandIn, {"token": ""}, NAME, "There is no key for desec"),
        (DesecStandIn, {"token": "wrong"}, NAME, "deSEC refuses the key"),
        (DesecStandIn, {}, "call.other.org", "This key sees no zone at deSEC that holds call.other.org"),
        (DesecStandIn, {"zone": "other.org"}, NAME, "is not in the zone other.org"),
        (DuckDnsStandIn, {"token": ""}, "talk.duckdns.org", "There is no key for duckdns"),
        (
            DuckDnsStandIn,
            {"token": "wrong"},
            "talk.duckdns.org",
            "the token is wrong, or talk.duckdns.org is not",
        ),
        (DuckDnsStandIn, {}, "mine.duckdns.org", "mine.duckdns.org is not that account's"),
        (DuckDnsStandIn, {}, NAME, "is not a name of DuckDNS"),
    ],
)
def test_what_does_not_work_is_said_with_the_mend(
    make: Callable[[], StandIn], settings: dict[str, str], name: str, words: str
) -> None:
    with pytest.raises(dns_records.RecordsError) as said:
        dns_records.set_addresses(make().records(**settings), name, ["203.0.113.7"])
    assert words in str(said.value)
    assert "Mend:" in str(said.value)
    assert "wrong" not in str(said.value).replace("the token is wrong", "").replace("set the wrong", "")


@pytest.mark.parametrize("make", [*WITH_ZONES, DuckDnsStandIn])
def test_a_network_that_is_down_tells_no_token(make: Callable[[], StandIn]) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"no way to {request.url}", request=request)

    settings = {"provider": make().provider, "token": "do-not-tell"}
    where = dns_records.records(
        settings, transport=httpx.MockTransport(down), sleep=lambda _: None, **make().more()
    )
    name = "talk.duckdns.org" if settings["provider"] == "duckdns" else NAME
    with pytest.raises(dns_records.RecordsError, match="ConnectError") as said:
        dns_records.set_addresses(where, name, ["203.0.113.7"])
    assert "do-not-tell" not in str(said.value)


def test_an_answer_that_is_no_json_is_said() -> None:
    settings = {"provider": "cloudflare", "token": TOKEN}
    portal = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>log in</html>"))
    where = dns_records.records(settings, transport=portal)
    with pytest.raises(dns_records.RecordsError, match="something stands between"):
        where.read(NAME, "A")


@pytest.mark.parametrize(
    ("addresses", "words"), [(["ssh4.vast.ai"], "is no address"), ([], "There is no address")]
)
def test_what_a_name_cannot_point_at_is_said(addresses: list[str], words: str) -> None:
    with pytest.raises(dns_records.RecordsError, match=words) as said:
        dns_records.set_addresses(CloudflareStandIn().records(), NAME, addresses)
    assert "set line_addresses" in str(said.value)


def test_an_unknown_provider_is_said() -> None:
    with pytest.raises(dns_records.RecordsError, match="one of cloudflare, desec, duckdns, rfc2136"):
        dns_records.records({"provider": "godaddy", "token": "x"})


# ------------------------------------------------------------------------------------------ a real server


def test_knot_takes_the_name(name_server: NameServer) -> None:  # noqa: F811
    where = dns_records.records(name_server.settings())
    assert dns_records.set_addresses(where, "a.line.test", ["203.0.113.7", "2001:db8::7"])
    assert (name_server.ask("a", "A"), name_server.ask("a", "AAAA")) == ({"203.0.113.7"}, {"2001:db8::7"})
    assert not dns_records.set_addresses(where, "A.Line.Test.", ["203.0.113.7", "2001:db8:0::7"])
    assert dns_records.set_addresses(where, "a.line.test", ["203.0.113.8"])
    assert (name_server.ask("a", "A"), name_server.ask("a", "AAAA")) == ({"203.0.113.8"}, set())


def test_records_are_waited_for_at_the_server_that_decides(name_server: NameServer) -> None:  # noqa: F811
    """The record comes while one waits; a server that never shows it is named."""
    settings, name = name_server.settings(), "_acme-challenge.w.line.test"
    where = dns_records.records(settings)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            where.write(name, "TXT", ["here"])

    dns_records.wait_until_seen(settings, {name: ["here"]}, sleep=sleep)
    assert len(looks) == 3
    with pytest.raises(dns_records.RecordsError, match=r"still shows no TXT record of .*Mend: look whether"):
        dns_records.wait_until_seen(settings, {name: ["never"]}, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"token": "d3Jvbmc="}, "a.line.test", "refuses the TSIG key"),
        ({"key_name": "nobody"}, "a.line.test", "refuses the TSIG key"),
        ({"key_name": ""}, "a.line.test", "has a name and a secret, and one is missing"),
        ({"key_name": "", "token": ""}, "a.line.test", "does not let this key change a.line.test"),
        ({"token": "abc"}, "a.line.test", "cannot be used"),
        ({}, "a.other.test", "has no zone for a.other.test"),
        ({"zone": "other.test"}, "a.line.test", "is not in the zone other.test"),
        ({"server": "127.0.0.1:1"}, "a.line.test", "does not answer"),
        ({"server": "ns.example.org"}, "a.line.test", "address of the zone's primary name server"),
        ({"server": ""}, "a.line.test", "address of the zone's primary name server"),
    ],
)
def test_what_knot_refuses_is_said_with_the_mend(
    name_server: NameServer,  # noqa: F811
    changes: dict[str, str],
    name: str,
    words: str,
) -> None:
    with pytest.raises(dns_records.RecordsError) as said:
        where = dns_records.records(name_server.settings(**changes))
        dns_records.set_addresses(where, name, ["203.0.113.7"])
    assert words in str(said.value)
    assert "Mend:" in str(said.value)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    ],
)
def test_how_a_server_is_written(server: str, expected: tuple[str, int]) -> None:
    assert dns_records.server_and_port(server) == expected


def test_the_command_line_takes_its_key_from_standard_input(name_server: NameServer) -> None:  # noqa: F811
    settings = name_server.settings() | {"name": "b.line.test", "addresses": ["203.0.113.7"]}
    for expected in ("changed", "unchanged"):
        ran = subprocess.run(
            [sys.executable, FILE, "-"],
            input=json.dumps(settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout.strip() == expected
