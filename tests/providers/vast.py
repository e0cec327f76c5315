"""Vast, from docs.vast.ai: search offers, create, show instances (v1), destroy, ssh keys, rate limits."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.providers import Answer, RefusalError, StandIn

FILTERS = {
    "type", "verified", "rentable", "gpu_arch", "cpu_arch", "direct_port_count", "disk_space",
    "allocated_storage", "order", "limit", "vms_enabled", "duration", "gpu_name", "gpu_ram", "dph_total",
}  # fmt: skip
CREATE = {
    "client_id", "image", "label", "disk", "runtype", "target_state", "cancel_unavail", "env", "vm",
    "onstart", "price",
}  # fmt: skip
OPERATORS = {"eq", "neq", "gt", "lt", "gte", "lte", "in", "notin"}


def offer(number: int, **changes: Any) -> dict[str, Any]:
    """An offer as the reference shows one."""
    return {
        "id": number,
        "ask_contract_id": number,
        "gpu_name": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram": 24564,
        "gpu_mem_bw": 950.0,
        "compute_cap": 890,
        "cuda_max_good": 12.8,
        "driver_version": "570.124.06",
        "dph_total": 0.40,
        "inet_down": 900.0,
        "inet_up": 400.0,
        "reliability": 0.995,
        "geolocation": "Germany, DE",
        "verification": "verified",
        "rentable": True,
        "rented": False,
        "static_ip": True,
        "direct_port_count": 42,
        "disk_space": 500.0,
        "vms_enabled": True,
        "gpu_arch": "nvidia",
        "cpu_arch": "amd64",
        "duration": 2_000_000.0,
    } | changes


class VastStandIn(StandIn):
    """The market, and what becomes of what is rented there."""

    def __init__(self) -> None:
        super().__init__()
        self.offers = [offer(101)]
        self.instances: dict[int, dict[str, Any]] = {}
        self.keys: list[dict[str, Any]] = []
        self.next_id = 7001
        self.statuses: list[str | None] = [
            None,
            "loading",
            "running",
        ]  # what an instance becomes, per listing
        self.price: float | None = None  # what a rented one costs, if not what was offered
        self.ssh: tuple[str, int] = ("127.0.0.1", 9)  # where its port 22 is reached
        self.ports: Any = None  # its `ports`, if not Docker's mapping
        self.instance_changes: dict[str, Any] = {}
        self.no_money = False
        self.undying = 0  # how many DELETEs are answered with an error
        self.lingering = 0  # for how many listings a destroyed one is still there

    def authenticate(self, headers: dict[str, str]) -> None:
        if headers.get("authorization") != f"Bearer {self.key}":
            raise RefusalError(401, {"success": False, "error": "auth_error", "msg": "Invalid user key"})

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("POST", "/api/v0/bundles/"):
            return 200, {"offers": self.search(body)}
        if (method, path) == ("GET", "/api/v1/instances/"):
            return 200, self.list_page(query)
        if (method, path) == ("GET", "/api/v0/ssh/"):
            return 200, self.keys
        if (method, path) == ("POST", "/api/v0/ssh/"):
            self.keys.append({"id": len(self.keys) + 1, "public_key": body["ssh_key"]})
            return 200, {"success": True}
        if method == "PUT" and (made := re.fullmatch(r"/api/v0/asks/(\d+)/", path)):
            return 200, self.create(int(made[1]), body)
        if method == "DELETE" and (gone := re.fullmatch(r"/api/v0/instances/(\d+)/", path)):
            return self.destroy(int(gone[1]))
        raise RefusalError(404, {"success": False, "error": "not_found", "msg": path})

    def search(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        if unknown := set(body) - FILTERS:
            raise RefusalError(
                400, {"success": False, "error": "bad_request", "msg": f"unknown filter {unknown}"}
            )
        for name, value in body.items():
            if isinstance(value, dict) and (set(value) - OPERATORS or not value):
                raise RefusalError(
                    400, {"success": False, "error": "bad_request", "msg": f"bad operator in {name}"}
                )
        found = [o for o in self.offers if o["rentable"]]
        for name, value in body.items():
            if isinstance(value, dict):
                for operator, operand in value.items():
                    found = [o for o in found if name not in o or fits(o[name], operator, operand)]
        for field, direction in body.get("order", []):
            found.sort(key=lambda o: o[field], reverse=direction == "desc")
        return found[: body.get("limit", 64)]

    def create(self, ask: int, body: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(body) - CREATE:
            raise RefusalError(400, {"success": False, "error": "invalid_args", "msg": f"unknown {unknown}"})
        if not isinstance(body["env"], dict):
            raise RefusalError(
                400, {"success": False, "error": "invalid_args", "msg": "env must be an object"}
            )
        if body.get("vm") and not self.keys:
            raise RefusalError(
                400, {"success": False, "error": "no_ssh_key_for_vm", "msg": "no ssh key on the account"}
            )
        if self.no_money:
            raise RefusalError(
                400, {"success": False, "error": "insufficient_credit", "msg": "Your account lacks credit."}
            )
        taken = next((o for o in self.offers if o["id"] == ask and o["rentable"]), None)
        if taken is None:
            text = f"error 404/3603: no_such_ask Instance type by id {ask} is not available."
            raise RefusalError(404, {"success": False, "error": "invalid_args", "msg": text, "ask_id": ask})
        taken["rentable"] = False
        number, self.next_id = self.next_id, self.next_id + 1
        self.instances[number] = {
            "id": number,
            "label": body["label"],
            "image_uuid": body["image"],
            "image_runtype": body["runtype"],
            "intended_status": "running",
            "cur_state": "running",
            "status_msg": "",
            "gpu_name": taken["gpu_name"],
            "num_gpus": taken["num_gpus"],
            "geolocation": taken["geolocation"],
            "dph_total": taken["dph_total"] if self.price is None else self.price,
            "start_date": self.clock(),
            "extra_env": [[k, v] for k, v in body["env"].items()],
            "ssh_host": "ssh4.vast.ai",
            "ssh_port": 10600,
            "_age": 0,
        } | self.instance_changes
        return {"success": True, "new_contract": number}

    def shown(self, instance: dict[str, Any]) -> dict[str, Any]:
        status = self.statuses[min(instance["_age"], len(self.statuses) - 1)]
        instance["_age"] += 1
        shown = {k: v for k, v in instance.items() if not k.startswith("_")} | {"actual_status": status}
        if status == "running":
            host, port = self.ssh
            mapping = {
                "22/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}],
                "8998/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41998"}],
            }
            shown |= {"public_ipaddr": host, "ports": mapping if self.ports is None else self.ports}
        return shown | {k: v for k, v in self.instance_changes.items() if k in ("ports", "public_ipaddr")}

    def list_page(self, query: dict[str, str]) -> dict[str, Any]:
        limit = int(query.get("limit", "25"))
        if not 1 <= limit <= 25:
            raise RefusalError(400, {"success": False, "error": "bad_request", "msg": "limit is 1 to 25"})
        json.loads(query.get("select_filters", "{}"))
        for number, instance in list(self.instances.items()):
            if "_dying" in instance:
                instance["_dying"] -= 1
                if instance["_dying"] < 0:
                    del self.instances[number]
        numbers = sorted(n for n in self.instances if n > int(query.get("after_token", "0")))
        page = numbers[:limit]
        return {
            "success": True,
            "instances_found": len(page),
            "total_instances": len(self.instances),
            "instances": [self.shown(self.instances[n]) for n in page],
            "next_token": str(page[-1]) if len(numbers) > limit else None,
        }

    def destroy(self, number: int) -> Answer:
        if number not in self.instances:
            return 404, {"success": False, "error": "no_such_instance", "msg": f"Instance {number} not found"}
        if self.undying:
            self.undying -= 1
            return 400, {"success": False, "error": "host_offline", "msg": "the host does not answer"}
        self.instances[number].setdefault("_dying", self.lingering)
        if not self.lingering:
            del self.instances[number]
        return 200, {"success": True}


def fits(value: Any, operator: str, operand: Any) -> bool:
    """One operator of their filter language."""
    return {
        "eq": lambda: value == operand,
        "neq": lambda: value != operand,
        "gt": lambda: value > operand,
        "lt": lambda: value < operand,
        "gte": lambda: value >= operand,
        "lte": lambda: value <= operand,
        "in": lambda: value in operand,
        "notin": lambda: value not in operand,
    }[operator]()
