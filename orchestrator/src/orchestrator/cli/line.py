"""How a command reaches the line: on the node itself, elsewhere with a URL and a token, or through ssh."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
import typer

EXIT_REFUSED = 1
"""The line said no, or there is no such thing."""
EXIT_UNREACHABLE = 69  # sysexits.h EX_UNAVAILABLE
EXIT_CONFIGURATION = 78  # sysexits.h EX_CONFIG
SETTINGS = Path("/etc/hotline/hotline.env")
SECRETS = Path("/etc/hotline/secrets/orchestrator.env")


def fail(words: str, code: int) -> NoReturn:
    """End with a sentence on standard error."""
    typer.echo(f"hotline: {words}", err=True)
    raise typer.Exit(code)


def environment_in(path: Path) -> dict[str, str]:
    """Read NAME="value" lines. Raises OSError."""
    found = re.findall(r'(?m)^([A-Z_]+)="(.*)"$', path.read_text())
    return {name: value.replace('\\"', '"').replace("\\\\", "\\") for name, value in found}


@dataclass
class Line:
    """One line, as the global options describe it; the typer context carries it to each command."""

    url: str = ""
    token: str = ""
    ca: str = ""
    as_json: bool = False
    transport: httpx.BaseTransport | None = None
    _client: httpx.Client | None = field(default=None, repr=False)

    def client(self) -> httpx.Client:
        """Return a client with the operator's token."""
        if self._client is None:
            url, token = self.url, self.token
            if not url or not token:
                try:
                    url = url or f"http://127.0.0.1:{environment_in(SETTINGS)['LINE_ORCHESTRATOR_PORT']}"
                    token = token or environment_in(SECRETS)["ORCHESTRATOR_OPERATOR_TOKEN"]
                except PermissionError as error:
                    fail(f"{error.filename} is root's alone. Mend: sudo hotline …", EXIT_CONFIGURATION)
                except (OSError, KeyError):
                    fail(
                        "this machine is no node of a line. Mend: hotline --ssh root@NODE …, or set "
                        "HOTLINE_URL and HOTLINE_TOKEN (the token stands on the node, in "
                        "/etc/hotline/secrets/orchestrator.env)",
                        EXIT_CONFIGURATION,
                    )
            self._client = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {token}"},
                verify=self.ca or True,
                timeout=15,
                transport=self.transport,
            )
        return self._client

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, also: tuple[int, ...] = ()
    ) -> Any:
        """Ask the line; return what its JSON says. ``also`` are statuses that are no refusal here."""
        try:
            answered = self.client().request(method, path, json=body)
        except httpx.HTTPError as error:
            fail(
                f"the line does not answer: {error}. Mend: on the node, hotline logs orchestrator",
                EXIT_UNREACHABLE,
            )
        if answered.is_error and answered.status_code not in also:
            try:
                words = answered.json()["detail"]
            except (ValueError, KeyError, TypeError):
                words = f"it answered {answered.status_code}"
            fail(str(words), EXIT_REFUSED)
        return answered.json() if answered.content else None

    def show(self, found: Any, write: Callable[[Any], None]) -> None:
        """Print what was found: as JSON for programs, else as ``write`` has it."""
        if self.as_json:
            typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        else:
            write(found)


def table(rows: list[list[str]], heading: list[str]) -> None:
    """Print rows under a heading, in columns."""
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    for row in [heading, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def through_ssh(where: str, arguments: list[str]) -> NoReturn:
    """Run the same command on a node. Its token never leaves that machine."""
    command = [
        "ssh",
        *(["-t"] if sys.stdout.isatty() else []),
        *shlex.split(where),
        "hotline",
        *map(shlex.quote, arguments),
    ]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
