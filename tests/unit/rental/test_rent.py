"""From offers to a line that speaks, and everything that may happen on the way. Nothing is left running."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rental.errors import NoOfferError, QuotaError, StillRunningError, UseError
from rental.market import Wanted
from rental.rent import Patience, child_environment, contact, end, last_words, rent, run_playbook
from tests.providers.runpod import RunPodStandIn
from tests.providers.salad import SaladStandIn
from tests.providers.vast import VastStandIn, offer
from tests.unit.rental.conftest import Bench, Time

WANTED = Wanted(price=1.0, hours=2)
ANY = replace(WANTED, kind="any")


def test_from_nothing_to_a_line(vast: Bench, vast_market: VastStandIn) -> None:
    entry, node = rent(vast.shop, "talk", WANTED)
    assert (entry.state, entry.id, entry.line) == ("ready", "7001", "talk")
    assert node.label.startswith("hotline-talk-")
    assert vast.played == ["site.yml", "playbooks/verify.yml"]
    assert vast.shop.ledger.entries() == [entry]
    assert entry.url == "https://127.0.0.1:41998"
    assert entry.ends_at == pytest.approx(entry.created + 7200)


def test_no_link_is_made_where_all_output_goes_into_a_log(vast: Bench) -> None:
    rent(vast.shop, "talk", WANTED)
    assert vast.words == {"site.yml": ["-e", "site_link=false"], "playbooks/verify.yml": []}


def test_the_line_gets_what_was_asked_for(vast: Bench) -> None:
    wanted = replace(WANTED, engine="duplex", kv="fp8", quantization="q8", idle_minutes=30)
    entry, _ = rent(vast.shop, "talk", wanted)
    written = (vast.shop.ledger.folder / "nodes" / entry.label / "inventory.yml").read_text()
    variables = json.loads(written)["line"]["hosts"]["talk"]
    assert (variables["moshi_engine"], variables["moshi_kv_dtype"]) == ("duplex", "fp8")
    assert variables["moshi_quantization"] == "q8"
    assert "StrictHostKeyChecking=yes" in variables["ansible_ssh_common_args"]
    assert (variables["lease_idle_minutes"], variables["lease_ends_at"]) == (30, int(entry.ends_at))
    assert variables["lease_provider"] == "", "a VM has no key of its own"


def test_what_it_costs_and_how_it_ends_is_said_before_anything_is_made(
    vast: Bench, vast_market: VastStandIn
) -> None:
    rent(vast.shop, "talk", WANTED)
    before = vast.text.partition("Created")[0]
    assert "$0.400 an hour, $9.60 a day" in before
    assert "at most $0.80" in before
    assert "rental keep" in before, "a VM cannot end itself"
    assert "rental release talk" in before


def test_a_container_at_vast_ends_itself_and_that_is_said(vast: Bench) -> None:
    entry, _ = rent(vast.shop, "talk", replace(WANTED, kind="container"))
    assert entry.ends_itself
    assert "the node ends itself" in vast.text


def test_without_a_limit_that_is_said_too(vast: Bench) -> None:
    rent(vast.shop, "talk", replace(WANTED, hours=0))
    assert "until you release it" in vast.text


def test_progress_is_each_change_once(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.statuses = [None, "loading", "loading", "loading", "running"]
    rent(vast.shop, "talk", WANTED)
    assert vast.text.count(": loading") == 1


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/verify.yml"])
def test_a_node_that_does_not_become_a_line_is_destroyed_and_the_next_is_tried(
    vast: Bench, vast_market: VastStandIn, playbook: str
) -> None:
    vast_market.offers = [offer(101), offer(102, dph_total=0.5)]
    vast.failing = {playbook: 1}
    entry, _ = rent(vast.shop, "talk", WANTED)
    assert entry.id == "7002"
    assert list(vast_market.instances) == [7002]
    assert "there is no GPU here" in vast.text
    assert [e.label for e in vast.shop.ledger.entries()] == [entry.label]


def test_a_price_that_changed_between_offer_and_rent(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.price = 1.25
    with pytest.raises(NoOfferError, match=r"changed from \$0.400 to \$1.250"):
        rent(vast.shop, "talk", WANTED)
    assert vast_market.instances == {}
    assert vast.played == []


def test_a_price_that_changed_within_the_ceiling_is_taken(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.price = 0.9
    _, node = rent(vast.shop, "talk", WANTED)
    assert node.price == 0.9


def test_an_offer_taken_by_somebody_else_in_between(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.offers = [offer(101), offer(102, dph_total=0.5)]
    text = {"success": False, "error": "no_such_ask", "msg": "Instance type 101 is no longer available."}
    vast_market.fail("PUT", "/api/v0/asks/101/", 410, text)
    entry, _ = rent(vast.shop, "talk", WANTED)
    assert entry.id == "7001"
    assert "no longer available" in vast.text


@pytest.mark.parametrize("status", ["exited", "offline", "unknown"])
def test_what_never_runs_is_not_waited_for(
    vast: Bench, vast_market: VastStandIn, passing: Time, status: str
) -> None:
    vast_market.statuses = [None, status]
    with pytest.raises(NoOfferError, match="never becomes more"):
        rent(vast.shop, "talk", WANTED)
    assert vast_market.instances == {}
    assert sum(passing.slept) < 120


def test_an_instance_that_hangs_while_it_loads(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.statuses = ["loading"]
    with pytest.raises(NoOfferError, match="after 20 minutes it is still 'loading'"):
        rent(vast.shop, "talk", WANTED)
    assert vast_market.instances == {}


def test_an_instance_that_never_gets_ssh(vast: Bench, vast_market: VastStandIn, passing: Time) -> None:
    """The real first contact, at a port where nobody listens."""
    vast.shop.contact = contact
    vast.shop.patience = Patience(ssh_s=12)
    with pytest.raises(NoOfferError, match="port 9 does not answer"):
        rent(vast.shop, "talk", WANTED)
    assert vast_market.instances == {}
    assert vast.played == []


def test_no_answer_to_the_create_call_that_worked_all_the_same(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.fail("PUT", "/api/v0/asks/", 504, "timeout", after=True)
    entry, _ = rent(vast.shop, "talk", WANTED)
    assert (entry.id, entry.state) == ("7001", "ready")
    assert list(vast_market.instances) == [7001], "found by its label, not made twice"


def test_no_answer_to_the_create_call_that_did_not_work(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.offers = [offer(101), offer(102, dph_total=0.5)]
    vast_market.fail("PUT", "/api/v0/asks/101/", cut=True)
    entry, _ = rent(vast.shop, "talk", WANTED)
    assert entry.id == "7001"
    pending = [e for e in vast.shop.ledger.entries() if e.state == "intended"]
    assert len(pending) == 1, "remembered, in case that it appears late"


def test_one_that_appears_late_is_ended_by_the_next_rent(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.fail("PUT", "/api/v0/asks/101/", cut=True)
    with pytest.raises(NoOfferError):
        rent(vast.shop, "talk", WANTED)
    late = vast.shop.ledger.entries()[0]
    vast_market.instances[9000] = {"id": 9000, "label": late.label, "_age": 0, "image_uuid": "x"}
    vast_market.offers = [offer(103)]
    entry, _ = rent(vast.shop, "talk", WANTED)
    assert list(vast_market.instances) == [int(entry.id)]
    assert "left half done" in vast.text


def test_no_money_ends_it_at_once(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.offers = [offer(101), offer(102)]
    vast_market.no_money = True
    with pytest.raises(QuotaError):
        rent(vast.shop, "talk", WANTED)
    assert len(vast_market.calls("PUT")) == 1
    assert vast.shop.ledger.entries() == []


def test_two_lines_with_one_name(vast: Bench, vast_market: VastStandIn) -> None:
    rent(vast.shop, "talk", WANTED)
    vast_market.offers.append(offer(102))
    with pytest.raises(UseError, match=r"has a node .* already: 7001.*release talk"):
        rent(vast.shop, "talk", WANTED)
    rent(vast.shop, "other", WANTED)
    assert len(vast_market.instances) == 2


def test_a_node_of_that_line_rented_from_elsewhere_counts_too(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.instances[55] = {"id": 55, "label": "hotline-talk-aaaaaa", "_age": 9, "dph_total": 0.3}
    with pytest.raises(UseError, match="55"):
        rent(vast.shop, "talk", WANTED)


def test_two_lines_with_one_name_at_two_providers(vast: Bench, runpod: Bench) -> None:
    rent(vast.shop, "talk", WANTED)
    with pytest.raises(UseError, match=r"has a node at vast \(7001\)"):
        rent(runpod.shop, "talk", ANY)


def test_two_commands_for_one_line_at_the_same_time(vast: Bench) -> None:
    with vast.shop.ledger.working_on("talk"), pytest.raises(UseError, match="at work on line 'talk'"):
        rent(vast.shop, "talk", WANTED)


@pytest.mark.parametrize("name", ["", "Talk", "a-b", "9", "x" * 40, "../x"])
def test_names_that_could_not_be_labels(vast: Bench, name: str) -> None:
    with pytest.raises(UseError, match="no name for a line"):
        rent(vast.shop, name, WANTED)


def test_one_offer_and_no_other(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.offers = [offer(101), offer(102, dph_total=0.9), offer(103, dph_total=5.0)]
    with pytest.raises(NoOfferError, match="103 is not what you ask for"):
        rent(vast.shop, "talk", WANTED, "103")
    with pytest.raises(NoOfferError, match="not on the market"):
        rent(vast.shop, "talk", WANTED, "999")
    rent(vast.shop, "talk", WANTED, "102")
    assert [path for method, path, _ in vast_market.asked if method == "PUT"] == ["/api/v0/asks/102/"]


def test_no_more_than_five_are_tried(vast: Bench, vast_market: VastStandIn) -> None:
    vast_market.offers = [offer(number) for number in range(101, 120)]
    vast.speechless = 100
    with pytest.raises(NoOfferError, match="none of 5 offers became a line"):
        rent(vast.shop, "talk", WANTED)
    assert vast_market.instances == {}


class Stop(BaseException):
    """As Ctrl-C is: no Exception."""


@pytest.mark.parametrize("when", ["site.yml", "waiting", "creating"])
def test_interrupted_it_leaves_nothing_running(vast: Bench, vast_market: VastStandIn, when: str) -> None:
    def interrupted(*_: Any) -> int:
        raise Stop

    if when == "site.yml":
        vast.shop.play = interrupted
    elif when == "waiting":
        vast.shop.clock = replace(vast.shop.clock, sleep=interrupted)  # type: ignore[arg-type]
        vast.shop.patience = Patience(destroys=1)
    else:
        create = vast.shop.provider.create

        def made_and_interrupted(*words: Any) -> str:
            create(*words)
            raise Stop

        vast.shop.provider.create = made_and_interrupted  # type: ignore[method-assign]
    with pytest.raises(Stop):
        rent(vast.shop, "talk", WANTED)
    assert vast_market.instances == {}
    assert vast.shop.ledger.entries() == []


def test_a_destroy_that_fails_is_shouted_with_its_cost_and_repeated(
    vast: Bench, vast_market: VastStandIn
) -> None:
    entry, _ = rent(vast.shop, "talk", WANTED)
    vast_market.undying = 2
    end(vast.shop, entry)
    assert vast.text.count("STILL RUNS, $0.400 an hour") == 2
    assert "costs nothing any more" in vast.text
    assert vast_market.instances == {}


def test_a_destroy_that_never_works_ends_the_renting_and_says_what_it_costs(
    vast: Bench, vast_market: VastStandIn
) -> None:
    vast_market.offers = [offer(101), offer(102)]
    vast.speechless = 9
    vast_market.undying = 99
    with pytest.raises(
        StillRunningError, match=r"COULD NOT BE DESTROYED.*\$0.400 an hour \(\$9.60 a day\).*cloud.vast.ai"
    ):
        rent(vast.shop, "talk", WANTED)
    assert len(vast_market.calls("PUT")) == 1, "no second one while the first costs on"
    assert vast.shop.ledger.entries()[0].state == "ending"


def test_a_destroyed_node_that_is_listed_for_a_while(vast: Bench, vast_market: VastStandIn) -> None:
    entry, _ = rent(vast.shop, "talk", WANTED)
    vast_market.lingering = 2
    end(vast.shop, entry)
    assert vast.shop.ledger.entries() == []


def test_salad_from_nothing_to_a_line(salad: Bench, salad_market: SaladStandIn) -> None:
    entry, node = rent(salad.shop, "talk", ANY)
    assert entry.url.endswith(".salad.cloud")
    assert not entry.ends_itself
    assert "cannot end itself" in salad.text
    assert "SSH Keys" in salad.text
    assert node.fingerprint


def test_runpod_from_nothing_to_a_line(runpod: Bench, runpod_market: RunPodStandIn) -> None:
    entry, _ = rent(runpod.shop, "talk", ANY)
    assert entry.url == "https://127.0.0.1:43998"
    assert runpod.played == ["site.yml", "playbooks/verify.yml"]


def test_runpods_price_in_the_pod_is_the_one_that_counts(runpod: Bench, runpod_market: RunPodStandIn) -> None:
    runpod_market.cost = 3.5
    with pytest.raises(NoOfferError, match=r"to \$3.500"):
        rent(runpod.shop, "talk", ANY)
    assert runpod_market.pods == {}


def test_a_provider_of_containers_has_no_virtual_machine_and_says_so(
    runpod: Bench, runpod_market: RunPodStandIn
) -> None:
    with pytest.raises(NoOfferError, match=r"has only containers here: --kind any"):
        rent(runpod.shop, "talk", replace(WANTED, kind="vm"))
    assert runpod_market.pods == {}


def test_the_account_of_a_failed_playbook_is_its_message(vast: Bench, vast_market: VastStandIn) -> None:
    vast.failing = {"site.yml": 9}
    with pytest.raises(NoOfferError, match=r"site.yml failed \(status 2\): there is no GPU here"):
        rent(vast.shop, "talk", WANTED)


def test_last_words_of_a_real_run(tmp_path: Path) -> None:
    playbook = tmp_path / "p.yml"
    playbook.write_text("""
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - {name: Fine, ansible.builtin.debug: {msg: "fatal: [not me]"}}
    - {name: Fetch it, ansible.builtin.command: "sh -c 'echo no route to the hub >&2; exit 3'"}
""")
    inventory = tmp_path / "inventory.yml"
    inventory.write_text("{}")
    log = tmp_path / "log"
    assert run_playbook(str(playbook), inventory, (), log) == 2
    assert last_words(log) == "Fetch it: non-zero return code: no route to the hub"
    assert last_words(tmp_path / "none") == f"see {tmp_path / 'none'}"


def test_ansible_gets_no_providers_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "token")
    assert "secret" not in child_environment().values()
    assert child_environment()["HF_TOKEN"] == "token"
