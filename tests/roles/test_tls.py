"""The life of a certificate, and what is refused: the role `tls` itself, run on folders of a test."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import plistlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[2]
PLAYBOOK = "- hosts: line\n  gather_facts: false\n  roles: [line, tls]\n"
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


class Ran:
    """What one run of the role did."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.text = done.stdout + done.stderr
        self.failed = done.returncode != 0
        self.changed = [line.split(":")[0] for line in self.text.splitlines() if line.startswith("changed: ")]


class Machine:
    """A controller and a host in one folder."""

    tags = "tls_preflight,tls_configure"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca"
        self.tls = folder / "etc" / "tls"
        self.tls.parent.mkdir()
        (folder / "play.yml").write_text(PLAYBOOK)

    def run(self, *arguments: str, hosts: dict[str, dict[str, Any]] | None = None, **variables: Any) -> Ran:
        (self.folder / "inventory.json").write_text(json.dumps({"line": {"hosts": hosts or {"host": {}}}}))
        extra = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "_line_config": str(self.folder / "etc"),
            "tls_ca_dir": str(self.ca),
            "line_host": "line.example.org",
            "line_listen": "all",
            **variables,
        }
        extra = {name: value for name, value in extra.items() if value is not None}
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", str(self.folder / "inventory.json")),
            *("-e", json.dumps(extra)),
            *("--tags", self.tags),
            *arguments,
            str(self.folder / "play.yml"),
        ]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        }
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        return Ran(done)

    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.tls / "fullchain.pem").read_bytes())

    def names(self) -> set[str]:
        found = self.leaf().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {str(name.value) for name in found}

    def replace_leaf(self, left: datetime.timedelta) -> x509.Certificate:
        """The certificate that is there, as the authority would have signed it earlier; it ends in `left`."""
        old = self.leaf()
        authority = x509.load_pem_x509_certificate((self.ca / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((self.ca / "ca-key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(old.subject)
            .issuer_name(authority.subject)
            .public_key(old.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 397 * DAY)
            .not_valid_after(NOW + left)
        )
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        made = builder.sign(key, hashes.SHA256())
        (self.tls / "fullchain.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return made


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("tls"))


@pytest.mark.timeout(1500)
def test_the_life_of_a_certificate(machine: Machine) -> None:
    """One story, each chapter from where the last one ended."""
    # a dry run on a virgin machine gets through and leaves nothing
    dry = machine.run("--check", "--diff")
    assert not dry.failed, dry.text
    assert not machine.ca.exists()
    assert not machine.tls.exists()

    # made
    first = machine.run()
    assert not first.failed, first.text
    leaf = machine.leaf()
    assert machine.names() == {"line.example.org"}
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == 397 * DAY
    assert leaf.not_valid_before_utc < NOW - DAY / 2, "a caller's clock may be behind"
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((machine.ca / "ca.pem").read_bytes()))
    assert (machine.ca / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert machine.ca.stat().st_mode & 0o777 == 0o700
    assert (machine.tls / "privkey.pem").stat().st_mode & 0o777 == 0o600
    assert (machine.tls / "ca.pem").read_bytes() == (machine.ca / "ca.pem").read_bytes()
    profile = plistlib.loads((machine.tls / "ca.mobileconfig").read_bytes())
    [payload] = profile["PayloadContent"]
    assert payload["PayloadType"] == "com.apple.security.root"
    authority = x509.load_pem_x509_certificate((machine.ca / "ca.pem").read_bytes())
    assert x509.load_der_x509_certificate(payload["PayloadContent"]) == authority
    assert "PRIVATE KEY" not in first.text

    # the second run changes nothing, and neither does another order of the names
    again = machine.run()
    assert not again.failed
    assert again.changed == []
    assert machine.leaf() == leaf

    # 31 days left: it stays
    kept = machine.replace_leaf(31 * DAY)
    assert machine.run().changed == []
    assert machine.leaf() == kept

    # 29 days left, and expired since yesterday: renewed, with the same key
    for left in (29 * DAY, -1 * DAY):
        old = machine.replace_leaf(left)
        renewed = machine.run()
        assert not renewed.failed, renewed.text
        assert len(renewed.changed) == 1
        new = machine.leaf()
        assert new.not_valid_after_utc > NOW + 390 * DAY
        assert new.public_key() == old.public_key()

    # another name: another certificate
    machine.run(line_host="203.0.113.7", line_names=["a.example", "2001:db8::7"])
    assert machine.names() == {"203.0.113.7", "a.example", "2001:db8::7"}
    assert machine.run(line_host="203.0.113.7", line_names=["2001:db8::7", "a.example"]).changed == []

    # on loopback it is reached under all of loopback's names
    machine.run(line_listen="loopback")
    assert machine.names() == {"line.example.org", "localhost", "127.0.0.1", "::1"}

    # what broke (a full disk, a power cut) is made anew
    for name in ("privkey.pem", "fullchain.pem"):
        (machine.tls / name).write_text("-----BEGIN CERT")
    healed = machine.run()
    assert not healed.failed, healed.text
    machine.leaf().verify_directly_issued_by(
        x509.load_pem_x509_certificate((machine.ca / "ca.pem").read_bytes())
    )

    # an authority is never replaced in silence
    ca_key = (machine.ca / "ca-key.pem").read_bytes()
    other = ec.generate_private_key(ec.SECP256R1())
    for broken in (b"nonsense", pem_key(other), None):
        (machine.ca / "ca-key.pem").unlink()
        if broken is not None:
            (machine.ca / "ca-key.pem").write_bytes(broken)
        refused = machine.run()
        assert refused.failed
        assert "cannot be used" in refused.text
        assert "Mend: put its ca-key.pem and ca.pem back" in refused.text
        (machine.ca / "ca-key.pem").write_bytes(ca_key)

    # another controller has another authority, and says what that means
    elsewhere = machine.run(tls_ca_dir=str(machine.folder / "other-ca"))
    assert not elsewhere.failed
    assert "must download the new one from the page" in elsewhere.text
    assert (machine.tls / "ca.pem").read_bytes() == (machine.folder / "other-ca" / "ca.pem").read_bytes()


def pem_key(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
    )


class Authority:
    """Somebody else's: signs what an operator would bring."""

    def __init__(self, name: str, signed_by: Authority | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = signed_by or self
        self.pem = signer.sign(self.key, self.name, None)

    def sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        names: list[str] | None,
        begins: datetime.timedelta = -DAY,
        left: datetime.timedelta = 90 * DAY,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + begins)
            .not_valid_after(NOW + left)
        )
        if names:
            entries: list[x509.GeneralName] = [
                x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
                for name in names
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


ROOT_CA = Authority("root")
MIDDLE = Authority("middle", ROOT_CA)
KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "line.example.org")])
GOOD = MIDDLE.sign(KEY, SUBJECT, ["line.example.org"])


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("manual"))


