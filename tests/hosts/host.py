#!/usr/bin/env python3
"""Throwaway hosts: bare Debian 12 machines with a real systemd, reached by ordinary ssh on a loopback port.

With `--kind container` a host is what Vast and RunPod rent out by default: no systemd, PID 1 is the
provider's start script, few capabilities, NVIDIA's driver handed in from outside, shells that open tmux.

    tests/hosts/host.py create NAME      make one and boot it (the base is built once and cached)
    tests/hosts/host.py inventory NAME   print an Ansible inventory with this host in the group `line`
    tests/hosts/host.py ssh NAME [CMD…]  a shell, or one command, on it
    tests/hosts/host.py reset NAME       pristine again, in seconds
    tests/hosts/host.py destroy NAME     gone (or --all)
    tests/hosts/host.py list | base

debootstrap makes a base system once; a host is an overlay on it, booted by systemd-nspawn. It shares the
network of the machine (a page opened on https://localhost:8998 is the host's page), and nothing else. Needs
root, debootstrap and systemd-nspawn; works where PID 1 is not systemd and cgroups are v1. Only the standard
library is used, because this runs before anything is installed.

A host has a keeper: a process of this file that boots it, and takes it down when its owner (`--owner PID`) is
gone. So a test run that is killed leaves no host behind. Without an owner it lives until `destroy`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
# What a Debian cloud image has, and no more.
PACKAGES = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,python3,python3-apt,iproute2,procps,"
    "ca-certificates,netbase,tzdata"
)
BASE_REVISION = 2  # raise it when build_base changes
CONTAINER_REVISION = 2  # raise it when build_container_layer changes
# What is not in the images that containers are rented with, and what those have beside the base.
CONTAINER_WITHOUT = ("systemd-sysv", "libpam-systemd", "systemd")
CONTAINER_WITH = ("tmux",)
# Docker's own set (github.com/moby/moby, profiles/…/defaults), which unprivileged containers are rented with.
CONTAINER_CAPABILITIES = (
    "audit_write,chown,dac_override,fowner,fsetid,kill,mknod,net_bind_service,net_raw,setfcap,setgid,setpcap,"
    "setuid,sys_chroot"
)
DRIVER = "580.95.05"

BASES = Path(os.environ.get("HOTLINE_HOSTS_CACHE", "/var/cache/hotline"))
HOSTS = Path(os.environ.get("HOTLINE_HOSTS_DIR", "/var/lib/hotline-hosts"))
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
REBOOT = 133  # how nspawn --keep-unit ends when the host inside reboots; to start it again is left to us

# Settings of the machine's package clients that a host on it needs as well.
HANDED_IN = re.compile(
    r"^(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE$|CURL_CA_BUNDLE$|NODE_EXTRA_CA_CERTS$|(https?|no|all)_proxy$)",
    re.I,
)


def fail(message: str) -> NoReturn:
    """End with a sentence on standard error."""
    sys.exit(f"hosts: {message}")


def say(message: str) -> None:
    """Progress goes to standard error: standard output belongs to results."""
    print(f"hosts: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two builders of the base do not build it twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def need_tools() -> None:
    """Say what is missing, with the command that brings it."""
    if os.geteuid() != 0:
        fail("throwaway hosts need root (debootstrap, overlay mounts, systemd-nspawn): run this with sudo")
    tools = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
    missing = [package for tool, package in tools.items() if not shutil.which(tool)]
    if missing:
        fail(f"missing: {' '.join(missing)}. Mend: apt-get install {' '.join(missing)}")


# ------------------------------------------------------------------------------------------------ base


def base_path() -> Path:
    """Where the base of this revision lies."""
    digest = hashlib.sha256(f"{SUITE} {MIRROR} {PACKAGES} {BASE_REVISION}".encode()).hexdigest()[:12]
    return BASES / f"base-{SUITE}-{digest}"


def build_base() -> Path:
    """Make the cached base system unless it is there: about a minute and 400 MB, once."""
    base = base_path()
    with locked(BASES / "base.lock"):
        if base.is_dir():
            return base
        need_tools()
        say(f"building the base system with debootstrap ({SUITE}, about a minute, only once) in {base}")
        building = base.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        log = BASES / "debootstrap.log"
        with log.open("wb") as out:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(building), MIRROR],
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            tail = log.read_text(errors="replace").splitlines()[-8:]
            fail(
                f"debootstrap failed; is {MIRROR} reachable, is 1 GB free in {BASES}? Its last words:\n  "
                + "\n  ".join(tail)
            )
        (building / "etc/apt/sources.list").write_text(
            f"deb {MIRROR} {SUITE} main\ndeb {MIRROR} {SUITE}-updates main\n"
            f"deb http://deb.debian.org/debian-security {SUITE}-security main\n"
        )
        proxies = Path("/etc/apt/apt.conf.d")
        for conf in proxies.glob("*proxy*"):
            shutil.copy(conf, building / "etc/apt/apt.conf.d" / conf.name)
        own_cas = Path("/usr/local/share/ca-certificates")
        if own_cas.is_dir():
            shutil.copytree(own_cas, building / own_cas.relative_to("/"), dirs_exist_ok=True)
        bundle = Path("/etc/ssl/certs/ca-certificates.crt")
        if bundle.is_file():
            shutil.copy(bundle, building / bundle.relative_to("/"))
        # A unit that listens on 22 beside sshd would take its port; a fresh machine-id comes with each host.
        (building / "etc/systemd/system/ssh.socket").symlink_to("/dev/null")
        (building / "etc/machine-id").unlink(missing_ok=True)
        (building / "var/lib/dbus/machine-id").unlink(missing_ok=True)
        (building / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        building.rename(base)
        return base


def container_layer() -> Path:
    """Where the layer lies that makes a container of the base."""
    words = f"{base_path().name} {CONTAINER_WITHOUT} {CONTAINER_WITH} {CONTAINER_REVISION}"
    return BASES / f"container-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


def build_container_layer() -> Path:
    """Make the cached layer that takes systemd out of the base, unless it is there: some seconds, once."""
    base, layer = build_base(), container_layer()
    with locked(BASES / "base.lock"):
        if layer.is_dir():
            return layer
        say("taking systemd out of the base for container hosts (some seconds, only once)")
        building, root = layer.with_suffix(".building"), layer.with_suffix(".root")
        work = layer.with_suffix(".work")
        for folder in (building, root, work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        options = f"lowerdir={base},upperdir={building},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
        try:
            shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
            proxies = {k: v for k, v in os.environ.items() if HANDED_IN.match(k)}
            script = (
                "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && "
                f"apt-get -qq install --no-install-recommends {' '.join(CONTAINER_WITH)} && "
                f"apt-get -qq purge --allow-remove-essential {' '.join(CONTAINER_WITHOUT)} && "
                "apt-get -qq clean && ! command -v systemctl"
            )
            with (BASES / "container.log").open("wb") as log:
                done = subprocess.run(
                    ["chroot", str(root), "/bin/sh", "-c", script],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=proxies | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    check=False,
                )
            if done.returncode != 0:
                fail(f"systemd could not be taken out of the base; {BASES}/container.log says why")
        finally:
            subprocess.run(["umount", str(root)], check=False)
            shutil.rmtree(work, ignore_errors=True)
            root.rmdir()
        building.rename(layer)
        return layer


def dress_container(root: Path) -> None:
    """Lay down what a provider puts into a container: its start script, its shells, the host's driver."""
    driver = root / "usr/share/stand-in/driver/nvidia"
    (driver / "gpus/0000:01:00.0").mkdir(parents=True)
    (driver / "version").write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  Release Build  (stand-in)\n"
    )
    (driver / "gpus/0000:01:00.0/information").write_text(
        "Model: \t\t NVIDIA GeForce RTX 4090\nGPU UUID: \t GPU-00000000-0000-0000-0000-000000000000\n"
    )
    libraries = root / "usr/lib/x86_64-linux-gnu"
    (libraries / f"libcuda.so.{DRIVER}").write_text("a stand-in\n")
    (libraries / "libcuda.so.1").symlink_to(f"libcuda.so.{DRIVER}")
    smi = root / "usr/bin/nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n# A stand-in.\n"
        f"echo '0, NVIDIA GeForce RTX 4090, 24564, GPU-00000000-0000-0000-0000-000000000000, 8.9, {DRIVER}'\n"
    )
    smi.chmod(0o755)
    # Only the first process may still mount; what it starts has Docker's capabilities and no more.
    first = root / "usr/share/stand-in/first"
    first.write_text(
        "#!/bin/sh\nmount --bind /usr/share/stand-in/driver /proc/driver\n"
        "exec setpriv --inh-caps=-all --bounding-set=-all,"
        + ",".join(f"+{name}" for name in CONTAINER_CAPABILITIES.split(","))
        + " -- /bin/bash /usr/share/stand-in/entrypoint\n"
    )
    first.chmod(0o755)
    (root / "usr/share/stand-in/entrypoint").write_text(
        "# What a provider runs as PID 1: its sshd, then the renter's own start command, then nothing.\n"
        "mkdir -p /run/sshd; trap 'exit 0' TERM\n/usr/sbin/sshd -D &\n"
        "[ ! -e /root/onstart.sh ] || bash /root/onstart.sh >>/var/log/onstart.log 2>&1\n"
        "while :; do wait; sleep 1; done\n"
    )
    (root / "etc/ssh/banner").write_text(
        "Welcome to your container. If authentication fails, try again after a few seconds.\nHave fun!\n"
    )
    with (root / "etc/ssh/sshd_config.d/banner.conf").open("w") as conf:
        conf.write("Banner /etc/ssh/banner\n")
    (root / "root/.bashrc").write_text(
        'case $- in *i*) [ -e ~/.no_auto_tmux ] || [ -n "$TMUX" ] || exec tmux new -A -s ssh_tmux ;; esac\n'
    )


