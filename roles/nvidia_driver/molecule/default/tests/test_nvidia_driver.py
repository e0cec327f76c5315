"""A line on the CPU: its host keeps its hands off drivers."""


def test_no_driver_and_no_repository_came(host):
    assert not host.file("/etc/apt/sources.list.d/hotline-contrib.sources").exists
    assert host.run("dpkg-query --show '*nvidia*' 'cuda*'").stdout == ""


def test_no_module_is_loaded_or_kept_away(host):
    for path in ("/etc/modules-load.d/hotline-nvidia.conf", "/etc/modprobe.d/hotline-nouveau.conf"):
        assert not host.file(path).exists
