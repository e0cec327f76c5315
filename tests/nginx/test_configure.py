"""The role's configure phase on a host whose nginx already has sites of the operator's."""

from __future__ import annotations

import json
import socket

import pytest

from tests.nginx.conftest import Line, configure, free_ports, prepare


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configure")
    prepare(folder, "one")
    own = folder / "one"
    (own / "sites-available" / "theirs").write_text("server { listen 127.0.0.1:1; }\n")
    (own / "sites-enabled" / "theirs").symlink_to(own / "sites-available" / "theirs")
    port = free_ports(1)[0]
    return own, {"one": {"line_host": "127.0.0.1", "line_port": port}}


@pytest.mark.timeout(1200)
def test_the_roles_work(one):
    own, hosts = one
    before = (own / "nginx.conf").read_text()

    # a first run that fails leaves nginx as it was
    kept = (own / "tls" / "fullchain.pem").read_text()
    (own / "tls" / "fullchain.pem").write_text("nothing")
    failed = configure(own.parent, hosts)
    assert "nginx would not take the new configuration" in failed.stdout
    assert (own / "nginx.conf").read_text() == before
    assert not (own / "sites-available" / "hotline.conf").exists()
    assert not (own / "sites-enabled" / "hotline.conf").is_symlink()
    assert (own / "sites-enabled" / "default").resolve() == own / "sites-available" / "default"
    (own / "tls" / "fullchain.pem").write_text(kept)

    first = configure(own.parent, hosts)
    assert first.returncode == 0, first.stdout

    # the default site is off, and what it pointed to is remembered for uninstall
    assert not (own / "sites-enabled" / "default").exists()
    assert (own / "sites-available" / "default").exists()
    assert (own / "state" / "nginx" / "default-site").read_text().strip() == str(
        own / "sites-available" / "default"
    )

    assert (own / "state" / "nginx" / "worker-connections").read_text() == "768\n"

    # the operator's own site is as it was
    assert (own / "sites-enabled" / "theirs").resolve() == own / "sites-available" / "theirs"

    # one line of nginx's own file is another, in its place
    after = (own / "nginx.conf").read_text()
    assert after == before.replace("worker_connections 768;", "worker_connections 4096;")

    second = configure(own.parent, hosts)
    assert "changed=0" in second.stdout, second.stdout

    # a renewed certificate is a new configuration, else nobody would make nginx read it
    certificate = own / "tls" / "fullchain.pem"
    site = (own / "sites-available" / "hotline.conf").read_text()
    certificate.write_text(certificate.read_text() + "\n")
    third = configure(own.parent, hosts)
    assert "changed=1" in third.stdout, third.stdout
    assert (own / "sites-available" / "hotline.conf").read_text() != site

    # what nginx will not take never gets in: here the certificate is no certificate
    good = (own / "sites-available" / "hotline.conf").read_text()
    kept = certificate.read_text()
    certificate.write_text("nothing")
    broken = configure(own.parent, hosts)
    assert broken.returncode != 0
    assert "nginx would not take the new configuration" in broken.stdout
    assert "Mend:" in broken.stdout
    assert (own / "sites-available" / "hotline.conf").read_text() == good
    certificate.write_text(kept)

    # and the next run heals it
    healed = configure(own.parent, hosts)
    assert healed.returncode == 0, healed.stdout


def test_without_ipv6_nginx_starts_all_the_same(one):
    """Binding an IPv6 address where there is none would keep nginx down."""
    own, hosts = one
    done = configure(own.parent, hosts, "-e", json.dumps({"_nginx_inet6": ""}))
    assert done.returncode == 0, done.stdout
    port = int(hosts["one"]["line_port"])
    line = Line("one", own, port, 0, [], tls=True)
    line.start()
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("::1", port), 5)
    finally:
        line.stop()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("nginx_silence_s", 60, "nginx_silence_s 2 to 13"),
        ("nginx_trusted_proxies", ["10.0.0.0/8; deny all"], "write it like 10.0.0.0/8"),
        ("nginx_body_max_kib", "many", "nginx_body_max_kib"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_touched(one, variable, value, words):
    own, hosts = one
    before = {path: path.read_bytes() for path in own.rglob("*.conf")}
    done = configure(own.parent, hosts, "-e", json.dumps({variable: value}))
    assert done.returncode != 0
    assert words in done.stdout
    assert before == {path: path.read_bytes() for path in own.rglob("*.conf")}
