"""The launcher around moshi.server: what it lets out, what it keeps, how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roles.moshi.files import launch
from tests.roles.moshi_stage import Stage

# As the server writes them (moshi/client_utils.py, make_log), with colours.
INFO, WARN, ERROR = "\033[1;34m[Info]\033[0m ", "\033[1;31m[Warn]\033[0m ", "\033[1;31m[Err ]\033[0m "
TALK = (
    f"for word in ('my', 'bank', 'password'): print({INFO!r} + \"text token '\" + word + \"'\"); "
    f"print({INFO!r} + 'frame handled in 23.1ms')\n"
)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_what_moshi_says_is_neither_in_the_journal_nor_in_the_log(stage: Stage) -> None:
    done = stage.launch(
        f"print({INFO!r} + 'accepted connection')\n{TALK}print({INFO!r} + 'done with connection')"
    )
    assert done.stdout == "[Info] accepted connection\n[Info] done with connection\n"
    assert done.stderr == ""
    assert "password" not in (stage.state / "run.log").read_text()
    assert "frame handled" not in (stage.state / "run.log").read_text()


def test_a_crash_in_a_conversation_tells_where_but_not_what_was_said(stage: Stage) -> None:
    done, failure = stage.run(
        TALK + "raise RuntimeError('CUDA error: an illegal memory access was encountered')"
    )
    assert "Traceback" in done.stderr
    everything = done.stdout + done.stderr + json.dumps(failure) + (stage.state / "run.log").read_text()
    assert "password" not in everything


def test_all_that_is_said_while_starting_gets_through(stage: Stage) -> None:
    lines = [
        "retrieving checkpoint", "loading mimi", "mimi loaded", "loading moshi", "moshi loaded", "warming up "
        "the model",
        "Access the Web UI directly at http://127.0.0.1:8999",
    ]  # fmt: skip
    done = stage.launch("".join(f"print({INFO + line!r})\n" for line in lines))
    assert done.stdout == "".join(f"[Info] {line}\n" for line in lines)


def test_warnings_errors_and_tracebacks_get_through(stage: Stage) -> None:
    done = stage.launch(
        f"print({WARN!r} + 'empty message'); print({ERROR!r} + 'unexpected message type 1')\n"
        "import warnings; warnings.warn('Repository contains no config.json.')\n1 / 0"
    )
    assert done.stdout == "[Warn] empty message\n[Err ] unexpected message type 1\n"
    assert "Repository contains no config.json" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "ZeroDivisionError: division by zero" in (stage.state / "run.log").read_text().splitlines()


def test_a_caller_cannot_fill_the_journal(stage: Stage) -> None:
    done = stage.launch(f"for _ in range(10000): print({WARN!r} + 'unknown message kind 99')")
    assert done.stdout == "[Warn] unknown message kind 99\n"


def test_everything_is_shown_only_when_asked_for(stage: Stage) -> None:
    assert "password" in stage.launch(TALK, HOTLINE_ENGINE_LOG="everything").stdout


@given(st.text(min_size=1), st.integers(1, 7))
def test_no_word_gets_through_however_it_is_cut(words: str, size: int) -> None:
    """The server may write in any pieces; a token can hold anything that the tokenizer has."""
    out = io.StringIO()
    stream = launch.Lines(out, lambda line: launch.LIFECYCLE.match(line) is not None, None)
    text = f"{INFO}text token '{words}'\n{INFO}moshi loaded\n"
    for start in range(0, len(text), size):
        stream.write(text[start : start + size])
    if "\n" not in words:
        assert out.getvalue() == "[Info] moshi loaded\n"


def test_the_log_is_bounded_and_keeps_the_end(stage: Stage) -> None:
    done, failure = stage.run(
        "import sys\nfor i in range(40000): print('noise %d' % i, file=sys.stderr)\nraise RuntimeError('CUDA "
        "error: the end')"
    )
    assert done.returncode == 1
    size = sum(path.stat().st_size for path in stage.state.glob("run.log*"))
    assert size <= 2 * (launch.RUN_LOG_BYTES + 2001)
    assert failure["reason"] == "cuda_error"


def test_a_full_disk_does_not_end_a_conversation(tmp_path: Path) -> None:
    log = launch.RunLog(tmp_path)
    log._file.close()
    log._file = Path("/dev/full").open("w")  # noqa: SIM115 - the log closes it
    log.write("a line that finds no room")


def test_a_directory_that_cannot_be_written_keeps_no_engine_down(stage: Stage) -> None:
    stage.state.write_text("a file")
    done = stage.launch(f"print({INFO!r} + 'moshi loaded')")
    assert (done.returncode, done.stdout) == (0, "[Info] moshi loaded\n")
    assert "goes unrecorded" in done.stderr


def test_on_a_cpu_there_is_nothing_to_wait_for(stage: Stage) -> None:
    scene = "import torch; torch.cuda.synchronize()"
    assert stage.launch(scene, "--device", "cpu").returncode == 0
    assert stage.launch(scene, "--device=cpu").returncode == 0
    assert stage.launch(scene).returncode == 1, "on a GPU nothing is replaced"
    assert stage.launch(scene, "--device", "cpu", "--device", "cuda").returncode == 1


def test_the_server_sees_its_own_name_and_arguments(stage: Stage) -> None:
    done = stage.launch(
        "import sys; print(sys.argv[1:], file=sys.stderr)", "--port", "8999", "--static", "none"
    )
    assert done.stderr.strip() == "['--port', '8999', '--static', 'none']"


def test_an_ordinary_error_of_a_conversation_ends_nothing(stage: Stage) -> None:
    """garbage in the audio raises ValueError: that caller is dropped, the engine goes on"""
    scene = (
        "import logging\n"
        "try: raise ValueError('invalid Ogg page')\n"
        "except ValueError: logging.getLogger('aiohttp.server').exception('Error handling request')\n"
    )
    done = stage.launch(scene)
    assert done.returncode == 0
    assert "invalid Ogg page" in done.stderr


def test_a_caller_who_hangs_up_in_the_middle_of_an_answer_is_no_error(stage: Stage) -> None:
    scene = (
        "import logging\n"
        "class ClientConnectionResetError(ConnectionResetError): pass\n"
        "try: raise ClientConnectionResetError('Cannot write to closing transport')\n"
        "except OSError: logging.getLogger('aiohttp.server').exception('Error handling request')\n"
    )
    done = stage.launch(scene)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("by", ["cause", "context"])
def test_an_error_behind_the_error_counts(by: str) -> None:
    error = ValueError("what the handler raised")
    setattr(error, f"__{by}__", RuntimeError("CUDA error: unspecified launch failure"))
    assert launch.breaks_cuda(error)
    assert not launch.breaks_cuda(ValueError("audio"))


SERVE = """
from aiohttp import web
import asyncio
async def chat(request):
    ws = web.WebSocketResponse(); await ws.prepare(request)
    await ws.send_bytes(bytes([0]))
    async for message in ws: pass
    return ws
