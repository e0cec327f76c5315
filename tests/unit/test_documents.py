"""Documents that are made from something else say what that says now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_interface_is_described_as_it_is() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "scripts/api-reference"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
