"""What a certificate says about names and time: filters for the role `tls`. They run on the controller."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable, Iterable

from ansible.errors import AnsibleFilterError
from cryptography import x509

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def _address(name: str) -> str | None:
    """The address in its one canonical spelling, or None if `name` is not an address."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return None


def _is_dns_name(name: str) -> bool:
    """Whether `name` can stand in a certificate as a DNS name; `*.` in front is allowed (RFC 6125)."""
    labels = name.removeprefix("*.").split(".")
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def tls_alt_names(names: Iterable[str]) -> list[str]:
    """Turn names and addresses into subject alternative names, `DNS:…` and `IP:…`.

    Sorted and without doubles, so that another order of the same names is no reason for a new certificate.
    Raises AnsibleFilterError for what is neither a name nor an address.
    """
    found = set()
    for name in names:
        spelled = str(name).strip().lower().rstrip(".")
        address = _address(spelled)
        if address is not None:
            found.add(f"IP:{address}")
        elif _is_dns_name(spelled):
            found.add(f"DNS:{spelled}")
        else:
            raise AnsibleFilterError(
                f"{name!r} cannot stand in a certificate. Mend: set line_host and line_names to what callers "
                "type between https:// and the port: an address, or a name of letters, digits, dots, hyphens "
                "(a name in another script in its xn-- form)."
            )
    return sorted(found)


def _covered(name: str, alt_names: Iterable[str]) -> bool:
    """Whether a certificate with these names serves `name`; a wildcard stands for one label (RFC 6125)."""
    spelled = str(name).strip().lower().rstrip(".")
    address = _address(spelled)
    for entry in alt_names:
        kind, _, value = entry.lower().partition(":")
        if address is not None:
            if kind == "ip" and _address(value) == address:
                return True
        elif kind == "dns" and (
            value == spelled
            or (value.startswith("*.") and "." in spelled and spelled.split(".", 1)[1] == value[2:])
        ):
            return True
    return False


def tls_uncovered(names: Iterable[str], alt_names: Iterable[str]) -> list[str]:
    """Those of `names` that a certificate with these subject alternative names does not serve.

    The common name does not count: browsers do not look at it.
    """
    entries = list(alt_names)
    return [name for name in names if not _covered(name, entries)]


def tls_lives_for(pem: str, days: int) -> bool:
    """Whether the first certificate in `pem` is valid now and in so many days; nothing else is."""
    now = datetime.datetime.now(datetime.timezone.utc)
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return False
    return (
        certificate.not_valid_before_utc <= now
        and now + datetime.timedelta(days=days) < certificate.not_valid_after_utc
    )


class FilterModule:
    """Hands the filters to Ansible."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Names in templates, and what they call."""
        return {
            "tls_alt_names": tls_alt_names,
            "tls_uncovered": tls_uncovered,
            "tls_lives_for": tls_lives_for,
        }
