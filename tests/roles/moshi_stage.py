"""A stage for launch.py and breaker.py: the programs around a ``moshi.server`` that does what a test says.

torch, moshi and aiohttp are replaced by packages of a few lines, so that these tests start in no time;
everything else is real: the process, how it ends, and what the service manager would tell ExecStopPost about
it (systemd.exec(5)).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roles.moshi.files import breaker, launch

PACKAGES = {
    "torch/__init__.py": """
        class OutOfMemoryError(RuntimeError): pass
        class AcceleratorError(RuntimeError): pass
        class cuda:
            @staticmethod
            def synchronize(device=None):
                raise RuntimeError("Found no NVIDIA driver on your system.")
    """,
    "aiohttp/__init__.py": "",
    "aiohttp/web.py": """
        def run_app(app, print=None, shutdown_timeout=60.0, **kwargs): pass
    """,
    "moshi/__init__.py": "",
    "moshi/models/__init__.py": "",
    "moshi/models/loaders.py": """
        def load_file(path, device="cpu"): return {}
        class LMModel:
            def load_state_dict(self, state, strict=True, assign=False): self.loaded = state
    """,
    "moshi/server.py": """
        import os
        assert __name__ == "__main__"
        exec(os.environ["SCENE"])
    """,
}


@dataclass
class Stage:
    """One engine's directory, and the packages it finds."""

    root: Path
    most: int = 3
    window: float = 300
    real_aiohttp: bool = False

    def __post_init__(self) -> None:
        for name, text in PACKAGES.items():
            if self.real_aiohttp and name.startswith("aiohttp"):
                continue
            path = self.root / "packages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = text.strip("\n").splitlines()
            indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
            path.write_text("\n".join(line[indent:] for line in lines) + "\n")

    @property
    def state(self) -> Path:
        return self.root / "state"

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / name).read_text())
        return found

    def launch(self, scene: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run launch.py to its end, with ``scene`` in the place of the server."""
        return subprocess.run(
            [sys.executable, launch.__file__, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={
                **os.environ,
                "PYTHONPATH": str(self.root / "packages"),
                "HOTLINE_ENGINE_STATE": str(self.state),
                "SCENE": scene,
                "INVOCATION_ID": "this-run",
                **environment,
            },
        )

    def breaker(self, event: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run breaker.py as ExecStartPre or ExecStopPost does."""
        command = [
            sys.executable,
            breaker.__file__,
            event,
            "--state",
            str(self.state),
            "--max",
            str(self.most),
        ]
        return subprocess.run(
            [*command, "--window", str(self.window), "--delay", "2"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "INVOCATION_ID": "this-run", **environment},
        )

    def run(
        self, scene: str, *arguments: str, **environment: str
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        """One whole run of the unit, which fails; returns the process and ``failure.json``."""
        self.breaker("start")
        done = self.launch(scene, *arguments, **environment)
        self.breaker("stop", **told(done.returncode))
        return done, self.read("failure.json")


def told(returncode: int) -> dict[str, str]:
    """Return what systemd tells ExecStopPost about a process that ended with this code."""
    if returncode >= 0:
        result = "exit-code" if returncode else "success"
        return {"SERVICE_RESULT": result, "EXIT_CODE": "exited", "EXIT_STATUS": str(returncode)}
    name = signal.Signals(-returncode).name.removeprefix("SIG")
    dumped = name in {"SEGV", "ABRT", "BUS", "ILL", "FPE"}
    return {
        "SERVICE_RESULT": "core-dump" if dumped else "signal",
        "EXIT_CODE": "dumped" if dumped else "killed",
        "EXIT_STATUS": name,
    }
