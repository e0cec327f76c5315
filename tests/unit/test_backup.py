"""What playbooks/backup.yml and restore.yml call: copies while somebody writes, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from orchestrator.storage import migrate

from .orchestrator.databases import Postgres, postgres

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "playbooks/files/backup.py"
MIGRATIONS = ROOT / "orchestrator/src/orchestrator/migrations/versions"
GZIP = b"\x1f\x8b\x08"
STATE = "var/lib/hotline/orchestrator"


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def said(*words: str | Path, **environment: str) -> dict[str, Any]:
    done = run(*words, **environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """What a line has on its node."""
    root = tmp_path / "node"
    for folder in (STATE, "etc/hotline/secrets", "etc/hotline/tls", "var/lib/hotline-agent/work"):
        (root / folder).mkdir(parents=True)
    (root / "etc/hotline/hotline.env").write_text('MOSHI_URL="https://line.example"\nHOTLINE_VERSION="0.7"\n')
    (root / "etc/hotline/secrets/orchestrator.env").write_text('ORCHESTRATOR_AGENT_TOKEN="secret"\n')
    (root / "etc/hotline/tls/privkey.pem").write_text("key")
    (root / "etc/hotline/tls/privkey.pem").chmod(0o600)
    (root / "var/lib/hotline-agent/work/turn-1.json").write_text("{}")
    migrate(f"sqlite:///{root / STATE / 'hotline.db'}")
    with contextlib.closing(sqlite3.connect(root / STATE / "hotline-executions.db")) as workflows:
        workflows.execute("CREATE TABLE steps (number INTEGER)")
    return root


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    folder = tmp_path / "authority"
    folder.mkdir()
    (folder / "ca.pem").write_text("certificate")
    (folder / "ca-key.pem").write_text("key of the authority")
    return folder


def archive_of(node: Path, authority: Path) -> Path:
    copied, archive = node.with_name("copied"), node.with_name("line.hotline")
    said("copy", "--into", copied, "--root", f"{node}/")
    said("seal", copied, "--authority", authority, "--archive", archive)
    return archive


def opened(archive: Path) -> Path:
    into = archive.with_name("opened")
    said("open", archive, "--into", into, "--migrations", MIGRATIONS)
    return into


def test_what_was_on_a_node_is_on_another(node: Path, authority: Path, tmp_path: Path) -> None:
    archive = archive_of(node, authority)
    assert archive.stat().st_mode & 0o777 == 0o600, "whoever has it has the line"
    parts, other = opened(archive), tmp_path / "other"
    assert (parts / "authority/ca-key.pem").read_text() == "key of the authority"
    assert said("restore", parts / "node.tar.gz", "--root", f"{other}/") == {
        "database": "sqlite",
        "kept": False,
    }
    for name in ("etc/hotline/secrets/orchestrator.env", "etc/hotline/tls/privkey.pem",
                 "var/lib/hotline-agent/work/turn-1.json"):  # fmt: skip
        assert (other / name).read_bytes() == (node / name).read_bytes()
        assert (other / name).stat().st_mode == (node / name).stat().st_mode
    assert not (other / "etc/hotline/hotline.env").exists(), "site.yml writes the settings"
    for name in ("hotline.db", "hotline-executions.db"):
        with contextlib.closing(sqlite3.connect(other / STATE / name)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_copy_made_while_somebody_writes_is_whole_and_no_workflow_is_ahead(
    node: Path, authority: Path, tmp_path: Path
) -> None:
    """A step writes into the orchestrator's database first, then it is noted in the workflows'."""
    over = threading.Event()
    begun = threading.Event()

    def steps() -> None:
        with (
            contextlib.closing(sqlite3.connect(node / STATE / "hotline.db", isolation_level=None)) as ours,
            contextlib.closing(
                sqlite3.connect(node / STATE / "hotline-executions.db", isolation_level=None)
            ) as theirs,
        ):
            for each in (ours, theirs):
                each.execute("PRAGMA journal_mode = WAL")
            ours.execute("CREATE TABLE done (number INTEGER)")
            number = 0
            while not over.is_set():
                number += 1
                ours.execute("INSERT INTO done VALUES (?)", (number,))
                theirs.execute("INSERT INTO steps VALUES (?)", (number,))
                begun.set()

    writer = threading.Thread(target=steps)
    writer.start()
    try:
        assert begun.wait(20)
        archive = archive_of(node, authority)
    finally:
        over.set()
        writer.join()
    other = tmp_path / "other"
    said("restore", opened(archive) / "node.tar.gz", "--root", f"{other}/")
    with (
        contextlib.closing(sqlite3.connect(other / STATE / "hotline.db")) as ours,
        contextlib.closing(sqlite3.connect(other / STATE / "hotline-executions.db")) as theirs,
    ):
        done = ours.execute("SELECT max(number), count(*) FROM done").fetchone()
        noted = theirs.execute("SELECT max(number), count(*) FROM steps").fetchone()
    assert done[0] == done[1] and noted[0] == noted[1], "a row is missing"
    assert done[0] >= noted[0] > 0


def test_a_node_that_has_a_lines_state_is_left_alone(node: Path, authority: Path) -> None:
    parts = opened(archive_of(node, authority))
    before = (node / STATE / "hotline.db").read_bytes()
    refused = run("restore", parts / "node.tar.gz", "--root", f"{node}/")
    assert refused.returncode != 0
    assert "Mend: restore onto a fresh node" in refused.stderr
    assert (node / STATE / "hotline.db").read_bytes() == before
    (node / "var/lib/hotline-agent/work/later").touch()
    said("restore", parts / "node.tar.gz", "--root", f"{node}/", "--replace")
    assert not (node / "var/lib/hotline-agent/work/later").exists()


def damaged(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(GZIP) + 100] ^= 1
    archive.write_bytes(content)


def cut_off(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: content.index(GZIP) + 100])


def something_else(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.add(PROGRAM, "backup.py")


def rewritten(archive: Path, **changed: Any) -> None:
    """The same archive with another manifest."""
    with tarfile.open(archive) as tar:
        parts = archive.with_name("parts")
        tar.extractall(parts, filter="data")
    (parts / "manifest.json").write_text(
        json.dumps(json.loads((parts / "manifest.json").read_text()) | changed)
    )
    with tarfile.open(archive, "w") as tar:
        for name in ("manifest.json", "node.tar.gz", "authority/ca.pem", "authority/ca-key.pem"):
            tar.add(parts / name, name)
    shutil.rmtree(parts)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damaged, "is damaged"),
        (cut_off, "is damaged"),
        (something_else, "is not the backup of a line"),
        (lambda archive: archive.write_text("no archive at all"), "damaged, or no backup of a line"),
        (lambda archive: archive.unlink(), "is not there. Mend: set restore_from"),
        (
            lambda archive: rewritten(archive, hotline_backup=0),
            "restore it with the Hotline that made it (0.7)",
        ),
        (lambda archive: rewritten(archive, revision="9999"), "comes from a newer Hotline (0.7)"),
    ],
    ids=["damaged", "cut off", "something else", "no archive", "missing", "old", "newer"],
)
def test_a_wrong_archive_is_refused_with_the_mend(node: Path, authority: Path, spoil: Any, why: str) -> None:
    archive = archive_of(node, authority)
    spoil(archive)
    refused = run("open", archive, "--into", archive.with_name("opened"), "--migrations", MIGRATIONS)
    assert refused.returncode != 0
    assert why in refused.stderr, refused.stderr
    assert "Mend: " in refused.stderr


def test_what_no_line_has_is_not_put_onto_a_node(tmp_path: Path) -> None:
    for name in ("etc/passwd", "../outside", "/etc/shadow"):
        with tarfile.open(tmp_path / "node.tar.gz", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo(name))
        refused = run("restore", tmp_path / "node.tar.gz", "--root", f"{tmp_path / 'other'}/")
        assert "which no backup of a line has" in refused.stderr
        assert not (tmp_path / "other").exists()


def test_a_host_that_is_no_line_is_told_so(tmp_path: Path) -> None:
    refused = run("copy", "--into", tmp_path / "copied", "--root", f"{tmp_path}/")
    assert "this host is no line" in refused.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def test_postgresql_is_dumped_and_one_that_outlived_its_node_is_kept(
    node: Path, authority: Path, tmp_path: Path, server: Postgres
) -> None:
    secrets, url = node / "etc/hotline/secrets/orchestrator.env", server.copy()
    secrets.write_text(secrets.read_text() + f'DATABASE_URL="{url}"\n')
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("CREATE SCHEMA dbos")
        database.execute("CREATE TABLE dbos.workflow_status (executor_id TEXT, status TEXT)")
        database.execute("INSERT INTO dbos.workflow_status VALUES ('lost', 'PENDING'), ('other', 'PENDING')")
        database.execute("CREATE TABLE said (words TEXT)")
        database.execute("INSERT INTO said VALUES ('before')")
        parts = opened(archive_of(node, authority))
        database.execute("UPDATE said SET words = 'after'")

    def restored(onto: str, folder: str) -> tuple[Any, Any]:
        where = ("--root", f"{tmp_path / folder}/", "--lost", "lost")
        told = said("restore", parts / "node.tar.gz", *where, RESTORE_DATABASE_URL=onto)
        with psycopg.connect(onto) as database:
            [words] = database.execute("SELECT words FROM said").fetchone() or ("",)
            own = "SELECT count(*) FROM dbos.workflow_status WHERE executor_id NOT IN ('lost', 'other')"
            assert database.execute(own).fetchone() == (1,), (
                "this machine goes on with the lost one's workflows"
            )
        return told["kept"], words

    assert restored(url, "same database") == (True, "after")
    assert restored(server.make("fresh"), "another") == (False, "before")
