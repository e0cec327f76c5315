"""Everything that a reboot needs to bring the driver up is in place; nothing was forced."""


def test_the_packages_are_there(host):
    assert host.package("nvidia-kernel-open-dkms").version == "580.159.04-1"


def test_nouveau_will_stay_away_from_the_next_boot_on(host):
    assert "blacklist nouveau\n" in host.file("/etc/modprobe.d/hotline-nouveau.conf").content_string
    assert host.file("/etc/modules-load.d/hotline-nvidia.conf").exists


def test_no_module_was_forced_over_nouveau(host):
    assert not host.file("/srv/modprobe.log").exists
