"""What was rented from this machine, in a file that survives being killed at any moment.

An intent is written before the call that creates, so that a node which nobody came back for is found again by
its label. A lock per line, which the kernel lets go of when its process ends however it ends, tells a rent
that goes on from one that was cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rental.errors import RentalError, UseError
from rental.market import Node, line_of

# Half-made nodes may show up late in a provider's list: an intent without a node is kept this long.
GRACE_S = 900.0


@dataclass(frozen=True)
class Entry:
    """One node of ours. `state`: intended (the create call may be under way), preparing, ready, ending."""

    label: str
    line: str
    provider: str
    state: str
    gpu: str
    price: float
    kind: str
    created: float  # seconds since 1970, by the provider's clock
    id: str = ""
    host: str = ""
    port: int = 0
    user: str = "root"
    ends_at: float = 0.0  # by the provider's clock; 0: when it is released
    idle_minutes: int = 0
    ends_itself: bool = False
    url: str = ""
    key: str = ""  # the private ssh key that reaches it


@dataclass(frozen=True)
class Finding:
    """What ledger and provider say about one node, put together.

    `what`: fine; busy (a rent goes on); half (was cut off, runs); pending (was cut off, may still appear);
    never (was cut off, nothing came of it); ending (was to be destroyed, runs); ended; gone (was ready, is no
    more); stranger (has a label of ours and no entry here).
    """

    what: str
    entry: Entry | None = None
    node: Node | None = None

    @property
    def line(self) -> str:
        """The line that it belongs to."""
        return self.entry.line if self.entry else line_of(self.node.label) if self.node else ""

    @property
    def provider(self) -> str:
        """Where it stands."""
        return self.node.provider if self.node else self.entry.provider if self.entry else ""

    @property
    def price(self) -> float:
        """Dollars per hour; what the provider says wins."""
        return self.node.price if self.node and self.node.price else self.entry.price if self.entry else 0.0

    @property
    def runs(self) -> bool:
        """Whether it costs money, as far as anybody knows."""
        return self.node is not None


def compare(
    entries: Iterable[Entry], nodes: Iterable[Node], busy_lines: frozenset[str], now: float
) -> list[Finding]:
    """Put the ledger beside what the providers list; `now` by the provider's clock. Pure."""
    unseen = {(node.provider, node.label): node for node in nodes}
    findings = []
    for entry in entries:
        node = unseen.pop((entry.provider, entry.label), None)
        if entry.line in busy_lines and entry.state != "ready":
            what = "busy"
        elif entry.state in ("intended", "preparing"):
            what = "half" if node else "pending" if now - entry.created < GRACE_S else "never"
        elif entry.state == "ending":
            what = "ending" if node else "ended"
        else:
            what = "fine" if node else "gone"
        findings.append(Finding(what, entry, node))
    return findings + [Finding("stranger", None, node) for node in unseen.values()]


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where the ledger, the ssh key and each node's inventory lie."""
    if chosen := environment.get("HOTLINE_RENTAL_STATE"):
        return Path(chosen)
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "hotline"


class Ledger:
    """The file and its locks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "rental.json"

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        try:
            raw = json.loads(self._file.read_text())
            known = {field.name for field in fields(Entry)}
            return [Entry(**{k: v for k, v in row.items() if k in known}) for row in raw["nodes"]]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as error:
            raise RentalError(
                f"{self._file} cannot be read ({type(error).__name__}). Mend: move it away; `rental nodes` "
                "still finds what "
                "runs, by its label."
            ) from None

    def put(self, entry: Entry) -> Entry:
        """Write an entry, in place of the one with its label."""
        with self._held(self.folder / "rental.lock"):
            others = [e for e in self.entries() if e.label != entry.label]
            self._write([*others, entry])
        return entry

    def change(self, entry: Entry, **what: Any) -> Entry:
        """Write an entry with some of it changed."""
        return self.put(replace(entry, **what))

    def drop(self, label: str) -> None:
        """Forget an entry."""
        with self._held(self.folder / "rental.lock"):
            self._write([e for e in self.entries() if e.label != label])

    def _write(self, entries: list[Entry]) -> None:
        text = json.dumps({"version": 1, "nodes": [asdict(e) for e in entries]}, indent=1) + "\n"
        new = self._file.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        new.replace(self._file)
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def working_on(self, line: str) -> Iterator[None]:
        """Be the only one who rents, keeps or releases this line."""
        try:
            with self._held(self._line_lock(line), wait=False):
                yield
        except BlockingIOError:
            raise UseError(
                f"something else is at work on line '{line}' (another rental command). Mend: wait for it, or "
                "end it."
            ) from None

    def busy(self, lines: Iterable[str]) -> frozenset[str]:
        """Those of the lines that somebody works on right now."""
        found = set()
        for line in set(lines):
            try:
                with self._held(self._line_lock(line), wait=False):
                    pass
            except BlockingIOError:
                found.add(line)
        return frozenset(found)

    def _line_lock(self, line: str) -> Path:
        return self.folder / "locks" / f"{line}.lock"

    @contextlib.contextmanager
    def _held(self, path: Path, *, wait: bool = True) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
