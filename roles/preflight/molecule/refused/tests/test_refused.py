"""A host that was refused is as it was before."""


def test_nothing_was_installed(host):
    for path in ("/etc/ansible", "/etc/hotline", "/var/lib/hotline"):
        assert not host.file(path).exists, path


def test_nobody_was_disturbed(host):
    assert host.service("registry").is_running
