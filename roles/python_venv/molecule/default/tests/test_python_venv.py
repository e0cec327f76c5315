"""A Python environment on a host: exactly its lock, root's own, compiled, and nothing left lying about."""

VENV = "/opt/hotline/sample/venv"


def test_it_holds_what_the_lock_says_and_nothing_else(host):
    listed = host.check_output(
        "UV_CACHE_DIR=/tmp/uv /opt/hotline/uv/bin/uv pip freeze --python %s/bin/python", VENV
    )
    assert [line.split("==")[0] for line in listed.splitlines()] == ["anyio", "idna", "typing-extensions"]


def test_it_stands_on_the_systems_python(host):
    assert host.check_output("readlink -f %s/bin/python", VENV) == host.check_output(
        "readlink -f /usr/bin/python3"
    )


def test_it_belongs_to_root(host):
    assert host.check_output("find /opt/hotline -not -user root") == ""
    # uv's own lock is for everybody on purpose: it is empty, and only held.
    assert host.check_output("find /opt/hotline -perm /022 -not -type l -not -name .lock") == ""


def test_everything_is_compiled_since_a_service_cannot(host):
    site = f"{VENV}/lib/python3.11/site-packages"
    sources = int(host.check_output("find %s -name '*.py' | wc -l", site))
    compiled = int(host.check_output("find %s -name '*.pyc' | wc -l", site))
    assert compiled >= sources > 50


def test_no_cache_is_left(host):
    assert not host.file(f"{VENV}.cache").exists


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/usr", "/var", "/var/lib", "/opt"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path
