"""Copies what a node must not lose, while its line runs, and puts it back on another. Standard library only.

    backup.py copy --into FOLDER             on the node: FOLDER/node.tar.gz and FOLDER/manifest.json
    backup.py seal FOLDER --authority DIR --archive FILE          on the controller: one file, mode 0600
    backup.py open FILE --into FOLDER --migrations DIR            on the controller: checked, taken apart
    backup.py restore FOLDER/node.tar.gz     on the node, before anything of the line runs

playbooks/backup.yml and playbooks/restore.yml call these. An archive is a tar file that begins with
manifest.json, which has the SHA-256 of everything behind it.

A database of SQLite is copied by its own online backup, whoever writes meanwhile. The workflows' database is
copied before the orchestrator's: a workflow that is a step behind does it again, with the effect of once; one
that is a step ahead would look for what is not there. PostgreSQL is copied by one pg_dump, a single moment.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import hashlib
import io
import json
import os
import pwd
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

FORMAT = 1
ORCHESTRATOR = "var/lib/hotline/orchestrator"
DATABASE = f"/{ORCHESTRATOR}/hotline.db"
FOLDERS = ("etc/hotline/secrets", "etc/hotline/tls", "var/lib/hotline-agent", "var/lib/hotline/moltbot")
DUMP = "database.pgdump"
SECRETS = "etc/hotline/secrets/orchestrator.env"
AUTHORITY = ("ca.pem", "ca-key.pem")
SQLITE = b"SQLite format 3\x00"
BUSY_S = 30.0


def fail(sentence: str) -> NoReturn:
    """End with a sentence that names the mend."""
    sys.exit(f"backup: {sentence}")


def settings_in(path: Path) -> dict[str, str]:
    """Read NAME="value" lines as systemd does; empty when there is no such file."""
    try:
        lines = path.read_text()
    except FileNotFoundError:
        return {}
    found = re.findall(r'(?m)^([A-Z_]+)="?(.*?)"?$', lines)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}


def database_of(root: Path) -> str:
    """Return the DATABASE_URL of the line under a root."""
    return settings_in(root / SECRETS).get("DATABASE_URL") or f"sqlite:///{DATABASE}"


def sqlite_paths(url: str, root: Path) -> list[Path]:
    """Return where the databases lie, in the order in which they are copied."""
    path = root / url.partition(":///")[2].lstrip("/")
    return [path.with_name(path.name.removesuffix(".db") + "-executions.db"), path]


def postgres_environment(url: str) -> dict[str, str]:
    """Return what libpq's programs read from their environment: a password has no place in a process list."""
    parts = urlsplit(url)
    named = {
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port) if parts.port else None,
        "PGUSER": unquote(parts.username) if parts.username else None,
        "PGPASSWORD": unquote(parts.password) if parts.password else None,
        "PGDATABASE": parts.path.lstrip("/"),
    }
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin")} | {k: v for k, v in named.items() if v}


