"""Say in what state a Python environment is, without changing it: JSON on standard output.

Run by the role on the host as ``python3 - UV VENV`` (Python 3.10 or newer, standard library only).

An installer's own bookkeeping says which distributions *should* be there. After a full disk, a hand that
deleted something or a file system check, files can be missing or cut short all the same; so each file is
compared with the size in its distribution's RECORD
(https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

STAMP = ".hotline-complete"
NAMED = 5  # a destroyed environment would name thousands of files


class State(TypedDict):
    """What the role decides by; empty strings stand for "not there"."""

    uv: str
    python: str
    stamp: str
    damage: list[str]
    cache: str


def answer_of(*command: str) -> str:
    """Return what a program prints, or nothing when it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def python_of(interpreter: str) -> str:
    """Return ``3.11`` for an interpreter that runs, or nothing."""
    return answer_of(interpreter, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")


def damaged_files(site: Path) -> list[str]:
    """Name the first files below ``site`` that are missing or have another size than their RECORD says."""
    damage: list[str] = []
    for dist_info in sorted(site.glob("*.dist-info")):
        record = dist_info / "RECORD"
        try:
            rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error):
            damage.append(f"{dist_info.name}: no readable RECORD")
            continue
        for row in rows:
            name, size = row[0], row[2] if len(row) > 2 else ""
            if "__pycache__" in name:
                continue
            try:
                found = (site / name).stat().st_size
            except OSError:
                damage.append(f"{name}: missing")
            else:
                if size and found != int(size):
                    damage.append(f"{name}: {found} bytes instead of {size}")
            if len(damage) >= NAMED:
                return damage
    return damage


def state_of(uv: str, venv: Path) -> State:
    """Look at ``venv`` and at the ``uv`` beside it."""
    base = python_of(sys.executable)
    try:
        stamp = (venv / STAMP).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        stamp = ""
    damage: list[str] = []
    if stamp:
        here = python_of(str(venv / "bin" / "python"))
        if here != base:
            damage.append(f"bin/python is {here or 'broken'}, the system's Python is {base}")
        damage += damaged_files(venv / "lib" / f"python{base}" / "site-packages")
    words = answer_of(uv, "--version").split()
    return {
        "uv": words[1] if len(words) > 1 else "",
        "python": base,
        "stamp": stamp,
        "damage": damage[:NAMED],
        "cache": os.environ.get("UV_CACHE_DIR", ""),
    }


if __name__ == "__main__":
    json.dump(state_of(sys.argv[1], Path(sys.argv[2])), sys.stdout)
