"""A wheel of ours is built once per content (roles/python_venv/files/build_wheel.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "roles/python_venv/files/build_wheel.py"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the package, with what a working copy has lying about."""
    copy = tmp_path / "orchestrator"
    shutil.copytree(ROOT / "orchestrator", copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "templates/messages", tmp_path / "templates/messages")
    return copy


def build(sources: Path, *arguments: str, version: str = "1.2.3") -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable, str(PROGRAM), "--source", str(sources), "--version", version,
            "--into", str(sources.parent / "build"), *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def test_it_has_the_lines_version_and_the_whole_package(sources: Path) -> None:
    built = build(sources, version="1.2.3.post4+g0123abcd")
    assert built["built"]
    assert Path(built["wheel"]).name == "hotline_orchestrator-1.2.3.post4+g0123abcd-py3-none-any.whl"
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    package = (ROOT / "orchestrator/src/orchestrator").iterdir()
    assert {f"orchestrator/{path.name}" for path in package if path.is_file()} <= names
    texts = (ROOT / "templates/messages").iterdir()
    assert {f"orchestrator/texts/{path.name}" for path in texts} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_duplex_is_a_wheel_named_after_its_content(tmp_path: Path) -> None:
    """So that an engine is started anew when its code has changed, and not with every version of the line."""
    copy = tmp_path / "duplex"
    shutil.copytree(ROOT / "duplex", copy, ignore=shutil.ignore_patterns("__pycache__"))
    first = build(copy, version="")
    assert re.fullmatch(r"hotline_duplex-0\+[0-9a-f]{12}-py3-none-any[.]whl", Path(first["wheel"]).name)
    with zipfile.ZipFile(first["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("duplex/")}
    assert names == {f"duplex/{path.name}" for path in (ROOT / "duplex").glob("*.py")}
    (copy / "engine.py").write_text("")
    assert Path(build(copy, version="")["wheel"]).name != Path(first["wheel"]).name


def test_a_second_run_finds_it(sources: Path) -> None:
    first = build(sources)
    second = build(sources)
    assert (first["built"], second["built"]) == (True, False)
    assert first["wheel"] == second["wheel"]


def test_the_same_sources_make_the_same_bytes(sources: Path) -> None:
    first = Path(build(sources)["wheel"])
    content = first.read_bytes()
    shutil.rmtree(first.parent)
    for path in sources.rglob("*.py"):
        os.utime(path, (1, 1_000_000_000))
    assert Path(build(sources)["wheel"]).read_bytes() == content


def test_another_version_or_another_source_is_another_wheel(sources: Path) -> None:
    wheels = [build(sources)["wheel"], build(sources, version="1.2.4")["wheel"]]
    with (sources / "src/orchestrator/app.py").open("a") as file:
        file.write("# changed\n")
    wheels.append(build(sources)["wheel"])
    assert len({Path(wheel).parent for wheel in wheels}) == 3


def test_what_is_not_the_package_does_not_matter(sources: Path) -> None:
    first = build(sources)
    (sources / "src/orchestrator/__pycache__").mkdir()
    (sources / "src/orchestrator/__pycache__/app.cpython-311.pyc").write_bytes(b"x")
    assert build(sources)["digest"] == first["digest"]


def test_a_dry_run_leaves_nothing(sources: Path) -> None:
    assert build(sources, "--dry-run")["built"] is False
    assert not (sources.parent / "build").exists()


def test_an_interrupted_build_is_healed(sources: Path) -> None:
    wheel = Path(build(sources)["wheel"])
    wheel.unlink()
    assert build(sources)["built"]
    assert wheel.exists()


def test_sources_that_are_broken_are_said(sources: Path) -> None:
    (sources / "pyproject.toml").write_text("nonsense")
    done = subprocess.run(
        [
            sys.executable,
            str(PROGRAM),
            "--source",
            str(sources),
            "--version",
            "1",
            "--into",
            str(sources / "b"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "could not be built" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[0]


def test_what_is_tested_here_is_what_is_installed_there() -> None:
    """The host's lock has all that the package asks for, in the versions that these tests run with."""
    project = tomllib.loads((ROOT / "orchestrator/pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=!~ ]", text)[0] for text in project["dependencies"]}
    lock = (ROOT / "roles/orchestrator/files/requirements.txt").read_text()
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)(?: ; (.*?))? \\$", lock, re.MULTILINE)
    locked = {name: pin for name, pin, marker in pins if "<" not in marker}
    assert wanted <= set(locked)
    assert {name: locked[name] for name in wanted} == {name: version(name) for name in wanted}
