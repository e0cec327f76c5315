"""Stand-ins, a clock that sleeps in no time, and a shop whose playbooks and ssh are the test's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rental.api import Clock
from rental.ledger import Ledger
from rental.market import Node
from rental.providers import open_provider
from rental.rent import Patience, Shop
from rental.ssh import Identity
from tests.providers import StandIn
from tests.providers.runpod import RunPodStandIn
from tests.providers.salad import SaladStandIn
from tests.providers.vast import VastStandIn

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKx hotline"


@dataclass
class Time:
    """Time passes by sleeping only."""

    seconds: float = 1_790_000_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def passing() -> Time:
    return Time()


@pytest.fixture
def clock(passing: Time) -> Clock:
    return Clock(passing.now, passing.sleep, passing.now)


def opened(stand_in: StandIn, passing: Time) -> StandIn:
    stand_in.clock = passing.now
    return stand_in


@pytest.fixture
def vast_market(passing: Time) -> Iterator[VastStandIn]:
    stand_in = VastStandIn()
    stand_in.clock = passing.now
    yield stand_in
    stand_in.close()


@pytest.fixture
def salad_market(passing: Time) -> Iterator[SaladStandIn]:
    stand_in = SaladStandIn()
    stand_in.clock = passing.now
    yield stand_in
    stand_in.close()


@pytest.fixture
def runpod_market(passing: Time) -> Iterator[RunPodStandIn]:
    stand_in = RunPodStandIn()
    stand_in.clock = passing.now
    yield stand_in
    stand_in.close()


def secrets_of(stand_in: StandIn) -> dict[str, str]:
    """The environment that leads to a stand-in."""
    if isinstance(stand_in, VastStandIn):
        return {"VAST_API_KEY": stand_in.key, "HOTLINE_VAST_URL": stand_in.url}
    if isinstance(stand_in, SaladStandIn):
        return {
            "SALAD_API_KEY": stand_in.key,
            "SALAD_ORGANIZATION": "acme",
            "SALAD_PROJECT": "voice",
            "HOTLINE_SALAD_URL": stand_in.url,
        }
    return {"RUNPOD_API_KEY": stand_in.key, "HOTLINE_RUNPOD_URL": stand_in.url}


NAME_OF = {VastStandIn: "vast", SaladStandIn: "salad", RunPodStandIn: "runpod"}


@dataclass
class Bench:
    """A shop, and what went on in it."""

    shop: Shop
    said: list[str]
    played: list[str]
    words: dict[str, list[str]] = field(default_factory=dict)  # playbook → what else it was told
    failing: dict[str, int] = field(default_factory=dict)  # playbook → how many times it fails
    speechless: int = 0  # how many nodes never answer on ssh

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def bench_of(stand_in: StandIn, clock: Clock, folder: Path) -> Bench:
    """A shop at a stand-in."""
    said: list[str] = []
    played: list[str] = []
    bench: Bench

    def play(playbook: str, inventory: Path, words: Sequence[str], log: Path) -> int:
        assert inventory.exists()
        played.append(playbook)
        bench.words[playbook] = list(words)
        if bench.failing.get(playbook, 0):
            bench.failing[playbook] -= 1
            log.write_text("fatal: [talk]: FAILED! => \n    msg: there is no GPU here\n")
            return 2
        return 0

    def contact(shop: Shop, node: Node, known_hosts: Path) -> None:
        from rental.errors import NodeError

        if bench.speechless:
            bench.speechless -= 1
            raise NodeError(f"ssh to {node.host} does not answer")
        known_hosts.write_text("pinned\n")

    key = Identity(folder / "id_ed25519", PUBLIC_KEY)
    provider = open_provider(NAME_OF[type(stand_in)], secrets_of(stand_in), clock)
    shop = Shop(provider, Ledger(folder), clock, said.append, play, key, Patience(), contact=contact)
    bench = Bench(shop, said, played)
    return bench


@pytest.fixture
def vast(vast_market: VastStandIn, clock: Clock, tmp_path: Path) -> Bench:
    return bench_of(vast_market, clock, tmp_path)


@pytest.fixture
def salad(salad_market: SaladStandIn, clock: Clock, tmp_path: Path) -> Bench:
    return bench_of(salad_market, clock, tmp_path)


@pytest.fixture
def runpod(runpod_market: RunPodStandIn, clock: Clock, tmp_path: Path) -> Bench:
    return bench_of(runpod_market, clock, tmp_path)
