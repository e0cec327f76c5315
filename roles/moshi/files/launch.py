"""Run kyutai's unchanged ``moshi.server``, with what is wrong around it put right.

Every argument goes to the server as it is: ``launch.py --port 8999 …`` is ``python -m moshi.server --port
8999 …``. Nothing in the package is edited; what is mended here was read in moshi 0.2.13:

* ``--device cpu`` ends in the warm-up, which calls ``torch.cuda.synchronize()``.
* The loader casts the scales of 8-bit weights to the model's dtype, and the first step then refuses them
  (kyutai-labs/moshi#271).
* A line per 80 ms frame and every word Moshi says are printed. What people talk about does not belong into
  a log.
* A CUDA error in a conversation leaves a process that listens and can never answer again: it has to end, so
  that whoever started it starts it anew.
* A stop waits up to 60 s for a conversation to end by itself.
* Nobody can end one conversation: a link that was taken back, or an operator who hangs up, would have to end
  the engine.

Environment:

``HOTLINE_ENGINE_STATE``
    A directory for this engine. ``run.log`` there holds the last words of this run (bounded, without the
    transcript), ``phase.json`` says loading or ready. breaker.py reads the first and goes on with the second.
``STATUS_PORT``
    A port of loopback at which a conversation is ended: ``POST /calls/ID/end`` with ``{"reason": …}``, as
    duplex has it. ID is what nginx set as X-Call-Id.
``HOTLINE_ENGINE_LOG``
    ``lifecycle`` (default), or ``everything``: no filter at all. That writes the conversation into the
    journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import io
import json
import logging
import os
import re
import runpy
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

EXIT_BROKEN_CUDA = 70  # sysexits.h EX_SOFTWARE
STOP_SECONDS = 1.0  # for a conversation to end by itself when the engine is stopped; aiohttp waits twice
RUN_LOG_BYTES = 64 * 1024  # for run.log and run.log.1 each
GOODBYE_SECONDS = 2.0  # for a caller to take note that his call was ended
CLOSE_NOT_ALLOWED = 1008  # RFC 6455
FAREWELLS = {  # why a call can be ended from outside, and what its caller reads; as duplex says it
    "operator": "Whoever runs this line has ended the call.",
    "revoked": "The link that opened this call was taken back.",
    "hung_up": "The call was hung up.",
}

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# All that the server says about itself on standard output. What is not listed may be somebody's words.
LIFECYCLE = re.compile(
    r"\[Info\] (retrieving (checkpoint|the static content)|(loading )?(mimi|moshi)( loaded)?"
    r"|warming up the model|serving static content from .*|Access the Web UI directly at .*"
    r"|accepted connection|connection closed|done with connection)$"
    r"|\[Warn\] (empty message|unknown message kind \d+)$"
    r"|\[Err \] .{1,300}$"
    r"|hotline: .*$"
)
BROKEN_CUDA = re.compile(r"CUDA error|CUDA out of memory|CUBLAS_STATUS_|cuDNN error|CUDNN_STATUS_")


class RunLog:
    """The last words of one run: at most 2 x RUN_LOG_BYTES in ``run.log`` and ``run.log.1`` of a directory.

    The first line says which run it was, so that words of an earlier one are never taken for it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "run.log"
        self.older = directory / "run.log.1"
        self.older.unlink(missing_ok=True)
        self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
        self._size = 0
        self.write(json.dumps({"invocation": os.environ.get("INVOCATION_ID", ""), "pid": os.getpid()}))

    def write(self, line: str) -> None:
        """Append a line. A full disk must not end a conversation: then the line is lost."""
        line = line[:2000]
        with contextlib.suppress(OSError):
            if self._size + len(line) > RUN_LOG_BYTES:
                self._file.close()
                self.path.replace(self.older)
                self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
                self._size = 0
            self._file.write(line + "\n")
            self._file.flush()
            self._size += len(line) + 1


