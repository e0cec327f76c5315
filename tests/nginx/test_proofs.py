"""Where an authority looks whether a name is ours: ACME's HTTP-01, at what is port 80 on a real line."""

from __future__ import annotations

import http.client

import pytest


def ask(port: int, path: str, address: str = "127.0.0.1") -> tuple[int, str, str]:
    """GET by plain http: status, where it is sent, body."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    connection.request("GET", path, headers={"Host": "call.example.org"})
    answer = connection.getresponse()
    return answer.status, answer.headers.get("Location", ""), answer.read().decode()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_proof_is_shown(proven, address):
    folder = proven.folder / "state/certificate/www/.well-known/acme-challenge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text("token.print")
    assert ask(proven.proof_port, "/.well-known/acme-challenge/token", address) == (200, "", "token.print")
    assert ask(proven.proof_port, "/.well-known/acme-challenge/other", address)[0] == 404


def test_nothing_else_is_there_and_people_are_shown_the_line(proven):
    (proven.folder / "state/certificate/account.pem").parent.mkdir(parents=True, exist_ok=True)
    (proven.folder / "state/certificate/account.pem").write_text("do-not-tell")
    for path in ("/", "/account.pem", "/.well-known/acme-challenge/../../account.pem", "/health"):
        status, location, body = ask(proven.proof_port, path)
        assert (status, location) == (302, proven.url("/")), path
        assert "do-not-tell" not in body
    above = ask(proven.proof_port, "/.well-known/acme-challenge/../../../account.pem")
    assert above[0] == 400
    assert "do-not-tell" not in above[2]


def test_a_line_that_is_proven_otherwise_has_one_port(line):
    assert "acme-challenge" not in (line.folder / "sites-available/hotline.conf").read_text()
