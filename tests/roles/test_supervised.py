"""What supervised.py makes of a unit without systemd: the deciding parts; the rest is molecule's."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

ROLE = Path(__file__).parents[2] / "roles"


def program(path: str) -> Any:
    """Import a host's program by its file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROLE / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


supervised = program("service/files/supervised.py")
breaker = program("moshi/files/breaker.py")


def test_an_environment_file_reads_as_systemd_reads_it() -> None:
    text = '# Ansible managed\nA="plain"\nB="a \\"quoted\\" \\\\ word"\nC=""\nD="with $dollar and %i"\n'
    assert supervised.read_environment(text) == {
        "A": "plain",
        "B": 'a "quoted" \\ word',
        "C": "",
        "D": "with $dollar and %i",
    }


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("${SERVICE_PORT}", "8999"),
        ("--state=/var/lib/moshi/%i", "--state=/var/lib/moshi/0"),
        ("100%%", "100%"),
        ("${NOBODY_SET_IT}", ""),
        ("$SERVICE_PORT", "$SERVICE_PORT"),
    ],
)
def test_a_commands_words_are_expanded(word: str, meant: str) -> None:
    assert supervised.expand(word, "0", {"SERVICE_PORT": "8999"}) == meant


@pytest.mark.parametrize(
    ("status", "late", "expected"),
    [
        (0, False, ("success", "exited", "0")),
        (2 << 8, False, ("exit-code", "exited", "2")),
        (signal.SIGTERM, False, ("success", "killed", "TERM")),
        (signal.SIGKILL, False, ("signal", "killed", "KILL")),
        (signal.SIGSEGV | 0x80, False, ("core-dump", "dumped", "SEGV")),
        (signal.SIGKILL, True, ("timeout", "killed", "KILL")),
    ],
)
def test_an_end_is_told_in_systemds_words(status: int, late: bool, expected: tuple[str, str, str]) -> None:
    assert tuple(supervised.ended_as(int(status), late=late).values()) == expected


@pytest.mark.parametrize("runs", [[0.1] * 8, [100.0] * 8, [0.1, 0.1, 290.0, 0.1, 0.1, 0.1], [301.0] * 5])
def test_starts_are_counted_as_the_engines_breaker_foretells(
    runs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs, one rule: what breaker.py says will stay down is just what supervised.py refuses."""
    most, window, delay, now = 3, 300.0, 2.0, 1000.0
    monkeypatch.setattr(breaker, "boot_id", lambda: "one")
    starts, followed = None, None
    for run in runs:
        starts = supervised.counted(starts, most, window, now)
        assert starts is not None
        followed = breaker.counted(followed, most, window, now)
        foretold = breaker.is_open(followed, now + run, most, window, delay)
        now += run + delay
        refused = supervised.counted(starts, most, window, now) is None
        assert refused == foretold
        if refused:
            return
