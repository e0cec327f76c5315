"""SaladCloud over its documented HTTP interface (docs.salad.com, read in November 2026).

A node is a container group of one replica. Its gateway ends TLS and reaches the container by IPv6; browsers
cannot send its key, so its own check is off and ours is on. A node may be moved to other hardware at any
time, which resets its disk. Nothing is billed while it is being allocated; the price of a GPU includes CPU
and memory. It cannot end itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rental.api import Api, Clock, Key
from rental.cards import card
from rental.errors import ProviderError, QuotaError
from rental.market import LABEL, Node, Offer, Wanted, faults

LINE_PORT = 8998
IMAGE = "ubuntu:24.04"
PRIORITY = "high"  # any lower one may be interrupted by whoever pays more
CPU, MEMORY_MB = 4, 24_576  # loading bf16 weights takes about 16 GB for a moment
COMMAND = ["sleep", "infinity"]


class Salad:
    """See rental.providers.Provider."""

    name = "salad"
    console = "https://portal.salad.com/"

    def __init__(self, secrets: Mapping[str, str], clock: Clock) -> None:
        self._api = Api(
            "Salad",
            secrets.get("HOTLINE_SALAD_URL") or "https://api.salad.com/api/public",
            Key(secrets["SALAD_API_KEY"].strip()),
            lambda key: {"Salad-Api-Key": key},
            clock,
        )
        self._organization = "/organizations/" + quote(secrets["SALAD_ORGANIZATION"].strip(), safe="")
        self._containers = (
            f"{self._organization}/projects/{quote(secrets['SALAD_PROJECT'].strip(), safe='')}/containers"
        )
        self._image = secrets.get("HOTLINE_SALAD_IMAGE") or IMAGE

    def offers(self, wanted: Wanted) -> list[Offer]:
        """The GPU classes, each with whether one is free now at our priority."""
        found = []
        for raw in self._classes():
            known = card(str(raw.get("name") or ""))
            price = price_of(raw)
            if price is None:
                continue
            offer = Offer(
                provider="salad",
                id=str(raw["id"]),
                gpu=str(raw["name"]),
                gpus=1,
                price=price,
                kind="container",
                memory_gib=known.memory_gib if known else None,
                bandwidth=known.bandwidth if known else None,
                capability=known.capability if known else None,
            )
            # Availability is one question per class: only what could be taken is asked for.
            if not faults(offer, wanted) and not self._free(offer, wanted):
                continue
            found.append(offer)
        return found

    def _classes(self) -> list[dict[str, Any]]:
        return _list(self._api.ask("GET", f"{self._organization}/gpu-classes"), "items")

    def _free(self, offer: Offer, wanted: Wanted) -> bool:
        question: dict[str, Any] = {
            "gpu_classes": [offer.id],
            "cpu": CPU,
            "memory": MEMORY_MB,
            "storage_amount": wanted.disk_gb * 10**9,
        }
        if wanted.countries:
            question["country_codes"] = [code.lower() for code in wanted.countries]
        answer = self._api.ask(
            "POST", f"{self._organization}/availability/sce-gpu-availability", body=question
        )
        count = answer.get(f"available_gpu_{PRIORITY}") if isinstance(answer, dict) else None
        return count is None or int(count) > 0  # what is not told is unknown, not none

    def prepare(self, public_key: str) -> str:
        """Check the quota; ssh keys can be registered in the portal only."""
        answer = self._api.ask("GET", f"{self._organization}/quotas")
        quotas = answer.get("container_groups_quotas", answer) if isinstance(answer, dict) else {}
        most, used = quotas.get("container_replicas_quota"), quotas.get("container_replicas_used", 0)
        if most is not None and int(most) - int(used or 0) < 1:
            raise QuotaError(
                f"Salad lets this organization run {most} replicas, and {used} run. Mend: release one, or "
                "ask Salad for more."
            )
        return (
            "Salad takes ssh keys in its portal only. If you have not yet: https://portal.salad.com, your "
            "name, SSH Keys, paste\n"
            f"  {public_key}"
        )

    def create(self, offer: Offer, label: str, wanted: Wanted, public_key: str) -> str:
        """POST …/containers: one replica, its gateway on the line's port without a check of its own."""
        body: dict[str, Any] = {
            "name": label,
            "display_name": label.replace("-", " "),
            "container": {
                "image": self._image,
                "command": COMMAND,
                "priority": PRIORITY,
                "resources": {
                    "cpu": CPU,
                    "memory": MEMORY_MB,
                    "gpu_classes": [offer.id],
                    "storage_amount": wanted.disk_gb * 10**9,
                },
            },
            "autostart_policy": True,
            "restart_policy": "always",
            "replicas": 1,
            "networking": {"protocol": "http", "port": LINE_PORT, "auth": False},
        }
        if wanted.countries:
            body["country_codes"] = [code.lower() for code in wanted.countries]
        answer = self._api.ask("POST", self._containers, body=body, once=True)
        if not isinstance(answer, dict) or not answer.get("name"):
            raise ProviderError(
                f"Salad says that it made a container group and does not say which: {answer!r:.200}"
            )
        return str(answer["name"])

    def nodes(self) -> list[Node]:
        """The container groups of ours, each with its one instance."""
        groups = [
            group
            for group in _list(self._api.ask("GET", self._containers), "items")
            if str(group.get("name") or "").startswith(LABEL)
        ]
        classes = {str(raw["id"]): raw for raw in self._classes()} if groups else {}
        found = []
        for group in groups:
            answer = self._api.ask("GET", f"{self._containers}/{group['name']}/instances", missing=True)
            if answer is None:
                continue  # deleted between the two questions
            rows = answer.get("instances", answer.get("items", [])) if isinstance(answer, dict) else []
            found.append(node_of(group, rows[0] if rows else {}, classes))
        return found

    def destroy(self, node_id: str) -> None:
        """DELETE …/containers/{name}."""
        self._api.ask("DELETE", f"{self._containers}/{quote(node_id, safe='')}", missing=True)

    def ends(self, kind: str) -> tuple[bool, str]:
        """No key of its own reaches into a container there."""
        return (
            False,
            "a Salad container cannot end itself, so `rental keep` on this machine does: leave it running",
        )


