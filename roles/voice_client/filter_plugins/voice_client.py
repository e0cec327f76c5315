"""What of a page is to be shipped, and what may go: a filter for the role `voice_client`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

# Made on the host by configure.yml, no part of a build.
_OF_THE_HOST = frozenset({"line.json"})


def voice_client_plan(
    build: Mapping[str, str], there: Mapping[str, str], last: str, folder: str
) -> dict[str, Any]:
    """Compare a build with what lies on a host.

    `build`: path within the page → SHA-1. `there`: absolute path on the host → SHA-1. `last`: the record that
    the last run left, JSON {"files": […], "before": […]}, or anything else if there is none. `folder`: the
    page's folder on the host.

    Returns `ship` (paths to copy, index.html after all that it refers to), `folders` (to make first),
    `remove`, and the `record` to leave. The files of the build before the current one stay: who opened the
    page before an update loads parts of it only when calling. An unchanged build keeps the same files, so
    that a second run changes nothing.
    """
    present = {str(PurePosixPath(path).relative_to(folder)): sha for path, sha in there.items()}
    record = _record(last)
    if set(build) == set(record["files"]):
        before = record["before"]
    else:
        before = [path for path in record["files"] if path not in build]
    keep = {*build, *before, *_OF_THE_HOST}
    ship = [path for path, sha in build.items() if present.get(path) != sha]
    return {
        "ship": sorted(ship, key=lambda path: (PurePosixPath(path).name.startswith("index.html"), path)),
        "folders": sorted(
            {str(parent) for path in build for parent in PurePosixPath(path).parents if str(parent) != "."}
        ),
        "remove": sorted(path for path in present if path not in keep),
        "record": {"files": sorted(build), "before": sorted(before)},
    }


def _record(text: str) -> dict[str, list[str]]:
    """Read the last run's record; a missing or broken one counts as empty."""
    try:
        value = json.loads(text)
        return {name: [str(path) for path in value[name]] for name in ("files", "before")}
    except (ValueError, KeyError, TypeError):
        return {"files": [], "before": []}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"voice_client_plan": voice_client_plan}
