"""hotline status, logs, start, stop, restart: how the line is, and its units on this node.

Units are systemd's, or supervised.py's (role ``service``) where PID 1 is not systemd; the commands are the
same.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.line import EXIT_REFUSED, Line

BOOTED = Path("/run/systemd/system")  # there if systemd is PID 1: sd_booted(3)
LOGS = Path("/var/log/hotline")

Unit = Annotated[str, typer.Argument(help="orchestrator, moshi@0, nginx …")]


def status(context: typer.Context) -> None:
    """Say how every part of the line is; ends with 1 when it is not well."""
    line: Line = context.obj
    found = line.ask("GET", "/health/deep", also=(503,))
    found["calls"] = [c for c in line.ask("GET", "/api/calls?live=true") if c["state"] != "ended"]

    def write(found: Any) -> None:
        typer.echo(f"{found['status']}, version {found['version']}")
        for name, check in found["checks"].items():
            typer.echo(f"  {name:<9} {check['status']:<10} {check['detail']}")
        talking = sum(call["state"] == "talking" for call in found["calls"])
        typer.echo(
            f"  {'calls':<9} {talking} talking, {len(found['calls']) - talking} waiting or on their way"
        )

    line.show(found, write)
    if found["status"] not in ("ok", "degraded"):
        raise typer.Exit(EXIT_REFUSED)


def on_this_node(command: list[str]) -> None:
    """Run a command of the node's; end as it ends."""
    try:
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    except FileNotFoundError:
        typer.echo("hotline: no line is on this machine. Mend: hotline --ssh root@NODE …", err=True)
        raise typer.Exit(EXIT_REFUSED) from None


def logs(
    unit: Unit = "orchestrator",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
) -> None:
    """Show what a unit wrote on this node."""
    if BOOTED.exists() or not LOGS.exists():
        on_this_node(
            [
                "journalctl",
                "--no-pager",
                f"--unit={unit}",
                f"--unit={unit}@*",  # hotline-agent: one for each turn
                f"--lines={lines}",
                *(["--follow"] if follow else []),
            ]
        )
    name = unit.removesuffix(".service")
    on_this_node(["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), f"{LOGS}/{name}.log"])


def manage(verb: str, unit: str) -> None:
    """Have the node's service manager do it."""
    on_this_node(["systemctl", verb, unit] if BOOTED.exists() else ["supervised", verb, unit])


def start(unit: Unit) -> None:
    """Start a unit of this node."""
    manage("start", unit)


def stop(unit: Unit) -> None:
    """Stop a unit of this node until somebody starts it or the node boots."""
    manage("stop", unit)


def restart(unit: Unit) -> None:
    """Stop and start a unit of this node."""
    manage("restart", unit)


COMMANDS = (status, logs, start, stop, restart)