def postgres(url: str, *command: str, said: str = "") -> str:
    """Run one of libpq's programs, with something said to it; return what it answers."""
    try:
        done = subprocess.run(
            command,
            env=postgres_environment(url),
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=3600,
        )
    except FileNotFoundError:
        fail(f"{command[0]} is missing. Mend: apt-get install postgresql-client")
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        fail(f"{command[0]}: {why}. Mend: see that the database of DATABASE_URL runs and lets this node in")
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------- copying


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[Path]:
    """A consistent copy of an SQLite database that somebody writes to."""
    with tempfile.TemporaryDirectory(prefix="hotline-backup-") as folder:
        copy = Path(folder) / path.name
        with (
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=BUSY_S)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            if (said := target.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                fail(f"the database {path} is damaged: {said}. Mend: put an earlier copy in its place")
        yield copy


def add_file(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add one file as it is at this moment; one that is gone by now is left out."""
    try:
        info = tar.gettarinfo(str(path), name)
        if info.isreg():
            with path.open("rb") as file:
                database = file.read(len(SQLITE)) == SQLITE
            if database:
                with snapshot(path) as copy:
                    info.size = copy.stat().st_size
                    with copy.open("rb") as content:
                        tar.addfile(info, content)
                return
            content_now = path.read_bytes()  # at once, since it may grow or shrink meanwhile
            info.size = len(content_now)
            tar.addfile(info, io.BytesIO(content_now))
        else:
            tar.addfile(info)
    except FileNotFoundError:
        return


def add_folder(tar: tarfile.TarFile, root: Path, name: str) -> None:
    """Add a folder and everything in it but sockets and what belongs to a database that is copied whole."""
    add_file(tar, root / name, name)
    for folder, folders, files in os.walk(root / name):
        for one in sorted([*folders, *files]):
            path = Path(folder) / one
            companion = re.fullmatch(r"(.+)-(wal|shm|journal)", one)
            if (companion and (Path(folder) / companion[1]).exists()) or path.is_socket() or path.is_fifo():
                continue
            add_file(tar, path, str(path.relative_to(root)))


def copy(into: Path, root: Path) -> None:
    """Copy what this node must not lose."""
    url = database_of(root)
    environment = settings_in(root / "etc/hotline/hotline.env")
    if not environment:
        fail(f"{root}etc/hotline/hotline.env is not there: this host is no line. Mend: name the line's host")
    into.mkdir(mode=0o700, exist_ok=True)
    with tarfile.open(into / "node.tar.gz", "w:gz", compresslevel=6) as tar:
        if url.startswith("sqlite"):
            paths = sqlite_paths(url, root)
            if not paths[-1].exists():
                fail(f"the database {paths[-1]} is not there. Mend: run site.yml first")
            add_file(tar, paths[-1].parent, str(paths[-1].parent.relative_to(root)))
            for path in paths:
                add_file(tar, path, str(path.relative_to(root)))
            with contextlib.closing(
                sqlite3.connect(f"file:{paths[-1]}?mode=ro", uri=True, timeout=BUSY_S)
            ) as open_now:
                revision = open_now.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        else:
            revision = postgres(url, "psql", "-XtAc", "SELECT version_num FROM alembic_version")
            dump = into / DUMP
            postgres(url, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--file", str(dump))
            tar.add(dump, DUMP)
            dump.unlink()
        for name in FOLDERS:
            if (root / name).is_dir():
                add_folder(tar, root, name)
    manifest = {
        "hotline_backup": FORMAT,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "line": environment.get("MOSHI_URL", ""),
        "version": environment.get("HOTLINE_VERSION", ""),
        "database": "sqlite" if url.startswith("sqlite") else "postgresql",
        "revision": revision,
    }
    (into / "manifest.json").write_text(json.dumps(manifest))
    print(json.dumps(manifest))


# ------------------------------------------------------------------------------------------------ the archive


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else whole(file)


def whole(file: Any) -> str:
    """Return the SHA-256 of an open file, on a Python before 3.11."""
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def seal(folder: Path, authority: Path | None, archive: Path) -> None:
    """Make one file, which only its owner reads, of what a node gave and of the authority's key."""
    parts = {"node.tar.gz": folder / "node.tar.gz"}
    if authority is not None:
        parts |= {f"authority/{n}": authority / n for n in AUTHORITY if (authority / n).exists()}
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = {name: digest(path) for name, path in parts.items()}
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = archive.with_name(f".{archive.name}.part")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            text = json.dumps(manifest, indent=1).encode()
            info = tarfile.TarInfo("manifest.json")
            info.size, info.mode = len(text), 0o600
            tar.addfile(info, io.BytesIO(text))
            for name, path in parts.items():
                tar.add(path, name)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(archive)
    print(json.dumps(manifest))


def open_archive(archive: Path, into: Path, migrations: Path) -> None:
    """Check an archive and take it apart."""
    other = "Mend: take another archive, from playbooks/backup.yml"
    try:
        with tarfile.open(archive, "r:") as tar:
            first = tar.next()
            if first is None or first.name != "manifest.json":
                fail(f"{archive} is not the backup of a line. {other}")
            manifest = json.load(tar.extractfile(first) or io.BytesIO())
            if manifest.get("hotline_backup") != FORMAT:
                fail(
                    f"{archive} has format {manifest.get('hotline_backup')}, this Hotline reads {FORMAT}. "
                    f"Mend: restore it with the Hotline that made it ({manifest.get('version') or 'unknown'})"
                )
            into.mkdir(mode=0o700, exist_ok=True)
            for name, expected in manifest["sha256"].items():
                part = into / name
                part.parent.mkdir(mode=0o700, exist_ok=True)
                content = tar.extractfile(name)
                with os.fdopen(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
                    shutil.copyfileobj(content, file)  # type: ignore[arg-type] # a part is a file
                if digest(part) != expected:
                    fail(f"{archive} is damaged: {name} is not what was put in. {other}")
    except FileNotFoundError:
        fail(f"{archive} is not there. Mend: set restore_from to an archive of playbooks/backup.yml")
    except (tarfile.TarError, EOFError, KeyError, AttributeError, ValueError, OSError) as error:
        fail(f"{archive} is damaged, or no backup of a line ({type(error).__name__}: {error}). {other}")
    known = {path.name.partition("_")[0] for path in migrations.glob("[0-9]*.py")}
    if manifest["revision"] not in known:
        fail(
            f"{archive} comes from a newer Hotline ({manifest['version']}): its database has had migration "
            f"{manifest['revision']}, and this one knows {max(known, default='none')}. Mend: check out that "
            "version or a newer one"
        )
    print(json.dumps(manifest))


# -------------------------------------------------------------------------------------------------- restoring


def admit(name: str) -> None:
    """Refuse what has no business in an archive of ours."""
    path, allowed = Path(name), [Path(one) for one in (*FOLDERS, ORCHESTRATOR, DUMP)]
    if path.is_absolute() or ".." in path.parts or not any(one in (path, *path.parents) for one in allowed):
        fail(f"the archive holds {name}, which no backup of a line has. Mend: take another archive")


def make_user(name: str) -> None:
    """Make the user of a unit, as the role `service` does, where it is not there yet."""
    with contextlib.suppress(KeyError):
        grp.getgrnam(name)
        pwd.getpwnam(name)
        return
    subprocess.run(["groupadd", "--system", "--force", name], check=True)
    made = ["useradd", "--system", "--gid", name, "--home-dir", "/nonexistent", "--no-create-home"]
    subprocess.run([*made, "--shell", "/usr/sbin/nologin", name], check=True)


def clear(root: Path, url: str, replace: bool) -> None:
    """See that nothing is overwritten that nobody wants overwritten."""
    there = [root / name for name in FOLDERS if (root / name).exists() and any((root / name).iterdir())]
    if url.startswith("sqlite"):
        for path in sqlite_paths(url, root):
            there += [
                one for one in (path, *(Path(f"{path}-{end}") for end in ("wal", "shm"))) if one.exists()
            ]
    if there and not replace:
        fail(
            f"this node has a line's state already ({there[0]}). Mend: restore onto a fresh node, "
            "or throw away what is here: -e restore_replace=true"
        )
    for path in there:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def restore(node: Path, root: Path, replace: bool, url: str | None, lost: str) -> None:
    """Put everything back, owners and all; the line's units are not there yet, or stopped."""
    with tarfile.open(node, "r:gz") as tar:
        members = tar.getmembers()
        for member in members:
            admit(member.name)
        url = url or url_in(tar)
        clear(root, url, replace)
        if root == Path("/"):
            for name in sorted({member.uname for member in members} - {"", "root"}):
                make_user(name)
        tar.extractall(root, [member for member in members if member.name != DUMP])  # noqa: S202 - admitted above
        said = {"database": "sqlite", "kept": False}
        if not url.startswith("sqlite"):
            said = {"database": "postgresql", "kept": postgres_restored(tar, url, replace, lost)}
    print(json.dumps(said))


def url_in(tar: tarfile.TarFile) -> str:
    """Return the DATABASE_URL that an archive's node had."""
    with contextlib.suppress(KeyError), tempfile.TemporaryDirectory() as folder:
        secrets = Path(folder) / "env"
        secrets.write_bytes((tar.extractfile(SECRETS) or io.BytesIO()).read())
        return settings_in(secrets).get("DATABASE_URL") or f"sqlite:///{DATABASE}"
    return f"sqlite:///{DATABASE}"


def postgres_restored(tar: tarfile.TarFile, url: str, replace: bool, lost: str) -> bool:
    """Fill an empty database. One that outlived the node has more than the archive and is kept: then True."""
    has = postgres(url, "psql", "-XtAc", "SELECT to_regclass('alembic_version') IS NOT NULL")
    kept = has == "t" and not replace
    if not kept:
        with tempfile.TemporaryDirectory(prefix="hotline-restore-") as folder:
            dump = Path(folder) / DUMP
            dump.write_bytes((tar.extractfile(DUMP) or io.BytesIO()).read())
            anew = ["--clean", "--if-exists"] if replace else []
            name = urlsplit(url).path.lstrip("/")
            postgres(
                url,
                "pg_restore",
                "--no-owner",
                "--no-privileges",
                "--single-transaction",
                *anew,
                "--dbname",
                name,
                str(dump),
            )
    # Workflows are gone on with by the machine that began them; this one stands in for the one that is lost.
    has_workflows = "SELECT to_regclass('dbos.workflow_status') IS NOT NULL"
    if postgres(url, "psql", "-XtAc", has_workflows) == "t":
        names = ["-v", f"lost={lost}", "-v", f"here={socket.gethostname()}"]
        postgres(url, "psql", "-Xqt", *names, said="UPDATE dbos.workflow_status SET executor_id = :'here' "
                 "WHERE executor_id = :'lost' AND status IN ('PENDING', 'ENQUEUED');")  # fmt: skip
    return kept


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("copy")
    one.add_argument("--into", type=Path, required=True)
    one.add_argument("--root", type=Path, default=Path("/"))
    one = commands.add_parser("seal")
    one.add_argument("folder", type=Path)
    one.add_argument("--authority", type=Path)
    one.add_argument("--archive", type=Path, required=True)
    one = commands.add_parser("open")
    one.add_argument("archive", type=Path)
    one.add_argument("--into", type=Path, required=True)
    one.add_argument("--migrations", type=Path, required=True)
    one = commands.add_parser("restore")
    one.add_argument("node", type=Path)
    one.add_argument("--root", type=Path, default=Path("/"))
    one.add_argument("--replace", action="store_true")
    one.add_argument("--lost", default="", help="the host that the archive is of")
    asked = parser.parse_args()
    if asked.command == "copy":
        copy(asked.into, asked.root)
    elif asked.command == "seal":
        seal(asked.folder, asked.authority, asked.archive)
    elif asked.command == "open":
        open_archive(asked.archive, asked.into, asked.migrations)
    else:
        # Its database may be another one by now; the URL holds a password: by the environment.
        restore(asked.node, asked.root, asked.replace, os.environ.get("RESTORE_DATABASE_URL"), asked.lost)


if __name__ == "__main__":
    main()
