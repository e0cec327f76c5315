"""The ledger: what is found when ledger and provider are put together, and that no death leaves it broken."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rental.errors import RentalError
from rental.keep import due, remaining
from rental.ledger import GRACE_S, Entry, Ledger, compare, state_folder
from rental.market import Node
from tests.providers.vast import VastStandIn

ROOT = Path(__file__).parents[3]
NOW = 1_790_000_000.0
ENTRY = Entry("hotline-talk-aaaaaa", "talk", "vast", "ready", "RTX 4090", 0.4, "vm", NOW - 3600, "7001")
NODE = Node("vast", "7001", "hotline-talk-aaaaaa", "running", price=0.41)


@pytest.mark.parametrize(
    ("state", "listed", "age", "busy", "what"),
    [
        ("ready", True, 3600, False, "fine"),
        ("ready", True, 3600, True, "fine"),
        ("ready", False, 3600, False, "gone"),
        ("intended", True, 10, True, "busy"),
        ("intended", True, 10, False, "half"),
        ("intended", False, 10, False, "pending"),
        ("intended", False, GRACE_S + 1, False, "never"),
        ("preparing", True, 10, False, "half"),
        ("preparing", True, 10, True, "busy"),
        ("ending", True, 10, False, "ending"),
        ("ending", False, 10, False, "ended"),
    ],
)
def test_what_ledger_and_provider_say_together(
    state: str, listed: bool, age: float, busy: bool, what: str
) -> None:
    entry = replace(ENTRY, state=state, created=NOW - age)
    lines = frozenset({"talk"} if busy else set())
    found = compare([entry], [NODE] if listed else [], lines, NOW)
    assert [f.what for f in found] == [what]


def test_a_node_that_nobody_here_rented_is_a_stranger_and_counts() -> None:
    found = compare([], [NODE], frozenset(), NOW)
    assert (found[0].what, found[0].line, found[0].price, found[0].runs) == ("stranger", "talk", 0.41, True)


def test_the_price_is_the_providers() -> None:
    assert compare([ENTRY], [NODE], frozenset(), NOW)[0].price == 0.41
    assert compare([ENTRY], [replace(NODE, price=0)], frozenset(), NOW)[0].price == 0.4


def test_entries_are_written_changed_and_dropped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new")
    ledger.put(ENTRY)
    ledger.change(ENTRY, state="ending")
    assert [e.state for e in Ledger(tmp_path / "new").entries()] == ["ending"]
    assert (tmp_path / "new/rental.json").stat().st_mode & 0o077 == 0
    ledger.drop(ENTRY.label)
    assert ledger.entries() == []


def test_a_ledger_of_a_newer_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.put(ENTRY)
    raw = json.loads((tmp_path / "rental.json").read_text())
    raw["nodes"][0]["colour"] = "blue"
    (tmp_path / "rental.json").write_text(json.dumps(raw))
    assert ledger.entries() == [ENTRY]


def test_a_broken_file_is_told_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "rental.json").write_text("{")
    with pytest.raises(RentalError, match="move it away"):
        Ledger(tmp_path).entries()


def _write_forever(folder: str) -> None:
    ledger = Ledger(Path(folder))
    for number in range(10_000):
        ledger.put(replace(ENTRY, label=f"hotline-talk-{number % 7:06x}", gpu="x" * (number % 5000)))


def test_killed_while_it_writes_the_file_is_whole(tmp_path: Path) -> None:
    for _ in range(5):
        writer = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(str(tmp_path),))
        writer.start()
        while not (tmp_path / "rental.json").exists():
            time.sleep(0.01)
        time.sleep(0.03)
        writer.kill()
        writer.join()
        assert Ledger(tmp_path).entries()


def test_where_it_lies() -> None:
    assert state_folder({"HOTLINE_RENTAL_STATE": "/a"}) == Path("/a")
    assert state_folder({"XDG_STATE_HOME": "/b"}) == Path("/b/hotline")


def test_time_is_up_and_nobody_calls() -> None:
    limited = replace(ENTRY, created=NOW - 7200, ends_at=NOW, idle_minutes=30)
    assert "time is up (2 h)" in due(limited, NOW, None)
    assert due(limited, NOW - 1, None) == ""
    assert "nobody called for 31 minutes" in due(limited, NOW - 1, 1860)
    assert due(limited, NOW - 1, 1700) == ""
    assert due(replace(ENTRY, idle_minutes=0), NOW, 99_999) == "", "idle, but nobody asked for that"
    assert remaining(limited, NOW - 1800) == "in 0.5 h or idle 30 min"
    assert remaining(ENTRY, NOW) == "when released"


# Killed in the middle of a rent, by the real command.


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HOTLINE_RENTAL_STATE": str(tmp_path / "state"),
        "HOTLINE_RENTAL_PATIENCE": json.dumps({"poll_s": 0.05, "destroy_pause_s": 0.05}),
        "VAST_API_KEY": VastStandIn.key,
    }


def rental(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rental", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_of_a_rent(environment: dict[str, str], end: signal.Signals) -> None:
    market = VastStandIn()
    try:
        market.statuses = ["loading"]
        environment["HOTLINE_VAST_URL"] = market.url
        command = [sys.executable, "-m", "rental", "rent", "talk", "--max-price", "1"]
        renting = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert renting.stdout
        for line in renting.stdout:
            if ": loading" in line:
                break
        assert len(market.instances) == 1
        assert "being made" in rental(environment, "nodes").stdout
        assert "at work" in rental(environment, "rent", "talk", "--max-price", "1").stderr
        renting.send_signal(end)
        renting.stdout.read()
        renting.wait()
        if end == signal.SIGKILL:
            seen = rental(environment, "nodes")
            assert "HALF MADE" in seen.stdout
            assert "$0.400 an hour" in seen.stdout
            kept = rental(environment, "keep", "--once")
            assert kept.returncode == 0, kept.stderr
        assert market.instances == {}
        assert "Nothing of ours runs" in rental(environment, "nodes").stdout
    finally:
        market.close()
