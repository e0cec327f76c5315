"""What the lease decides, and how it ends a node: the installed program, against the stand-in for Vast."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers import RefusalError
from tests.providers.vast import VastStandIn

PROGRAM = Path(__file__).parents[2] / "roles/lease/files/lease.py"
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2327 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:2327 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:2328 0100007F:C351 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
   3: 0100007F:2327 0100007F:C352 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0 20 4 30 10 -1
   4: 0100007F:C350 0100007F:2327 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
"""


@pytest.fixture(scope="module")
def lease() -> Any:
    spec = importlib.util.spec_from_file_location("lease", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def market() -> Iterator[VastStandIn]:
    stand_in = VastStandIn()
    stand_in.instances[7001] = {"id": 7001, "label": "hotline-talk-aaaaaa", "_age": 9}
    yield stand_in
    stand_in.close()


def test_callers_are_established_connections_at_an_engines_port(lease: Any) -> None:
    assert lease.callers(TABLE, frozenset({8999})) == {("0100007F:2327", "0100007F:C350")}
    assert len(lease.callers(TABLE, frozenset({8999, 9000}))) == 2
    assert lease.callers("", frozenset({8999})) == set()


@pytest.mark.parametrize(
    ("now", "last", "ends_at", "idle", "told"),
    [
        (100, 0, 0, 0, ""),
        (100, 100, 100, 0, "time is up"),
        (99, 99, 100, 0, ""),
        (1800, 0, 0, 30, "30 minutes"),
        (1799, 0, 0, 30, ""),
    ],
)
def test_when_it_is_due(  # noqa: PLR0917
    lease: Any, now: float, last: float, ends_at: float, idle: float, told: str
) -> None:
    reason = lease.due(now, last, ends_at, idle)
    assert told in reason
    assert bool(reason) == bool(told)


def test_it_destroys_its_own_instance(lease: Any, market: VastStandIn) -> None:
    assert lease.end(market.url, "7001", market.key) == ""
    assert market.instances == {}


def test_a_key_that_may_only_stop_stops_and_says_that_the_disk_costs(lease: Any, market: VastStandIn) -> None:
    answer = market.answer

    def only_stop(method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if method == "PUT":
            assert body == {"state": "stopped"}
            return 200, {"success": True}
        if method == "DELETE":
            raise RefusalError(403, {"success": False, "msg": "not permitted"})
        return answer(method, path, query, body)

    market.answer = only_stop  # type: ignore[method-assign]
    assert "still billed" in lease.end(market.url, "7001", market.key)


@pytest.mark.parametrize("status", [500, 429])
def test_a_provider_in_trouble_is_asked_again_later(lease: Any, market: VastStandIn, status: int) -> None:
    market.fail("DELETE", "/api/v0/instances/", status, {})
    assert f"HTTP {status}" in lease.end(market.url, "7001", market.key)
    assert market.instances, "not stopped instead: the next try destroys it"
    assert market.key not in lease.end("http://127.0.0.1:9", "7001", market.key)