def price_of(gpu_class: Mapping[str, Any], priority: str = PRIORITY) -> float | None:
    """Dollars per hour of a GPU class at a priority; they come as text."""
    for row in gpu_class.get("prices") or []:
        if isinstance(row, dict) and row.get("priority") == priority:
            try:
                return float(row["price"])
            except (KeyError, TypeError, ValueError):
                return None
    return None


def node_of(
    group: Mapping[str, Any], instance: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]]
) -> Node:
    """A container group and its instance in our words."""
    status = str((group.get("current_state") or {}).get("status") or "pending")
    inside = str(instance.get("state") or "")
    state = {"stopped": "stopped", "succeeded": "stopped", "failed": "failed"}.get(status, "starting")
    if inside == "running" or (status == "running" and instance.get("ssh_port")):
        state = "running"
    container = group.get("container") or {}
    ids = (container.get("resources") or {}).get("gpu_classes") or []
    gpu_class = classes.get(str(ids[0])) if ids else None
    dns = str((group.get("networking") or {}).get("dns") or "")
    pulled = instance.get("pulling_progress")
    return Node(
        provider="salad",
        id=str(group["name"]),
        label=str(group["name"]),
        state=state,
        said=inside + (f" {pulled} %" if inside == "downloading" and pulled is not None else "") or status,
        price=(price_of(gpu_class, str(container.get("priority") or PRIORITY)) or 0.0) if gpu_class else 0.0,
        gpu=str(gpu_class["name"]) if gpu_class else "",
        host=str(instance.get("ssh_ip") or ""),
        port=int(instance.get("ssh_port") or 0),
        fingerprint=str(instance.get("ssh_host_key_fingerprint") or ""),
        url=f"https://{dns}" if dns else "",
        created=_seconds(group.get("create_time")),
    )


def _seconds(text: object) -> float | None:
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _list(answer: object, name: str) -> list[dict[str, Any]]:
    rows = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise ProviderError(f"Salad's answer has no list '{name}': {answer!r:.200}")
    return [row for row in rows if isinstance(row, dict)]
