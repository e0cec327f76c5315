#!/usr/bin/python3
# Path.readlink came with 3.9, socket.timeout became TimeoutError with 3.10.
# ruff: noqa: PTH115, UP041
"""Ansible module: look at a host without changing anything, for preflight to judge.

Runs before the host's Python is known to be new enough, so it keeps to what Python 3.8 knows.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pwd
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]

DOCUMENTATION = r"""
module: preflight_probe
short_description: Looks at a host before the first change
description: Reports disk, ports, rights, clock and network of a host and its NVIDIA GPUs. Changes nothing.
options:
  paths:
    description: Places that will be written to, by purpose.
    type: dict
    default: {}
  contents:
    description: Purposes of whose places the size of what lies there already is asked for.
    type: list
    elements: str
    default: []
  ports:
    description: TCP ports of which to tell who listens on them.
    type: list
    elements: int
    default: []
  urls:
    description: Addresses that must be reachable, asked once each with a GET of which only the status counts.
    type: list
    elements: str
    default: []
  url_token:
    description: Bearer token to send to them.
    type: str
    default: ""
  url_timeout_s:
    description: Seconds after which an address counts as unreachable.
    type: int
    default: 10
  controller_time:
    description: The controller's clock, in seconds since 1970.
    type: float
  gpu_script:
    description: Source of the GPU fact script, run here with this Python.
    type: str
    default: ""
  local_facts:
    description: The host's local facts so far; the GPU's are added to them.
    type: dict
    default: {}
  apt:
    description: Whether to ask apt's sources as well, one address of each host. Not done if apt has a proxy.
    type: bool
    default: false
  marker:
    description: A file that exists where this software was installed before.
    type: path
author: the Hotline authors
"""

SUPERVISED = "/opt/hotline/bin/supervised.py"  # role service, where there is no systemd
LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
SCRIPT_TIMEOUT_S = 60
READ_ONLY, NOEXEC = os.ST_RDONLY, os.ST_NOEXEC


def mount_point(path: Path) -> str:
    """The mount point that the existing `path` lies on."""
    place = path.resolve()
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return str(place)


def size_mb(path: Path) -> float:
    """What lies below `path`, in MB (10^6 bytes) of disk; hard links count once."""
    seen = set()
    total = 0
    for folder, _, names in os.walk(str(path)):
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total / 1e6


def look_at_path(path: str, with_size: bool) -> dict[str, Any]:
    """The place `path` would be made at: its file system, the space there, and what is in the way."""
    wanted = Path(path)
    existing = wanted
    blocked = ""
    while not existing.exists():
        if existing.is_symlink():
            blocked = f"{existing} is a link to {os.readlink(str(existing))}, which does not exist"
            break
        existing = existing.parent
    if not blocked and not existing.is_dir():
        blocked = f"{existing} is a file, not a directory"
    looked_at = existing if existing.exists() else existing.parent
    system = os.statvfs(str(looked_at))
    return {
        "path": path,
        "existing": str(existing),
        "blocked": blocked,
        "device": looked_at.stat().st_dev,
        "mount": mount_point(looked_at),
        "free_mb": system.f_bavail * system.f_frsize / 1e6,
        "used_mb": size_mb(wanted) if with_size and wanted.is_dir() else 0.0,
        "read_only": bool(system.f_flag & READ_ONLY),
        "noexec": bool(system.f_flag & NOEXEC),
    }


def address_of(text: str) -> tuple[str, int]:
    """`0100007F:2326` of /proc/net/tcp and its 32-digit form of tcp6 as (address, port)."""
    hexadecimal, _, port = text.partition(":")
    words = [int(hexadecimal[i : i + 8], 16) for i in range(0, len(hexadecimal), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    address = socket.inet_ntop(family, packed)
    return address[len("::ffff:") :] if address.startswith("::ffff:") else address, int(port, 16)


def listeners(ports: list[int]) -> dict[str, dict[str, Any]]:
    """Sockets that listen on one of the ports, by inode."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, port = address_of(fields[1])
            if fields[3] == LISTEN and port in ports:
                found[fields[9]] = {"port": port, "address": address, "user": user_name(int(fields[7]))}
    return found


