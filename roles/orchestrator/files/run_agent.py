"""Runs an agent's program for the orchestrator: one turn of one task per connection. Standard library only.

systemd starts it for each connection to /run/hotline/agent.sock (``Accept=yes``), as a user of its own in a
sandbox, with the connection as standard input; the program and its arguments are this one's arguments::

    run_agent.py PROGRAM [ARGUMENT …]

The orchestrator sends one line of JSON, ``{"execution", "turn", "attempt", "session", "text", "limit_s"}``,
and gets lines of JSON: ``{"out": "…"}`` as often as there is output, then ``{"end": {"status": 0, "note":
""}}``. A second line, ``{"cancel": true}``, ends the program. The program reads ``text`` from its standard
input and finds HOTLINE_EXECUTION, HOTLINE_TURN, HOTLINE_SESSION and HOTLINE_ATTEMPT in its environment.

A connection that breaks does not end the program: the orchestrator may have been killed. When it asks for the
same turn again, it gets the output of the run that there was; a turn is run a second time only if this
program was killed as well, and HOTLINE_ATTEMPT says so. What a program prints beyond LIMIT bytes is left out
in the middle, and a note says how much.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 240 * 1024
HEAD = 64 * 1024
REQUEST_BYTES = 1024 * 1024
CHUNK = 16 * 1024
KEPT_DAYS = 14
GRACE_S = 5.0
NAME = re.compile(r"[A-Za-z0-9-]{1,64}")


class Connection:
    """The orchestrator's end. It may be gone at any moment; then nobody listens, and nothing else happens."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = b""
        self.open = True

    def request(self) -> dict:
        """Read the first line. Raises ValueError."""
        while b"\n" not in self._received:
            received = self._socket.recv(65536)
            self._received += received
            if not received or len(self._received) > REQUEST_BYTES:
                raise ValueError("no request of one line of JSON came")
        line, _, self._received = self._received.partition(b"\n")
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get("text"), str):
            raise ValueError(  # noqa: TRY004 - what comes from outside is a value
                "the request is not what this program takes"
            )
        for name in ("execution", "session"):
            if not NAME.fullmatch(str(request.get(name))):
                raise ValueError(f"{name} is not a name")
        for name in ("turn", "attempt", "limit_s"):
            request[name] = int(request[name])
        return request

    def say(self, **what: object) -> None:
        """Send one line."""
        if self.open:
            try:
                self._socket.sendall(json.dumps(what).encode() + b"\n")
            except OSError:
                self.open = False

    def cancelled(self) -> bool:
        """See whether it has asked to end the program."""
        if self.open:
            try:
                received = self._socket.recv(4096, socket.MSG_DONTWAIT)
                self._received += received
                self.open = bool(received)
            except BlockingIOError:
                pass
            except OSError:
                self.open = False
        return b'"cancel"' in self._received

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()


def put(path: Path, content: dict) -> None:
    """Write a file whole or not at all."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content))
    with draft.open() as written:
        os.fsync(written.fileno())
    draft.replace(path)


def forget(root: Path, now: float) -> None:
    """Remove what tasks left behind KEPT_DAYS ago."""
    for folder in root.iterdir():
        if folder.is_dir() and now - folder.stat().st_mtime > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen) -> None:
    """End a program and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        if number is signal.SIGTERM:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return


def carry_out(command: list[str], request: dict, folder: Path, connection: Connection) -> dict:
    """Run the program once; return the result, which is in the folder as well."""
    spoken = folder / "text"
    spoken.write_text(request["text"])
    environment = os.environ | {
        "HOTLINE_EXECUTION": str(request["execution"]),
        "HOTLINE_SESSION": str(request["session"]),
        "HOTLINE_TURN": str(request["turn"]),
        "HOTLINE_ATTEMPT": str(request["attempt"]),
    }
    note = ""
    head, tail, left_out = b"", b"", 0
    try:
        with spoken.open("rb") as text:
            process = subprocess.Popen(
                command,
                stdin=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        result = {"status": 127, "note": f"{command[0]} cannot be started: {error.strerror}", "out": ""}
        put(folder / "result.json", result)
        return result
    put(folder / "running.json", {"pid": process.pid})
    until = time.monotonic() + request["limit_s"]
    output = process.stdout
    assert output is not None  # noqa: S101 - it is a pipe
    os.set_blocking(output.fileno(), False)
    while True:
        watched = [output, connection] if connection.open else [output]
        readable, _, _ = select.select(watched, [], [], max(0.0, min(1.0, until - time.monotonic())))
        if connection in readable and connection.cancelled():
            note = "it was cancelled"
        elif time.monotonic() >= until:
            note = f"it was ended after {request['limit_s']} s"
        elif (folder / "cancel").exists():
            note = "it was cancelled"
        if note:
            end(process)
            break
        if output in readable:
            received = output.read(CHUNK)
            if not received:  # None is a false alarm
                if received == b"":
                    break
                continue
            room = HEAD - len(head)
            head += received[:room]
            tail += received[room:] if room > 0 else received
            surplus = len(tail) - (LIMIT - HEAD)
            if surplus > 0:
                left_out += surplus
                tail = tail[surplus:]
    if not note:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            note = f"it was ended after {request['limit_s']} s"
            end(process)
    text = head.decode(errors="replace")
    if left_out:
        text += f"\n[… {left_out} bytes are left out here …]\n"
    result = {"status": process.returncode, "note": note, "out": text + tail.decode(errors="replace")}
    put(folder / "result.json", result)
    return result


def alone(folder: Path, connection: Connection) -> int:
    """Wait until no other process runs this turn; return the lock."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if connection.cancelled():
                (folder / "cancel").touch()
            elif not connection.open:
                sys.exit(0)  # the next connection waits for the same
            time.sleep(0.1)


def main() -> int:
    """Serve one connection."""
    # Output goes to the connection; who writes to standard output by mistake must not reach it.
    connection = Connection(socket.socket(fileno=os.dup(0)))
    try:
        request = connection.request()
    except (OSError, ValueError) as error:
        connection.say(error=f"{error}")
        return 1
    root = Path(os.environ.get("STATE_DIRECTORY", ".")) / "turns"
    folder = root / str(request["execution"]) / str(request["turn"])
    folder.mkdir(parents=True, exist_ok=True)
    forget(root, time.time())
    lock = alone(folder, connection)
    try:
        try:
            result = json.loads((folder / "result.json").read_text())
        except (OSError, ValueError):
            result = carry_out(sys.argv[1:], request, folder, connection)
        for start in range(0, len(result["out"]), CHUNK):
            connection.say(out=result["out"][start : start + CHUNK])
        connection.say(end={"status": result["status"], "note": result["note"]})
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
