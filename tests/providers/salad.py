"""SaladCloud, from docs.salad.com: quotas, GPU classes, availability, container groups and instances."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

from tests.providers import Answer, RefusalError, StandIn

NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
CREATE = {
    "name", "display_name", "container", "autostart_policy", "restart_policy", "replicas", "networking",
    "country_codes",
}  # fmt: skip
REQUIRED = {"name", "container", "replicas", "restart_policy", "autostart_policy"}


def gpu_class(number: int, name: str, price: str) -> dict[str, Any]:
    """A GPU class as the reference shows one: prices as text, per priority."""
    return {
        "id": f"00000000-0000-0000-0000-{number:012d}",
        "name": name,
        "prices": [{"priority": "high", "price": price}, {"priority": "batch", "price": "0.01"}],
        "is_high_demand": False,
    }


class SaladStandIn(StandIn):
    """An organization `acme` with a project `voice`."""

    base = "/organizations/acme"

    def __init__(self) -> None:
        super().__init__()
        self.classes = [
            gpu_class(1, "RTX 4090 (24 GB)", "0.180"),
            gpu_class(2, "RTX 3060 (12 GB)", "0.060"),
            gpu_class(3, "RTX 4090 Laptop (16 GB)", "0.100"),
        ]
        self.available: dict[str, int] = {}
        self.groups: dict[str, dict[str, Any]] = {}
        self.quota, self.used = 10, 0
        self.states = ["allocating", "downloading", "running"]
        self.ssh: tuple[str, int, str] = (
            "127.0.0.1",
            9,
            "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8",
        )

    def authenticate(self, headers: dict[str, str]) -> None:
        if headers.get("salad-api-key") != self.key:
            raise RefusalError(
                401, {"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "bad key"}
            )

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        containers = f"{self.base}/projects/voice/containers"
        if (method, path) == ("GET", f"{self.base}/quotas"):
            return 200, {
                "container_groups_quotas": {
                    "container_replicas_quota": self.quota,
                    "container_replicas_used": self.used,
                }
            }
        if (method, path) == ("GET", f"{self.base}/gpu-classes"):
            return 200, {"items": self.classes}
        if (method, path) == ("POST", f"{self.base}/availability/sce-gpu-availability"):
            return 200, {
                "available_gpu_high": self.available.get(body["gpu_classes"][0], 5),
                "available_gpu_batch": 50,
            }
        if path == containers and method == "GET":
            return 200, {"items": list(self.groups.values())}
        if path == containers and method == "POST":
            return 201, self.create(body)
        if method == "GET" and (found := re.fullmatch(rf"{containers}/([^/]+)/instances", path)):
            return 200, {"instances": self.instances(found[1])}
        if method == "DELETE" and (found := re.fullmatch(rf"{containers}/([^/]+)", path)):
            if self.groups.pop(found[1], None) is None:
                return 404, {"title": "Not Found", "status": 404}
            return 202, None
        raise RefusalError(404, {"title": "Not Found", "status": 404, "detail": path})

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        wrong = set(body) - CREATE or REQUIRED - set(body)
        if wrong or not NAME.fullmatch(body["name"]):
            raise RefusalError(
                400, {"title": "Bad Request", "status": 400, "detail": f"invalid: {wrong or body['name']}"}
            )
        if body["name"] in self.groups:
            raise RefusalError(409, {"title": "Conflict", "status": 409, "detail": "the name is taken"})
        if self.used >= self.quota:
            raise RefusalError(
                403, {"title": "Forbidden", "status": 403, "detail": "container replicas quota exceeded"}
            )
        self.groups[body["name"]] = body | {
            "id": "11111111-1111-1111-1111-111111111111",
            "networking": body["networking"] | {"dns": f"{body['name']}-x.salad.cloud"},
            "current_state": {"status": "deploying"},
            "create_time": datetime.fromtimestamp(self.clock(), timezone.utc)
            .isoformat()
            .replace("+00:00", "Z"),
            "version": 1,
        }
        self.used += 1
        return self.groups[body["name"]]

    def instances(self, name: str) -> list[dict[str, Any]]:
        if name not in self.groups:
            raise RefusalError(404, {"title": "Not Found", "status": 404})
        group = self.groups[name]
        age = group["_age"] = group.get("_age", -1) + 1
        state = self.states[min(age, len(self.states) - 1)]
        instance: dict[str, Any] = {
            "id": "i",
            "machine_id": "m",
            "state": state,
            "ready": state == "running",
            "version": 1,
        }
        if state == "downloading":
            instance["pulling_progress"] = 40
        if state == "running":
            group["current_state"] = {"status": "running"}
            host, port, fingerprint = self.ssh
            instance |= {"ssh_ip": host, "ssh_port": port, "ssh_host_key_fingerprint": fingerprint}
        return [instance]
