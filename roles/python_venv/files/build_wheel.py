"""Build the wheel of a package of ours on the controller, once per content.

``build_wheel.py --source orchestrator --into build/orchestrator [--version 1.2.0] [--dry-run]`` prints JSON:
where the wheel is or would be, what it is made of (a digest), and whether it was built now. The wheel lies in
a folder named after everything that goes into it, so a second run finds it, and two versions never have the
same path. Without ``--version`` it is named after its content, and changes only with that.

hatchling makes the same bytes of the same sources (https://reproducible-builds.org/docs/source-date-epoch/),
needs no network, and leaves the sources alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tomllib

EPOCH = "1577836800"  # 2020-01-01: a zip file needs some time, and it must not be now


def taken_in(source: Path) -> list[Path]:
    """Return the files from elsewhere that the package's pyproject.toml takes into the wheel."""
    try:
        tool = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
        names = list(tool["hatch"]["build"]["targets"]["wheel"]["force-include"])
    except (KeyError, ValueError):
        return []
    found = [(source / name).resolve() for name in names]
    return [path for top in found for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]


def sources(source: Path) -> list[Path]:
    """Return the files that the wheel is made of."""
    own = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    left_out = ("__pycache__", "build", "dist")
    package = [path for path in own if not any(p in left_out or p.startswith(".") for p in path.parts)]
    return sorted([*(source / path for path in package), *taken_in(source)])


def digest_of(source: Path, line_version: str) -> str:
    """Return the digest of everything that goes into the wheel."""
    made_by = f"{version('hatchling')}\0{line_version}\0{EPOCH}"
    digest = hashlib.sha256(made_by.encode())
    for path in sources(source):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(source.parent).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def build(source: Path, line_version: str, folder: Path) -> Path:
    """Build the wheel into ``folder``, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as draft:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", draft],
            cwd=source,
            env=os.environ | {"HOTLINE_VERSION": line_version, "SOURCE_DATE_EPOCH": EPOCH},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-800:]
            sys.exit(f"The wheel of {source.name} could not be built: {said}")
        shutil.rmtree(folder, ignore_errors=True)
        Path(draft).rename(folder)
        Path(draft).mkdir()  # for the context manager to take away
    folder.chmod(0o755)
    return next(folder.glob("*.whl"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--version", default="", dest="line_version")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    asked.source = asked.source.resolve()
    try:
        if not (asked.source / "pyproject.toml").exists():
            raise FileNotFoundError(f"{asked.source}/pyproject.toml is missing")
        digest = digest_of(asked.source, asked.line_version)
    except PackageNotFoundError:
        sys.exit(
            "hatchling is missing here. Mend: make setup, or pip install -r requirements.txt "
            "into the Python that runs Ansible"
        )
    except OSError as error:
        sys.exit(f"The sources cannot be read: {error}. Mend: run from a complete checkout")
    folder = asked.into.resolve() / digest[:16]
    wheel = next(folder.glob("*.whl"), None)
    built = wheel is None and not asked.dry_run
    if built:
        wheel = build(asked.source, asked.line_version or f"0+{digest[:12]}", folder)
    to_come = folder / f"hotline_{asked.source.name}.whl"
    print(json.dumps({"wheel": str(wheel or to_come), "digest": digest, "built": built}))


if __name__ == "__main__":
    main()
