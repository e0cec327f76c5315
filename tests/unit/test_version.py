"""One version, made from git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

SCRIPT = Path(__file__).parents[2] / "scripts/version"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts/version")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(path: Path, *words: str) -> None:
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, *words], cwd=path, check=True, capture_output=True)


def commit(path: Path) -> None:
    git(path, "add", "-A")
    git(path, "commit", "-q", "--allow-empty", "-m", "x")


def version(path: Path, **environment: str) -> Version:
    kept = {k: v for k, v in os.environ.items() if k != "HOTLINE_VERSION"}
    said = subprocess.run(
        [path / "scripts/version"], env=kept | environment, capture_output=True, text=True, check=True
    )
    return Version(said.stdout.strip())


def test_a_tagged_commit_is_the_tag(repository: Path) -> None:
    git(repository, "tag", "v1.2.0")
    assert str(version(repository)) == "1.2.0"


def test_later_commits_count_from_the_tag(repository: Path) -> None:
    git(repository, "tag", "v1.2.0")
    commit(repository)
    assert version(repository).base_version == "1.2.0"
    assert version(repository).post == 1
    assert version(repository) > Version("1.2.0")


def test_without_a_tag_commits_count(repository: Path) -> None:
    assert version(repository).public == "0.1"
    commit(repository)
    assert version(repository).public == "0.2"


def test_what_differs_is_never_called_the_same(repository: Path) -> None:
    clean = version(repository)
    (repository / "new").write_text("one")
    one = version(repository)
    (repository / "new").write_text("two")
    assert len({clean, one, version(repository)}) == 3


def test_an_archive_without_git_still_has_a_version(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts/version")
    outside = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    assert str(version(tmp_path, **outside)) == "0+unknown"
    (tmp_path / "VERSION").write_text("1.4\n")
    assert str(version(tmp_path, **outside)) == "1.4"


def test_the_environment_wins(repository: Path) -> None:
    assert str(version(repository, HOTLINE_VERSION="9.9")) == "9.9"
