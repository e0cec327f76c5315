"""RunPod, from docs.runpod.io/api-reference-v2: catalog and pods. Unknown fields are refused, as there."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

from tests.providers import Answer, RefusalError, StandIn

CREATE = {"name", "image", "gpu", "cloud", "disk", "ports", "startSsh", "env"}
GPU = {"id", "count", "minCudaVersion", "allowedCudaVersions"}


def gpu_type(name: str, memory: int, secure: float, **changes: Any) -> dict[str, Any]:
    """A GPU type as the catalog shows one."""
    return {
        "id": name,
        "displayName": name.removeprefix("NVIDIA "),
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": True,
        "price": {"secure": secure, "community": round(secure * 0.6, 2)},
        "availability": "HIGH",
        "cudaVersions": [{"version": "12.8", "available": True}],
    } | changes


def problem(status: int, title: str, detail: str) -> RefusalError:
    return RefusalError(status, {"title": title, "status": status, "detail": detail})


class RunPodStandIn(StandIn):
    """An account with its pods."""

    def __init__(self) -> None:
        super().__init__()
        self.types = [
            gpu_type("NVIDIA GeForce RTX 4090", 24, 0.69),
            gpu_type("NVIDIA H100 80GB HBM3", 80, 2.69),
            gpu_type("NVIDIA L4", 24, 0.39, availability="NONE"),
        ]
        self.pods: dict[str, dict[str, Any]] = {}
        self.statuses = ["PROVISIONING", "STARTING", "RUNNING"]
        self.ssh: tuple[str, int] = ("127.0.0.1", 9)
        self.page = 200
        self.cost: float | None = None

    def authenticate(self, headers: dict[str, str]) -> None:
        if headers.get("user-agent", "").startswith("Python-urllib"):
            raise RefusalError(403, "Error 1010: Access denied")
        if headers.get("authorization") != f"Bearer {self.key}":
            raise problem(401, "Unauthorized", "missing bearer token")

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/v2/catalog/gpus"):
            if ("product" in query) != (query.get("include") == "AVAILABILITY"):
                raise problem(400, "Bad Request", "product is required with include=AVAILABILITY")
            return 200, {"gpus": self.types}
        if (method, path) == ("GET", "/v2/pods"):
            first = int(query.get("cursor", "0"))
            rows = list(self.pods.values())
            page = [self.shown(pod) for pod in rows[first : first + self.page]]
            more = first + self.page < len(rows)
            return 200, {"pods": page} | (
                {"pagination": {"nextCursor": str(first + self.page)}} if more else {}
            )
        if (method, path) == ("POST", "/v2/pods"):
            return 201, self.create(body)
        if method == "DELETE" and (found := re.fullmatch(r"/v2/pods/([^/]+)", path)):
            if self.pods.pop(found[1], None) is None:
                raise problem(404, "Not Found", "resource not found")
            return 204, None
        raise problem(404, "Not Found", path)

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        if unknown := (set(body) - CREATE) | (set(body.get("gpu", {})) - GPU):
            raise problem(422, "Unprocessable Entity", f"unknown fields {sorted(unknown)}")
        if not re.fullmatch(r"\d+\.\d+", body["gpu"]["minCudaVersion"]):
            raise problem(422, "Unprocessable Entity", "minCudaVersion is major.minor")
        kind = next(
            (t for t in self.types if t["id"] == body["gpu"]["id"] and t["availability"] != "NONE"), None
        )
        if kind is None:
            raise problem(
                409,
                "Conflict",
                "there are no longer any instances available with the requested specifications",
            )
        pod_id = f"pod{len(self.pods) + 1:03d}"
        self.pods[pod_id] = body | {
            "id": pod_id,
            "cost": kind["price"][body["cloud"].lower()] if self.cost is None else self.cost,
            "createdAt": datetime.fromtimestamp(self.clock(), timezone.utc)
            .isoformat()
            .replace("+00:00", "Z"),
            "_age": 0,
        }
        return {k: v for k, v in self.pods[pod_id].items() if k != "_age"} | {
            "status": "PROVISIONING",
            "ssh": {"proxy": None, "direct": None},
        }

    def shown(self, pod: dict[str, Any]) -> dict[str, Any]:
        status = self.statuses[min(pod["_age"], len(self.statuses) - 1)]
        pod["_age"] += 1
        shown = {k: v for k, v in pod.items() if k != "_age"} | {"status": status, "runtime": None}
        shown["ssh"] = {
            "proxy": {"host": "ssh.runpod.io", "port": 22, "username": "x", "command": "ssh x"},
            "direct": None,
        }
        if status == "RUNNING":
            host, port = self.ssh
            shown["ssh"]["direct"] = {
                "host": host,
                "port": port,
                "username": "root",
                "command": f"ssh root@{host} -p {port}",
            }
            shown["runtime"] = {
                "uptime": 5,
                "ports": [
                    {"private": 22, "public": port, "type": "tcp", "ip": host},
                    {"private": 8998, "public": 43998, "type": "tcp", "ip": host},
                    {"private": 8888, "public": None, "type": "http", "ip": None},
                ],
            }
        return shown
