"""Vast.ai over its documented HTTP interface (docs.vast.ai/api-reference, read in November 2026).

Its own package pins more than our environment can bear. Two kinds of node: virtual machines, which have
systemd, and containers, whose PID 1 is Vast's. Storage is billed from creation on, the GPU from `running` on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rental.api import Api, Clock, Key
from rental.cards import card
from rental.errors import ProviderError, UseError
from rental.market import LABEL, Node, Offer, Wanted

LINE_PORT = 8998
VM_IMAGE = "docker.io/vastai/kvm:ubuntu_cli_22.04-2025-11-21"
CONTAINER_IMAGE = "vastai/base-image:@vastai-automatic-tag"
PAGE = 25  # the most that a page of /api/v1/instances/ holds
# Containers only: a login shell of theirs starts tmux unless this file exists; and once site.yml ran, a
# container that is started again is a line again.
ON_START = "touch ~/.no_auto_tmux; [ ! -x /usr/local/sbin/supervised ] || /usr/local/sbin/supervised boot"
STATES = {
    "running": "running",
    "loading": "starting",
    "created": "starting",
    "rebooting": "starting",
    "recycling": "starting",
    "stopped": "stopped",
    "frozen": "stopped",
    # Never reach `running` any more, says their documentation: destroy and take another.
    "exited": "failed",
    "unknown": "failed",
    "offline": "failed",
}


class Vast:
    """See rental.providers.Provider."""

    name = "vast"
    console = "https://cloud.vast.ai/instances/"

    def __init__(self, secrets: Mapping[str, str], clock: Clock) -> None:
        self._api = Api(
            "Vast",
            secrets.get("HOTLINE_VAST_URL") or "https://console.vast.ai",
            Key(secrets["VAST_API_KEY"].strip()),
            lambda key: {"Authorization": f"Bearer {key}"},
            clock,
        )
        self._vm_image = secrets.get("HOTLINE_VAST_VM_IMAGE") or VM_IMAGE
        self._container_image = secrets.get("HOTLINE_VAST_IMAGE") or CONTAINER_IMAGE

    def offers(self, wanted: Wanted) -> list[Offer]:
        """POST /api/v0/bundles/: on demand, verified, cheapest first, priced with the disk that we take."""
        question: dict[str, Any] = {
            "type": "ondemand",
            "verified": {"eq": True},
            "rentable": {"eq": True},
            "gpu_arch": {"eq": "nvidia"},
            "cpu_arch": {"eq": "amd64"},
            "direct_port_count": {"gte": 2},
            "disk_space": {"gte": wanted.disk_gb},
            "allocated_storage": wanted.disk_gb,
            "order": [["dph_total", "asc"]],
            "limit": 500,
        }
        if wanted.kind == "vm":
            question["vms_enabled"] = {"eq": True}
        if wanted.hours:
            question["duration"] = {"gte": wanted.hours * 3600}
        if wanted.gpu and (known := card(wanted.gpu)):
            # Both spellings stand in their documentation.
            question["gpu_name"] = {"in": [known.name, known.name.replace(" ", "_")]}
        answer = self._api.ask("POST", "/api/v0/bundles/", body=question)
        return [
            offer
            for raw in _list(answer, "offers")
            for offer in [offer_of(raw, wanted.kind)]
            if offer is not None
        ]

    def prepare(self, public_key: str) -> str:
        """Register our ssh key: a VM only ever gets the keys that the account had before it was made."""
        body = public_key.split()[1]
        answer = self._api.ask("GET", "/api/v0/ssh/")
        rows = answer if isinstance(answer, list) else _list(answer, "ssh_keys")
        held = " ".join(str(row.get("public_key") or row.get("ssh_key") or "") for row in rows)
        if body not in held:
            self._api.ask("POST", "/api/v0/ssh/", body={"ssh_key": public_key})
        return ""

    def create(self, offer: Offer, label: str, wanted: Wanted, public_key: str) -> str:
        """PUT /api/v0/asks/{id}/; nothing is made if it cannot start at once."""
        vm = offer.kind == "vm"
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self._vm_image if vm else self._container_image,
            "label": label,
            "disk": wanted.disk_gb,
            "runtype": "ssh_direct",
            "target_state": "running",
            "cancel_unavail": True,
            "env": {f"-p {LINE_PORT}:{LINE_PORT}": "1"},
        }
        if vm:
            body["vm"] = True
        else:
            body["onstart"] = ON_START
        answer = self._api.ask("PUT", f"/api/v0/asks/{offer.id}/", body=body, once=True)
        made = answer.get("new_contract") if isinstance(answer, dict) else None
        if not made:
            raise ProviderError(f"Vast says that it made a node and does not say which: {answer!r:.200}")
        return str(made)

    def nodes(self) -> list[Node]:
        """GET /api/v1/instances/, page after page."""
        found: list[Node] = []
        query = {
            "limit": str(PAGE),
            "select_filters": "{}",
            "order_by": json.dumps([{"col": "id", "dir": "asc"}]),
        }
        while True:
            answer = self._api.ask("GET", "/api/v1/instances/", query=query)
            found += [
                node_of(raw)
                for raw in _list(answer, "instances")
                if str(raw.get("label") or "").startswith(LABEL)
            ]
            token = answer.get("next_token")
            if not token or token == query.get("after_token"):
                return found
            query["after_token"] = str(token)

    def destroy(self, node_id: str) -> None:
        """DELETE /api/v0/instances/{id}/."""
        if not node_id.isdigit():
            raise UseError(f"'{node_id}' is no instance of Vast's: they are numbers")
        answer = self._api.ask("DELETE", f"/api/v0/instances/{node_id}/", body={}, missing=True)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ProviderError(
                f"Vast did not destroy {node_id}: {answer.get('msg') or answer.get('error') or answer}"
            )

    def ends(self, kind: str) -> tuple[bool, str]:
        """A container carries a key that ends this one instance; of VMs their documentation says nothing."""
        if kind == "container":
            return True, "the node ends itself, with the key that Vast gives each instance for itself"
        return False, (
            "Vast documents a key of its own for containers only, so `rental keep` on this machine ends it: "
            "leave it running"
        )


def offer_of(raw: Mapping[str, Any], wanted_kind: str = "any") -> Offer | None:
    """One of their offers in our words; None for one that lacks what an offer must have.

    `gpu_ram` is MiB per card, `compute_cap` times 100; `inet_down` is taken for Mbit/s as their command line
    has it (their reference says MB/s, which would only make lines faster than we think). A machine that can
    run virtual machines is rented as one, unless a container was asked for.
    """
    try:
        vm = bool(raw.get("vms_enabled")) and wanted_kind != "container"
        capability = raw.get("compute_cap")
        memory = raw.get("gpu_ram")
        reliability = raw.get("reliability2", raw.get("reliability"))
        place = re.search(r"\b([A-Z]{2})\s*$", str(raw.get("geolocation") or ""))
        return Offer(
            provider="vast",
            id=str(int(raw["id"])),
            gpu=str(raw["gpu_name"]),
            gpus=int(raw["num_gpus"]),
            price=float(raw["dph_total"]),
            kind="vm" if vm else "container",
            memory_gib=float(memory) / 1024 if memory else None,
            bandwidth=float(raw["gpu_mem_bw"]) if raw.get("gpu_mem_bw") else None,
            capability=float(capability) / 100 if capability else None,
            down=None if raw.get("inet_down") is None else float(raw["inet_down"]),
            reliability=None if reliability is None else float(reliability),
            country=place.group(1) if place else "",
            driver=str(raw.get("driver_version") or ""),
            cuda=float(raw["cuda_max_good"]) if raw.get("cuda_max_good") else None,
        )
    except (KeyError, TypeError, ValueError):
        return None


def node_of(raw: Mapping[str, Any]) -> Node:
    """One of their instances in our words."""
    said = str(raw.get("actual_status") or "provisioning")
    state = STATES.get(said, "starting")
    if state == "starting" and raw.get("intended_status") == "stopped":
        state = "stopped"
    ports = outside_ports(raw.get("ports"))
    host, port = ssh_of(raw, ports)
    place = re.search(r"\b([A-Z]{2})\s*$", str(raw.get("geolocation") or ""))
    image = str(raw.get("image_uuid") or "")
    return Node(
        provider="vast",
        id=str(raw["id"]),
        label=str(raw.get("label") or ""),
        state=state,
        said=said if state != "failed" else f"{said}: {str(raw.get('status_msg') or '').strip()[:120]}",
        price=float(raw.get("dph_total") or 0),
        gpu=str(raw.get("gpu_name") or ""),
        gpus=int(raw.get("num_gpus") or 1),
        kind="vm" if "vastai/kvm" in image or raw.get("vm") else "container",
        country=place.group(1) if place else "",
        host=host,
        port=port,
        ports=ports,
        created=float(raw["start_date"]) if raw.get("start_date") else None,
    )


def outside_ports(raw: object) -> dict[int, int]:
    """Inside TCP port → outside port, from Docker's mapping, or its list, or nothing while a node starts."""
    found: dict[int, int] = {}
    if isinstance(raw, dict):
        for inside, bindings in raw.items():
            number, _, protocol = str(inside).partition("/")
            binding = bindings[0] if isinstance(bindings, list) and bindings else bindings
            outside = binding.get("HostPort") if isinstance(binding, dict) else binding
            if protocol in ("", "tcp") and number.isdigit() and str(outside).isdigit():
                found[int(number)] = int(str(outside))
    elif isinstance(raw, list):
        for entry in raw:
            if isinstance(entry, dict) and entry.get("Type", "tcp") == "tcp":
                inside, outside = entry.get("PrivatePort"), entry.get("PublicPort")
                if str(inside).isdigit() and str(outside).isdigit():
                    found[int(str(inside))] = int(str(outside))
    return found


def ssh_of(raw: Mapping[str, Any], ports: Mapping[int, int]) -> tuple[str, int]:
    """Where ssh is reached: directly, else through their proxy, whose port is one higher for jupyter images.

    Address and port go together: the proxy's port at the machine's address leads nowhere.
    """
    address = str(raw.get("public_ipaddr") or "").strip()
    if address and 22 in ports:
        return address, ports[22]
    host, port = str(raw.get("ssh_host") or "").strip(), raw.get("ssh_port")
    if host and port and "ssh_direct" not in str(raw.get("image_runtype") or ""):
        return host, int(port) + ("jupyter" in str(raw.get("image_runtype") or ""))
    return "", 0


def _list(answer: object, name: str) -> list[dict[str, Any]]:
    rows = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise ProviderError(f"Vast's answer has no list '{name}': {answer!r:.200}")
    return [row for row in rows if isinstance(row, dict)]
