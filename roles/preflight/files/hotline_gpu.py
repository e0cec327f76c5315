#!/usr/bin/env python3
"""What this machine has in the way of NVIDIA GPUs, as one JSON object: Ansible's local fact `hotline_gpu`.

Installed as /etc/ansible/facts.d/hotline_gpu.fact, so that every role (and the health check) reads the same
answer. Standard library only, Python 3.10 and newer, no argument needed. `--root DIR`, or the environment
variable HOTLINE_GPU_ROOT, puts a stand-in tree for `/`: the tests bring machines along that way.

The driver is judged by what the kernel says (/proc/driver/nvidia/version) together with libcuda, never by
lspci: a rented container has both from its host and no PCI tool, a fresh machine has the card and neither.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from pathlib import Path
from typing import TypedDict

NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA compatible controller, 3D controller (PCI class codes)
# EFI_GLOBAL_VARIABLE of the UEFI specification; the file's first four bytes are the variable's attributes.
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LIBRARY_DIRECTORIES = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/local/nvidia/lib64",
    "usr/lib/wsl/lib",
)
SMI_PLACES = (
    "usr/bin/nvidia-smi",
    "usr/local/bin/nvidia-smi",
    "usr/local/nvidia/bin/nvidia-smi",
    "usr/lib/wsl/lib/nvidia-smi",
)
SMI_TIMEOUT_S = 30.0  # a GPU without persistence takes seconds to wake, eight of them many
VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
CGROUP_CONTAINERS = re.compile(r"docker|kubepods|containerd|libpod|lxc")


class Gpu(TypedDict):
    """One GPU as the driver shows it; memory in MiB, None where the driver does not tell."""

    index: int
    name: str
    memory_mib: int | None
    uuid: str
    compute_capability: str | None


class Facts(TypedDict):
    """The whole answer; see the module's docstring."""

    gpus: list[Gpu]
    driver_version: str | None
    driver_open: bool | None
    driver_working: bool
    driver_problem: str | None
    driver_injected: bool
    driver_runfile: bool
    pci_gpus: list[str]
    container: str | None
    secure_boot: bool | None
    nouveau_loaded: bool


def read(path: Path) -> str:
    """The file's text, or nothing when it is missing or closed to us."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def pci_gpus(root: Path) -> list[str]:
    """NVIDIA display devices on the PCI bus as `vendor:device`, in the bus's order."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        kind = read(device / "class").strip()[:6]
        if read(device / "vendor").strip() == NVIDIA and kind in DISPLAY_CLASSES:
            found.append(f"10de:{read(device / 'device').strip().removeprefix('0x')}")
    return found


def library_directories(root: Path) -> list[Path]:
    """Where libraries lie: the usual places, and those the linker is told (runtimes tell it theirs)."""
    named = [
        line.strip().lstrip("/")
        for conf in sorted((root / "etc/ld.so.conf.d").glob("*.conf"))
        for line in read(conf).splitlines()
        # CUDA images bring a second libcuda for older drivers; it says nothing about the driver that is here.
        if line.strip().startswith("/") and "compat" not in line
    ]
    return [root / place for place in dict.fromkeys([*LIBRARY_DIRECTORIES, *named])]


def libcuda(root: Path, kernel_version: str | None) -> tuple[Path | None, str | None]:
    """The driver's library libcuda.so.1 and its version (None where the file's name does not tell).

    Of several the one that belongs to the kernel's driver counts: leftovers of an older one harm nobody.
    """
    found: list[tuple[Path, str | None]] = []
    for directory in library_directories(root):
        if (library := directory / "libcuda.so.1").exists():
            version = VERSION.search(library.resolve().name.removeprefix("libcuda.so."))
            found.append((library, version.group(1) if version else None))
    matching = [pair for pair in found if pair[1] in (None, kernel_version)]
    return next(iter(matching or found), (None, None))


def mount_points(root: Path) -> list[str]:
    """Every mount point of this process's view, the root itself left out."""
    lines = read(root / "proc/self/mountinfo").splitlines()
    return [fields[4] for line in lines if len(fields := line.split()) > 4 and fields[4] != "/"]


def is_mounted_in(library: Path | None, root: Path) -> bool:
    """Whether the library reached this machine through a mount of its own, as container runtimes do it."""
    if library is None:
        return False
    inside = "/" + str(library.parent.relative_to(root))
    names = tuple(f"{inside}/{name}" for name in ("libcuda.so.1", library.resolve().name))
    above = [point for point in mount_points(root) if inside == point or inside.startswith(point + "/")]
    return any(point in names for point in mount_points(root)) or any("nvidia" in point for point in above)


def container(root: Path) -> str | None:
    """The kind of container this is (`systemd-nspawn`, `docker`, `podman`, `lxc` …), or None."""
    if told := read(root / "run/systemd/container").strip():
        return told
    environment = read(root / "proc/1/environ").split("\0")
    for pair in environment:
        if pair.startswith("container=") and len(pair) > len("container="):
            return pair.removeprefix("container=")
    if any(pair.startswith("KUBERNETES_SERVICE_HOST=") for pair in environment):
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if found := CGROUP_CONTAINERS.search(read(root / "proc/1/cgroup")):
        return {"kubepods": "kubernetes", "libpod": "podman"}.get(found.group(), found.group())
    if "gVisor" in read(root / "proc/version") or read(root / "proc/sys/kernel/osrelease").strip() == "4.4.0":
        return "gvisor"
    return None


