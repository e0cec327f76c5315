"""hotline status, logs: how the line is."""

from __future__ import annotations

import subprocess
from typing import Annotated, Any

import typer

from orchestrator.cli.line import EXIT_REFUSED, Line


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


def logs(
    unit: Annotated[str, typer.Argument(help="orchestrator, moshi@0, nginx …")] = "orchestrator",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
) -> None:
    """Show what a unit wrote into the journal of this node."""
    command = [
        "journalctl",
        "--no-pager",
        f"--unit={unit}",
        f"--lines={lines}",
        *(["--follow"] if follow else []),
    ]
    try:
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    except FileNotFoundError:
        typer.echo("hotline: there is no journal here. Mend: hotline --ssh root@NODE logs", err=True)
        raise typer.Exit(EXIT_REFUSED) from None


COMMANDS = (status, logs)
