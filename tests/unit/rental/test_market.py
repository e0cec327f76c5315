"""What is decided about money, without a network."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rental import market
from rental.cards import CARDS, card, carries, wanted_card
from rental.errors import UseError
from rental.market import Offer, Wanted, carried, choose, explain, faults, line_of, offers_table

ROOT = Path(__file__).parents[3]
WANTED = Wanted(price=1.0)


def offer(number: int = 1, **changes: Any) -> Offer:
    base = Offer(
        "vast",
        str(number),
        "RTX 4090",
        1,
        0.40,
        "vm",
        24.0,
        1008.0,
        8.9,
        900.0,
        0.99,
        "DE",
        "570.124.06",
        12.8,
    )
    return replace(base, **changes)


def test_an_offer_that_fits_has_no_fault() -> None:
    assert faults(offer(), WANTED) == []


@pytest.mark.parametrize(
    ("changes", "wanted", "fault"),
    [
        ({"price": 1.01}, WANTED, "costs more than $1 an hour"),
        ({"kind": "container"}, replace(WANTED, kind="vm"), "is a container, not a vm"),
        ({"down": 199.0}, WANTED, "downloads slower than 200 Mbit/s"),
        ({"reliability": 0.9}, WANTED, "is less reliable than 0.97"),
        ({}, replace(WANTED, countries=("US",)), "stands outside US"),
        ({}, replace(WANTED, gpu="L4"), "is not a L4"),
        ({"gpu": "Tesla K80", "capability": 3.7}, WANTED, "is older than torch supports"),
        ({"gpu": "Radeon", "capability": None}, WANTED, "is a card that is unknown here"),
        ({}, replace(WANTED, conversations=2), "carries fewer than 2 conversation(s)"),
        (
            {"gpu": "RTX 3060", "memory_gib": 12.0, "bandwidth": 360.0},
            WANTED,
            "carries fewer than 1 conversation(s)",
        ),
    ],
)
def test_each_reason_against_an_offer(changes: dict[str, Any], wanted: Wanted, fault: str) -> None:
    assert any(told.startswith(fault) for told in faults(offer(**changes), wanted))


def test_a_containers_driver_is_its_hosts_and_must_be_new_enough() -> None:
    container = replace(WANTED, kind="container")
    assert "has a driver older than 525" in faults(
        offer(kind="container", driver="515.1", cuda=None), container
    )
    blackwell = offer(gpu="RTX 5090", kind="container", driver="565.57", capability=12.0, cuda=12.7)
    assert "has a driver older than 570" in faults(blackwell, container)
    assert "has a driver too old for CUDA 12" in faults(blackwell, container)
    assert faults(offer(driver="470.1", cuda=11.4), WANTED) == [], "on a VM the driver is ours to install"


def test_the_cheapest_first_and_a_vm_before_a_container_at_the_same_price() -> None:
    offers = [
        offer(1, price=0.5),
        offer(2, price=0.401, kind="container"),
        offer(3, price=0.404),
        offer(4, price=0.3, reliability=0.5),
        offer(5, price=0.403, reliability=0.999),
    ]
    assert [o.id for o in choose(offers, replace(WANTED, kind="any"))] == ["5", "3", "2", "1"]


def test_nothing_below_the_ceiling_names_the_price_that_would_do() -> None:
    told = str(explain([offer(1, price=1.203), offer(2, price=2)], WANTED, "vast"))
    assert "2 costs more than $1 an hour" in told
    assert "--max-price 1.21" in told


def test_only_containers_where_a_virtual_machine_is_wanted_names_both_ways_out() -> None:
    told = str(explain([offer(kind="container")], replace(WANTED, kind="vm"), "runpod"))
    assert "--kind any" in told
    assert "Vast" in told


def test_an_empty_market_says_so() -> None:
    assert "offers nothing at all" in str(explain([], WANTED, "salad"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("RTX_4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("RTX 4090 (24 GB)", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIE"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000Ada"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_the_same_card_under_each_providers_name(name: str, known: str) -> None:
    found = card(name)
    assert found is not None
    assert found.name == known


def test_a_laptops_card_is_another_card() -> None:
    assert card("RTX 4090 Laptop (16 GB)") is None


def test_an_unknown_card_is_refused_with_what_is_near() -> None:
    with pytest.raises(UseError, match="RTX 4090"):
        wanted_card("RTX 4900")


@pytest.mark.parametrize(
    ("report", "quantization", "kv"),
    [("duplex-h100-bf16", "bf16", "bf16"), ("duplex-h100-fp8", "bf16", "fp8")],
)
def test_the_h100_carries_what_was_measured_there(report: str, quantization: str, kv: str) -> None:
    rows = json.loads((ROOT / f"docs/benchmarks/{report}.json").read_text())["rows"]
    most = max(row["conversations"] for row in rows)
    many = carries(80, 3352, name="H100 SXM", engine="duplex", quantization=quantization, kv=kv)
    assert (many.conversations, many.measured, str(many)) == (most, True, str(most))


def test_another_card_is_an_estimate_and_says_so() -> None:
    many = carries(24, 1008, name="RTX 4090", engine="duplex")
    assert 1 <= many.conversations <= 6
    assert str(many).startswith("~")


def test_the_estimate_is_not_far_from_the_run_that_was_held_to_24_gb() -> None:
    rows = json.loads((ROOT / "docs/benchmarks/duplex-h100-q8-fp8-24gb.json").read_text())["rows"]
    # 24 GB of an H100: 22.35 GiB at its bandwidth.
    many = carries(24 / 1.073741824, 3352, engine="duplex", quantization="q8", kv="fp8")
    assert abs(many.conversations - rows[0]["conversations"]) <= 1


@pytest.mark.parametrize("engine", ["moshi_server", "duplex"])
def test_more_memory_and_more_bandwidth_never_carry_less(engine: str) -> None:
    for kv in ("bf16", "fp8"):
        counts = [carries(m, 1000, engine=engine, kv=kv).conversations for m in (8, 16, 24, 48, 80, 141)]
        assert counts == sorted(counts)
        counts = [carries(48, b, engine=engine, kv=kv).conversations for b in (100, 300, 900, 2000, 4000)]
        assert counts == sorted(counts)


def test_moshi_server_carries_one_on_each_card_that_it_fits_on() -> None:
    fits = [c.name for c in CARDS if carries(c.memory_gib, c.bandwidth, name=c.name).conversations]
    assert {"RTX 3090", "RTX 4090", "H100 SXM"} <= set(fits)
    assert not {"RTX 3060", "RTX 4080", "Tesla T4"} & set(fits)
    assert carried(offer(gpus=4), WANTED).conversations == 4


def test_the_limits_are_those_of_the_roles() -> None:
    def plugin(path: str) -> Any:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    preflight = plugin("roles/preflight/filter_plugins/preflight.py")
    driver = plugin("roles/preflight/filter_plugins/gpu_driver.py")
    assert preflight.SMALLEST_TORCH == market.OLDEST_CAPABILITY
    assert (driver.OLDEST_DRIVER, driver.OLDEST_DRIVER_BLACKWELL) == (
        market.OLDEST_DRIVER,
        market.OLDEST_DRIVER_BLACKWELL,
    )
    assert driver.BLACKWELL == market.BLACKWELL


def test_labels_name_their_line() -> None:
    assert line_of("hotline-talk-3fa9c1") == "talk"
    assert line_of("somebody-elses") == ""


def test_the_table_has_price_per_conversation_and_marks_estimates() -> None:
    text = offers_table([offer(), offer(2, gpus=2, price=0.8)], replace(WANTED, engine="duplex"))
    head, first, second = text.splitlines()
    assert "$/conv. h" in head
    assert "~" in first
    assert "2x RTX 4090" in second
