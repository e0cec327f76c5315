"""Run ``python -m duplex``, and note down what its unit and the orchestrator want to know of the run.

Every argument goes to duplex as it is. Around it is what launch.py does around moshi.server: the last words
of this run in ``run.log`` and how far it has come in ``phase.json``, both below ``HOTLINE_ENGINE_STATE``.
breaker.py reads the first and goes on with the second. duplex itself logs nothing of a conversation.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from pathlib import Path

from launch import Lines, RunLog, is_ready, says_phase  # beside this file


def main(arguments: list[str]) -> None:
    """Note down that it loads, then become ``python -m duplex`` with these arguments."""
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
    sys.stdout = Lines(sys.__stdout__ or sys.stdout, lambda line: True, log)

    from duplex.__main__ import main as serve  # noqa: PLC0415 - an import that fails is noted down too

    serve(arguments, ready=ready)


if __name__ == "__main__":
    main(sys.argv[1:])
