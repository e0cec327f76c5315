"""hotline link, links, revoke, ticket: who gets in."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

import segno
import typer

from orchestrator.cli.line import Line, fail, table

SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(text: str) -> int:
    """Read 90m, 12h, 7d or 2w."""
    found = re.fullmatch(r"(\d{1,4})([mhdw])", text.strip())
    if found is None:
        fail(f"{text!r} is no time. Mend: 90m, 12h, 7d or 2w", 2)
    return int(found[1]) * SECONDS[found[2]]


def day(moment: str | None) -> str:
    """Show a moment, in UTC."""
    return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M") if moment else ""


def link(
    context: typer.Context,
    uses: Annotated[int, typer.Option(min=1, max=1000, help="How many browsers may open it.")] = 5,
    expires: Annotated[str, typer.Option(help="When it and its sessions end: 90m, 12h, 7d, 2w.")] = "7d",
    note: Annotated[str, typer.Option(help="For whom it is; shown in lists.")] = "",
    qr: Annotated[bool, typer.Option(help="Draw it for a phone's camera.")] = True,
) -> None:
    """Make a link: whoever has it may talk. It is shown once."""
    line: Line = context.obj
    made = line.ask("POST", "/api/links", {"uses": uses, "expires_in_s": seconds_of(expires), "note": note})

    def write(found: Any) -> None:
        typer.echo(found["url"])
        typer.echo(
            f"{found['id']}: opens {found['uses']} browsers until {day(found['expires_at'])} UTC", err=True
        )
        if qr:
            segno.make(found["url"], error="l").terminal(compact=True)

    line.show(made, write)


def links(context: typer.Context) -> None:
    """List the links: for what, until when, how often they still open."""
    line: Line = context.obj

    def write(found: Any) -> None:
        rows = [
            [
                one["id"],
                one["state"],
                one["purpose"],
                f"{one['uses_left']}/{one['uses']}",
                day(one["expires_at"]),
                one["note"],
            ]
            for one in found
        ]
        table(rows, ["LINK", "STATE", "FOR", "LEFT", "UNTIL (UTC)", "NOTE"])

    line.show(line.ask("GET", "/api/links"), write)


def revoke(context: typer.Context, link_id: Annotated[str, typer.Argument(metavar="LINK")]) -> None:
    """End a link, the sessions that it opened, and their calls."""
    line: Line = context.obj
    line.ask("DELETE", f"/api/links/{link_id}")
    line.show({"id": link_id, "state": "revoked"}, lambda _: typer.echo(f"{link_id} is revoked"))


def ticket(context: typer.Context) -> None:
    """Let one native client call within 30 s: python -m moshi.client --url "$(hotline ticket)"."""
    line: Line = context.obj
    line.show(line.ask("POST", "/api/tickets"), lambda found: typer.echo(found["url"]))


COMMANDS = (link, links, revoke, ticket)
