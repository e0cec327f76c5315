"""The main job's first step as an operator meets it: ansible-playbook on this machine, with stand-ins.

Only tasks that change nothing are run (`--tags preflight_check`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.roles.stand_in import RTX_4080, RTX_4090, RTX_5090, Machine

REPOSITORY = Path(__file__).parents[2]
MACHINE = {
    "distribution": "Ubuntu",
    "version": "24.04",
    "architecture": "x86_64",
    "service_mgr": "systemd",
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def check(machine: Machine, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The end of `ansible-playbook site.yml --tags preflight_check` for that machine."""
    variables = {
        "_preflight_machine": MACHINE,
        "ansible_python_interpreter": sys.executable,
        "line_port": 38998,
        "line_engine_port": 38999,
        "line_status_port": 39299,
        "line_orchestrator_port": 35000,
        "moshi_weights": "tiny",
        **settings,
    }
    program = str(Path(sys.executable).parent / "ansible-playbook")
    inventory = machine.root.parent / "inventory.yml"
    # This machine's own apt sources and network are not what is tested.
    silent = machine.root.parent / "bin/apt-config"
    silent.parent.mkdir(exist_ok=True)
    silent.write_text("#!/bin/sh\nexit 1\n")
    silent.chmod(0o755)
    inventory.write_text(json.dumps({"line": {"hosts": {"here": {"ansible_connection": "local"}}}}))
    return subprocess.run(
        [program, "-i", str(inventory), "site.yml", "--tags", "preflight_check", "-e", json.dumps(variables)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PATH": f"{silent.parent}:{os.environ['PATH']}",
            "HOTLINE_GPU_ROOT": str(machine.root),
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def told(answer: subprocess.CompletedProcess[str]) -> str:
    """The refusal, as Ansible shows it first."""
    assert answer.returncode == 2, answer.stdout + answer.stderr
    shown = answer.stdout + answer.stderr
    return shown[shown.index("This machine cannot become a line yet") :].partition("Origin:")[0]


def test_a_good_machine_passes_with_every_roles_real_defaults(machine: Machine) -> None:
    """A misspelt setting is noticed all the same."""
    answer = check(machine.driver(RTX_4090), moshi_quantisation="q8")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "changed=0" in answer.stdout
    assert (
        "moshi_quantisation is set, but no role knows it; did you mean moshi_quantization?" in answer.stdout
    )


def test_a_16_gb_card_is_told_q8(machine: Machine) -> None:
    said = told(check(machine.driver(RTX_4080), moshi_weights="hub", moshi_hf_endpoint="http://127.0.0.1:9"))
    assert "18,300 MiB of GPU memory are needed for bf16, GPU 0 (NVIDIA GeForce RTX 4080) has 16,376." in said
    assert "Mend: set moshi_quantization: q8." in said


def test_everything_wrong_is_told_at_once(machine: Machine) -> None:
    machine.file("run/systemd/container", "docker").driver(RTX_5090, version="560.35.03")
    said = told(
        check(
            machine,
            moshi_voice="moshka",
            moshi_quantization="int4",
            moshi_extra_args=["--cpu-offload"],
            moshi_hf_token="sk-1234567890secret",
            line_orchestrator_port=38998,
            _preflight_machine={**MACHINE, "version": "20.04", "service_mgr": "supervisord"},
        )
    )
    for sentence in (
        "moshi_voice: 'moshka' is unknown",
        "moshi_quantization: 'int4' is unknown",
        "moshi_extra_args has --cpu-offload",
        "moshi_hf_token does not look like a Hugging Face token",
        "line_orchestrator_port and line_port both lead to port 38998",
        "Ubuntu 20.04 is not supported",
        "driver 560.35.03 is too old for torch's CUDA 12.8 build, which needs 570 or newer",
    ):
        assert sentence in said
    assert said.count("Mend: ") == 7
    assert "secret" not in said


def test_an_exception_can_be_made_and_is_still_told(machine: Machine) -> None:
    answer = check(machine, preflight_enforce=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "this machine shows no NVIDIA GPU" in answer.stdout


def test_a_line_on_the_cpu_needs_no_gpu(machine: Machine) -> None:
    assert check(machine, moshi_device="cpu").returncode == 0
