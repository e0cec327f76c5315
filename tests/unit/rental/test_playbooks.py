"""The playbooks and the dynamic inventory: real ansible, a stand-in behind them, keys in no process list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.runpod import RunPodStandIn
from tests.providers.salad import SaladStandIn
from tests.providers.vast import VastStandIn, offer
from tests.unit.rental.conftest import secrets_of

ROOT = Path(__file__).parents[3]


class Watching(VastStandIn):
    """Looks, while it is asked, whether any process shows the key among its arguments."""

    visible: bool = False

    def authenticate(self, headers: dict[str, str]) -> None:
        for arguments in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.visible = self.visible or self.key.encode() in arguments.read_bytes()
            except OSError:
                continue
        super().authenticate(headers)


@pytest.fixture
def market() -> Iterator[Watching]:
    stand_in = Watching()
    yield stand_in
    stand_in.close()


def ansible(
    tmp_path: Path, program: str, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and not k.startswith("SALAD_")}
    return subprocess.run(
        [str(Path(sys.executable).with_name(program)), *words],
        cwd=ROOT,
        env=kept | {"HOTLINE_RENTAL_STATE": str(tmp_path / "state"), "NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def vault(tmp_path: Path, **variables: str) -> str:
    path = tmp_path / "vault.json"
    path.write_text(json.dumps(variables))
    return f"@{path}"


def test_offers_with_a_key_from_a_vault(tmp_path: Path, market: Watching) -> None:
    market.offers = [offer(101), offer(102, dph_total=3.0)]
    keys = vault(tmp_path, vast_api_key=market.key)
    done = ansible(
        tmp_path, "ansible-playbook", "playbooks/offers.yml", "-vvv", "-e", keys,
        "-e", "rental_max_price=0.5", HOTLINE_VAST_URL=market.url,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RTX 4090" in done.stdout
    assert "1 of 2 offers" in done.stdout
    assert market.key not in done.stdout + done.stderr
    assert not market.visible


def test_nodes_and_release(tmp_path: Path, market: Watching) -> None:
    market.instances[7001] = {"id": 7001, "label": "hotline-talk-aaaaaa", "dph_total": 0.4, "_age": 9}
    environment = secrets_of(market)
    shown = ansible(tmp_path, "ansible-playbook", "playbooks/nodes.yml", **environment)
    assert "$0.400 an hour" in shown.stdout
    assert "changed=0" in shown.stdout
    gone = ansible(
        tmp_path, "ansible-playbook", "playbooks/release.yml", "-e", "rental_line=talk", **environment
    )
    assert gone.returncode == 0, gone.stdout
    assert market.instances == {}


def test_rent_says_in_the_end_why_nothing_came_of_it(tmp_path: Path, market: Watching) -> None:
    market.statuses = ["exited"]
    patience = '{"poll_s": 0.02, "destroy_pause_s": 0.02}'
    done = ansible(
        tmp_path, "ansible-playbook", "playbooks/rent.yml", "-e", "rental_line=talk",
        "-e", "rental_max_price=1", HOTLINE_RENTAL_PATIENCE=patience, **secrets_of(market),
    )  # fmt: skip
    assert done.returncode != 0
    assert "never becomes more" in done.stdout
    assert market.instances == {}
    assert "Created 7001" in (tmp_path / "state/talk.log").read_text()
    assert not market.visible


def plain(value: Any) -> Any:
    """ansible-inventory marks what came from outside as unsafe; here it is only read."""
    if isinstance(value, dict):
        return (
            value["__ansible_unsafe"]
            if "__ansible_unsafe" in value
            else {k: plain(v) for k, v in value.items()}
        )
    return [plain(one) for one in value] if isinstance(value, list) else value


def inventory(tmp_path: Path, name: str, **environment: str) -> dict[str, Any]:
    words = ("-i", f"inventory/{name}.yml", "--list")
    done = ansible(tmp_path, "ansible-inventory", *words, HOME=str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    return dict(plain(json.loads(done.stdout)))


def test_the_inventory_of_vast_and_its_cache(tmp_path: Path, market: Watching) -> None:
    market.instances[7001] = {
        "id": 7001, "label": "hotline-talk-aaaaaa", "dph_total": 0.4, "gpu_name": "RTX 4090", "_age": 9,
        "image_uuid": "docker.io/vastai/kvm:x",
    }  # fmt: skip
    market.instances[7002] = {"id": 7002, "label": "training", "_age": 9}
    found = inventory(tmp_path, "vast", **secrets_of(market))
    assert found["line"]["hosts"] == ["talk"]
    for group in ("line_talk", "gpu_rtx_4090", "kind_vm", "provider_vast"):
        assert found[group]["hosts"] == ["talk"]
    variables = found["_meta"]["hostvars"]["talk"]
    assert (variables["line_addresses"], variables["line_outside_port"]) == (["127.0.0.1"], 41998)
    asked = len(market.asked)
    assert inventory(tmp_path, "vast", **secrets_of(market)) == found
    assert len(market.asked) == asked, "from the cache"
    assert not market.visible


def test_two_nodes_of_one_line_have_names_of_their_own(tmp_path: Path, market: Watching) -> None:
    for number in (7001, 7002):
        market.instances[number] = {"id": number, "label": f"hotline-talk-{number:06x}", "_age": 9}
    assert inventory(tmp_path, "vast", **secrets_of(market))["line"]["hosts"] == ["talk-7001", "talk-7002"]


def test_the_inventories_of_salad_and_runpod(tmp_path: Path) -> None:
    salad, runpod = SaladStandIn(), RunPodStandIn()
    try:
        salad.states = runpod_states = ["running"]
        runpod.statuses = [state.upper() for state in runpod_states]
        body = {"name": "hotline-talk-aaaaaa", "container": {}, "networking": {"dns": "x.salad.cloud"}}
        salad.groups["hotline-talk-aaaaaa"] = body
        runpod.pods["p1"] = {"id": "p1", "name": "hotline-talk-bbbbbb", "cost": 0.5, "_age": 9}
        found = inventory(tmp_path, "salad", **secrets_of(salad))["_meta"]["hostvars"]["talk"]
        assert (found["line_url"], found["tls_provider"]) == ("https://x.salad.cloud", "none")
        found = inventory(tmp_path, "runpod", **secrets_of(runpod))["_meta"]["hostvars"]["talk"]
        assert (found["line_addresses"], found["line_outside_port"]) == (["127.0.0.1"], 43998)
    finally:
        salad.close()
        runpod.close()


def test_without_a_key_it_says_which_one_is_missing(tmp_path: Path) -> None:
    done = ansible(tmp_path, "ansible-inventory", "-i", "inventory/vast.yml", "--list", HOME=str(tmp_path))
    assert "VAST_API_KEY is not set" in done.stderr
    assert "Traceback" not in done.stderr
