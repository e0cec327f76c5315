"""Each provider's calls against its stand-in: what is sent, how answers are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rental.api import Clock
from rental.errors import NoKeyError, OfferGoneError, ProviderError, QuotaError, UseError
from rental.lines import groups, host_variables, lease_variables, public_url
from rental.market import Node, Wanted
from rental.providers import KEYS, open_provider, with_keys
from rental.vast import node_of, offer_of, outside_ports, ssh_of
from tests.providers.runpod import RunPodStandIn
from tests.providers.salad import SaladStandIn, gpu_class
from tests.providers.vast import VastStandIn, offer
from tests.unit.rental.conftest import PUBLIC_KEY, Bench

WANTED = Wanted(price=1.0)
ANY = replace(WANTED, kind="any")


@pytest.mark.parametrize("name", list(KEYS))
def test_no_key_names_the_variable_and_where_keys_are_made(name: str, clock: Clock) -> None:
    with pytest.raises(NoKeyError, match=rf"{KEYS[name][-1]}.*https://.*never as an argument"):
        open_provider(name, {}, clock)


def test_an_unknown_provider(clock: Clock) -> None:
    with pytest.raises(UseError, match="vast, salad, runpod"):
        open_provider("lambda", {}, clock)


def test_salad_is_usable_with_all_three_of_its_settings_only() -> None:
    assert with_keys({"SALAD_API_KEY": "k", "VAST_API_KEY": "k", "RUNPOD_API_KEY": " "}) == ["vast"]


# -------------------------------------------------------------------------------- Vast


def test_vast_offers_in_our_words(vast: Bench, vast_market: VastStandIn) -> None:
    found = vast.shop.provider.offers(replace(WANTED, gpu="RTX 4090", hours=10, kind="vm"))[0]
    assert (found.id, found.gpu, found.price, found.kind, found.country) == (
        "101",
        "RTX 4090",
        0.40,
        "vm",
        "DE",
    )
    assert (found.capability, found.down, found.reliability, found.cuda) == (8.9, 900.0, 0.995, 12.8)
    assert found.memory_gib == pytest.approx(23.99, abs=0.01)
    question = vast_market.calls("POST", "/api/v0/bundles/")[0]
    assert question["allocated_storage"] == 60, "priced with the disk that we take"
    assert question["vms_enabled"] == {"eq": True}
    assert question["duration"] == {"gte": 36_000}, "no machine that leaves the market before our time is up"
    assert question["gpu_name"] == {"in": ["RTX 4090", "RTX_4090"]}


def test_vast_offers_that_lack_something_are_left_out() -> None:
    assert offer_of(offer(1, dph_total=None)) is None
    assert offer_of({"id": 1}) is None
    bare = offer_of(offer(1, inet_down=None, reliability=None, geolocation=None, compute_cap=None))
    assert bare is not None
    assert (bare.down, bare.reliability, bare.country, bare.capability) == (None, None, "", None)


def test_vast_creates_a_vm_with_our_port_and_label(vast: Bench, vast_market: VastStandIn) -> None:
    provider = vast.shop.provider
    provider.prepare(PUBLIC_KEY)
    provider.prepare(PUBLIC_KEY)
    assert len(vast_market.keys) == 1, "the key is registered once"
    made = provider.create(provider.offers(WANTED)[0], "hotline-talk-abc123", WANTED, PUBLIC_KEY)
    body = vast_market.calls("PUT")[0]
    assert made == "7001"
    assert (body["vm"], body["runtype"], body["label"], body["disk"]) == (
        True,
        "ssh_direct",
        "hotline-talk-abc123",
        60,
    )
    assert body["image"].startswith("docker.io/vastai/kvm:")
    assert body["env"] == {"-p 8998:8998": "1"}
    assert body["cancel_unavail"] is True


def test_vast_container_login_shells_are_no_tmux(vast: Bench, vast_market: VastStandIn) -> None:
    wanted = replace(WANTED, kind="container")
    found = vast.shop.provider.offers(wanted)[0]
    assert found.kind == "container"
    vast.shop.provider.create(found, "hotline-talk-abc123", wanted, PUBLIC_KEY)
    body = vast_market.calls("PUT")[0]
    assert "vm" not in body
    assert ".no_auto_tmux" in body["onstart"]
    assert "supervised boot" in body["onstart"], "a container that is started again is a line again"


def test_vast_an_offer_that_somebody_else_took(vast: Bench, vast_market: VastStandIn) -> None:
    found = vast.shop.provider.offers(WANTED)[0]
    vast_market.keys.append({"id": 1, "public_key": PUBLIC_KEY})
    vast_market.offers[0]["rentable"] = False
    with pytest.raises(OfferGoneError, match="no_such_ask"):
        vast.shop.provider.create(found, "hotline-talk-1", WANTED, PUBLIC_KEY)


def test_vast_no_money_is_no_matter_of_the_offer(vast: Bench, vast_market: VastStandIn) -> None:
    found = vast.shop.provider.offers(WANTED)[0]
    vast_market.keys.append({"id": 1, "public_key": PUBLIC_KEY})
    vast_market.no_money = True
    with pytest.raises(QuotaError, match="Mend: top it up"):
        vast.shop.provider.create(found, "hotline-talk-1", WANTED, PUBLIC_KEY)


def test_vast_lists_all_pages_and_only_ours(vast: Bench, vast_market: VastStandIn) -> None:
    for number in range(1, 61):
        label = f"hotline-talk-{number:06x}" if number % 2 else "training"
        vast_market.instances[number] = {"id": number, "label": label, "image_uuid": "x", "_age": 9}
    assert len(vast.shop.provider.nodes()) == 30
    assert len(vast_market.calls("GET", "/api/v1/instances/")) == 3


def test_vast_destroying_what_is_gone_is_no_error(vast: Bench) -> None:
    vast.shop.provider.destroy("4242")
    with pytest.raises(UseError, match="numbers"):
        vast.shop.provider.destroy("../users")


def test_vast_a_destroy_that_is_refused_is_an_error(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.fail("DELETE", "/api/v0/instances/", 200, {"success": False, "msg": "host offline"})
    with pytest.raises(ProviderError, match="host offline"):
        vast.shop.provider.destroy("7001")


@pytest.mark.parametrize(
    ("raw", "ports"),
    [
        (
            {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "33526"}], "8998/udp": [{"HostPort": "1"}]},
            {22: 33526},
        ),
        ({"22/tcp": "33526", "8998": 41998}, {22: 33526, 8998: 41998}),
        ([{"PrivatePort": 22, "PublicPort": 33526, "Type": "tcp"}, {"PrivatePort": 80}], {22: 33526}),
        ([22, 8998], {}),
        ({"22/tcp": []}, {}),
        (None, {}),
    ],
)
def test_vast_ports_in_every_shape(raw: Any, ports: dict[int, int]) -> None:
    assert outside_ports(raw) == ports


def test_vast_ssh_directly_or_through_the_proxy_whose_port_is_one_higher_for_jupyter() -> None:
    proxy = {"ssh_host": "ssh4.vast.ai", "ssh_port": 10600, "public_ipaddr": "203.0.113.7"}
    assert ssh_of(proxy | {"image_runtype": "ssh_direct"}, {22: 33526}) == ("203.0.113.7", 33526)
    assert ssh_of(proxy | {"image_runtype": "ssh_proxy"}, {}) == ("ssh4.vast.ai", 10600)
    assert ssh_of(proxy | {"image_runtype": "jupyter_proxy"}, {}) == ("ssh4.vast.ai", 10601)
    assert ssh_of(proxy | {"image_runtype": "ssh_direct"}, {}) == ("", 0), "its port is not there yet"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, "starting"),
        ("loading", "starting"),
        ("running", "running"),
        ("exited", "failed"),
        ("offline", "failed"),
        ("stopped", "stopped"),
        ("a new word", "starting"),
    ],
)
def test_vast_states(status: str | None, state: str) -> None:
    assert node_of({"id": 1, "actual_status": status}).state == state


# -------------------------------------------------------------------------------- Salad


def test_salad_offers_what_is_free_at_our_priority(salad: Bench, salad_market: SaladStandIn) -> None:
    found = {o.gpu: o for o in salad.shop.provider.offers(ANY)}
    assert found["RTX 4090 (24 GB)"].price == 0.18, "high priority, no other"
    assert found["RTX 4090 (24 GB)"].memory_gib == 24
    salad_market.available[salad_market.classes[0]["id"]] = 0
    assert "RTX 4090 (24 GB)" not in {o.gpu for o in salad.shop.provider.offers(ANY)}


def test_salad_availability_is_asked_only_where_it_matters(salad: Bench, salad_market: SaladStandIn) -> None:
    salad_market.classes += [gpu_class(n, "RTX 5090 (32 GB)", "9.0") for n in range(10, 30)]
    salad.shop.provider.offers(ANY)
    assert len(salad_market.calls("POST", "/organizations/acme/availability")) == 1


def test_salad_creates_one_replica_behind_an_open_gateway(salad: Bench, salad_market: SaladStandIn) -> None:
    found = salad.shop.provider.offers(ANY)[0]
    assert salad.shop.provider.create(found, "hotline-talk-abc123", ANY, PUBLIC_KEY) == "hotline-talk-abc123"
    body = salad_market.calls("POST", "/organizations/acme/projects")[0]
    assert body["networking"] == {"protocol": "http", "port": 8998, "auth": False}
    assert (body["replicas"], body["autostart_policy"]) == (1, True)
    assert body["container"]["resources"]["storage_amount"] == 60_000_000_000


def test_salad_nodes_have_fingerprint_price_and_url(salad: Bench, salad_market: SaladStandIn) -> None:
    salad_market.groups["somebody-elses"] = {"name": "somebody-elses"}
    found = salad.shop.provider.offers(ANY)[0]
    salad.shop.provider.create(found, "hotline-talk-abc123", ANY, PUBLIC_KEY)
    states = [salad.shop.provider.nodes()[0] for _ in range(3)]
    assert [n.said for n in states] == ["allocating", "downloading 40 %", "running"]
    node = states[-1]
    assert (node.state, node.price, node.port) == ("running", 0.18, 9)
    assert node.fingerprint.startswith("SHA256:")
    assert host_variables(node)["tls_provider"] == "none"
    assert host_variables(node)["line_url"] == "https://hotline-talk-abc123-x.salad.cloud"
    salad.shop.provider.destroy(node.id)
    assert salad.shop.provider.nodes() == []
    salad.shop.provider.destroy(node.id)


def test_salad_quota_reached_before_anything_is_made(salad: Bench, salad_market: SaladStandIn) -> None:
    salad_market.used = salad_market.quota
    with pytest.raises(QuotaError, match=r"10 replicas.*Mend"):
        salad.shop.provider.prepare(PUBLIC_KEY)


def test_salad_says_that_keys_go_in_by_the_portal(salad: Bench) -> None:
    assert PUBLIC_KEY in salad.shop.provider.prepare(PUBLIC_KEY)


# -------------------------------------------------------------------------------- RunPod


def test_runpod_offers_what_is_in_stock(runpod: Bench) -> None:
    found = {o.id: o for o in runpod.shop.provider.offers(ANY)}
    assert set(found) == {"NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3"}
    assert found["NVIDIA GeForce RTX 4090"].price == 0.69
    assert found["NVIDIA GeForce RTX 4090"].capability == 8.9
    assert found["NVIDIA GeForce RTX 4090"].kind == "container"


def test_runpod_takes_our_key_with_the_pod(runpod: Bench, runpod_market: RunPodStandIn) -> None:
    found = runpod.shop.provider.offers(ANY)[0]
    runpod.shop.provider.prepare(PUBLIC_KEY)
    runpod.shop.provider.create(found, "hotline-talk-abc123", ANY, PUBLIC_KEY)
    body = runpod_market.calls("POST")[0]
    assert body["env"] == {"PUBLIC_KEY": PUBLIC_KEY}
    assert body["ports"] == ["8998/tcp", "22/tcp"]
    assert body["gpu"]["minCudaVersion"] == "12.0"
    assert runpod_market.calls("PUT") == []


def test_runpod_nodes_over_all_pages(runpod: Bench, runpod_market: RunPodStandIn) -> None:
    for number in range(5):
        pod = {"id": f"p{number}", "name": f"hotline-a-{number:06x}", "cost": 0.5, "_age": 9}
        runpod_market.pods[str(pod["id"])] = pod
    runpod_market.pods["x"] = {"id": "x", "name": "notebook", "cost": 1.0, "_age": 9}
    runpod_market.page = 2
    found = runpod.shop.provider.nodes()
    assert len(found) == 5
    assert found[0].ports == {22: 9, 8998: 43998}
    assert (found[0].host, found[0].port, found[0].state) == ("127.0.0.1", 9, "running")


def test_runpod_out_of_stock_between_offer_and_rent(runpod: Bench, runpod_market: RunPodStandIn) -> None:
    found = runpod.shop.provider.offers(ANY)[0]
    runpod_market.types[0]["availability"] = "NONE"
    with pytest.raises(OfferGoneError, match="no longer any instances"):
        runpod.shop.provider.create(found, "hotline-talk-1", ANY, PUBLIC_KEY)


def test_runpod_destroys_and_what_is_gone_is_no_error(runpod: Bench) -> None:
    found = runpod.shop.provider.offers(ANY)[0]
    made = runpod.shop.provider.create(found, "hotline-talk-1", ANY, PUBLIC_KEY)
    runpod.shop.provider.destroy(made)
    runpod.shop.provider.destroy(made)
    assert runpod.shop.provider.nodes() == []


# -------------------------------------------------------------------------------- a node as a host


def test_the_public_url_follows_the_outside_port() -> None:
    assert (
        public_url(Node("vast", "1", "l", "running", host="203.0.113.7", ports={8998: 41998}))
        == "https://203.0.113.7:41998"
    )


def test_an_ipv6_only_node() -> None:
    node = Node("vast", "1", "l", "running", host="2001:db8::7", port=22)
    assert public_url(node) == "https://[2001:db8::7]:8998"
    assert host_variables(node)["ansible_host"] == "2001:db8::7"


def test_groups_by_line_card_kind_and_provider() -> None:
    node = Node("vast", "1", "hotline-talk-1", "running", gpu="RTX 4090", kind="vm")
    assert groups(node, "talk") == ["line", "line_talk", "gpu_rtx_4090", "kind_vm", "provider_vast"]


def test_the_lease_goes_to_the_node_only_when_there_is_one(tmp_path: Path) -> None:
    node = Node("vast", "7", "l", "running", price=0.4)
    assert lease_variables(node, WANTED, 0, True) == {}
    told = lease_variables(node, replace(WANTED, idle_minutes=30), 1_790_000_000.5, False)
    assert told == {
        "lease_provider": "",
        "lease_node": "7",
        "lease_ends_at": 1_790_000_000,
        "lease_idle_minutes": 30,
        "lease_price": 0.4,
    }
