"""Which names a certificate gets, and which it covers, as browsers see it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

_spec = importlib.util.spec_from_file_location(
    "tls_names", Path(__file__).parents[2] / "roles/tls/filter_plugins/tls_names.py"
)
assert _spec
assert _spec.loader
names = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(names)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["line.example.org"], ["DNS:line.example.org"]),
        (["Line.Example.ORG."], ["DNS:line.example.org"]),
        (["203.0.113.7"], ["IP:203.0.113.7"]),
        (["2001:DB8:0:0::1"], ["IP:2001:db8::1"]),
        (["[::1]"], ["IP:::1"]),
        (["localhost", "127.0.0.1", "::1"], ["DNS:localhost", "IP:127.0.0.1", "IP:::1"]),
        (["b.example", "a.example", "b.example"], ["DNS:a.example", "DNS:b.example"]),
        (["*.example.org"], ["DNS:*.example.org"]),
        (["gpu_box", "xn--bcher-kva.example"], ["DNS:gpu_box", "DNS:xn--bcher-kva.example"]),
    ],
)
def test_names_and_addresses_become_alternative_names(given, expected):
    assert names.tls_alt_names(given) == expected


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "two words",
        "http://x",
        "x:8998",
        "-x",
        "a..b",
        "bücher.example",
        "a" * 64,
        "x/y",
        "*",
        "a.*.b",
        "x,y",
    ],
)
def test_what_is_no_name_is_refused_with_the_mend(bad):
    with pytest.raises(AnsibleFilterError, match="set line_host and line_names"):
        names.tls_alt_names(["good.example", bad])


@pytest.mark.parametrize(
    ("name", "alternatives", "covered"),
    [
        ("a.example", ["DNS:a.example"], True),
        ("A.Example.", ["DNS:a.example"], True),
        ("a.example", ["DNS:*.example"], True),
        ("a.b.example", ["DNS:*.example"], False),
        ("example", ["DNS:*.example"], False),
        ("xexample", ["DNS:*.example"], False),
        ("a.example", ["IP:203.0.113.7"], False),
        ("203.0.113.7", ["IP:203.0.113.7"], True),
        ("203.0.113.7", ["DNS:203.0.113.7"], False),
        ("2001:db8::1", ["IP:2001:DB8:0:0:0:0:0:1"], True),
        ("a.example", [], False),
    ],
)
def test_what_a_certificate_covers(name, alternatives, covered):
    assert names.tls_uncovered([name], alternatives) == ([] if covered else [name])
