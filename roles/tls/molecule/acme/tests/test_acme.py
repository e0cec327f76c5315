"""A certificate from an authority: obtained, renewed in a sandbox without a capability, shown by nginx."""

import json
import time

import pytest

SECRET = "dGhpcyBpcyBub3QgYSBzZWNyZXQsIGp1c3QgYSB0ZXN0"  # noqa: S105
SHOWN = (
    "openssl s_client -connect 127.0.0.1:8998 </dev/null 2>/dev/null "
    "| openssl x509 -noout -serial -ext subjectAltName"
)


def journal(host):
    return host.run("journalctl -u certificate --no-pager -n 30").stdout


def test_it_comes_from_the_authority_and_is_for_the_name(host):
    read = host.check_output(
        "openssl x509 -noout -issuer -ext subjectAltName -in /etc/hotline/tls/fullchain.pem"
    )
    assert "Pebble Intermediate CA" in read
    assert "DNS:stays.line.test" in read
    assert not host.file("/etc/hotline/tls/ca.pem").exists


def test_secrets_are_roots_alone_and_told_to_nobody(host):
    for path in ("tls/privkey.pem", "secrets/certificate.json"):
        secret = host.file(f"/etc/hotline/{path}")
        assert (secret.user, secret.group, secret.mode) == ("root", "root", 0o600)
    assert (
        json.loads(host.file("/etc/hotline/secrets/certificate.json").content_string)["dns"]["token"]
        == SECRET
    )
    elsewhere = "ps -ef; journalctl --no-pager; systemctl show certificate; cat /opt/hotline/certificate/*.py"
    assert SECRET not in host.check_output(elsewhere)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("User", "root"),
    ],
)
def test_what_renews_has_the_name_of_root_and_none_of_its_power(host, name, value):
    assert host.service("certificate").is_running, journal(host)
    assert host.service("certificate").is_enabled
    assert host.check_output("systemctl show certificate -p %s --value", name) == value


def test_it_renews_and_nginx_shows_it(host):
    """The record of the last one is gone, so that one is due; nothing else is done by hand."""
    host.check_output("systemctl restart nginx")
    before = host.check_output(SHOWN)
    assert "stays.line.test" in before
    host.check_output("rm /var/lib/hotline/certificate/issued.json && systemctl restart certificate")
    end = time.monotonic() + 60
    while host.check_output(SHOWN) == before:
        assert time.monotonic() < end, journal(host)
        time.sleep(0.5)
    assert "stays.line.test" in host.check_output(SHOWN)
    assert not host.file("/var/lib/hotline/certificate/trouble").exists
