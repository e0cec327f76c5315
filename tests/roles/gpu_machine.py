"""Shows on a machine with a real NVIDIA GPU what preflight and nvidia_driver see there and decide.

    python3 tests/roles/gpu_machine.py

Needs ansible-core (of this Python) and nothing else: no network, no systemd. Exit code 0 when the GPU was
seen, its driver is left alone, and nothing about the driver changed meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVER = Path("/proc/driver/nvidia/version")


def driver() -> str:
    """What the kernel says about its driver."""
    return DRIVER.read_text() if DRIVER.exists() else ""


def main() -> int:
    """Run the playbook against this machine."""
    before = driver()
    print(before or f"{DRIVER} does not exist here", flush=True)
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "--inventory",
        "localhost,",
        "--connection",
        "local",
    ]
    command += ["--extra-vars", f"ansible_python_interpreter={sys.executable}"]
    answer = subprocess.run(
        [*command, str(REPOSITORY / "tests/roles/gpu_machine.yml")],
        cwd="/",  # away from ansible.cfg, whose callback ansible-core alone does not have
        env={
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles"),
            "ANSIBLE_INJECT_FACT_VARS": "false",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        },
        check=False,
    )
    if driver() != before:
        print("FAILED: the driver is not what it was before", file=sys.stderr)
        return 1
    print(
        "ok: the GPU was seen, its driver was left alone" if answer.returncode == 0 else "FAILED", flush=True
    )
    return answer.returncode


if __name__ == "__main__":
    sys.exit(main())
