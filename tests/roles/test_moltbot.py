"""What the agent wrote is never overwritten; schedules are declared once (roles/moltbot/files)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

FILES = Path(__file__).parents[2] / "roles/moltbot/files"


class Workspace:
    """What the role renders, and what the agent has."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.agents, self.state = folder / "ours", folder / "agents", folder / "placed.json"
        (self.ours / "skills").mkdir(parents=True)
        self.agents.mkdir()
        self.render(1)

    def render(self, version: int) -> None:
        (self.ours / "TOOLS.md").write_text(f"tools {version}")
        (self.ours / "skills/SKILL.md").write_text(f"skill {version}")

    def place(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, FILES / "place_files.py", self.ours, self.agents, self.state],
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(json.loads(done.stdout))

    def read(self, name: str) -> str:
        return (self.agents / name).read_text()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_files_are_placed_once_and_updated_while_nobody_touched_them(workspace: Workspace) -> None:
    assert workspace.place() == {"placed": ["TOOLS.md", "skills/SKILL.md"], "left": []}
    assert workspace.place() == {"placed": [], "left": []}
    workspace.render(2)
    assert workspace.place()["placed"] == ["TOOLS.md", "skills/SKILL.md"]
    assert workspace.read("skills/SKILL.md") == "skill 2"


def test_what_the_agent_wrote_stays(workspace: Workspace) -> None:
    workspace.place()
    (workspace.agents / "TOOLS.md").write_text("mine")
    workspace.render(2)
    assert workspace.place() == {"placed": ["skills/SKILL.md"], "left": ["TOOLS.md"]}
    workspace.render(3)
    assert workspace.place()["left"] == ["TOOLS.md"]
    assert workspace.read("TOOLS.md") == "mine"


def test_what_the_agent_removed_stays_away(workspace: Workspace) -> None:
    workspace.place()
    (workspace.agents / "TOOLS.md").unlink()
    assert workspace.place() == {"placed": [], "left": ["TOOLS.md"]}


def test_what_was_there_before_us_is_the_agents(workspace: Workspace) -> None:
    (workspace.agents / "TOOLS.md").write_text("older")
    assert workspace.place() == {"placed": ["skills/SKILL.md"], "left": ["TOOLS.md"]}
    workspace.state.unlink()
    assert workspace.place() == {"placed": [], "left": ["TOOLS.md"]}


OPENCLAW = """
import json, os, sys
from pathlib import Path
store = Path(os.environ["STORE"])
jobs = json.loads(store.read_text()) if store.exists() else []
_, what, *rest = sys.argv[1:]
if what == "list":
    print(json.dumps({"jobs": jobs}))
elif what == "add":
    announce = rest.pop() == "--announce"
    rest.remove("--json")
    o = dict(zip(rest[::2], rest[1::2]))
    jobs = [job for job in jobs if job.get("declarationKey") != o["--declaration-key"]]
    jobs.append({"id": "job-" + o["--name"], "declarationKey": o["--declaration-key"], "name": o["--name"],
                 "schedule": {"kind": "cron", "expr": o["--cron"], "tz": o["--tz"]},
                 "payload": {"kind": "agentTurn", "message": o["--message"]},
                 "delivery": {"mode": "announce", "to": o["--to"]} if announce else {"mode": "none"}})
    print("a word of warning\\n" + json.dumps(jobs[-1]))
elif what == "rm":
    jobs = [job for job in jobs if job["id"] != rest[0]]
    print(json.dumps({"removed": True}))
store.write_text(json.dumps(jobs))
"""


def declare(folder: Path, *schedules: dict[str, str]) -> dict[str, Any]:
    """Declare schedules to a stand-in of OpenClaw's command that answers as 2026.9.6 does."""
    (folder / "openclaw.py").write_text(OPENCLAW)
    done = subprocess.run(
        [sys.executable, FILES / "declare_schedules.py", sys.executable, folder / "openclaw.py"],
        input=json.dumps(schedules),
        env=os.environ | {"STORE": str(folder / "store")},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


EVENING = {
    "name": "evening",
    "cron": "0 20 * * *",
    "timezone": "Europe/Berlin",
    "message": "Say good night.",
    "to": "+4915112345",
}


def test_schedules_are_declared_once_changed_and_taken_back(tmp_path: Path) -> None:
    others = [{"id": "job-own", "name": "own"}, {"id": "h", "declarationKey": "heartbeat:main", "name": "h"}]
    (tmp_path / "store").write_text(json.dumps(others))
    assert declare(tmp_path, EVENING) == {"changed": ["evening"], "removed": []}
    assert declare(tmp_path, EVENING) == {"changed": [], "removed": []}
    later = EVENING | {"cron": "0 21 * * *"}
    assert declare(tmp_path, later) == {"changed": ["evening"], "removed": []}
    assert declare(tmp_path, later | {"to": ""}) == {"changed": ["evening"], "removed": []}
    assert declare(tmp_path, later | {"to": ""}) == {"changed": [], "removed": []}
    assert declare(tmp_path) == {"changed": [], "removed": ["evening"]}
    assert json.loads((tmp_path / "store").read_text()) == others


def test_its_command_has_the_gateways_environment_and_nothing_of_the_callers() -> None:
    """OpenClaw takes the LINE_… of a shell that has read hotline.env for settings of a messenger."""
    command = run_path(str(FILES / "openclaw"))
    text = '# made\nOPENCLAW_GATEWAY_TOKEN="a \\"token\\" \\\\ of $HOME"\nHOME="/var/lib/hotline/moltbot"\n'
    assert command["environment_of"](text) == {
        "OPENCLAW_GATEWAY_TOKEN": 'a "token" \\ of $HOME',
        "HOME": "/var/lib/hotline/moltbot",
    }


def test_the_lock_and_the_plugin_are_of_one_version() -> None:
    wanted = json.loads((FILES / "package.json").read_text())["dependencies"]["openclaw"]
    packages = json.loads((FILES / "package-lock.json").read_text())["packages"]
    assert packages["node_modules/openclaw"]["version"] == wanted
    digest, name = (FILES / "whatsapp.sha512").read_text().split()
    assert (len(digest), name) == (128, f"openclaw-whatsapp-{wanted}.tgz")
    unhashed = [k for k, v in packages.items() if k and "integrity" not in v and not v.get("inBundle")]
    assert unhashed == []
