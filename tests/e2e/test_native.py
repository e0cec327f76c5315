"""kyutai's own client, as it is installed with moshi, calls the line with a ticket; a ticket is good once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import Line
from .test_trouble import chat

# In the place of a sound card, which a host does not have: a microphone that hums and a loudspeaker that
# counts, both on a clock of their own. The interface is sounddevice's, as far as moshi.client uses it.
SOUND = """
import pathlib, threading, time
import numpy as np

class Stream:
    def __init__(self, samplerate, channels, blocksize, callback):
        self.period, self.shape, self.callback = blocksize / samplerate, (blocksize, channels), callback
        self.over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.run, daemon=True).start()

    def __exit__(self, *_):
        self.over.set()

    def run(self):
        due = time.monotonic()
        while not self.over.wait(max(0, due - time.monotonic())):
            due += self.period
            self.block()

class InputStream(Stream):
    def block(self):
        hum = np.sin(np.arange(self.shape[0]) * 0.05) * 0.2
        self.callback(np.tile(hum[:, None], self.shape[1]).astype(np.float32), self.shape[0], None, None)

class OutputStream(Stream):
    heard = 0

    def block(self):
        out = np.zeros(self.shape, np.float32)
        self.callback(out, self.shape[0], None, None)
        self.heard += bool(np.abs(out).max() > 0.001)
        pathlib.Path("/run/native/heard").write_text(str(self.heard))
"""


def within(seconds: float, what: str, happens: Callable[[], Any]) -> Any:
    """Wait until something is so; what it is then."""
    deadline = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return found


@pytest.fixture
def sound_card(line: Line) -> Iterator[None]:
    """Something that moshi.client takes for the host's sound card."""
    line.await_health("ok")
    line.run(f"mkdir -p /run/native; cat >/run/native/sounddevice.py <<'END'{SOUND}END")
    yield
    line.run("systemctl stop native; rm -r /run/native", check=False)


def test_kyutais_own_client_calls_and_is_hung_up(line: Line, sound_card: None) -> None:
    # What docs/orchestrator.md tells one to type; the authority is the line's own.
    command = 'python -m moshi.client --url "$(hotline ticket)" >/run/native/said 2>&1'
    line.run(
        "systemd-run -q --collect --unit=native --setenv=PYTHONPATH=/run/native --setenv=OMP_NUM_THREADS=1 "
        "--setenv=SSL_CERT_FILE=/etc/hotline/tls/ca.pem "
        f"--setenv=PATH=/opt/hotline/moshi/venv/bin:/usr/local/bin:/usr/bin:/bin sh -c '{command}'"
    )

    def talks() -> Any:
        live = line.hotline("calls", "--live")
        return next((c for c in live if (c["through"], c["state"]) == ("ticket", "talking")), None)

    try:
        call = within(60, "no call through a ticket", talks)
        within(
            30,
            "nothing is heard",
            lambda: int(line.run("cat /run/native/heard", check=False).strip() or 0) >= 25,
        )
    except AssertionError:
        print(line.run("cat /run/native/said; journalctl --no-pager -n 30 -u orchestrator", check=False))
        raise
    line.hotline("hangup", call["id"])
    within(20, "the client did not end", lambda: "All done!" in line.run("cat /run/native/said"))
    assert line.hotline("calls", call["id"])["reason"] == "operator"


def test_a_ticket_is_good_once(line: Line) -> None:
    line.await_health("ok")
    url = line.chat_url()
    first, _ = asyncio.run(chat(line, wait_s=2, url=url))
    assert first[0] == b"\x00"
    second, code = asyncio.run(chat(line, url=url))
    assert json.loads(second[0][1:])["code"] == "ticket_invalid"
    assert code == 1008
