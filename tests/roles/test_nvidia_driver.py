"""The driver: left alone, installed, replaced, skipped or refused; and by which packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roles.nvidia_driver.filter_plugins.nvidia_driver import plan
from roles.preflight.filter_plugins.gpu_driver import Decision, decide
from tests.roles.stand_in import H100, L4, RTX_4090, RTX_5090, Machine

MIRROR = "https://developer.download.nvidia.com/compute/cuda/repos"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def decided(machine: Machine, device: str = "cuda") -> Decision:
    return decide(machine.facts(), device)


# Deciding


def test_a_working_driver_that_is_new_enough_is_left_alone(machine: Machine) -> None:
    decision = decided(machine.pci().driver(H100))
    assert decision["action"] == "leave"
    assert decision["reason"] == (
        "driver 580.159.04 works, shows 1 GPU (NVIDIA H100 80GB HBM3) and is new enough "
        "(at least 525 is needed): it is left alone"
    )


@pytest.mark.parametrize("kind", ["docker", "lxc", "kubernetes"])
def test_a_container_with_its_hosts_driver_is_left_alone(machine: Machine, kind: str) -> None:
    decision = decided(machine.file("run/systemd/container", kind).driver(RTX_4090, RTX_4090))
    assert decision["action"] == "leave"
    assert "comes from this machine's host, shows 2 GPUs (NVIDIA GeForce RTX 4090)" in decision["reason"]


def test_a_gpu_without_a_driver_gets_one(machine: Machine) -> None:
    decision = decided(machine.pci("2684"))
    assert decision["action"] == "install"
    assert decision["reason"] == (
        "a GPU (10de:2684) has no working driver: 580 with open kernel modules is installed"
    )


def test_nouveau_is_no_driver(machine: Machine) -> None:
    assert decided(machine.pci().file("sys/module/nouveau/refcnt"))["action"] == "install"


def test_a_driver_whose_module_is_not_loaded_is_installed_again(machine: Machine) -> None:
    """The next run after one that ended between the packages and the module."""
    decision = decided(machine.pci().library())
    assert decision["action"] == "install"
    assert "its kernel module is not loaded" in decision["reason"]


@pytest.mark.parametrize(
    ("card", "version", "action"),
    [
        (H100, "525.60.13", "leave"),
        (H100, "515.105.01", "upgrade"),
        (H100, "470.256.02", "upgrade"),
        (L4, "535.183.01", "leave"),
        (RTX_5090, "570.86.16", "leave"),
        (RTX_5090, "565.57.01", "upgrade"),
        (RTX_5090, "580.159.04", "leave"),
    ],
)
def test_the_driver_must_be_new_enough_for_the_card_and_torch(
    machine: Machine, card: str, version: str, action: str
) -> None:
    assert decided(machine.pci("2b85").driver(card, version=version))["action"] == action


def test_one_blackwell_card_among_others_sets_the_measure(machine: Machine) -> None:
    assert decided(machine.pci("2b85").driver(L4, RTX_5090, version="550.54.14"))["action"] == "upgrade"


def test_an_old_driver_in_a_container_is_refused_with_the_mend(machine: Machine) -> None:
    decision = decided(machine.file("run/systemd/container", "docker").driver(RTX_5090, version="560.35.03"))
    assert decision["action"] == "refuse"
    assert "too old for torch's CUDA 12.8 build, which needs 570" in decision["reason"]
    assert "rent a machine whose host runs driver 570 or newer" in decision["mend"]


def test_a_container_without_a_driver_is_refused(machine: Machine) -> None:
    decision = decided(machine.file("run/systemd/container", "docker").pci())
    assert decision["action"] == "refuse"
    assert "no driver reaches in" in decision["reason"]
    assert "--gpus all" in decision["mend"]


def test_a_container_that_was_given_half_a_driver_is_refused(machine: Machine) -> None:
    decision = decided(machine.file(".dockerenv").kernel_driver())
    assert decision["action"] == "refuse"
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in decision["mend"]


def test_no_gpu_is_refused_unless_the_line_runs_on_the_cpu(machine: Machine) -> None:
    decision = decided(machine)
    assert decision["action"] == "refuse"
    assert decision["reason"] == "moshi_device is cuda, but this machine shows no NVIDIA GPU"
    assert "moshi_device: cpu" in decision["mend"]
    assert decided(machine, "cpu")["action"] == "skip"


def test_a_line_on_the_cpu_touches_no_driver_even_beside_a_gpu(machine: Machine) -> None:
    assert decided(machine.pci(), "cpu")["action"] == "skip"


def test_an_upgrade_without_a_reboot_asks_for_the_reboot(machine: Machine) -> None:
    decision = decided(machine.pci().kernel_driver("535.183.01").library("580.159.04"))
    assert decision["action"] == "reboot"
    assert "nvidia_driver_reboot_ok: true" in decision["mend"]


def test_a_driver_that_fails_is_told_with_its_own_words(machine: Machine) -> None:
    decision = decided(machine.pci().kernel_driver().library().smi(fails="No devices were found"))
    assert decision["action"] == "refuse"
    assert "nvidia-smi says: No devices were found" in decision["reason"]
    assert "dmesg" in decision["mend"]


def test_secure_boot_is_explained_before_anything_is_installed(machine: Machine) -> None:
    decision = decided(machine.pci().secure_boot(True))
    assert decision["action"] == "refuse"
    assert "Secure Boot is on" in decision["reason"]
    assert "switch Secure Boot off" in decision["mend"]


def test_secure_boot_does_not_disturb_a_driver_that_works(machine: Machine) -> None:
    assert decided(machine.pci().secure_boot(True).driver(L4))["action"] == "leave"


@pytest.mark.parametrize("on", [False, None])
def test_without_secure_boot_the_driver_is_installed(machine: Machine, on: bool | None) -> None:
    if on is not None:
        machine.secure_boot(on)
    assert decided(machine.pci())["action"] == "install"


@pytest.mark.parametrize("device", ["1db6", "1b38", "15f8", "17fd"])  # V100, P40, P100, M40
def test_cards_older_than_turing_are_refused(machine: Machine, device: str) -> None:
    decision = decided(machine.pci(device))
    assert decision["action"] == "refuse"
    assert f"10de:{device} is older than Turing" in decision["reason"]


@pytest.mark.parametrize("device", ["1eb8", "20b5", "2236", "2330", "2684", "27b8", "2b85", "2901"])
def test_cards_from_turing_on_are_served(machine: Machine, device: str) -> None:
    """T4, A100, A10, H100, RTX 4090, L4, RTX 5090, B200."""
    assert decided(machine.pci(device))["action"] == "install"


def test_the_run_installers_driver_is_not_overwritten(machine: Machine) -> None:
    machine.pci().driver(H100, version="515.65.01").file("usr/bin/nvidia-uninstall")
    decision = decided(machine)
    assert decision["action"] == "refuse"
    assert "nvidia-uninstall" in decision["mend"]


# Packages

COMMON = ["nvidia-persistenced", "nvidia-modprobe"]


def test_debian_12() -> None:
    assert plan("Debian", "12.11", "6.1.0-37-amd64", 580, MIRROR) == {
        "repository": f"{MIRROR}/debian12/x86_64",
        "before": ["ca-certificates", "linux-headers-6.1.0-37-amd64", "linux-headers-amd64"],
        "keyring": f"{MIRROR}/debian12/x86_64/cuda-keyring_1.1-1_all.deb",
        "contrib": True,
        "pinning": ["nvidia-driver-pinning-580"],
        "packages": ["nvidia-kernel-open-dkms", "nvidia-driver-cuda", *COMMON],
    }


@pytest.mark.parametrize(
    ("version", "kernel", "system"),
    [("22.04", "5.15.0-130-generic", "ubuntu2204"), ("24.04", "6.8.0-1021-aws", "ubuntu2404")],
)
def test_ubuntu_up_to_580_carries_the_branch_in_its_names(version: str, kernel: str, system: str) -> None:
    assert plan("Ubuntu", version, kernel, 580, MIRROR) == {
        "repository": f"{MIRROR}/{system}/x86_64",
        "before": ["ca-certificates", f"linux-headers-{kernel}"],
        "keyring": f"{MIRROR}/{system}/x86_64/cuda-keyring_1.1-1_all.deb",
        "contrib": False,
        "pinning": ["nvidia-driver-pinning-580"],
        "packages": [
            "nvidia-dkms-580-open",
            "libnvidia-compute-580",
            "nvidia-utils-580",
            "nvidia-compute-utils-580",
            *COMMON,
        ],
    }


@pytest.mark.parametrize("version", ["22.04", "24.04"])
@pytest.mark.parametrize("branch", [590, 610])
def test_ubuntu_from_590_on_is_held_by_the_pinning_package(version: str, branch: int) -> None:
    made = plan("Ubuntu", version, "6.8.0-50-generic", branch, MIRROR)
    assert made["pinning"] == [f"nvidia-driver-pinning-{branch}"]
    assert made["packages"] == ["nvidia-dkms-open", "libnvidia-compute", *COMMON]


def test_debian_follows_the_branch_by_pinning_alone() -> None:
    made = plan("Debian", "12", "6.1.0-37-amd64", 590, MIRROR)
    assert made["pinning"] == ["nvidia-driver-pinning-590"]
    assert not any("590" in package for package in made["packages"])


@pytest.mark.parametrize(
    ("kernel", "headers"),
    [
        ("6.1.0-37-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.12.9+bpo-amd64", "linux-headers-amd64"),
        ("6.1.0-37-rt-amd64", "linux-headers-rt-amd64"),
    ],
)
def test_debians_next_kernel_brings_its_headers(kernel: str, headers: str) -> None:
    assert plan("Debian", "12", kernel, 580, MIRROR)["before"][-2:] == [f"linux-headers-{kernel}", headers]


def test_a_kernel_of_ones_own_gets_only_its_own_headers() -> None:
    made = plan("Debian", "12", "6.6.1-mine", 580, MIRROR)
    assert [name for name in made["before"] if "headers" in name] == ["linux-headers-6.6.1-mine"]


def test_no_toolkit_and_no_desktop_are_installed() -> None:
    for distribution, version in (("Debian", "12"), ("Ubuntu", "22.04"), ("Ubuntu", "24.04")):
        packages = plan(distribution, version, "6.8.0-50-generic", 580, MIRROR)["packages"]
        assert not [name for name in packages if re.search(r"toolkit|xserver|-gl|^cuda|^nvidia-open", name)]


@pytest.mark.parametrize(
    ("distribution", "version"), [("Debian", "13"), ("Ubuntu", "20.04"), ("Fedora", "41")]
)
def test_other_systems_are_refused_with_the_mend(distribution: str, version: str) -> None:
    with pytest.raises(ValueError, match=r"Mend: take Debian 12, Ubuntu 22\.04 or Ubuntu 24\.04"):
        plan(distribution, version, "6.8.0", 580, MIRROR)


def test_a_branch_that_cannot_be_held_is_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match=r"Mend: set nvidia_driver_branch: 580 or newer"):
        plan("Debian", "12", "6.1.0-37-amd64", 535, MIRROR)
