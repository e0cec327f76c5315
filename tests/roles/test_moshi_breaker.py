"""The circuit breaker: why an engine ended, told by real processes that end so, and when it stays down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roles.moshi.files import breaker
from tests.roles.moshi_stage import Stage, told


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.10 "
    "GiB is free. "
    "Including non-PyTorch memory, this process has 14.66 GiB memory in use."
)
ASSERTED = (
    "CUDA error: device-side assert triggered\\nCUDA kernel errors might be asynchronously reported later"
)


@pytest.mark.parametrize(
    ("scene", "reason", "detail"),
    [
        (
            f"import torch; raise torch.OutOfMemoryError('{OUT_OF_MEMORY}')",
            "cuda_out_of_memory",
            "moshi_quantization: q8",
        ),
        ("raise RuntimeError('CUDA error: out of memory')", "cuda_out_of_memory", "nvidia-smi"),
        (
            f"import torch; raise torch.AcceleratorError('{ASSERTED}')",
            "cuda_error",
            "device-side assert triggered",
        ),
        (
            "raise RuntimeError('CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx')",
            "cuda_error",
            "nvidia-smi",
        ),
        (
            "raise RuntimeError('Found no NVIDIA driver on your system. Please check')",
            "cuda_error",
            "site.yml",
        ),
        ("raise AssertionError('Torch not compiled with CUDA enabled')", "cuda_error", "site.yml"),
        (
            "open('/var/lib/hotline/models/serving/config.json.gone')",
            "missing_weights",
            "fetches what is missing",
        ),
        (
            "class SafetensorError(Exception): pass\nraise SafetensorError('Error while deserializing "
            "header: MetadataIncompleteBuffer')",
            "missing_weights",
            "MetadataIncompleteBuffer",
        ),
        (
            "raise RuntimeError('Error(s) in loading state_dict for LMModel: size mismatch')",
            "missing_weights",
            "do not fit",
        ),
        (
            "raise RuntimeError('NOT_FOUND: \"/x/tokenizer.model\": No such file or directory')",
            "missing_weights",
            "site.yml",
        ),
        ("import json; json.loads('{')", "missing_weights", "Expecting property name"),
        ("open('/usr/bin/no-such-gcc')", "other", "no-such-gcc"),
        (
            "from socket import create_server as serve\na = serve(('127.0.0.1', 0))\nserve(a.getsockname())",
            "other",
            "`ss -ltnp` names it",
        ),
        (
            "import argparse; argparse.ArgumentParser('server.py').parse_args(['--cpu-offload'])",
            "bad_flag",
            "unrecognized arguments: --cpu-offload. The engine does not take this argument: correct "
            "moshi_extra_args",
        ),
        (
            "import argparse; p = argparse.ArgumentParser(); p.add_argument('--cfg-coef', type=float); "
            "p.parse_args(['--cfg-coef', 'x'])",
            "bad_flag",
            "invalid float value: 'x'",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "segmentation_fault", "SIGSEGV"),
        ("import ctypes; ctypes.string_at(0)", "segmentation_fault", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "segmentation_fault", "SIGBUS"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", "SIGKILL"),
        ("import os; os.abort()", "other", "SIGABRT"),
        ("raise SystemExit(2)", "other", "status 2"),
        ("1 / 0", "other", "ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "other", "No module named 'nothing_of_that_name'"),
    ],
)
def test_the_reason_is_told_apart(stage: Stage, scene: str, reason: str, detail: str) -> None:
    _, failure = stage.run(scene)
    assert failure["reason"] == reason
    assert detail in failure["detail"]
    assert "\n" not in failure["detail"]
    assert len(failure["detail"]) <= breaker.DETAIL_LENGTH


def test_it_says_how_the_process_ended(stage: Stage) -> None:
    _, failure = stage.run("raise SystemExit(7)")
    assert (failure["exit_code"], failure["signal"]) == (7, None)
    _, failure = stage.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (failure["exit_code"], failure["signal"]) == (None, "SIGKILL")


def test_a_conversation_that_broke_cuda_counts_as_what_broke_it(stage: Stage) -> None:
    scene = (
        "import logging, torch\n"
        "try: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 MiB')\n"
        "except RuntimeError: logging.getLogger('aiohttp.server').exception('Error handling request')\n"
        "import time; time.sleep(60)"
    )
    done, failure = stage.run(scene)
    assert (done.returncode, failure["exit_code"], failure["reason"]) == (70, 70, "cuda_out_of_memory")


def test_the_kernels_memory_killer_is_told_from_a_kill(stage: Stage) -> None:
    stage.breaker("start")
    seen = stage.read("starts.json")
    (stage.state / "starts.json").write_text(
        json.dumps(seen | {"oom_kills": -1})
    )  # one more since it started
    stage.breaker("stop", **told(-9))
    failure = stage.read("failure.json")
    assert failure["reason"] == "killed"
    assert "The kernel killed it because the machine's memory" in failure["detail"]


def test_systemds_own_word_for_it_counts_too(stage: Stage) -> None:
    stage.breaker("start")
    stage.breaker("stop", SERVICE_RESULT="oom-kill", EXIT_CODE="killed", EXIT_STATUS="KILL")
    assert "The kernel killed it" in stage.read("failure.json")["detail"]


def test_a_python_that_is_gone_is_named(stage: Stage) -> None:
    stage.breaker("start")
    stage.breaker("stop", SERVICE_RESULT="exit-code", EXIT_CODE="exited", EXIT_STATUS="203")
    assert "heals the environment" in stage.read("failure.json")["detail"]


def test_a_start_that_took_too_long_is_named(stage: Stage) -> None:
    stage.breaker("start")
    stage.breaker("stop", SERVICE_RESULT="timeout", EXIT_CODE="killed", EXIT_STATUS="KILL")
    assert "did not start or stop in time" in stage.read("failure.json")["detail"]


def test_the_words_of_an_earlier_run_are_not_taken_for_this_ones(stage: Stage) -> None:
    stage.run("raise RuntimeError('CUDA error: unspecified launch failure')", INVOCATION_ID="an-earlier-run")
    assert stage.read("failure.json")["reason"] == "other"


def test_a_deliberate_stop_is_no_failure(stage: Stage) -> None:
    stage.breaker("start")
    stage.breaker("stop", **told(0))
    assert stage.read("phase.json")["phase"] == "stopped"
    assert not (stage.state / "failure.json").exists()


def test_the_journal_gets_one_line(stage: Stage) -> None:
    stage.breaker("start")
    stage.launch("raise RuntimeError('CUDA error: out of memory')")
    said = stage.breaker("stop", **told(1)).stdout
    assert said.startswith("<3>cuda_out_of_memory: ")
    assert said.count("\n") == 1
    assert said.endswith("(failure 1, 3 starts are allowed in 300 s: it is started again in 2 s)\n")


def test_the_circuit_opens_with_the_last_start_that_is_allowed(stage: Stage) -> None:
    for count in (1, 2, 3):
        _, failure = stage.run("1 / 0")
        assert (failure["failures"], failure["open"]) == (count, count == 3)
        assert stage.read("phase.json")["phase"] == ("failed" if count == 3 else "loading")


def test_after_the_window_counting_begins_anew(stage: Stage) -> None:
    for _ in range(2):
        stage.run("1 / 0")
    seen = stage.read("starts.json")
    (stage.state / "starts.json").write_text(json.dumps(seen | {"begin": seen["begin"] - 301}))
    assert stage.run("1 / 0")[1]["failures"] == 1


def test_a_reset_by_hand_begins_a_new_window(stage: Stage) -> None:
    for _ in range(3):
        stage.run("1 / 0")
    assert stage.read("failure.json")["open"]
    assert not stage.run("1 / 0")[1]["open"], "systemctl reset-failed let it start once more"


def test_another_boot_begins_a_new_window(stage: Stage) -> None:
    for _ in range(2):
        stage.run("1 / 0")
    seen = stage.read("starts.json")
    (stage.state / "starts.json").write_text(json.dumps(seen | {"boot": "another"}))
    assert stage.run("1 / 0")[1]["failures"] == 1


def ratelimit_below(times: list[float], interval: float, burst: int) -> list[bool]:
    """systemd's own rule, written down from src/basic/ratelimit.c: for each start, whether it is allowed."""
    begin, count, allowed = 0.0, 0, []
    for time in times:
        if begin <= 0 or time - begin > interval:
            begin, count = time, 1
            allowed.append(True)
            continue
        count += 1
        allowed.append(count <= burst)
    return allowed