# ------------------------------------------------------------------------------------------------ host


class Host:
    """One throwaway host: its folder, its state file and what can be done with it."""

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            fail(f"'{name}' is no name for a host: small letters, digits and '-', at most 31, a letter first")
        self.name = name
        self.dir = HOSTS / name
        self.root = self.dir / "root"
        self.layers = self.dir / "layers"
        self.state_file = self.dir / "state.json"

    @property
    def state(self) -> dict[str, object]:
        """What was decided when the host was made; empty when there is none."""
        try:
            return dict(json.loads(self.state_file.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def need(self) -> dict[str, object]:
        """The state of a host that must exist."""
        return self.state or fail(f"no host '{self.name}' here. Mend: tests/hosts/host.py create {self.name}")

    @property
    def is_container(self) -> bool:
        """Whether it is one without systemd."""
        return self.state.get("kind") == "container"

    @property
    def key(self) -> Path:
        """The ssh key that opens every throwaway host of this machine."""
        return HOSTS / "key"

    def keeper_alive(self) -> bool:
        """Whether the keeper of this host runs (a recycled process number does not count)."""
        pid = self.state.get("keeper")
        if not isinstance(pid, int):
            return False
        with contextlib.suppress(OSError):
            return f"_keep\0{self.name}\0" in Path(f"/proc/{pid}/cmdline").read_text()
        return False

    def ssh_args(self) -> list[str]:
        """Arguments of ssh up to the command."""
        return [
            "ssh",
            "-i",
            str(self.key),
            "-p",
            str(self.need()["port"]),
            "-o",
            f"UserKnownHostsFile={self.dir}/known_hosts",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=5",
            "-o",
            "LogLevel=ERROR",
            "root@127.0.0.1",
        ]

    def create(
        self, *, owner: int | None, disk_mib: int | None, port: int | None, package_cache: bool, kind: str
    ) -> None:
        """Make the host, boot it and wait until ssh answers."""
        need_tools()
        if self.state:
            fail(f"host '{self.name}' is there already. Mend: host.py reset {self.name}, or destroy it")
        build_container_layer() if kind == "container" else build_base()
        self.dir.mkdir(parents=True)
        with locked(HOSTS / "lock"):
            if not self.key.exists():
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throwaway", "-f", str(self.key)],
                    check=True,
                )
            self.state_file.write_text(
                json.dumps(
                    {
                        "name": self.name,
                        "kind": kind,
                        "owner": owner,
                        "disk_mib": disk_mib,
                        "port": port or free_port(),
                        "package_cache": package_cache,
                    }
                )
            )
        self.boot()

    def boot(self) -> None:
        """Lay the overlay, start the keeper, wait for ssh."""
        state = self.need()
        self.mount(state.get("disk_mib"))
        self.furnish(state)
        with (self.dir / "console.log").open("ab") as console:
            keeper = subprocess.Popen(
                [sys.executable, __file__, "_keep", self.name, ""],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        state["keeper"] = keeper.pid
        self.state_file.write_text(json.dumps(state))
        began = time.monotonic()
        while time.monotonic() - began < 90:
            if keeper.poll() is not None:
                tail = "\n  ".join((self.dir / "console.log").read_text(errors="replace").splitlines()[-8:])
                fail(f"host '{self.name}' ended while it booted. Its last words:\n  {tail}")
            question = "echo running" if self.is_container else "systemctl is-system-running"
            asked = subprocess.run([*self.ssh_args(), question], capture_output=True, text=True, check=False)
            if asked.stdout.strip() in ("running", "degraded"):
                say(f"{self.name} is up after {time.monotonic() - began:.1f} s, ssh on port {state['port']}")
                return
            time.sleep(0.3)
        fail(f"host '{self.name}' did not answer on ssh within 90 s; its console is {self.dir}/console.log")

    def mount(self, disk_mib: object) -> None:
        """Lay this host's own layer over the base; a small disk is a tmpfs of that size."""
        self.layers.mkdir(exist_ok=True)
        if disk_mib and not os.path.ismount(self.layers):
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", str(self.layers)], check=True
            )
        for folder in (self.layers / "upper", self.layers / "work", self.root):
            folder.mkdir(exist_ok=True)
        if not os.path.ismount(self.root):
            lower = f"{container_layer()}:{base_path()}" if self.is_container else str(base_path())
            options = f"lowerdir={lower},upperdir={self.layers}/upper,workdir={self.layers}/work"
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True)

    def furnish(self, state: dict[str, object]) -> None:
        """Give the host its identity, our key, and the package clients' settings of this machine."""
        if self.is_container and not (self.root / "usr/share/stand-in").exists():
            dress_container(self.root)
        (self.root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
        (self.root / "etc/hostname").write_text(self.name + "\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost {self.name}\n::1 localhost\n")
        ssh = self.root / "root/.ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        (ssh / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        (self.root / "etc/ssh/sshd_config.d/throwaway.conf").write_text(
            f"Port {state['port']}\nListenAddress 127.0.0.1\nUseDNS no\nMaxStartups 100\nMaxSessions 100\n"
        )
        public = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        (self.dir / "known_hosts").write_text(f"[127.0.0.1]:{state['port']} {public[0]} {public[1]}\n")
        environment = {k: v for k, v in os.environ.items() if HANDED_IN.match(k) and "\n" not in v}
        links = os.environ.get("PIP_FIND_LINKS", "")
        if links and "://" not in links:
            environment.setdefault("UV_FIND_LINKS", links)
        if state["package_cache"]:
            environment |= {"UV_CACHE_DIR": "/var/cache/uv", "UV_LINK_MODE": "copy"}
        (self.root / "etc/environment").write_text(
            "".join(f'{k}="{v}"\n' for k, v in sorted(environment.items()))
        )
        inventory = {
            "ansible_host": "127.0.0.1",
            "ansible_port": state["port"],
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.dir}/known_hosts "
            f"-o ControlPath={self.dir}/ssh-%r",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        (self.dir / "inventory.yml").write_text(
            json.dumps({"line": {"hosts": {self.name: inventory}}}, indent=2) + "\n"
        )

    def nspawn(self) -> list[str]:
        """The command that boots the host in the foreground."""
        command = [
            "systemd-nspawn",
            "-q",
            "-D",
            str(self.root),
            f"--machine={self.name}",
            "--register=no",
            "--keep-unit",
            "--link-journal=no",
            "--resolv-conf=bind-host",
            "--console=read-only",
        ]
        if self.is_container:
            # Its root is nobody outside. What Vast tells a container stands in PID 1's environment alone.
            command += ["--private-users=identity", "--kill-signal=SIGTERM"]
            told = {"CONTAINER_ID": "1234567", "CONTAINER_API_KEY": "the-key-of-this-instance-alone"}
            command += [f"--setenv={name}={value}" for name, value in told.items()]
        else:
            command.append("--boot")
        for part in os.environ.get("PIP_FIND_LINKS", "").split():
            path = Path(urllib.parse.urlparse(part).path if part.startswith("file:") else part)
            if path.is_dir():
                command.append(f"--bind-ro={path}")
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"):
            bundle = os.environ.get(variable, "")
            if bundle and not bundle.startswith("/etc/ssl/") and Path(bundle).is_file():
                command.append(f"--bind-ro={bundle}")
        if self.state.get("package_cache"):
            cache = BASES / "uv"
            cache.mkdir(parents=True, exist_ok=True)
            command.append(f"--bind={cache}:/var/cache/uv")
        return [*command, "/usr/share/stand-in/first"] if self.is_container else command

    def keep(self) -> int:
        """The keeper: boot, wait for the end of the host, its destruction or its owner's, clear up."""
        stop = False

        def asked_to_stop(_signal: int, _frame: object) -> None:
            nonlocal stop
            stop = True

        signal.signal(signal.SIGTERM, asked_to_stop)
        owner = self.state.get("owner")
        owner_started = started_at(owner) if isinstance(owner, int) else None
        container = subprocess.Popen(self.nspawn(), stdin=subprocess.DEVNULL)
        orphaned = False
        while container.poll() is None and not stop and not orphaned:
            time.sleep(0.2)
            orphaned = isinstance(owner, int) and started_at(owner) != owner_started
            if container.poll() == REBOOT:
                container = subprocess.Popen(self.nspawn(), stdin=subprocess.DEVNULL)
        if container.poll() is None:
            container.terminate()  # nspawn passes a clean power-off on to the systemd inside
            with contextlib.suppress(subprocess.TimeoutExpired):
                container.wait(20 if not orphaned else 5)
        if container.poll() is None:
            container.kill()
            container.wait()
        self.unmount()
        if orphaned:
            shutil.rmtree(self.dir, ignore_errors=True)
        return 0

    def unmount(self) -> None:
        """Take away the host's mounts, whoever still looks at them."""
        for path in (self.root, self.layers):
            while path.exists() and os.path.ismount(path):
                subprocess.run(["umount", "--lazy", str(path)], check=False)

    def stop(self) -> None:
        """Power off and wait until the keeper is gone."""
        if self.keeper_alive():
            pid = int(str(self.state["keeper"]))
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 40
            while self.keeper_alive() and time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                time.sleep(0.1)
        for connection in self.dir.glob("ssh-*"):  # Ansible's shared connections end with the host
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["ssh", "-O", "exit", "-o", f"ControlPath={connection}", "throwaway"],
                    capture_output=True,
                    check=False,
                    timeout=5,
                )
        self.unmount()

    def reset(self) -> None:
        """Pristine again: the host's layer is thrown away and it boots anew, same port, same key."""
        self.need()
        self.stop()
        shutil.rmtree(self.layers, ignore_errors=True)
        self.boot()

    def destroy(self) -> None:
        """Leave nothing of the host."""
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


