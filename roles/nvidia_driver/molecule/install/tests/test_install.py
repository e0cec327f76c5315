"""A machine with a GPU and no driver has one afterwards, of the branch that was asked for, and in use."""

import json

import pytest


@pytest.mark.parametrize(
    "package", ["nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced", "nvidia-modprobe"]
)
def test_the_branch_is_held_though_a_newer_one_is_there(host, package):
    assert host.package(package).version == "580.159.04-1"


def test_an_upgrade_stays_on_the_branch(host):
    assert "620.11" not in host.check_output("apt-get --simulate dist-upgrade")


def test_the_kernels_headers_came(host):
    assert host.package(f"linux-headers-{host.check_output('uname -r')}").is_installed


def test_the_driver_was_loaded_once(host):
    assert host.file("/srv/modprobe.log").content_string == "--all nvidia nvidia-uvm\n"


def test_the_fact_shows_the_gpu(host):
    facts = json.loads(
        host.check_output("HOTLINE_GPU_ROOT=/srv/machine /etc/ansible/facts.d/hotline_gpu.fact")
    )
    assert facts["driver_working"]
    assert facts["gpus"][0]["memory_mib"] == 23034


def test_the_modules_are_loaded_at_boot(host):
    lines = host.file("/etc/modules-load.d/hotline-nvidia.conf").content_string.splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["nvidia", "nvidia-uvm"]


def test_nouveau_is_kept_away(host):
    assert "blacklist nouveau\n" in host.file("/etc/modprobe.d/hotline-nouveau.conf").content_string


def test_the_card_is_kept_awake(host):
    daemon = host.service("nvidia-persistenced")
    assert daemon.is_running, host.run("journalctl -n 30 -u nvidia-persistenced").stdout
    assert daemon.is_enabled


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/etc/apt", "/etc/modprobe.d", "/etc/modules-load.d", "/usr", "/var"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path