@given(st.lists(st.floats(0.1, 200), min_size=1, max_size=30), st.integers(1, 6))
def test_it_counts_as_systemd_counts(runs: list[float], most: int) -> None:
    """An engine that runs so and so long and fails is said to stay down just when systemd refuses a start."""
    interval, delay, now = 300.0, 2.0, 1000.0
    times: list[float] = []
    seen, opened = None, False
    for length in runs:
        times.append(now)
        if not ratelimit_below(times, interval, most)[-1]:
            assert opened
            return
        assert not opened
        seen = breaker.counted(seen, most, interval, now)
        opened = breaker.is_open(seen, now + length, most, interval, delay)
        now += length + delay


def test_what_cannot_be_written_keeps_no_engine_down(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.state.write_text("a file where the directory should be")
    assert "goes unrecorded" in stage.breaker("start").stderr
    assert "goes unrecorded" in stage.breaker("stop", **told(1)).stderr


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"boot": 1}', "null"])
def test_a_damaged_count_is_begun_anew(stage: Stage, damage: str) -> None:
    stage.state.mkdir()
    (stage.state / "starts.json").write_text(damage)
    assert stage.run("1 / 0")[1]["failures"] == 1


@pytest.mark.parametrize("name", ["failure.json", "phase.json", "starts.json"])
def test_the_orchestrators_group_may_read_it(stage: Stage, name: str) -> None:
    stage.run("1 / 0")
    assert (stage.state / name).stat().st_mode & 0o040
