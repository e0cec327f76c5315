"""The host rebooted, and what was written for its boot brought the driver up."""

import json


def test_the_packages_are_there(host):
    assert host.package("nvidia-kernel-open-dkms").version == "580.159.04-1"


def test_nouveau_stayed_away_from_this_boot(host):
    assert "blacklist nouveau\n" in host.file("/etc/modprobe.d/hotline-nouveau.conf").content_string
    assert not host.file("/srv/machine/sys/module/nouveau").exists


def test_the_modules_were_loaded_at_boot_and_never_forced_over_nouveau(host):
    assert host.file("/srv/modprobe.log").content_string == "nvidia\nnvidia-uvm\n"


def test_the_driver_works(host):
    facts = json.loads(
        host.check_output("HOTLINE_GPU_ROOT=/srv/machine /etc/ansible/facts.d/hotline_gpu.fact")
    )
    assert facts["driver_working"]
    assert facts["driver_version"] == "580.159.04"


def test_the_card_is_kept_awake(host):
    assert host.service("nvidia-persistenced").is_running