def secure_boot(root: Path) -> bool | None:
    """Whether the firmware wants signed modules; False on a BIOS machine, None when nobody can tell."""
    if not (root / "sys/firmware/efi").is_dir():
        return False if (root / "sys/firmware").is_dir() else None
    try:
        return (root / SECURE_BOOT).read_bytes()[4:5] == b"\x01"
    except OSError:
        return None


def smi_path(root: Path) -> Path | None:
    """nvidia-smi in the places where drivers and container runtimes put it."""
    return next((path for place in SMI_PLACES if os.access(path := root / place, os.X_OK)), None)


def ask_smi(program: Path) -> tuple[list[Gpu], str | None, str | None]:
    """GPUs and driver version by nvidia-smi's machine-readable query, or the sentence why there are none.

    `--query-gpu=… --format=csv` is nvidia-smi's stable interface; its table is for people. A field that a
    card does not know reads `[N/A]` or `[Not Supported]`.
    """
    # The version stands last: it is the one field that is the same in every line.
    query = "index,name,memory.total,uuid,compute_cap,driver_version"
    try:
        answer = subprocess.run(
            [str(program), f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], None, f"nvidia-smi does not answer: {error}"
    said = " ".join((answer.stdout + " " + answer.stderr).split())
    if answer.returncode != 0:
        return [], None, f"nvidia-smi says: {said or f'exit code {answer.returncode}'}"
    gpus: list[Gpu] = []
    version = None
    for line in answer.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 6 or not fields[0].isdigit():
            continue
        index, name, memory, uuid, capability, version = fields
        gpus.append(
            Gpu(
                index=int(index),
                name=name,
                memory_mib=int(memory) if memory.isdigit() else None,
                uuid=uuid,
                compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
            )
        )
    return gpus, version, None if gpus else f"nvidia-smi lists no GPU: {said or 'no output'}"


def gpus_of_proc(root: Path) -> list[Gpu]:
    """GPUs as the kernel module lists them, for containers that were given CUDA but not nvidia-smi."""
    gpus: list[Gpu] = []
    for index, device in enumerate(sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))):
        told = dict(re.findall(r"^([^:\n]+):[ \t]*(.*)$", read(device), re.MULTILINE))
        gpus.append(
            Gpu(
                index=index,
                name=told.get("Model", "NVIDIA GPU").strip(),
                memory_mib=None,
                uuid=told.get("GPU UUID", "").strip(),
                compute_capability=None,
            )
        )
    return gpus


def gather(root: Path) -> Facts:
    """Look at the machine below `root` and answer."""
    kernel = read(root / "proc/driver/nvidia/version")
    told = VERSION.search(next((line for line in kernel.splitlines() if "NVRM" in line), ""))
    kernel_version = told.group(1) if told else None
    library, library_version = libcuda(root, kernel_version)
    program = smi_path(root)
    gpus, smi_version, smi_problem = ask_smi(program) if program else ([], None, None)
    version = kernel_version or smi_version
    inside = container(root)

    problem = None
    if version is None:
        # A driver's library without its kernel module: installed, but not loaded (or not for this kernel).
        if library or smi_problem:
            problem = smi_problem or "the driver's library is there, its kernel module is not loaded"
    elif library is None:
        problem = "the kernel has the driver, but its library libcuda.so.1 is not on this machine"
    elif kernel_version and library_version not in (None, kernel_version):
        problem = (
            f"the kernel runs driver {kernel_version}, the library libcuda.so.1 is of {library_version}: "
            "the driver was upgraded without a reboot"
        )
    elif smi_problem:
        problem = smi_problem
    elif not (gpus := gpus or gpus_of_proc(root)):
        problem = "the driver is loaded, but shows no GPU"

    return Facts(
        gpus=gpus if problem is None else [],
        driver_version=version,
        driver_open="Open Kernel Module" in kernel if kernel else None,
        driver_working=version is not None and problem is None,
        driver_problem=problem,
        # A driver whose kernel module does not show runs outside: on a sandbox's host, in Windows below WSL.
        driver_injected=version is not None
        and (inside is not None or kernel_version is None or is_mounted_in(library, root)),
        driver_runfile=(root / "usr/bin/nvidia-uninstall").exists(),
        pci_gpus=pci_gpus(root),
        container=inside,
        secure_boot=secure_boot(root),
        nouveau_loaded=(root / "sys/module/nouveau").exists(),
    )


def main() -> None:
    """Print the facts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("HOTLINE_GPU_ROOT") or "/"),
        help="a stand-in for / (default: $HOTLINE_GPU_ROOT, else /)",
    )
    print(json.dumps(gather(parser.parse_args().root)))


if __name__ == "__main__":
    main()
