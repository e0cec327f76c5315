"""``hotline``, the operator's command: on the node, and from anywhere through ssh or with a token.

A group of commands is a module with a tuple ``COMMANDS`` of functions; to add one, add it to `GROUPS`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli import asking, calls, links, node
from orchestrator.cli.line import Line, through_ssh

GROUPS = (node, links, calls, asking)

app = typer.Typer(
    name="hotline",
    help="Look after a voice line: who gets in, who talks, how it is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(  # noqa: PLR0917 - typer calls it
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="HOTLINE_URL", help="The line, from elsewhere.")] = "",
    token: Annotated[
        str, typer.Option(envvar="HOTLINE_TOKEN", help="The operator's token; better in the environment.")
    ] = "",
    ca: Annotated[str, typer.Option(envvar="HOTLINE_CA", help="A PEM file to trust.")] = "",
    ssh: Annotated[
        str, typer.Option(envvar="HOTLINE_SSH", help="Run on this node instead, as ssh is told it.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Reach the line."""
    if ssh:
        rest = [one for one in sys.argv[1:] if not one.startswith("--ssh=")]
        if "--ssh" in rest:
            at = rest.index("--ssh")
            rest = rest[:at] + rest[at + 2 :]
        through_ssh(ssh, rest)
    context.obj = context.obj or Line(url.rstrip("/"), token, ca, as_json)
    context.obj.as_json = as_json


for group in GROUPS:
    for command in group.COMMANDS:
        app.command()(command)


def main() -> None:
    """Run it."""
    app(prog_name="hotline")


if __name__ == "__main__":
    main()
