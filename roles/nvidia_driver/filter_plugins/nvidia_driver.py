"""Which packages bring NVIDIA's driver onto a machine: pure data, readable for systems not at hand.

Names and order are those of NVIDIA's Driver Installation Guide (its pages Debian, Ubuntu, Version locking and
Recent updates) for compute-only machines with open kernel modules, out of NVIDIA's own repository:

- Debian's package names never carry the branch, Ubuntu's do up to 580 and no longer from 590 on.
- What holds a machine on a branch is the package `nvidia-driver-pinning-<branch>`, installed before the
  driver. The guide has it for Debian and Ubuntu alike; Debian needs it for 580 too, as nothing else says so.
- `nvidia-kernel-open-dkms` (Debian) and `nvidia-dkms-open` (Ubuntu) build the modules for the running kernel,
  which takes its headers (the compiler comes with DKMS). Ubuntu's kernels bring the headers of later ones
  along, Debian's do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypedDict

OLDEST_BRANCH = 580  # long-term support until August 2028; older ones have no pinning package
FIRST_PLAIN_BRANCH = 590  # Ubuntu's package names without the branch
KEYRING = "cuda-keyring_1.1-1_all.deb"
REPOSITORIES = {
    ("Debian", "12"): "debian12",
    ("Ubuntu", "22.04"): "ubuntu2204",
    ("Ubuntu", "24.04"): "ubuntu2404",
}


class Plan(TypedDict):
    """What is installed, in this order: `before`, `keyring`, `pinning`, `packages`."""

    repository: str
    before: list[str]
    keyring: str
    contrib: bool
    pinning: list[str]
    packages: list[str]


def plan(distribution: str, version: str, kernel: str, branch: int, mirror: str) -> Plan:
    """The packages for one system; ValueError, with the mend, for a system or a branch that has none.

    `version` as in Ansible's facts ("12", "24.04"), `kernel` as in `uname -r`, `mirror` is where the
    repositories lie, without a slash at its end.
    """
    release = version.partition(".")[0] if distribution == "Debian" else version
    system = REPOSITORIES.get((distribution, release))
    if system is None:
        raise ValueError(
            f"this role has no NVIDIA driver for {distribution} {version}. Mend: take Debian 12, "
            "Ubuntu 22.04 or Ubuntu 24.04, or install a driver yourself; a working one is left alone."
        )
    if branch < OLDEST_BRANCH:
        raise ValueError(
            f"nvidia_driver_branch: {branch} is older than {OLDEST_BRANCH}, the oldest that a package holds "
            f"a machine on. Mend: set nvidia_driver_branch: {OLDEST_BRANCH} or newer."
        )
    headers = [f"linux-headers-{kernel}"]
    common = ["nvidia-persistenced", "nvidia-modprobe"]
    if distribution == "Debian":
        flavour = re.search(r"(?:cloud-|rt-)?amd64$", kernel)
        headers += [f"linux-headers-{flavour.group()}"] if flavour else []
        packages = ["nvidia-kernel-open-dkms", "nvidia-driver-cuda", *common]
    elif branch >= FIRST_PLAIN_BRANCH:
        packages = ["nvidia-dkms-open", "libnvidia-compute", *common]
    else:
        packages = [
            f"nvidia-dkms-{branch}-open",
            f"libnvidia-compute-{branch}",
            f"nvidia-utils-{branch}",
            f"nvidia-compute-utils-{branch}",
            *common,
        ]
    return Plan(
        repository=f"{mirror}/{system}/x86_64",
        before=["ca-certificates", *headers],
        keyring=f"{mirror}/{system}/x86_64/{KEYRING}",
        contrib=distribution == "Debian",
        pinning=[f"nvidia-driver-pinning-{branch}"],
        packages=packages,
    )


class FilterModule:
    """Ansible's door to this module."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filter `nvidia_driver_plan`, on the distribution's name."""
        return {"nvidia_driver_plan": plan}
