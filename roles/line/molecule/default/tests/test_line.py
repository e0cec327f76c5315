"""What the role `line` leaves on a host."""


def test_folders_belong_to_root(host):
    for path, mode in (("/opt/hotline", 0o755), ("/var/lib/hotline", 0o755), ("/etc/hotline/secrets", 0o700)):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", mode), path


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/usr", "/var", "/var/lib", "/opt"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path


def test_settings_read_the_same_by_a_shell_and_by_systemd(host):
    text = host.file("/etc/hotline/hotline.env").content_string
    assert 'MOSHI_URL="https://localhost:8998"' in text
    shown = "echo $MOSHI_URL $LINE_NAMES $LINE_ENGINES"
    shell = host.run(f"set -a; . /etc/hotline/hotline.env; {shown}")
    systemd = "systemd-run --quiet --wait --pipe -p EnvironmentFile=/etc/hotline/hotline.env"
    unit = host.run(f"{systemd} sh -c '{shown}'")
    assert shell.stdout == unit.stdout == "https://localhost:8998 voice.example.org 0\n"
