"""hotline calls, hangup, forget: who talks, and who talked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.line import Line, table
from orchestrator.cli.links import day


def calls(
    context: typer.Context,
    call_id: Annotated[
        str | None, typer.Argument(metavar="[CALL]", help="One call, with what was said.")
    ] = None,
    live: Annotated[bool, typer.Option(help="Only those that wait or talk.")] = False,
) -> None:
    """List calls, newest first, or show one with its transcript."""
    line: Line = context.obj
    if call_id is not None:
        line.show(line.ask("GET", f"/api/calls/{call_id}"), one)
        return
    found = line.ask("GET", f"/api/calls?live={'true' if live else 'false'}")

    def write(found: Any) -> None:
        rows = [
            [
                c["id"],
                c["state"],
                day(c["asked_at"]),
                c["reason"] or "",
                "" if c["engine"] is None else f"moshi@{c['engine']}",
                c["through"],
            ]
            for c in found
        ]
        table(rows, ["CALL", "STATE", "ASKED (UTC)", "ENDED BY", "ENGINE", "THROUGH"])

    line.show(found, write)


def one(found: Any) -> None:
    """Print one call."""
    for name in ("id", "state", "reason", "engine", "voice", "asked_at", "began_at", "ended_at", "latency"):
        typer.echo(f"{name:<9} {'' if found[name] is None else found[name]}")
    for said in found["transcript"]:
        at = "" if said["start_ms"] is None else f"{said['start_ms'] / 1000:8.1f} s"
        typer.echo(f"{at:>10}  {said['who']:<7} {said['text']}")


def hangup(context: typer.Context, call_id: Annotated[str, typer.Argument(metavar="CALL")]) -> None:
    """End a call, or send somebody away who waits."""
    line: Line = context.obj
    line.ask("DELETE", f"/api/calls/{call_id}")
    line.show({"id": call_id}, lambda _: typer.echo(f"{call_id} is hung up"))


def forget(context: typer.Context, call_id: Annotated[str, typer.Argument(metavar="CALL")]) -> None:
    """Delete what is remembered of a call, transcript and all."""
    line: Line = context.obj
    line.ask("DELETE", f"/api/calls/{call_id}/record")
    line.show({"id": call_id}, lambda _: typer.echo(f"{call_id} is forgotten"))


COMMANDS = (calls, hangup, forget)