app = web.Application(); app.router.add_get('/api/chat', chat)
web.run_app(app, host='127.0.0.1', port=0)
"""


@pytest.fixture
def stage_with_aiohttp(tmp_path: Path) -> Stage:
    return Stage(tmp_path, real_aiohttp=True)


@pytest.fixture
def serving(stage_with_aiohttp: Stage) -> Any:
    """A server behind the launcher that is left running for the test."""
    stage = stage_with_aiohttp
    environment = {
        **os.environ, "PYTHONPATH": str(stage.root / "packages"), "HOTLINE_ENGINE_STATE": str(stage.state),
        "SCENE": SERVE,
    }  # fmt: skip
    stage.state.mkdir()
    (stage.state / "failure.json").write_text('{"reason": "killed"}')
    with subprocess.Popen(
        [sys.executable, launch.__file__], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline()
        process.kill()


def test_an_open_port_is_announced_and_what_failed_before_is_history(
    stage_with_aiohttp: Stage, serving: Any
) -> None:
    stage = stage_with_aiohttp
    _, line = serving
    assert line.startswith("hotline: ready, Running on http://127.0.0.1:")
    assert stage.read("phase.json")["phase"] == "ready"
    assert not (stage.state / "failure.json").exists()
    assert stage.read("last_failure.json")["reason"] == "killed"


async def test_a_stop_does_not_wait_for_a_caller_to_hang_up(serving: Any) -> None:
    import aiohttp

    process, line = serving
    port = line.rsplit(":", 1)[1].strip()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}/api/chat") as call,
    ):
        assert (await call.receive()).data == b"\x00"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await call.receive()
    assert process.wait(timeout=10) == 0
    assert time.monotonic() - began < launch.STOP_SECONDS + 3


class Loaders:
    """What keep_scales_float32 touches of moshi.models.loaders, and its cast (get_moshi_lm)."""

    def __init__(self, stored: dict[str, Any]) -> None:
        class LMModel:
            def load_state_dict(
                self, state: dict[str, Any], strict: bool = True, assign: bool = False
            ) -> None:
                self.loaded = state

        self.stored = stored
        self.LMModel = LMModel

    def load_file(self, path: str, device: str = "cpu") -> dict[str, Any]:
        return dict(self.stored)

    def get_moshi_lm(self) -> Any:
        state = self.load_file("model.q8.safetensors")
        for key, value in state.items():
            state[key] = value.to("bfloat16")
        model = self.LMModel()
        model.load_state_dict(state, assign=True)
        return model


class Value:
    """A tensor that knows its dtype."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def to(self, dtype: str) -> Value:
        return Value(dtype)

    def float(self) -> Value:
        return self if self.dtype == "float32" else Value("float32")


def test_scales_reach_the_model_in_float32_and_all_else_as_the_loader_casts_it() -> None:
    scale = Value("float32")
    loaders = Loaders(
        {"a.weight_scb": scale, "a.in_proj_weight_scb": Value("float32"), "norm.alpha": Value("float32")}
    )
    launch.keep_scales_float32(loaders)
    loaded = loaders.get_moshi_lm().loaded
    assert {name: value.dtype for name, value in loaded.items()} == {
        "a.weight_scb": "float32", "a.in_proj_weight_scb": "float32", "norm.alpha": "bfloat16",
    }  # fmt: skip
    assert loaded["a.weight_scb"] is scale, "not cast there and back, which would lose bits"


def test_weights_without_scales_are_loaded_as_before() -> None:
    loaders = Loaders({"a.weight": Value("bfloat16")})
    launch.keep_scales_float32(loaders)
    assert {name: value.dtype for name, value in loaders.get_moshi_lm().loaded.items()} == {
        "a.weight": "bfloat16"
    }
