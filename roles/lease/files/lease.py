#!/usr/bin/env python3
"""When this rented node is to be given back, and giving it back where its own key allows that.

It touches $STATE_DIRECTORY/active while somebody calls; `rental keep` on the controller reads that file's
age. With a key of the instance (LEASE_KEY, LEASE_NODE) it ends the node at LEASE_ENDS_AT, or after
LEASE_IDLE_MINUTES without a call. A node that could not be ended is told about in the journal, with its
price, every minute.

A caller is a TCP connection at an engine's port that is there at two looks: probes of its health come and
go. Only the standard library is used: this runs on any host, whatever else is broken there.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

LOOK_S = 10.0
TRY_S = 60.0
ESTABLISHED = "01"


def callers(table: str, ports: frozenset[int]) -> frozenset[tuple[str, str]]:
    """Established connections at one of the ports, from the text of /proc/net/tcp or tcp6."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == ESTABLISHED and int(words[1].rpartition(":")[2], 16) in ports:
            found.add((words[1], words[2]))
    return frozenset(found)


def due(now: float, last_call: float, ends_at: float, idle_minutes: float) -> str:
    """Why the node is to be given back now; nothing if it is not."""
    if ends_at and now >= ends_at:
        return "its time is up"
    if idle_minutes and now - last_call >= idle_minutes * 60:
        return f"nobody called for {(now - last_call) / 60:.0f} minutes"
    return ""


def end(base: str, node: str, key: str) -> str:
    """Destroy this instance at Vast; stop it if its key may do no more. What went wrong, or nothing.

    `vastai destroy instance $CONTAINER_ID --api-key $CONTAINER_API_KEY` is what Vast's own images do.
    """
    problem = ""
    for method, body in (("DELETE", {}), ("PUT", {"state": "stopped"})):
        request = urllib.request.Request(  # noqa: S310 (the address is the operator's)
            f"{base}/api/v0/instances/{node}/",
            data=json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/json",
                "User-Agent": "hotline",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                said = json.loads(answer.read() or b"{}")
            if said.get("success", True):
                return (
                    ""
                    if method == "DELETE"
                    else "stopped only, its disk is still billed: its key may not destroy it"
                )
            problem = str(said.get("msg") or said)[:200]
        except urllib.error.HTTPError as error:
            problem = f"{method}: HTTP {error.code}"
            if error.code not in (401, 403):
                return problem
        except (OSError, ValueError) as error:
            return f"{method}: {error}"
    return problem


def look(ports: frozenset[int], tables: Iterable[Path]) -> frozenset[tuple[str, str]]:
    """Who is connected now."""
    found: frozenset[tuple[str, str]] = frozenset()
    for table in tables:
        if table.exists():
            found |= callers(table.read_text(), ports)
    return found


def main(environment: Mapping[str, str]) -> int:
    """Watch until the machine is gone."""
    active = Path(environment["STATE_DIRECTORY"]) / "active"
    if not active.exists():
        active.touch()
    ports = frozenset(int(port) for port in environment["LEASE_PORTS"].split(",") if port)
    tables = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    ends_at = float(environment.get("LEASE_ENDS_AT") or 0)
    idle_minutes = float(environment.get("LEASE_IDLE_MINUTES") or 0)
    key, node = environment.get("LEASE_KEY", ""), environment.get("LEASE_NODE", "")
    pause = float(environment.get("LEASE_LOOK_S") or LOOK_S)
    before: frozenset[tuple[str, str]] = frozenset()
    tried = -TRY_S
    while True:
        now_there = look(ports, tables)
        if now_there & before:
            active.touch()
        before = now_there
        reason = due(time.time(), active.stat().st_mtime, ends_at, idle_minutes)
        if reason and key and node and time.monotonic() - tried >= TRY_S:
            tried = time.monotonic()
            print(f"{reason}: giving this node back ({node})", flush=True)
            if problem := end(environment["LEASE_API_URL"].rstrip("/"), node, key):
                print(
                    f"THIS NODE STILL RUNS, ${environment.get('LEASE_PRICE', '?')} an hour: {problem}",
                    file=sys.stderr,
                    flush=True,
                )
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main(os.environ))