def started_at(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, to tell it from a later one with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def free_port() -> int:
    """A loopback port nobody listens on and no other host was promised."""
    taken = {host.state.get("port") for host in all_hosts()}
    for port in range(2201, 2299):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in taken:
                    return port
    return fail("no free loopback port between 2201 and 2298 for ssh. Mend: destroy hosts you no longer need")


def all_hosts() -> list[Host]:
    """Every host there is, in order of name."""
    return [Host(p.name) for p in sorted(HOSTS.glob("*")) if p.is_dir() and NAME.fullmatch(p.name)]


# -------------------------------------------------------------------------------------------- commands


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="host.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("base", help="build the cached base system")
    commands.add_parser("list", help="the hosts there are")
    create = commands.add_parser("create", help="make a host and boot it")
    create.add_argument("name")
    create.add_argument(
        "--kind",
        choices=["machine", "container"],
        default="machine",
        help="a machine with systemd, or a container as they are rented (default: machine)",
    )
    create.add_argument("--owner", type=int, help="take the host down when the process with this number ends")
    create.add_argument(
        "--disk-mib", type=int, help="size of its disk in MiB, kept in memory (default: no limit of its own)"
    )
    create.add_argument(
        "--port", type=int, help="loopback port of its sshd (default: the first free one from 2201)"
    )
    create.add_argument(
        "--reuse", action="store_true", help="be content with a host of this name that is there already"
    )
    create.add_argument(
        "--no-package-cache", action="store_true", help="do not share this machine's cache of wheels with it"
    )
    for name, text in (
        ("reset", "pristine again"),
        ("stop", "power off"),
        ("start", "boot a stopped host"),
        ("inventory", "print its inventory"),
    ):
        commands.add_parser(name, help=text).add_argument("name")
    destroy = commands.add_parser("destroy", help="leave nothing of it")
    destroy.add_argument("name", nargs="?")
    destroy.add_argument("--all", action="store_true", help="every host of this machine")
    ssh = commands.add_parser("ssh", help="a shell or one command on it")
    ssh.add_argument("name")
    ssh.add_argument("words", nargs=argparse.REMAINDER)
    keep = commands.add_parser("_keep")
    keep.add_argument("name")
    keep.add_argument("end", nargs="?")
    asked = parser.parse_args()

    if asked.command == "base":
        print(build_base())
    elif asked.command == "list":
        for host in all_hosts():
            state = host.state
            up = "up" if host.keeper_alive() else "down"
            print(f"{host.name}\t{up}\tssh 127.0.0.1:{state.get('port')}\towner {state.get('owner')}")
    elif asked.command == "create":
        host = Host(asked.name)
        if asked.reuse and host.keeper_alive():
            say(f"{host.name} is there already, ssh on 127.0.0.1:{host.state['port']}")
        elif asked.reuse and host.state:
            host.boot()
        else:
            host.create(
                owner=asked.owner,
                disk_mib=asked.disk_mib,
                port=asked.port,
                package_cache=not asked.no_package_cache,
                kind=asked.kind,
            )
    elif asked.command == "reset":
        Host(asked.name).reset()
    elif asked.command == "stop":
        Host(asked.name).stop()
    elif asked.command == "start":
        Host(asked.name).boot()
    elif asked.command == "inventory":
        Host(asked.name).need()
        print((HOSTS / asked.name / "inventory.yml").read_text(), end="")
    elif asked.command == "destroy":
        if not asked.all and not asked.name:
            fail("name the host, or say --all")
        for host in all_hosts() if asked.all else [Host(asked.name)]:
            host.destroy()
    elif asked.command == "ssh":
        host = Host(asked.name)
        os.execvp("ssh", [*host.ssh_args(), *asked.words])  # noqa: S606  # ssh takes over this terminal
    elif asked.command == "_keep":
        return Host(asked.name).keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
