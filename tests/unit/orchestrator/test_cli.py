"""`hotline`: what the operator types, against the real application on a real port."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from orchestrator.app import create_app
from orchestrator.cli import GROUPS, app, main
from orchestrator.cli.line import Line, environment_in
from orchestrator.cli.links import seconds_of
from orchestrator.line import Surroundings
from typer.testing import CliRunner

from .conftest import OPERATOR, TOKENS, Kernel, serving, settings


@pytest.fixture
def closed(surroundings: Surroundings) -> Any:
    return create_app(settings(line_access="links", **TOKENS), surroundings)


async def typed(port: int, *words: str, token: str = OPERATOR) -> Any:
    line = Line(f"http://127.0.0.1:{port}", token)
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), obj=line)


async def test_a_link_is_made_shown_once_listed_and_revoked(closed: Any) -> None:
    async with serving(closed) as port:
        made = await typed(port, "link", "--uses", "2", "--expires", "12h", "--note", "for Ada")
        assert made.exit_code == 0, made.output
        url = made.stdout.splitlines()[0]
        assert url.startswith("https://line.example.org:8998/#t=")
        assert "█" in made.stdout  # the QR code
        [listed] = json.loads((await typed(port, "--json", "links")).stdout)
        assert (listed["uses"], listed["note"], listed["state"]) == (2, "for Ada", "open")
        assert url not in (await typed(port, "links")).stdout
        assert (await typed(port, "revoke", listed["id"])).exit_code == 0
        assert "revoked" in (await typed(port, "links")).stdout


async def test_calls_are_listed_shown_hung_up_and_forgotten(closed: Any) -> None:
    async with serving(closed) as port:
        ticket = json.loads((await typed(port, "--json", "ticket")).stdout)
        call = ticket["call_id"]
        assert ticket["url"].startswith("wss://line.example.org:8998/api/chat?ticket=")
        await asyncio.sleep(0.1)
        assert call in (await typed(port, "calls", "--live")).stdout
        assert (await typed(port, "hangup", call)).exit_code == 0
        await asyncio.sleep(0.1)
        assert "operator" in (await typed(port, "calls", call)).stdout
        assert (await typed(port, "forget", call)).exit_code == 0
        assert call not in (await typed(port, "calls")).stdout


async def test_status_ends_with_1_when_the_line_is_not_well(closed: Any, kernel: Kernel) -> None:
    async with serving(closed) as port:
        found = await typed(port, "status")
        assert found.exit_code == 1
        assert "unhealthy" in found.stdout
        assert "0 talking" in found.stdout


async def test_what_goes_wrong_is_one_sentence_and_a_code(closed: Any) -> None:
    async with serving(closed) as port:
        for words, token, code, said in (
            (("revoke", "link_none"), OPERATOR, 1, "There is no such link"),
            (("links",), "x" * 43, 1, "This key opens nothing"),
            (("link", "--expires", "soon"), OPERATOR, 2, "Mend: 90m, 12h"),
        ):
            done = await typed(port, *words, token=token)
            assert done.exit_code == code, words
            assert said in done.stderr
            assert token not in done.output
    gone = await typed(port, "links")
    assert gone.exit_code == 69
    assert "hotline logs orchestrator" in gone.stderr


def test_a_machine_without_a_line_is_told_how_to_reach_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("orchestrator.cli.line.SETTINGS", tmp_path / "none.env")
    done = CliRunner().invoke(app, ["links"], obj=Line())
    assert done.exit_code == 78
    assert "hotline --ssh root@NODE" in done.stderr


def test_the_same_command_runs_on_a_node_through_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    class Done:
        returncode = 3

    monkeypatch.setattr("subprocess.run", lambda command, check: given.append(command) or Done)
    monkeypatch.setattr(
        "sys.argv", ["hotline", "--ssh", "-p 22 root@node", "--json", "link", "--note", "a b"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    [command] = given
    assert command[-6:] == ["root@node", "hotline", "--json", "link", "--note", "'a b'"]


def test_every_command_says_what_it_does() -> None:
    said = CliRunner().invoke(app, ["--help"]).stdout
    for group in GROUPS:
        for command in group.COMMANDS:
            assert command.__name__ in said
            assert command.__doc__


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600)]
)
def test_times_are_read(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def test_environment_files_are_read_as_the_role_writes_them(tmp_path: Any) -> None:
    file = tmp_path / "x.env"
    file.write_text('# Ansible managed\nA="1"\nB_C="a \\"b\\" \\\\ c"\n')
    assert environment_in(file) == {"A": "1", "B_C": 'a "b" \\ c'}


@pytest.mark.parametrize(
    ("booted", "words", "command"),
    [
        (True, ["restart", "moshi@0"], ["systemctl", "restart", "moshi@0"]),
        (False, ["stop", "moshi@0"], ["supervised", "stop", "moshi@0"]),
        (
            True,
            ["logs", "nginx", "-n", "5"],
            ["journalctl", "--no-pager", "--unit=nginx", "--unit=nginx@*", "--lines=5"],
        ),
        (False, ["logs", "moshi@0", "-f"], ["tail", "--lines=50", "--follow=name", "{logs}/moshi@0.log"]),
    ],
)
def test_a_units_commands_are_the_same_with_and_without_systemd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, booted: bool, words: list[str], command: list[str]
) -> None:
    given: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr("subprocess.run", lambda command, check: given.append(command) or Done)
    monkeypatch.setattr("orchestrator.cli.node.BOOTED", tmp_path if booted else tmp_path / "none")
    monkeypatch.setattr("orchestrator.cli.node.LOGS", tmp_path)
    assert CliRunner().invoke(app, words, obj=Line()).exit_code == 0
    assert given == [[word.format(logs=tmp_path) for word in command]]
