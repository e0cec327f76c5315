"""hotline ask, questions, run, executions, cancel, notify: between agents and the person."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import typer

from orchestrator.cli.line import EXIT_REFUSED, Line, fail, table
from orchestrator.cli.links import day, seconds_of

EXIT_DECLINED = 2
"""The person declined, or nobody answered in time."""
EXIT_WAITING = 3
"""It goes on; look again later."""
WAIT_S = 10


def outcome(found: Any) -> None:
    """Print a question's answer alone, for scripts; what else there is goes to standard error."""
    if found["answer"] is not None:
        typer.echo(found["answer"])
    typer.echo(f"{found['id']}: {found['state']}", err=True)


def ask(  # noqa: PLR0917 - typer calls it
    context: typer.Context,
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    background: Annotated[str, typer.Option("--context", help="What the person must know to answer.")] = "",
    choice: Annotated[list[str] | None, typer.Option(help="An answer to choose from; repeat it.")] = None,
    expires: Annotated[str, typer.Option(help="Until when it is needed: 90m, 12h, 7d.")] = "1d",
    wait: Annotated[bool, typer.Option(help="Wait for the answer.")] = True,
    key: Annotated[str, typer.Option(help="The same key again is the same question.")] = "",
) -> None:
    """Ask the person, and print the answer. Ends with 2 when it is declined or too late, with 3 when open."""
    line: Line = context.obj
    body = {
        "question": question,
        "context": background,
        "choices": choice or [],
        "deadline_minutes": max(1, seconds_of(expires) // 60),
    }
    found = line.ask("POST", "/api/questions", body | ({"idempotency_key": key} if key else {}))
    while wait and found["state"] == "open":
        found = line.ask("GET", f"/api/questions/{found['id']}?wait_s={WAIT_S}")
    line.show(found, outcome)
    if found["state"] != "answered":
        raise typer.Exit(EXIT_WAITING if found["state"] == "open" else EXIT_DECLINED)


def questions(
    context: typer.Context,
    state: Annotated[str, typer.Option(help="open, answered, declined or expired.")] = "",
) -> None:
    """List the questions to the person, newest first."""
    line: Line = context.obj

    def write(found: Any) -> None:
        rows = [
            [q["id"], q["state"], q["asked_by"], day(q["asked_at"]), day(q["deadline"]), cut(q["question"])]
            for q in found
        ]
        table(rows, ["QUESTION", "STATE", "BY", "ASKED (UTC)", "UNTIL (UTC)", "TEXT"])

    line.show(line.ask("GET", f"/api/questions{f'?state={state}' if state else ''}"), write)


def cut(text: str, length: int = 60) -> str:
    """Show the beginning of a text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def run(
    context: typer.Context,
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION")],
    agent: Annotated[str, typer.Option(help="command or openclaw; the line's first unless given.")] = "",
    key: Annotated[str, typer.Option(help="The same key again is the same execution.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for its end.")] = True,
) -> None:
    """Have the agent carry out an instruction, and print what comes of it."""
    line: Line = context.obj
    body = {"instruction": instruction, "idempotency_key": key or str(uuid.uuid4())}
    found = line.ask("POST", "/api/executions", body | ({"agent": agent} if agent else {}))
    typer.echo(f"{found['id']}: {found['state']}", err=True)
    while wait and found["ended_at"] is None:
        time.sleep(1)
        found = line.ask("GET", f"/api/executions/{found['id']}")
    line.show(found, lambda f: typer.echo(f["result"] or f["error"] or f["state"]))
    if found["state"] != "completed":
        raise typer.Exit(EXIT_WAITING if found["ended_at"] is None else EXIT_REFUSED)


def executions(
    context: typer.Context,
    execution: Annotated[
        str | None, typer.Argument(metavar="[EXECUTION]", help="One, with what its agent was told and said.")
    ] = None,
    state: Annotated[str, typer.Option(help="Only those in this state.")] = "",
) -> None:
    """List what agents carry out, newest first, or show one."""
    line: Line = context.obj
    if execution is not None:
        line.show(line.ask("GET", f"/api/executions/{execution}"), whole)
        return

    def write(found: Any) -> None:
        rows = [[e["id"], e["state"], e["agent"], day(e["made_at"]), cut(e["instruction"])] for e in found]
        table(rows, ["EXECUTION", "STATE", "AGENT", "SINCE (UTC)", "INSTRUCTION"])

    line.show(line.ask("GET", f"/api/executions{f'?state={state}' if state else ''}"), write)


def whole(found: Any) -> None:
    """Print one execution."""
    for name in ("id", "state", "agent", "asked_by", "made_at", "ended_at", "question_id", "error"):
        typer.echo(f"{name:<12} {'' if found[name] is None else found[name]}")
    for turn in found["turns"]:
        typer.echo(f"\n--- told {turn['number']}, attempts {turn['attempts']}\n{turn['text']}")
        typer.echo(f"--- said\n{turn['output'] if turn['output'] is not None else '(not yet)'}")


def cancel(context: typer.Context, execution: Annotated[str, typer.Argument(metavar="EXECUTION")]) -> None:
    """End an execution, with its agent and its question."""
    line: Line = context.obj
    found = line.ask("POST", f"/api/executions/{execution}/cancel")
    line.show(found, lambda f: typer.echo(f"{f['id']} is {f['state']}"))


def notify(
    context: typer.Context,
    test: Annotated[bool, typer.Option("--test", help="Send a test through every service.")] = False,
) -> None:
    """List the messages to the person and what became of them, or send a test."""
    line: Line = context.obj
    if test:
        tried = line.ask("POST", "/api/notifications/test")
        line.show(tried, lambda found: typer.echo("\n".join(map(result_of, found))))
        if not any(one["sent"] for one in tried):
            fail("no service took the test. Mend: docs/notifications.md", EXIT_REFUSED)
        return

    def write(found: Any) -> None:
        rows = [
            [
                day(n["made_at"]),
                n["kind"],
                n["state"],
                n["delivered_by"] or "",
                str(n["attempts"]),
                "; ".join(f"{name}: {one['why']}" for name, one in n["refusals"].items()),
            ]
            for n in found
        ]
        table(rows, ["MADE (UTC)", "ABOUT", "STATE", "BY", "TRIED", "REFUSED"])

    line.show(line.ask("GET", "/api/notifications"), write)


def result_of(tried: Any) -> str:
    """Say what one service made of the test."""
    return f"{tried['sender']}: {'sent' if tried['sent'] else tried['why']}"


COMMANDS = (ask, questions, run, executions, cancel, notify)