class Lines(io.TextIOBase):
    """A text stream that hands the lines that ``passes`` likes on, without colours, to a target and a log."""

    def __init__(self, target: TextIO, passes: Callable[[str], bool], log: RunLog | None) -> None:
        self._target = target
        self._passes = passes
        self._log = log
        self._rest = ""
        self._last = ""

    def write(self, text: str) -> int:
        """Take any piece of text; complete lines go on, and only once when a caller makes them repeat."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            plain = COLOUR.sub("", line)
            if not self._passes(plain) or (plain == self._last and plain.startswith("[")):
                continue
            self._last = plain
            self._target.write(plain + "\n")
            if self._log is not None:
                self._log.write(plain)
        self._target.flush()
        return len(text)

    def flush(self) -> None:
        """Flush the stream below; an unfinished line stays until it is complete."""
        self._target.flush()

    def fileno(self) -> int:
        """Return the descriptor below, for children that inherit it."""
        return self._target.fileno()

    def writable(self) -> bool:
        """Say that this stream is written to."""
        return True


class ServerErrors(logging.StreamHandler[TextIO]):
    """Print what aiohttp reports of a failed conversation; end the process when CUDA broke behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record; leave with EXIT_BROKEN_CUDA if its exception says that no later call can work.

        A caller who hangs up in the middle of an answer is no error: the lines of the call say it already.
        """
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionResetError):
            return
        super().emit(record)
        if breaks_cuda(error):
            print(
                "hotline: CUDA does not work any more in this process, which therefore ends", file=sys.stderr
            )
            sys.stderr.flush()
            # Not sys.exit: this runs inside aiohttp's event loop, and destructors would call into CUDA again.
            os._exit(EXIT_BROKEN_CUDA)


def breaks_cuda(error: BaseException | None) -> bool:
    """Say whether an exception, or one that led to it, comes from CUDA.

    Out of memory counts: moshi allocates everything before the first frame, so it cannot happen to a sound
    engine.
    """
    while error is not None:
        if type(error).__name__ in {"AcceleratorError", "OutOfMemoryError"} or BROKEN_CUDA.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def says_phase(state: Path, phase: str, detail: str = "") -> None:
    """Write ``phase.json`` into ``state`` in one step, so that no reader sees half of it."""
    text = json.dumps(
        {"phase": phase, "detail": detail, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    )
    draft = state / "phase.json.new"
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(state / "phase.json")


def is_ready(state: Path) -> None:
    """Say that the port is open; what failed before is history now, and no longer why the line is down."""
    with contextlib.suppress(FileNotFoundError):
        (state / "failure.json").replace(state / "last_failure.json")
    says_phase(state, "ready")


def run_without_cuda(torch: Any) -> None:
    """Let the warm-up end without CUDA: there is nothing to wait for on a CPU."""
    torch.cuda.synchronize = lambda device=None: None


def keep_scales_float32(loaders: Any) -> None:
    """Hand the scales of 8-bit weights to the model as they stand in the file, in float32.

    ``get_moshi_lm`` reads a state dict, casts all that is floating point and loads it. The scales are
    remembered when it is read and put back just before it is loaded: by their names in the file, since hooks
    rename them afterwards. A model without scales, and a moshi that no longer casts them, is loaded exactly
    as before.
    """
    read, load = loaders.load_file, loaders.LMModel.load_state_dict
    scales: dict[str, Any] = {}

    @functools.wraps(read)
    def load_file(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = read(*args, **kwargs)
        scales.clear()
        scales.update((name, value.float()) for name, value in state.items() if name.endswith("weight_scb"))
        return state

    @functools.wraps(load)
    def load_state_dict(self: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        state.update((name, scales[name]) for name in scales.keys() & state.keys())
        scales.clear()
        return load(self, state, *args, **kwargs)

    loaders.load_file = load_file
    loaders.LMModel.load_state_dict = load_state_dict


def announce_and_stop_quickly(web: ModuleType, ready: Callable[[], None]) -> None:
    """Have ``web.run_app`` call ``ready`` once the port is open and end within STOP_SECONDS when told to."""
    run_app = web.run_app

    def announce(text: str) -> None:
        ready()
        print(f"hotline: ready, {COLOUR.sub('', text).splitlines()[0].strip('= ')}")

    web.run_app = functools.partial(run_app, print=announce, shutdown_timeout=STOP_SECONDS)  # type: ignore[attr-defined]


def end_calls_when_told(web: ModuleType, port: int) -> None:
    """Have ``web.run_app`` serve ``POST /calls/ID/end`` on 127.0.0.1:``port``, beside the server itself.

    The caller is told why in words (kind 5 of the protocol) and gets close code 1008. One who does not listen
    any more is cut off after GOODBYE_SECONDS. That the port is taken is no reason to leave a line down.
    """
    run_app = web.run_app
    calls: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
    transports: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    async def remember(request: Any, response: Any) -> None:
        if isinstance(response, web.WebSocketResponse) and (call := request.headers.get("X-Call-Id")):
            calls[call] = response
            transports[response] = request.transport

    async def end(request: Any) -> Any:
        socket = calls.get(request.match_info["id"])
        if socket is None or socket.closed:
            return web.json_response({"code": "call_unknown"}, status=404)
        try:
            given = str((await request.json())["reason"]) if request.can_read_body else ""
        except (ValueError, KeyError, TypeError):
            return web.json_response({"code": "bad_request"}, status=400)
        code = given if given in FAREWELLS else "operator"

        async def goodbye() -> None:
            words = json.dumps({"code": code, "message": FAREWELLS[code]})
            await socket.send_bytes(b"\x05" + words.encode())
            await socket.close(code=CLOSE_NOT_ALLOWED, message=code.encode())

        try:
            await asyncio.wait_for(goodbye(), GOODBYE_SECONDS)
        except (ConnectionError, RuntimeError, asyncio.TimeoutError):
            if (transport := transports.get(socket)) is not None:
                transport.abort()
        return web.json_response({"id": request.match_info["id"], "reason": code}, status=202)

    async def beside(_: Any) -> AsyncIterator[None]:
        door = web.Application()
        door.router.add_post("/calls/{id}/end", end)
        runner = web.AppRunner(door, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError as error:
            print(f"hotline: no call can be ended one by one: {error}", file=sys.stderr)
        yield
        await runner.cleanup()

    @functools.wraps(run_app)
    def run(app: Any, *args: Any, **kwargs: Any) -> None:
        app.on_response_prepare.append(remember)
        app.cleanup_ctx.append(beside)
        run_app(app, *args, **kwargs)

    web.run_app = run  # type: ignore[attr-defined]


def device_of(arguments: list[str]) -> str:
    """Return what ``--device`` says, as argparse reads it: the last wins, ``cuda`` is the default."""
    device = "cuda"
    for position, argument in enumerate(arguments):
        if argument == "--device" and position + 1 < len(arguments):
            device = arguments[position + 1]
        elif argument.startswith("--device="):
            device = argument.partition("=")[2]
    return device


def main(arguments: list[str]) -> None:
    """Mend, then become ``python -m moshi.server`` with these arguments."""
    log = None
    state = Path(os.environ["HOTLINE_ENGINE_STATE"]) if "HOTLINE_ENGINE_STATE" in os.environ else None
    if state is not None:
        try:
            state.mkdir(parents=True, exist_ok=True)
            log = RunLog(state)
            says_phase(state, "loading")
        except OSError as error:  # what cannot be noted down is no reason to leave a line down
            print(f"hotline: {state} cannot be written, this run goes unrecorded: {error}", file=sys.stderr)

    def ready() -> None:
        if state is not None:
            with contextlib.suppress(OSError):
                is_ready(state)

    faulthandler.enable()
    sys.stderr = Lines(sys.__stderr__ or sys.stderr, lambda line: True, log)
    if os.environ.get("HOTLINE_ENGINE_LOG", "lifecycle") != "everything" and "--help" not in arguments:
        sys.stdout = Lines(sys.__stdout__ or sys.stdout, lambda line: LIFECYCLE.match(line) is not None, log)
    logging.getLogger("aiohttp.server").addHandler(ServerErrors())

    import torch  # noqa: PLC0415 - what comes before must be in place when an import fails
    from aiohttp import web  # noqa: PLC0415
    from moshi.models import loaders  # noqa: PLC0415

    if device_of(arguments).startswith("cpu"):
        run_without_cuda(torch)
    keep_scales_float32(loaders)
    announce_and_stop_quickly(web, ready)
    if "STATUS_PORT" in os.environ:
        end_calls_when_told(web, int(os.environ["STATUS_PORT"]))
    # Before torch.compile or anyone else starts a child: the engine's name in a process list, not ours.
    sys.argv = ["moshi.server", *arguments]
    # Run by name, never imported: importing the module already runs it.
    runpy.run_module("moshi.server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
