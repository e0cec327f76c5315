"""What every role keeps: specs that equal its defaults, phases with one tag each, a README made from them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(p.parent.parent.name for p in ROOT.glob("roles/*/tasks/main.yml"))


def read(role: str, part: str) -> Any:
    """One YAML file of a role; empty when it has none."""
    path = ROOT / "roles" / role / part
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_say_what_the_defaults_say(role: str) -> None:
    options = read(role, "meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
    defaults = read(role, "defaults/main.yml")
    assert set(options) == set(defaults)
    for name, option in options.items():
        assert option.get("description"), f"{name} has no line of why"
        assert option.get("type"), f"{name} has no type"
        if "default" in option:
            assert option["default"] == defaults[name], f"{name}: spec and default differ"
        else:
            assert defaults[name] in (None, "", [], {}), f"{name} has a default that its spec does not tell"


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_roles_name(role: str) -> None:
    assert [n for n in read(role, "defaults/main.yml") if not n.startswith(f"{role}_")] == []
    assert [n for n in read(role, "vars/main.yml") if not n.startswith(f"_{role}_")] == []


@pytest.mark.parametrize("role", [r for r in ROLES if r not in ("service", "python_venv")])
def test_main_is_a_table_of_contents(role: str) -> None:
    """Phases, each a file with one tag; a first phase that looks also runs for those that need it."""
    for place, task in enumerate(read(role, "tasks/main.yml")):
        imported = task.get("ansible.builtin.import_tasks")
        assert imported, f"{task.get('name')} does something: main.yml only lists phases"
        tags = task.get("tags", [])
        assert tags, f"{task['name']} has no tag"
        assert len(tags) == 1 or place == 0, f"{task['name']}: one tag a phase"
        assert all(re.fullmatch(rf"{role}_[a-z]+", tag) for tag in tags)


@pytest.mark.parametrize("role", ROLES)
def test_no_fault_is_swallowed(role: str) -> None:
    for path in (ROOT / "roles" / role).rglob("*.yml"):
        if "node_modules" not in path.parts:
            assert "ignore_errors" not in path.read_text(), path


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_tried_on_a_host(role: str) -> None:
    assert (ROOT / "roles" / role / "molecule/default/molecule.yml").exists()
    assert list((ROOT / "roles" / role / "molecule/default/tests").glob("test_*.py"))


def test_only_the_internal_role_knows_what_keeps_services() -> None:
    """systemd and supervisord are two backends of one role."""
    knows = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("roles/*/tasks/*.yml")
        if re.search(
            r"systemd_service:|ansible\.builtin\.systemd:|\bsystemctl\b|\bjournalctl\b|supervis",
            path.read_text(),
        )
        and path.parts[-3] != "service"
    ]
    assert knows == []


def test_role_readmes_are_those_that_the_specs_make() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "scripts/role-readmes"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_uninstalling_asks_every_role_of_the_line() -> None:
    """In the opposite order of site.yml, but for the role whose folders hold what the others leave."""
    [site] = yaml.safe_load((ROOT / "site.yml").read_text())
    installs = [entry["role"] for entry in site["roles"]]
    [uninstall] = yaml.safe_load((ROOT / "playbooks/uninstall.yml").read_text())
    [asked] = [task["loop"] for task in uninstall["tasks"] if "loop" in task]
    assert asked == [role for role in reversed(installs) if role != "line"] + ["line"]
    for role in asked:
        assert (ROOT / "roles" / role / "tasks/uninstall.yml").is_file(), role