def bring(machine: Machine, chain: bytes, key: bytes) -> dict[str, Any]:
    """Lay down the operator's two files."""
    (machine.folder / "chain.pem").write_bytes(chain)
    (machine.folder / "key.pem").write_bytes(key)
    return {
        "tls_provider": "manual",
        "tls_manual_certificate": str(machine.folder / "chain.pem"),
        "tls_manual_key": str(machine.folder / "key.pem"),
    }


CANNOT_SERVE = {
    "other_key": (
        GOOD,
        pem_key(ec.generate_private_key(ec.SECP256R1())),
        "is not the key of the first certificate",
    ),
    "order": (MIDDLE.pem + GOOD, pem_key(KEY), "is not the key of the first certificate"),
    "gap": (GOOD + ROOT_CA.pem, pem_key(KEY), "stands after one that it did not sign"),
    "expired": (
        MIDDLE.sign(KEY, SUBJECT, ["line.example.org"], -90 * DAY, -DAY),
        pem_key(KEY),
        "renew it where it was issued",
    ),
    "not_yet": (MIDDLE.sign(KEY, SUBJECT, ["line.example.org"], DAY), pem_key(KEY), "set that clock right"),
    "other_name": (
        MIDDLE.sign(KEY, SUBJECT, ["other.example.org"]),
        pem_key(KEY),
        "not for line.example.org",
    ),
    "no_name": (MIDDLE.sign(KEY, SUBJECT, None), pem_key(KEY), "no name at all"),
    "no_pem": (b"nonsense", pem_key(KEY), "holds no certificate"),
    "broken": (GOOD.replace(b"M", b"N", 20), pem_key(KEY), "cannot be read"),
    "no_key": (GOOD, b"nonsense", "cannot be read"),
    "passphrase": (GOOD, pem_key(KEY, b"secret"), "without a passphrase"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Ran]:
    """One run over a host for each of the files that cannot serve."""
    machine = Machine(tmp_path_factory.mktemp("refused"))
    hosts = {}
    for name, (chain, key, _) in CANNOT_SERVE.items():
        (machine.folder / name).mkdir()
        (machine.folder / name / "chain.pem").write_bytes(chain)
        (machine.folder / name / "key.pem").write_bytes(key)
        hosts[name] = {}
    own = f"{machine.folder}/{{{{ inventory_hostname }}}}"
    ran = machine.run(
        hosts=hosts,
        _line_config=f"{own}/etc",
        tls_provider="manual",
        tls_manual_certificate=f"{own}/chain.pem",
        tls_manual_key=f"{own}/key.pem",
    )
    return machine, ran


@pytest.mark.parametrize("name", CANNOT_SERVE)
def test_a_certificate_that_cannot_serve_is_refused_before_it_is_taken(
    refusals: tuple[Machine, Ran], name: str
) -> None:
    machine, ran = refusals
    said = " ".join(
        line for line in ran.text.splitlines() if line.startswith((f"fatal: [{name}]", f"failed: [{name}]"))
    )
    assert CANNOT_SERVE[name][2] in said.replace("\\n", " "), ran.text
    assert "Mend:" in said
    assert not (machine.folder / name / "etc/tls/fullchain.pem").exists()
    assert not (machine.folder / name / "etc/tls/privkey.pem").exists()


def test_no_key_is_ever_printed(refusals: tuple[Machine, Ran]) -> None:
    assert "PRIVATE KEY" not in refusals[1].text
    assert pem_key(KEY).decode().splitlines()[1] not in refusals[1].text


def test_files_that_are_not_there_are_named(operator: Machine) -> None:
    ran = operator.run(
        tls_provider="manual", tls_manual_certificate="/nowhere/chain.pem", tls_manual_key="/nowhere/key.pem"
    )
    assert ran.failed
    assert "There is no file /nowhere/chain.pem on the controller" in ran.text
    ran = operator.run(tls_provider="manual")
    assert ran.failed
    assert "tls_manual_certificate or tls_manual_key is empty" in ran.text


@pytest.mark.parametrize("on_host", [False, True], ids=["controller", "host"])
def test_a_good_certificate_is_taken(operator: Machine, on_host: bool) -> None:
    (operator.tls).mkdir(exist_ok=True)
    for name in ("ca.pem", "ca.mobileconfig"):
        (operator.tls / name).write_text("of an authority of before")
    for name in ("fullchain.pem", "privkey.pem"):
        (operator.tls / name).unlink(missing_ok=True)
    brought = bring(operator, GOOD + MIDDLE.pem, pem_key(KEY)) | {"tls_manual_on_host": on_host}
    ran = operator.run("--diff", **brought)
    assert not ran.failed, ran.text
    assert "PRIVATE KEY" not in ran.text
    assert (operator.tls / "fullchain.pem").read_bytes() == GOOD + MIDDLE.pem
    assert (operator.tls / "privkey.pem").read_bytes() == pem_key(KEY)
    assert (operator.tls / "privkey.pem").stat().st_mode & 0o777 == 0o600
    for name in ("ca.pem", "ca.mobileconfig"):
        assert not (operator.tls / name).exists(), "an authority that did not sign this is not offered"
    assert operator.run(**brought).changed == []


def test_a_certificate_that_is_about_to_expire_is_taken_with_a_word(operator: Machine) -> None:
    soon = MIDDLE.sign(KEY, SUBJECT, ["line.example.org"], -DAY, 10 * DAY)
    ran = operator.run(**bring(operator, soon, pem_key(KEY)))
    assert not ran.failed, ran.text
    assert "renew it and run this again before" in ran.text


def test_without_tls_nothing_is_made(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    ran = machine.run(tls_provider="none")
    assert not ran.failed, ran.text
    assert ran.changed == []
    assert not machine.tls.exists()
    assert not machine.ca.exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"line_host": "my line"}, "cannot stand in a certificate"),
        ({"tls_days": 800}, "browsers refuse more than"),
        ({"tls_days": 30}, "it must live longer than that"),
        ({"tls_provider": "letsencrypt"}, "value of tls_provider must be one of"),
        ({"tls_ca_dir": "/proc/nowhere"}, "see to it that you may write there"),
    ],
)
def test_wrong_values_are_refused_with_the_mend(
    tmp_path: Path, variables: dict[str, Any], words: str
) -> None:
    ran = Machine(tmp_path).run(**variables)
    assert ran.failed
    assert words in ran.text
