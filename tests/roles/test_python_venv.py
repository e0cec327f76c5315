"""What decides whether a Python environment is healed (roles/python_venv/files/venv_state.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "roles/python_venv/files/venv_state.py"
HERE = ".".join(map(str, sys.version_info[:2]))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A complete environment with one distribution of two files."""
    path = tmp_path / "venv"
    venv.create(path, with_pip=False, symlinks=True)
    site = path / f"lib/python{HERE}/site-packages"
    (site / "thing").mkdir()
    (site / "thing/__init__.py").write_text("x = 1\n")
    (site / "thing/with, comma.py").write_text("")
    (site / "thing-1.dist-info").mkdir()
    (site / "thing-1.dist-info/RECORD").write_text(
        'thing/__init__.py,sha256=x,6\n"thing/with, comma.py",sha256=y,0\nthing/__pycache__/__init__.pyc,,\n'
        "thing-1.dist-info/RECORD,,\n"
    )
    (path / ".hotline-complete").write_text("abc\n")
    return path


def state_of(path: Path, uv: str = "/nonexistent/uv") -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-", uv, str(path)],
        input=PROGRAM.read_text(),
        capture_output=True,
        text=True,
        check=True,
        env={"UV_CACHE_DIR": "/var/cache/uv"},
    )
    return dict(json.loads(done.stdout))


def site_of(path: Path) -> Path:
    return path / f"lib/python{HERE}/site-packages"


def test_nothing_there(tmp_path: Path) -> None:
    assert state_of(tmp_path / "venv") == {
        "uv": "",
        "python": HERE,
        "stamp": "",
        "damage": [],
        "cache": "/var/cache/uv",
    }


def test_a_whole_environment(environment: Path) -> None:
    state = state_of(environment)
    assert (state["stamp"], state["damage"]) == ("abc", [])


def test_uv_says_its_version(environment: Path, tmp_path: Path) -> None:
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\necho uv 0.13.9 '(x86_64-unknown-linux-gnu)'\n")
    program.chmod(0o755)
    assert state_of(environment, str(program))["uv"] == "0.13.9"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert state_of(environment, str(program))["uv"] == ""


def test_a_file_is_gone(environment: Path) -> None:
    (site_of(environment) / "thing/with, comma.py").unlink()
    assert state_of(environment)["damage"] == ["thing/with, comma.py: missing"]


def test_a_file_was_cut_short(environment: Path) -> None:
    (site_of(environment) / "thing/__init__.py").write_text("x")
    assert state_of(environment)["damage"] == ["thing/__init__.py: 1 bytes instead of 6"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_record_is_gone_or_garbage(environment: Path, content: bytes | None) -> None:
    record = site_of(environment) / "thing-1.dist-info/RECORD"
    record.unlink() if content is None else record.write_bytes(content)
    assert state_of(environment)["damage"] == ["thing-1.dist-info: no readable RECORD"]


def test_another_python_below_it(environment: Path) -> None:
    (environment / "bin/python").unlink()
    assert state_of(environment)["damage"] == [f"bin/python is broken, the system's Python is {HERE}"]


def test_without_a_stamp_nobody_looks_further(environment: Path) -> None:
    (environment / ".hotline-complete").unlink()
    (site_of(environment) / "thing/__init__.py").unlink()
    assert state_of(environment)["damage"] == []


def test_a_destroyed_environment_names_a_few_files(environment: Path) -> None:
    record = site_of(environment) / "thing-1.dist-info/RECORD"
    record.write_text("".join(f"gone/{number}.py,,1\n" for number in range(1000)))
    damage = state_of(environment)["damage"]
    assert isinstance(damage, list)
    assert len(damage) == 5
