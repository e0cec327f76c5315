"""The first contact with a node: our key, its host key (pinned), and whether commands really run there.

Rented machines greet: banners, messages of the day, a tmux that login shells fall into. So a command counts
as run only when its own answer, which no greeting can contain, stands on a line by itself.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rental.errors import NodeError, RentalError
from rental.market import Node


@dataclass(frozen=True)
class Identity:
    """Our key pair."""

    private: Path
    public: str


def identity(folder: Path, chosen: Path | None = None) -> Identity:
    """The chosen key, or one of our own that is made once."""
    private = chosen or folder / "id_ed25519"
    if not private.exists():
        if chosen:
            raise RentalError(
                f"there is no ssh key at {chosen}. Mend: name another with --ssh-key, or leave it out."
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hotline", "-f", str(private)], 30)
    public = private.with_name(private.name + ".pub")
    if not public.exists():
        raise RentalError(
            f"{public} is missing: the provider needs the public half. Mend: ssh-keygen -y -f {private} > "
            f"{public}"
        )
    return Identity(private, public.read_text().strip())


def fingerprint(known_hosts_line: str) -> str:
    """`SHA256:…` of a line `host type base64`, as ssh-keygen -l and Salad write it."""
    digest = hashlib.sha256(base64.b64decode(known_hosts_line.split()[2])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def scan(host: str, port: int, seconds: int = 5) -> list[str]:
    """The host keys that answer there, as lines of a known_hosts file; none while nothing answers."""
    done = _run(["ssh-keyscan", "-T", str(seconds), "-p", str(port), host], seconds * 6)
    return [
        line
        for line in done.stdout.splitlines()
        if line and not line.startswith("#") and len(line.split()) == 3
    ]


def pin(lines: Sequence[str], published: str = "") -> str:
    """The text of a known_hosts file: what was scanned; with a published fingerprint, only what it fits."""
    if not published:
        return "".join(f"{line}\n" for line in lines)
    vouched = [line for line in lines if fingerprint(line) == published]
    if lines and not vouched:
        raise NodeError(
            f"the host key that answers is not the one that the provider published ({published}): somebody "
            "stands in between, or "
            "the node was moved this minute"
        )
    return "".join(f"{line}\n" for line in vouched)


def options(known_hosts: Path, private: Path) -> list[str]:
    """ssh's options for a pinned node; the same that Ansible gets."""
    return [
        *("-o", f"UserKnownHostsFile={known_hosts}"),
        *("-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", "IdentitiesOnly=yes"),
        *("-i", str(private)),
    ]


def command(node: Node, known_hosts: Path, private: Path, remote: str) -> list[str]:
    """The ssh command that runs `remote` on a node."""
    return [
        "ssh",
        *options(known_hosts, private),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"),
        *("-p", str(node.port), "-l", node.user, node.host, remote),
    ]


def answer_in(output: str, mark: str) -> str | None:
    """What stands behind our mark, on the line that begins with it; None when the command did not run."""
    for line in output.splitlines():
        if line.strip().startswith(mark):
            return line.strip()[len(mark) :].strip()
    return None


def brace_in_greeting(output: str, mark: str) -> bool:
    """Whether what a shell says before our answer would be read as JSON; anything else Ansible skips."""
    return any(line.strip().startswith("{") for line in output.partition(mark)[0].splitlines())


def ask(node: Node, known_hosts: Path, private: Path, remote: str, seconds: int = 30) -> str:
    """The one line that a command prints, past all greetings. NodeError, with the reason, if it does not."""
    nonce = secrets.token_hex(8)
    # The mark is put together there, so that a shell which only echoes the command does not answer.
    wrapped = f"touch ~/.no_auto_tmux 2>/dev/null; printf '%s%s ' hotline- {nonce}; {remote}; echo"
    done = _run(command(node, known_hosts, private, wrapped), seconds)
    said = answer_in(done.stdout, f"hotline-{nonce}")
    if said is None:
        raise NodeError(why_not(done.stderr, done.returncode, node.host))
    if brace_in_greeting(done.stdout, f"hotline-{nonce}"):
        raise NodeError(
            f"{node.host} greets every command with a line that begins with a brace, which Ansible takes "
            "for its own. Mend: choose an image whose shell is silent"
        )
    return said


def why_not(stderr: str, status: int, host: str) -> str:
    """A sentence for what ssh said."""
    low = stderr.lower()
    last = next((line for line in reversed(stderr.strip().splitlines()) if line.strip()), "")
    if "host key" in low and ("changed" in low or "verification failed" in low):
        return f"{host} shows another ssh host key than the pinned one: replaced, or somebody stands between"
    if "permission denied" in low:
        return f"{host} does not let our ssh key in"
    if "unreachable" in low and ":" in host:
        return f"{host} is an IPv6 address, and this machine has no way there. Mend: rent from one with IPv6"
    if "refused" in low or "timed out" in low or "unreachable" in low or "no route" in low:
        return f"ssh to {host} does not answer ({last.strip()})"
    if status == 0:
        return f"{host} lets us in, but its shell swallows commands (tmux or a menu in its login files)"
    return f"ssh to {host} failed: {last.strip() or f'status {status}'}"


def _run(words: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 255, "", f"timed out after {seconds} s")
    except FileNotFoundError:
        raise RentalError(f"{words[0]} is missing here. Mend: apt-get install openssh-client") from None
