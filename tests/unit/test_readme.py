"""What README and documents tell a reader to type or to open is there (what it does is tested elsewhere)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "caller/README.md"]


def commands(page: Path) -> list[str]:
    """Every line of an indented block that begins like a command."""
    lines = [line[4:] for line in page.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if re.match(r"(make|ansible-playbook|python -m|scripts/|cp) ", line)]


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_place_was_left_to_be_filled_in(page: Path) -> None:
    assert not re.search(r"@[A-Z]+@|TODO|FIXME|TBD", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("page", "command"), ALL, ids=[command for _, command in ALL])
def test_every_command_names_what_exists(page: Path, command: str) -> None:
    words = re.split(r"#|&&", command)[0].split()
    if words[0] == "make":
        targets = re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text())
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "ansible-playbook":
        assert (ROOT / words[1]).is_file(), words[1]
    elif words[:2] == ["python", "-m"] and not words[2].startswith("moshi."):  # kyutai's own
        package = ROOT / words[2].replace(".", "/")
        assert package.with_suffix(".py").is_file() or (package / "__main__.py").is_file(), words[2]
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file()
    elif words[0] == "cp":
        assert (ROOT / words[1]).is_file()


def test_make_help_lists_every_target_with_what_it_is_for() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "demo-stop", "test", "lint", "unit", "molecule", "e2e"):
        assert re.search(rf"(?m)^{target} +\S", said), target
