"""What the fact script says about machines: bare ones, rented containers, broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.roles.stand_in import H100, L4, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_a_gpu(machine: Machine) -> None:
    assert machine.facts() == {
        "gpus": [],
        "driver_version": None,
        "driver_open": None,
        "driver_working": False,
        "driver_problem": None,
        "driver_injected": False,
        "driver_runfile": False,
        "pci_gpus": [],
        "container": None,
        "secure_boot": False,
        "nouveau_loaded": False,
    }


def test_a_gpu_without_a_driver(machine: Machine) -> None:
    facts = machine.pci("2330").file("sys/module/nouveau/refcnt", "1").facts()
    assert facts["pci_gpus"] == ["10de:2330"]
    assert facts["nouveau_loaded"]
    assert not facts["driver_working"]
    assert facts["driver_problem"] is None


def test_only_cards_that_compute_count_as_gpus(machine: Machine) -> None:
    machine.pci("22ba", pci_class="040300")  # the card's sound
    machine.pci("1aed", pci_class="0c0330", address="0000:01:00.2")  # its USB
    machine.pci("2684", pci_class="030000", address="0000:02:00.0")
    assert machine.facts()["pci_gpus"] == ["10de:2684"]


def test_a_virtual_machine_with_a_driver(machine: Machine) -> None:
    facts = machine.pci().driver(H100).facts()
    assert facts["gpus"] == [
        {
            "index": 0,
            "name": "NVIDIA H100 80GB HBM3",
            "memory_mib": 81559,
            "uuid": "GPU-0f1b6ae2",
            "compute_capability": "9.0",
        }
    ]
    assert facts["driver_version"] == "580.159.04"
    assert facts["driver_open"]
    assert facts["driver_working"]
    assert not facts["driver_injected"]


def test_two_gpus(machine: Machine) -> None:
    assert [gpu["index"] for gpu in machine.driver(L4, L4).facts()["gpus"]] == [0, 1]


def test_the_closed_kernel_module_is_told_apart(machine: Machine) -> None:
    facts = machine.kernel_driver("535.183.01", is_open=False).library("535.183.01").smi(L4).facts()
    assert (facts["driver_version"], facts["driver_open"]) == ("535.183.01", False)


@pytest.mark.parametrize(
    ("sign", "kind"),
    [
        (("run/systemd/container", "systemd-nspawn"), "systemd-nspawn"),
        (("proc/1/environ", "PATH=/bin\0container=lxc\0"), "lxc"),
        (("proc/1/environ", "KUBERNETES_SERVICE_HOST=10.0.0.1\0"), "kubernetes"),
        ((".dockerenv", ""), "docker"),
        (("run/.containerenv", ""), "podman"),
        (("proc/1/cgroup", "0::/kubepods.slice/kubepods-pod1.slice\n"), "kubernetes"),
        (("proc/1/cgroup", "5:devices:/docker/0123456789ab\n"), "docker"),
        (("proc/version", "Linux version 4.4.0 gVisor\n"), "gvisor"),
    ],
)
def test_containers_are_known_by_what_their_runtimes_leave(
    machine: Machine, sign: tuple[str, str], kind: str
) -> None:
    facts = machine.file(*sign).driver(H100).facts()
    assert facts["container"] == kind
    assert facts["driver_injected"], "a container's driver is its host's"


def test_a_machine_with_systemd_is_no_container(machine: Machine) -> None:
    machine.file("proc/1/environ", "HOME=/\0TERM=linux\0").file("proc/1/cgroup", "0::/init.scope\n")
    assert machine.facts()["container"] is None


@pytest.mark.parametrize("point", ["/usr/local/nvidia", "/usr/local/nvidia/lib64/libcuda.so.1"])
def test_a_library_that_was_mounted_in_is_not_ours(machine: Machine, point: str) -> None:
    machine.kernel_driver().library(folder="usr/local/nvidia/lib64")
    machine.smi(H100, folder="usr/local/nvidia/bin").mount("/proc").mount(point)
    facts = machine.facts()
    assert facts["driver_working"]
    assert facts["container"] is None
    assert facts["driver_injected"]


def test_a_mount_of_something_else_says_nothing(machine: Machine) -> None:
    assert not machine.driver(H100).mount("/usr").mount("/var/lib").facts()["driver_injected"]


def test_libraries_are_found_where_the_linker_looks(machine: Machine) -> None:
    machine.file("etc/ld.so.conf.d/vendor.conf", "# the host's\n/opt/vendor/lib\n")
    assert machine.kernel_driver().library(folder="opt/vendor/lib").smi(H100).facts()["driver_working"]


def test_a_kernel_driver_without_its_library_does_not_work(machine: Machine) -> None:
    facts = machine.kernel_driver().facts()
    assert not facts["driver_working"]
    assert "libcuda.so.1 is not on this machine" in facts["driver_problem"]


def test_a_library_without_its_kernel_module_does_not_work(machine: Machine) -> None:
    facts = machine.pci().library().facts()
    assert facts["driver_version"] is None
    assert facts["driver_problem"] == "the driver's library is there, its kernel module is not loaded"


def test_an_upgrade_without_a_reboot_is_told_as_such(machine: Machine) -> None:
    machine.kernel_driver("535.183.01").library("580.159.04")
    facts = machine.smi(fails="Failed to initialize NVML: Driver/library version mismatch").facts()
    assert not facts["driver_working"]
    assert facts["driver_problem"] == (
        "the kernel runs driver 535.183.01, the library libcuda.so.1 is of 580.159.04: "
        "the driver was upgraded without a reboot"
    )


def test_an_older_library_beside_the_right_one_harms_nobody(machine: Machine) -> None:
    machine.driver(H100).library("470.1.1", folder="usr/lib64")
    assert machine.facts()["driver_working"]


def test_what_nvidia_smi_complains_about_is_passed_on(machine: Machine) -> None:
    facts = machine.kernel_driver().library().smi(fails="No devices were found").facts()
    assert not facts["driver_working"]
    assert facts["driver_problem"] == "nvidia-smi says: No devices were found"


def test_without_nvidia_smi_the_kernel_module_names_the_cards(machine: Machine) -> None:
    machine.kernel_driver().library().file(
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA A10\nIRQ:   \t\t 34\nGPU UUID: \t GPU-11\nVideo BIOS: \t 94.02\n",
    )
    facts = machine.facts()
    assert facts["driver_working"]
    assert facts["gpus"] == [
        {"index": 0, "name": "NVIDIA A10", "memory_mib": None, "uuid": "GPU-11", "compute_capability": None}
    ]


def test_a_loaded_driver_that_shows_no_gpu_does_not_work(machine: Machine) -> None:
    facts = machine.kernel_driver().library().facts()
    assert facts["driver_problem"] == "the driver is loaded, but shows no GPU"


def test_fields_that_a_card_does_not_tell_are_none(machine: Machine) -> None:
    [gpu] = machine.driver("GRID A100D-8C, [N/A], GPU-22, [Not Supported]").facts()["gpus"]
    assert (gpu["memory_mib"], gpu["compute_capability"]) == (None, None)


def test_a_sandbox_that_hides_proc_is_seen_through_nvidia_smi(machine: Machine) -> None:
    facts = machine.file("proc/version", "Linux version 4.4.0").file("proc/sys/kernel/osrelease", "4.4.0\n")
    answer = facts.library().smi(H100).facts()
    assert answer["driver_version"] == "580.159.04"
    assert answer["driver_working"]
    assert answer["driver_injected"]


def test_the_driver_below_wsl_is_windows_own(machine: Machine) -> None:
    facts = machine.library(folder="usr/lib/wsl/lib").smi(H100, folder="usr/lib/wsl/lib").facts()
    assert facts["driver_working"]
    assert facts["driver_injected"]


@pytest.mark.parametrize("on", [True, False])
def test_secure_boot_is_read_from_the_firmware(machine: Machine, on: bool) -> None:
    assert machine.secure_boot(on).facts()["secure_boot"] is on


def test_secure_boot_is_unknown_where_the_variable_is_hidden(machine: Machine) -> None:
    (machine.root / "sys/firmware/efi").mkdir()
    assert machine.facts()["secure_boot"] is None


def test_a_driver_of_the_run_installer_is_known_by_its_uninstaller(machine: Machine) -> None:
    assert machine.file("usr/bin/nvidia-uninstall").facts()["driver_runfile"]
