"""The first contact, as far as it is decided without a host: keys, pins, greetings, reasons."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rental import ssh
from rental.errors import NodeError, RentalError


def host_key(folder: Path, kind: str) -> str:
    """A line of known_hosts, and what ssh-keygen calls its fingerprint."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / kind)], check=True)
    words = (folder / f"{kind}.pub").read_text().split()
    return f"[127.0.0.1]:41022 {words[0]} {words[1]}"


def test_our_key_is_made_once(tmp_path: Path) -> None:
    first = ssh.identity(tmp_path / "state")
    assert ssh.identity(tmp_path / "state") == first
    assert first.public.startswith("ssh-ed25519 ")
    assert first.private.stat().st_mode & 0o077 == 0


def test_a_chosen_key_must_be_there_with_its_public_half(tmp_path: Path) -> None:
    with pytest.raises(RentalError, match="no ssh key"):
        ssh.identity(tmp_path, tmp_path / "mine")
    (tmp_path / "mine").write_text("x")
    with pytest.raises(RentalError, match="public half"):
        ssh.identity(tmp_path, tmp_path / "mine")


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    line = host_key(tmp_path, "ed25519")
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "ed25519.pub")], check=True, capture_output=True, text=True
    )
    assert ssh.fingerprint(line) == shown.stdout.split()[1]


def test_with_a_published_fingerprint_only_that_key_is_pinned(tmp_path: Path) -> None:
    good, other = host_key(tmp_path, "ed25519"), host_key(tmp_path, "ecdsa")
    assert ssh.pin([other, good], ssh.fingerprint(good)) == good + "\n"
    assert ssh.pin([other, good]) == f"{other}\n{good}\n", "without one, what answers first is trusted"
    with pytest.raises(NodeError, match="not the one that the provider published"):
        ssh.pin([other], ssh.fingerprint(good))


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("hotline-abc 17\n", "17"),
        ("Welcome to vast.ai\n****\nhotline-abc 17\nbye\n", "17"),
        ("\x1b[2Jbanner\r\n  hotline-abc ok \r\n", "ok"),
        ("hotline-abc\n", ""),
        ("printf '%s%s ' hotline- abc; true; echo\n", None),
        ("", None),
    ],
)
def test_the_answer_is_found_in_any_greeting(output: str, answer: str | None) -> None:
    assert ssh.answer_in(output, "hotline-abc") == answer


def test_a_greeting_that_ansible_would_read_as_its_own_is_noticed() -> None:
    assert ssh.brace_in_greeting("Welcome\n {not json\nhotline-abc 1\n", "hotline-abc")
    assert not ssh.brace_in_greeting("[tmux] Welcome {x}\nhotline-abc {}\n{", "hotline-abc")


@pytest.mark.parametrize(
    ("stderr", "status", "host", "told"),
    [
        ("root@h: Permission denied (publickey).", 255, "h", "does not let our ssh key in"),
        ("ssh: connect to host h port 22: Connection refused", 255, "h", "does not answer"),
        ("connect to host 2001:db8::7 port 22: Network is unreachable", 255, "2001:db8::7", "no way there"),
        ("Host key verification failed.", 255, "h", "another ssh host key than the pinned one"),
        ("", 0, "h", "swallows commands (tmux"),
        ("mux: odd", 3, "h", "mux: odd"),
        ("", 7, "h", "status 7"),
    ],
)
def test_why_a_command_did_not_run(stderr: str, status: int, host: str, told: str) -> None:
    assert told in ssh.why_not(stderr, status, host)
