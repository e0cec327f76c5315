"""What is to be done about the NVIDIA driver, decided once for preflight (refuses) and nvidia_driver (acts).

A pure function of the GPU facts (files/hotline_gpu.py) and the settings, so that every machine one can think
of is a row in a table of tests.

The numbers are those of the torch build in use (CUDA 12.8 wheels): NVIDIA's minor-version compatibility lets
CUDA 12.x run on driver 525 and newer; Blackwell cards (compute capability 10 and up) first work with 570.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

OLDEST_DRIVER = 525
OLDEST_DRIVER_BLACKWELL = 570
BLACKWELL = 10  # major compute capability
# PCI device ids in NVIDIA's list of cards that the open kernel modules drive begin with Turing's.
FIRST_TURING_DEVICE = 0x1E00


class Decision(TypedDict):
    """`leave`, `install`, `upgrade`, `reboot`, `skip` or `refuse`; the reason; what mends a refusal."""

    action: str
    reason: str
    mend: str


def major(version: str | None) -> int:
    """The branch of a driver version: 580 of 580.159.04; 0 when there is none."""
    return int(version.partition(".")[0]) if version and version[:1].isdigit() else 0


def needed_driver(gpus: list[dict[str, Any]]) -> int:
    """The oldest driver branch that all of these GPUs work with under the torch build in use."""
    capabilities = [major(gpu.get("compute_capability")) for gpu in gpus]
    return OLDEST_DRIVER_BLACKWELL if any(number >= BLACKWELL for number in capabilities) else OLDEST_DRIVER


def too_old_for_open_modules(pci_gpus: list[str]) -> list[str]:
    """Those PCI ids (`10de:1db1`) that are older than Turing."""
    return [gpu for gpu in pci_gpus if int(gpu.partition(":")[2], 16) < FIRST_TURING_DEVICE]


def decide(facts: dict[str, Any], device: str, branch: int = 580) -> Decision:
    """What to do on a machine with these GPU facts, for `moshi_device` cuda or cpu.

    Installing is refused where it cannot work: in containers (the host owns the driver), behind Secure Boot
    (nobody is there to enrol a key), over a driver of NVIDIA's .run installer, for cards older than Turing.
    """
    if device == "cpu":
        return Decision(
            action="skip", reason="moshi_device is cpu: no driver is needed, none is touched", mend=""
        )
    version = facts.get("driver_version")
    problem = facts.get("driver_problem")
    kind = facts.get("container")
    cards = facts.get("pci_gpus") or []
    gpus = facts.get("gpus") or []
    needed = needed_driver(gpus)
    where = f"this is a container ({kind}), its driver belongs to the host" if kind else ""

    if facts.get("driver_working") and major(version) >= needed:
        names = ", ".join(dict.fromkeys(gpu["name"] for gpu in gpus))
        whose = " and comes from this machine's host" if facts.get("driver_injected") else ""
        return Decision(
            action="leave",
            reason=f"driver {version} works{whose}, shows {len(gpus)} GPU{'s' * (len(gpus) != 1)} "
            f"({names}) and is new enough (at least {needed} is needed): it is left alone",
            mend="",
        )
    if facts.get("driver_working"):
        fault = f"driver {version} is too old for torch's CUDA 12.8 build, which needs {needed} or newer here"
        if kind or facts.get("driver_injected"):
            return Decision(
                action="refuse",
                reason=f"{fault}; {where or 'it comes from the host of this machine'}",
                mend=f"rent a machine whose host runs driver {needed} or newer (on Vast filter offers by "
                f"driver_version >= {needed})",
            )
        return _installable(
            facts, Decision(action="upgrade", reason=f"{fault}: {branch} replaces it", mend="")
        )
    if kind:
        if version or problem:
            return Decision(
                action="refuse",
                reason=f"the GPU cannot be used: {problem or 'no libcuda'}; {where}",
                mend="start the container with the NVIDIA runtime and "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility, "
                "or take another machine",
            )
        if not cards:
            return _no_gpu()
        return Decision(
            action="refuse",
            reason=f"a GPU ({', '.join(cards)}) is on the bus, but no driver reaches in; {where}",
            mend="have the host install the driver and start the container with GPUs (docker: --gpus all), "
            "or rent a virtual machine",
        )
    if problem and "without a reboot" in problem:
        return Decision(
            action="reboot",
            reason=problem,
            mend="reboot the machine and run this again, or allow it: nvidia_driver_reboot_ok: true",
        )
    if version:
        return Decision(
            action="refuse",
            reason=f"driver {version} is installed, but does not work: {problem}",
            mend="reboot; if that does not help, `dmesg | grep -i nvrm` tells why, and after "
            "`apt-get purge '*nvidia*'` and a reboot the next run installs it anew",
        )
    if not cards:
        return _no_gpu()
    why = f"a GPU ({', '.join(cards)}) has no working driver"
    if problem:
        why += f" ({problem})"
    return _installable(
        facts,
        Decision(action="install", reason=f"{why}: {branch} with open kernel modules is installed", mend=""),
    )


def _no_gpu() -> Decision:
    return Decision(
        action="refuse",
        reason="moshi_device is cuda, but this machine shows no NVIDIA GPU",
        mend="take a machine with an NVIDIA GPU, or, to try the line without one, set moshi_device: cpu "
        "and moshi_weights: tiny",
    )


def _installable(facts: dict[str, Any], decision: Decision) -> Decision:
    """The decision to install or upgrade, unless something known in advance would leave it half done."""
    if old := too_old_for_open_modules(facts.get("pci_gpus") or []):
        return Decision(
            action="refuse",
            reason=f"the GPU {', '.join(old)} is older than Turing: NVIDIA's open kernel modules do not "
            "drive it",
            mend="take a machine with an Ampere or newer card (24 GB: RTX 3090, 4090, L4, A10)",
        )
    if facts.get("driver_runfile"):
        return Decision(
            action="refuse",
            reason="a driver of NVIDIA's .run installer is on this machine; packages and it overwrite one "
            "another",
            mend="run `nvidia-uninstall`, reboot, and run this again",
        )
    if facts.get("secure_boot"):
        return Decision(
            action="refuse",
            reason="Secure Boot is on: the kernel would refuse the module built here, and the key that "
            "signs it "
            "can only be enrolled by somebody at the machine's console",
            mend="switch Secure Boot off in the firmware (or the virtual machine's settings) and run this "
            "again; or "
            "install a signed driver yourself, on Ubuntu `ubuntu-drivers install --gpgpu "
            "nvidia:580-server-open`, "
            "which is then left alone",
        )
    return decision


class FilterModule:
    """Ansible's door to this module."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filter `gpu_driver_decision`."""
        return {"gpu_driver_decision": decide}
