"""An agent's program behind a socket, started per connection as systemd starts it (Accept=yes)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).parents[3] / "roles/orchestrator/files/run_agent.py"

PROGRAM = r"""
import json, os, sys, time
from pathlib import Path
text = sys.stdin.read()
work = Path(sys.argv[1])
turn = os.environ["HOTLINE_TURN"]
with (work / "runs").open("a") as runs:
    runs.write(json.dumps({"turn": int(turn), "attempt": int(os.environ["HOTLINE_ATTEMPT"]),
                           "session": os.environ["HOTLINE_SESSION"], "text": text}) + "\n")
plan = json.loads((work / "plan").read_text())[int(turn) - 1]
while (work / f"hold-{turn}").exists():
    time.sleep(0.05)
key = text.partition("The key of this run is ")[2].split(" ")[0]
if turn == "1":
    (work / "key").write_text(key)
key = (work / "key").read_text()
print(plan.get("say", ""), end="")
if "ask" in plan:
    print("\n[[hotline:ask " + key + "]]\n" + json.dumps(plan["ask"]) + "\n[[hotline:end]]")
sys.exit(plan.get("status", 0))
"""


class Workshop:
    """Where the program works, and what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.socket = folder / "agent.sock"
        (folder / "program.py").write_text(PROGRAM)
        self.children: list[subprocess.Popen[bytes]] = []

    def plan(self, *turns: dict[str, Any]) -> None:
        """What the program does in each turn: say, ask, status."""
        (self.folder / "plan").write_text(json.dumps(turns))

    def hold(self, turn: int) -> Path:
        """A file that keeps the program in this turn for as long as it is there."""
        held = self.folder / f"hold-{turn}"
        held.touch()
        return held

    async def started(self, times: int = 1) -> None:
        """Wait until the program was started so often."""
        while len(self.runs()) < times:  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.05)

    def runs(self) -> list[dict[str, Any]]:
        """What the program was told, each time that it was started."""
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "runs").read_text().splitlines()]
        return []


@contextmanager
def workshop(folder: Path, *command: str) -> Iterator[Workshop]:
    """Listen, and start the runner for each connection."""
    made = Workshop(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(made.socket))
    listener.listen(16)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            program = command or (sys.executable, str(folder / "program.py"), str(folder))
            made.children.append(
                subprocess.Popen(
                    [sys.executable, str(RUNNER), *program],
                    stdin=connection,
                    stdout=subprocess.DEVNULL,
                    env={"PATH": os.environ["PATH"], "STATE_DIRECTORY": str(folder)},
                )
            )
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for child in made.children:
            child.kill()
            child.wait(10)
