"""Put files into an agent's workspace, and leave alone what the agent has written since.

``place_files.py FROM TO STATE`` prints JSON: which files were placed, and which were left because the agent
changed or removed them. A file is the agent's as soon as it is not what was placed last; STATE holds the
digests of what was placed. It runs as the agent's own user: what it does, the agent could do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path


def digest(path: Path) -> str | None:
    """Return the digest of a file; None when it is not there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def decide(wanted: str | None, there: str | None, placed: str | None) -> str:
    """Decide about one file: place it, keep it as it is, or leave it to the agent."""
    if wanted == there:
        return "keep"
    if placed is None:
        return "place" if there is None else "leave"
    return "place" if there == placed else "leave"


def main() -> None:
    """Read the command line."""
    source, target, state = (Path(argument) for argument in sys.argv[1:4])
    try:
        placed: dict[str, str] = json.loads(state.read_text())
    except (OSError, ValueError):
        placed = {}
    done: dict[str, list[str]] = {"place": [], "leave": [], "keep": []}
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source).as_posix()
        wanted = digest(path)
        what = decide(wanted, digest(target / name), placed.get(name))
        done[what].append(name)
        if what == "place":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            draft = (target / name).with_name(f".{path.name}.placing")
            shutil.copyfile(path, draft)
            draft.replace(target / name)
        if what != "leave":
            placed[name] = wanted or ""
    state.write_text(json.dumps(placed, indent=1, sort_keys=True))
    print(json.dumps({"placed": done["place"], "left": done["leave"]}))


if __name__ == "__main__":
    main()
