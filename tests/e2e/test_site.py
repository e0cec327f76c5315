"""site.yml as its operator meets it: first run, second run, faults on the way, the way back."""

from __future__ import annotations

import json
import re
import subprocess

from .conftest import ROOT, Line


def test_the_first_run_ends_with_a_link_and_how_long_each_part_took(line: Line) -> None:
    said = line.first.output
    assert len(re.findall(r"https://localhost:8998/#t=[\w-]{43}\b", said)) == 1
    assert "▀▀▀▀" in said, "a QR code for a phone"
    assert "hotline link" in said
    assert "engine    duplex" in said
    assert re.search(r"GPU\s+none", said)
    assert re.search(r"(?m)^moshi -+ [\d.]+s", said), "the recap names each role and its seconds"


def test_a_second_run_changes_nothing_and_is_quick(line: Line) -> None:
    second = line.play()
    print(f"\nfirst run {line.first.seconds:.0f} s, second run {second.seconds:.0f} s, "
          f"ratio {second.seconds / line.first.seconds:.2f}")  # fmt: skip
    assert second.status == 0, second.output[-4000:]
    assert second.changed == 0, second.output[-6000:]
    assert "hotline link" in second.output
    assert "#t=" not in second.output
    made = [one["note"] for one in line.hotline("links")]
    assert made.count("the first, made by site.yml") == 1, made


def test_the_version_is_the_same_everywhere(line: Line) -> None:
    expected = subprocess.run([ROOT / "scripts/version"], capture_output=True, text=True, check=True)
    version = expected.stdout.strip()
    assert json.loads(line.get("/health")[1])["version"] == version
    assert version in line.first.output
    assert version in line.run("journalctl -u orchestrator --no-pager")