def user_name(number: int) -> str:
    """The user's name, or the number where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def unit_of(pid: str) -> str | None:
    """The service that the process runs in: of systemd by its cgroup, of supervised.py by who started it."""
    try:
        found = re.findall(r"/([^/\n]+\.service)", Path("/proc", pid, "cgroup").read_text())
        if found:
            return found[-1].replace("\\x2d", "-")
        while pid not in ("0", "1"):
            words = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace").split("\0")
            if len(words) > 3 and words[1:3] == [SUPERVISED, "run"]:
                return words[3] + ".service"
            pid = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
    except (OSError, IndexError):
        pass
    return None


def sockets_of(folder: Path) -> list[str]:
    """Inodes of the sockets that a process has open; descriptors and processes may vanish while one looks."""
    found = []
    try:
        descriptors = list(folder.iterdir())
    except OSError:
        return []
    for descriptor in descriptors:
        try:
            link = os.readlink(str(descriptor))
        except OSError:
            continue
        if link.startswith("socket:["):
            found.append(link[len("socket:[") : -1])
    return found


def look_at_ports(ports: list[int]) -> list[dict[str, Any]]:
    """Who listens on the ports."""
    found = listeners(ports)
    for folder in Path("/proc").glob("[0-9]*/fd") if found else []:
        for inode in sockets_of(folder):
            # Of a family of processes that share the socket the first, which is its parent, is named.
            if inode in found and "pid" not in found[inode]:
                pid = folder.parent.name
                found[inode].update(pid=int(pid), unit=unit_of(pid), process=command_name(pid))
    unseen = [held for held in found.values() if "pid" not in held and held["user"] != "root"]
    services = services_of_users() if unseen else {}
    for held in unseen:
        # In a container root has no right to see what other users' processes have open (CAP_SYS_PTRACE).
        held["units"] = sorted(services.get(held["user"], ()))
    return sorted(found.values(), key=lambda held: (held["port"], held["address"]))


def services_of_users() -> dict[str, set[str]]:
    """The services that run, by the user that their processes belong to."""
    found: dict[str, set[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            user = user_name(folder.stat().st_uid)
        except OSError:
            continue  # it has ended
        if (unit := unit_of(folder.name)) is not None:
            found.setdefault(user, set()).add(unit)
    return found


def command_name(pid: str) -> str:
    """What people call the process."""
    try:
        return Path("/proc", pid, "comm").read_text().strip()
    except OSError:
        return ""


def look_at_url(url: str, token: str, timeout_s: float) -> dict[str, Any]:
    """The status that the address answers with, or why there is none; the environment's proxies are used."""
    headers = {"User-Agent": "hotline-preflight"}
    if token:
        headers["Authorization"] = "Bearer " + token
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return {"url": url, "status": answer.status, "error": None}
    except urllib.error.HTTPError as error:
        return {"url": url, "status": error.code, "error": None}
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLError):
            said = f"its certificate is not accepted ({reason})"
        elif isinstance(reason, socket.timeout):
            said = f"no answer within {timeout_s:.0f} s"
        else:
            said = str(getattr(reason, "strerror", None) or reason)
        return {"url": url, "status": None, "error": said}
    except socket.timeout:
        return {"url": url, "status": None, "error": f"no answer within {timeout_s:.0f} s"}
    except (OSError, ValueError) as error:
        return {"url": url, "status": None, "error": str(error)}


def apt_sources() -> list[str]:
    """One address for each host that apt fetches its lists from, as apt itself would ask for it."""
    environment = dict(os.environ, LC_ALL="C")
    try:
        settings, addresses = (
            subprocess.run(
                command, env=environment, capture_output=True, timeout=20, check=True
            ).stdout.decode()
            for command in (["apt-config", "dump"], ["apt-get", "update", "--print-uris"])
        )
    except (OSError, subprocess.SubprocessError):
        return []
    if re.search(r"^Acquire::https?::.*Proxy", settings, re.MULTILINE | re.IGNORECASE):
        return []  # apt then takes another way than we would
    first: dict[str, str] = {}
    for url in re.findall(r"^'(https?://[^']+)'", addresses, re.MULTILINE):
        first.setdefault(urllib.parse.urlsplit(url).netloc, url)
    return list(first.values())


def memory_mib() -> int | None:
    """Main memory in MiB."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found.group(1)) // 1024 if found else None


def system_python() -> str | None:
    """The version of the distribution's own python3, from which environments are made."""
    try:
        answer = subprocess.run(
            ["/usr/bin/python3", "-c", "import platform; print(platform.python_version())"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode().strip()


def run_script(source: str) -> dict[str, Any]:
    """The GPU facts, by the very script that is installed as a local fact."""
    answer = subprocess.run(
        [sys.executable, "-"],
        input=source.encode(),
        capture_output=True,
        timeout=SCRIPT_TIMEOUT_S,
        check=True,
    )
    facts: dict[str, Any] = json.loads(answer.stdout.decode())
    return facts


def main() -> None:
    """Look and answer."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "dict", "default": {}},
            "contents": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "urls": {"type": "list", "elements": "str", "default": []},
            "url_token": {"type": "str", "default": "", "no_log": True},
            "url_timeout_s": {"type": "int", "default": 10},
            "controller_time": {"type": "float"},
            "gpu_script": {"type": "str", "default": ""},
            "local_facts": {"type": "dict", "default": {}},
            "apt": {"type": "bool", "default": False},
            "marker": {"type": "path"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    now = time.time()
    timeout_s = asked["url_timeout_s"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        urls = pool.map(lambda url: look_at_url(url, asked["url_token"], timeout_s), asked["urls"])
        sources = pool.map(lambda url: look_at_url(url, "", timeout_s), apt_sources() if asked["apt"] else [])
    result: dict[str, Any] = {
        "changed": False,
        "effective_user": os.geteuid(),
        "pid1": command_name("1"),
        "python": system_python(),
        "memory_mib": memory_mib(),
        "cores": len(os.sched_getaffinity(0)),
        "skew_s": None if asked["controller_time"] is None else now - asked["controller_time"],
        "paths": {
            purpose: look_at_path(path, purpose in asked["contents"])
            for purpose, path in asked["paths"].items()
        },
        "ports": look_at_ports(asked["ports"]),
        "urls": list(urls),
        "apt_sources": list(sources),
        "installed": bool(asked["marker"]) and Path(asked["marker"]).exists(),
    }
    if asked["gpu_script"]:
        try:
            result["gpu"] = run_script(asked["gpu_script"])
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            result["gpu_error"] = said.splitlines()[-1] if said else str(error)
        else:
            facts = dict(asked["local_facts"])
            facts["hotline_gpu"] = result["gpu"]
            result["ansible_facts"] = {"ansible_local": facts}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
