"""RunPod over version 2 of its REST interface (docs.runpod.io/api-reference-v2, read in November 2026).

Pods are containers. Our ssh key goes in as PUBLIC_KEY, which RunPod's official images put into
authorized_keys: the keys of the account, which can only be replaced as a whole, stay as they are. ssh goes to
the published 22/tcp; their proxy carries an interactive shell only.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rental.api import Api, Clock, Key
from rental.cards import card
from rental.errors import ProviderError
from rental.market import BLACKWELL, LABEL, OLDEST_CUDA, OLDEST_CUDA_BLACKWELL, Node, Offer, Wanted

LINE_PORT = 8998
IMAGE = "runpod/base:1.0.2-ubuntu2404"
CLOUD = "SECURE"  # their own hardware; COMMUNITY is other people's
STATES = {
    "PROVISIONING": "starting",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "stopped",
    "ERROR": "failed",
}


class RunPod:
    """See rental.providers.Provider."""

    name = "runpod"
    console = "https://console.runpod.io/pods"

    def __init__(self, secrets: Mapping[str, str], clock: Clock) -> None:
        self._api = Api(
            "RunPod",
            secrets.get("HOTLINE_RUNPOD_URL") or "https://api.runpod.io",
            Key(secrets["RUNPOD_API_KEY"].strip()),
            lambda key: {"Authorization": f"Bearer {key}"},
            clock,
        )
        self._image = secrets.get("HOTLINE_RUNPOD_IMAGE") or IMAGE
        self._cloud = (secrets.get("HOTLINE_RUNPOD_CLOUD") or CLOUD).upper()

    def offers(self, wanted: Wanted) -> list[Offer]:
        """GET /v2/catalog/gpus: types with a price, of which one is free for a pod on a host with CUDA 12."""
        query = {
            "include": "AVAILABILITY",
            "product": "POD",
            "count": "1",
            "cloud": self._cloud,
            "minCudaVersion": f"{OLDEST_CUDA:.1f}",
        }
        if wanted.countries:
            query["countryCodes"] = ",".join(wanted.countries)
        answer = self._api.ask("GET", "/v2/catalog/gpus", query=query)
        found = []
        for raw in _list(answer, "gpus"):
            price = (raw.get("price") or {}).get(self._cloud.lower())
            if (
                not price
                or raw.get("availability", "NONE") == "NONE"
                or raw.get("manufacturer", "NVIDIA").upper() != "NVIDIA"
            ):
                continue
            known = card(str(raw["id"]))
            found.append(
                Offer(
                    provider="runpod",
                    id=str(raw["id"]),
                    gpu=str(raw["id"]),
                    gpus=1,
                    price=float(price),
                    kind="container",
                    memory_gib=float(raw["memory"]) if raw.get("memory") else None,
                    bandwidth=known.bandwidth if known else None,
                    capability=known.capability if known else None,
                    country=wanted.countries[0] if len(wanted.countries) == 1 else "",
                    detail={"cloud": self._cloud},
                )
            )
        return found

    def prepare(self, public_key: str) -> str:
        """Nothing: the key goes in with the pod."""
        return ""

    def create(self, offer: Offer, label: str, wanted: Wanted, public_key: str) -> str:
        """POST /v2/pods; the answer comes before the pod runs."""
        blackwell = (offer.capability or 0) >= BLACKWELL
        body = {
            "name": label,
            "image": self._image,
            "gpu": {
                "id": offer.id,
                "count": offer.gpus,
                "minCudaVersion": f"{OLDEST_CUDA_BLACKWELL if blackwell else OLDEST_CUDA:.1f}",
            },
            "cloud": offer.detail.get("cloud", self._cloud),
            "disk": wanted.disk_gb,
            "ports": [f"{LINE_PORT}/tcp", "22/tcp"],
            "startSsh": True,
            "env": {"PUBLIC_KEY": public_key},
        }
        answer = self._api.ask("POST", "/v2/pods", body=body, once=True)
        if not isinstance(answer, dict) or not answer.get("id"):
            raise ProviderError(f"RunPod says that it made a pod and does not say which: {answer!r:.200}")
        return str(answer["id"])

    def nodes(self) -> list[Node]:
        """GET /v2/pods, all of them; a cursor is followed where the answer has one."""
        found: list[Node] = []
        query: dict[str, str] = {}
        while True:
            answer = self._api.ask("GET", "/v2/pods", query=query)
            found += [
                node_of(raw)
                for raw in _list(answer, "pods")
                if str(raw.get("name") or "").startswith(LABEL) and raw.get("status") != "TERMINATED"
            ]
            cursor = (answer.get("pagination") or {}).get("nextCursor")
            if not cursor or cursor == query.get("cursor"):
                return found
            query["cursor"] = str(cursor)

    def destroy(self, node_id: str) -> None:
        """DELETE /v2/pods/{id}."""
        self._api.ask("DELETE", f"/v2/pods/{quote(node_id, safe='')}", missing=True)

    def ends(self, kind: str) -> tuple[bool, str]:
        """A pod has a key for their own command only; that it may delete by REST is documented nowhere."""
        return (
            False,
            "a RunPod pod is not known to be able to end itself, so `rental keep` on this machine does: "
            "leave it running",
        )


def node_of(raw: Mapping[str, Any]) -> Node:
    """One of their pods in our words."""
    direct = (raw.get("ssh") or {}).get("direct") or {}
    gpu = raw.get("gpu") or {}
    ports = {
        int(row["private"]): int(row["public"])
        for row in (raw.get("runtime") or {}).get("ports") or []
        if isinstance(row, dict)
        and row.get("private")
        and row.get("public")
        and row.get("type", "tcp") == "tcp"
    }
    status = str(raw.get("status") or "PROVISIONING")
    return Node(
        provider="runpod",
        id=str(raw["id"]),
        label=str(raw.get("name") or ""),
        state=STATES.get(status, "starting"),
        said=status,
        price=float(raw.get("cost") or 0),
        gpu=str(gpu.get("id") or ""),
        gpus=int(gpu.get("count") or 1),
        host=str(direct.get("host") or ""),
        port=int(direct.get("port") or 0),
        user=str(direct.get("username") or "root"),
        ports=ports,
        created=_seconds(raw.get("createdAt")),
    )


def _seconds(text: object) -> float | None:
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _list(answer: object, name: str) -> list[dict[str, Any]]:
    rows = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise ProviderError(f"RunPod's answer has no list '{name}': {answer!r:.200}")
    return [row for row in rows if isinstance(row, dict)]
