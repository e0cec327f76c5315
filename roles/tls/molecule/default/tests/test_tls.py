"""What the role `tls` leaves on a host, and what it does not."""

import json

READ = """
import json
from cryptography import x509
from cryptography.hazmat.primitives import serialization
leaf = x509.load_pem_x509_certificate(open("/etc/hotline/tls/fullchain.pem", "rb").read())
key = serialization.load_pem_private_key(open("/etc/hotline/tls/privkey.pem", "rb").read(), None)
ca = x509.load_pem_x509_certificate(open("/etc/hotline/tls/ca.pem", "rb").read())
names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
print(json.dumps({
    "dns": sorted(names.get_values_for_type(x509.DNSName)),
    "ip": sorted(map(str, names.get_values_for_type(x509.IPAddress))),
    "days": (leaf.not_valid_after - leaf.not_valid_before).days,
    "belong": leaf.public_key().public_bytes(*spki) == key.public_key().public_bytes(*spki),
    "issuer": leaf.issuer == ca.subject,
    "authority": leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca,
}))
"""


def test_the_certificate_is_for_this_line(host):
    read = json.loads(host.check_output("python3 -W ignore -c %s", READ))
    assert read == {
        "dns": ["localhost", "voice.example.org"],
        "ip": ["127.0.0.1", "::1"],
        "days": 397,
        "belong": True,
        "issuer": True,
        "authority": False,
    }


def test_the_authority_signed_it(host):
    host.check_output(
        "openssl verify -CAfile /etc/hotline/tls/ca.pem -purpose sslserver /etc/hotline/tls/fullchain.pem"
    )


def test_the_key_is_roots_alone(host):
    key = host.file("/etc/hotline/tls/privkey.pem")
    assert (key.user, key.group, key.mode) == ("root", "root", 0o600)
    for name in ("fullchain.pem", "ca.pem", "ca.mobileconfig"):
        public = host.file(f"/etc/hotline/tls/{name}")
        assert (public.user, public.group, public.mode) == ("root", "root", 0o644)


def test_the_authoritys_key_never_came_here(host):
    keys = host.check_output(
        "grep -rlE 'BEGIN (EC )?PRIVATE KEY' /etc/hotline /opt /var/lib/hotline /root /tmp || true"
    )
    assert keys == "/etc/hotline/tls/privkey.pem"


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/usr", "/var", "/var/lib", "/opt"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path
