"""Stand-in trees for /proc, /sys and the library folders: the machines that cannot be had here, as files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "roles/preflight/files/hotline_gpu.py"
H100 = "NVIDIA H100 80GB HBM3, 81559, GPU-0f1b6ae2, 9.0"
L4 = "NVIDIA L4, 23034, GPU-7d2c11aa, 8.9"
RTX_4090 = "NVIDIA GeForce RTX 4090, 24564, GPU-aa01, 8.9"
RTX_4080 = "NVIDIA GeForce RTX 4080, 16376, GPU-bb02, 8.9"
RTX_3070 = "NVIDIA GeForce RTX 3070, 8192, GPU-cc03, 8.6"
RTX_5090 = "NVIDIA GeForce RTX 5090, 32607, GPU-dd04, 12.0"


class Machine:
    """A tree that looks like a machine's root; each method adds something and returns the machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("proc/self", "proc/1", "sys/firmware", "sys/module", "sys/bus/pci/devices", "usr/bin"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def file(self, path: str, content: str | bytes = "") -> Machine:
        """A file below the root."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def pci(
        self, device: str = "2330", *, pci_class: str = "030200", address: str = "0000:01:00.0"
    ) -> Machine:
        """A card on the bus."""
        folder = f"sys/bus/pci/devices/{address}"
        self.file(f"{folder}/vendor", "0x10de\n").file(f"{folder}/device", f"0x{device}\n")
        return self.file(f"{folder}/class", f"0x{pci_class}\n")

    def kernel_driver(self, version: str = "580.159.04", *, is_open: bool = True) -> Machine:
        """The kernel module, loaded."""
        name = "NVIDIA UNIX Open Kernel Module for x86_64" if is_open else "NVIDIA UNIX x86_64 Kernel Module"
        return self.file(
            "proc/driver/nvidia/version",
            f"NVRM version: {name}  {version}  Release Build  (dvs-builder@U22-I3)\n"
            "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
        )

    def library(self, version: str = "580.159.04", folder: str = "usr/lib/x86_64-linux-gnu") -> Machine:
        """The driver's library."""
        self.file(f"{folder}/libcuda.so.{version}")
        (self.root / folder / "libcuda.so.1").symlink_to(f"libcuda.so.{version}")
        return self

    def smi(
        self, *gpus: str, version: str = "580.159.04", fails: str = "", folder: str = "usr/bin"
    ) -> Machine:
        """An nvidia-smi that answers its query for these GPUs, or fails with a sentence."""
        lines = [f"{index}, {gpu}, {version}" for index, gpu in enumerate(gpus)]
        body = f"echo '{fails}'; exit 9" if fails else "cat <<'END'\n" + "\n".join(lines) + "\nEND"
        self.file(f"{folder}/nvidia-smi", f"#!/bin/sh\n{body}\n")
        (self.root / folder / "nvidia-smi").chmod(0o755)
        return self

    def driver(self, *gpus: str, version: str = "580.159.04") -> Machine:
        """A driver that works."""
        return self.kernel_driver(version).library(version).smi(*gpus, version=version)

    def mount(self, point: str) -> Machine:
        """A mount point, as the kernel tells about it."""
        table = self.root / "proc/self/mountinfo"
        known = table.read_text() if table.exists() else "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        return self.file("proc/self/mountinfo", known + f"30 1 8:2 /x {point} ro - ext4 /dev/sdb1 ro\n")

    def secure_boot(self, on: bool) -> Machine:
        """UEFI firmware with its Secure Boot variable."""
        name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        return self.file(f"sys/firmware/efi/efivars/{name}", b"\x06\x00\x00\x00" + bytes([on]))

    def facts(self) -> dict[str, Any]:
        """What the fact script says about this machine, run as Ansible runs it."""
        answer = subprocess.run(
            [sys.executable, str(SCRIPT)],
            env={**os.environ, "HOTLINE_GPU_ROOT": str(self.root)},
            capture_output=True,
            text=True,
            check=True,
        )
        facts: dict[str, Any] = json.loads(answer.stdout)
        return facts
