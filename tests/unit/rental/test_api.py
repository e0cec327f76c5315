"""Asking over HTTP: repetitions, throttling, errors that name the mend, and a key that never shows."""

from __future__ import annotations

import pytest

from rental.api import Api, Clock, Key
from rental.errors import ProviderError, QuotaError, RefusedError, UnansweredError
from rental.market import Wanted
from tests.providers.vast import VastStandIn
from tests.unit.rental.conftest import Bench, Time

BUNDLES = "/api/v0/bundles/"
WANTED = Wanted(price=1.0)


def test_throttled_without_a_word_how_long_it_waits_longer_each_time(
    vast: Bench, vast_market: VastStandIn, passing: Time
) -> None:
    vast_market.fail("POST", BUNDLES, 429, "API requests too frequent", times=3)
    assert len(vast.shop.provider.offers(WANTED)) == 1
    assert passing.slept == [1.0, 2.0, 4.0]


def test_throttled_with_a_time_it_waits_that_long(
    vast: Bench, vast_market: VastStandIn, passing: Time
) -> None:
    vast_market.fail("POST", BUNDLES, 429, "too frequent", headers={"Retry-After": "7"})
    vast.shop.provider.offers(WANTED)
    assert passing.slept == [7.0]


def test_a_quota_of_hours_is_told_and_not_waited_for(
    vast: Bench, vast_market: VastStandIn, passing: Time
) -> None:
    body = {"success": False, "error": "search_quota_exceeded", "msg": "daily rows"}
    vast_market.fail("POST", BUNDLES, 429, body, headers={"Retry-After": "7200"})
    with pytest.raises(QuotaError, match="120 minutes"):
        vast.shop.provider.offers(WANTED)
    assert passing.slept == []


def test_server_errors_are_repeated_and_then_told(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.fail("POST", BUNDLES, 502, "<html>bad gateway</html>", times=2)
    vast.shop.provider.offers(WANTED)
    vast_market.fail("POST", BUNDLES, 503, "", times=100)
    with pytest.raises(ProviderError, match=r"503.*6 times in a row.*Mend"):
        vast.shop.provider.offers(WANTED)


def test_a_connection_that_breaks_off_is_repeated(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.fail("POST", BUNDLES, cut=True, times=2)
    assert vast.shop.provider.offers(WANTED)


def test_creating_is_never_repeated(vast: Bench, vast_market: VastStandIn) -> None:
    offer = vast.shop.provider.offers(WANTED)[0]
    for fault in ({"cut": True}, {"status": 500, "body": "oops"}):
        vast_market.fail("PUT", "/api/v0/asks/", **fault)  # type: ignore[arg-type]
        before = len(vast_market.calls("PUT"))
        with pytest.raises(UnansweredError):
            vast.shop.provider.create(offer, "hotline-talk-1", WANTED, "ssh-ed25519 AAAA x")
        assert len(vast_market.calls("PUT")) == before + 1


def test_a_wrong_key_is_told_once_with_the_mend(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.key = "another"
    with pytest.raises(RefusedError, match=r"does not accept the key.*Mend"):
        vast.shop.provider.nodes()
    assert len(vast_market.asked) == 1


def test_nobody_there(clock: Clock) -> None:
    api = Api("Vast", "http://127.0.0.1:9", Key("k"), lambda key: {}, clock)
    with pytest.raises(ProviderError, match="cannot be reached"):
        api.ask("GET", "/")


def test_what_is_no_json_is_told(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.fail("GET", "/api/v1/instances/", 200, "<html>maintenance</html>")
    with pytest.raises(ProviderError, match="no JSON"):
        vast.shop.provider.nodes()
    vast_market.fail("GET", "/api/v1/instances/", 200, {"rows": []})
    with pytest.raises(ProviderError, match="no list 'instances'"):
        vast.shop.provider.nodes()


def test_the_key_shows_nowhere(vast: Bench, vast_market: VastStandIn) -> None:
    secret = vast_market.key
    assert secret not in repr(Key(secret))
    assert secret not in str(Key(secret))
    # Even a provider that repeats it does not get it into our words.
    vast_market.fail("GET", "/api/v1/instances/", 400, {"msg": f"key {secret} is odd"})
    with pytest.raises(ProviderError) as caught:
        vast.shop.provider.nodes()
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert all(secret not in path for _, path, _ in vast_market.asked)


def test_a_wrong_clock_is_seen_by_the_providers(vast: Bench, vast_market: VastStandIn, passing: Time) -> None:
    vast_market.clock = lambda: passing.now() + 3600
    vast.shop.provider.nodes()
    assert vast.shop.clock.there() == pytest.approx(passing.now() + 3600, abs=2)
    vast_market.clock = lambda: passing.now() + 20
    vast.shop.provider.nodes()
    assert vast.shop.clock.there() == passing.now(), "a few seconds are the network's"
