"""Debian's Firefox as a caller, through WebDriver BiDi: a stock browser, and a microphone that hums.

Firefox keeps its sound suspended where there is no loudspeaker, so a PulseAudio of its own gives it one that
plays to nobody.

https://w3c.github.io/webdriver-bidi/ — as much of it as a call needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PREFERENCES = {
    # A microphone that plays a tone of 440 Hz, given to whoever asks.
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    # Nothing but the page.
    "app.normandy.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.enabled": False,
}
STARTS_S = 60
FIELD = """((name) => [...document.querySelectorAll('textarea, input')].find(
    (field) => (field.getAttribute('aria-label') ?? field.labels?.[0]?.innerText.trim()) === name))"""


def firefox() -> str:
    """Path of the browser."""
    path = shutil.which("firefox-esr") or shutil.which("firefox")
    assert path, "no Firefox on this machine; mend: apt-get install firefox-esr"
    return path


class Firefox:
    """One open page."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        """Errors that the page or the browser logged."""
        self.command("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        self.command("session.subscribe", events=["log.entryAdded"])
        self._context = self.command("browsingContext.getTree")["contexts"][0]["context"]

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command; its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.complaints.append(message["params"]["text"])
            if message.get("id") != self._number:
                continue
            assert message["type"] == "success", message
            return dict(message["result"])

    def before_each_page(self, script: str) -> None:
        """Have `script` run before a page's own."""
        function = f"() => {{ {script} }}"
        self.command("script.addPreloadScript", functionDeclaration=function, contexts=[self._context])

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression on the page, as JSON."""
        result = self.command(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then((value) => JSON.stringify(value) ?? 'null')",
            target={"context": self._context},
            awaitPromise=True,
        )
        assert result["type"] == "success", result
        return json.loads(result["result"]["value"])

    def press(self, name: str) -> None:
        """Press the button of that name with a real click: browsers give sound only then."""
        places: list[list[int] | None] = [None]

        def stands() -> bool:
            places.append(self._place(name))
            return places[-1] is not None and places[-1] == places[-2]

        self.until(stands, 10, f"button {name!r} that can be pressed")
        place = places[-1]
        assert place
        pointer = [
            {"type": "pointerMove", "x": place[0], "y": place[1]},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self.command(
            "input.performActions",
            context=self._context,
            actions=[{"type": "pointer", "id": "hand", "actions": pointer}],
        )

    def _place(self, name: str) -> list[int] | None:
        """Where that button is, if a pointer meets it there."""
        found: list[int] | None = self.evaluate(
            f"""(() => {{
                const button = [...document.querySelectorAll('button')]
                    .find((b) => (b.ariaLabel ?? b.innerText.trim()) === {json.dumps(name)} && !b.disabled);
                if (!button) return null;
                button.scrollIntoView({{ block: 'center' }});
                const {{ x, y, width, height }} = button.getBoundingClientRect();
                const place = [Math.round(x + width / 2), Math.round(y + height / 2)];
                return button.contains(document.elementFromPoint(...place)) ? place : null;
            }})()"""
        )
        return found

    @property
    def text(self) -> str:
        """What can be read."""
        return str(self.evaluate("document.body.innerText"))

    @property
    def state(self) -> str:
        """The phase of the call."""
        return str(self.evaluate("document.querySelector('main')?.dataset.state ?? ''"))

    def number(self, name: str) -> float:
        """One of the page's numbers, as in driver.py."""
        value = self.evaluate(f"document.querySelector('main').getAttribute('data-{name}')")
        return float("nan") if value is None else float(value)

    def until_state(self, state: str, seconds: float = 20) -> None:
        """Wait for a phase of the call."""
        self.until(lambda: self.state == state, seconds, f"state {state!r}")

    def see(self, text: str, seconds: float = 10) -> None:
        """Wait until `text` can be read."""
        self.until(lambda: text in self.text, seconds, f"words {text!r}")

    def hear(self, frames: int, seconds: float = 20) -> None:
        """Wait until that many more frames of 80 ms have reached the ear."""
        before = self.number("frames-heard")
        self.until(lambda: self.number("frames-heard") >= before + frames, seconds, f"{frames} frames")

    def field(self, name: str) -> str:
        """What stands in a text field, found by its label."""
        return str(self.evaluate(f"{FIELD}({json.dumps(name)})?.value ?? ''"))

    def fill(self, name: str, text: str) -> None:
        """Write it there, as a hand does for a page: the field changes and says so."""
        self.evaluate(
            f"""(() => {{
                const field = {FIELD}({json.dumps(name)});
                field.value = {json.dumps(text)};
                field.dispatchEvent(new InputEvent('input', {{ bubbles: true }}));
            }})()"""
        )

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for `condition`; fails with `what` and what can be read."""
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, f"no {what} within {seconds} s: {self.text}"
            time.sleep(0.1)


@contextmanager
def running(profile: Path) -> Iterator[Firefox]:
    """Start a browser with a fresh profile in that folder."""
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    server = f"unix:{profile}/pulse.socket"
    pulse = subprocess.Popen(
        [
            *("pulseaudio", "-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1"),
            *("--disallow-exit", "--log-level=error"),
            *("-L", "module-null-sink sink_name=nobody"),
            *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={profile}/pulse.socket"),
        ],
        env=os.environ | {"HOME": str(profile), "XDG_RUNTIME_DIR": str(profile)},
        stderr=subprocess.DEVNULL,
    )
    (profile / "user.js").write_text("\n".join(lines) + "\n")
    browser = subprocess.Popen(
        [firefox(), "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"],
        env=os.environ | {"PULSE_SERVER": server},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert browser.stderr
        said = ""
        ends = time.monotonic() + STARTS_S
        while not (found := re.search(r"WebDriver BiDi listening on (ws://\S+)", said)):
            assert time.monotonic() < ends and browser.poll() is None, f"Firefox did not start: {said}"
            said += browser.stderr.readline()
        with connect(f"{found[1]}/session", max_size=None) as socket:
            yield Firefox(socket)
    finally:
        browser.terminate()
        browser.wait(20)
        pulse.terminate()
        pulse.wait(20)
        if browser.stderr:
            browser.stderr.close()
