"""The role moshi fetches weights: from a stand-in hub on loopback, with all that goes wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roles.moshi.files import fetch_weights, serve_weights
from tests.roles.moshi_hub import Hub, Repository, running

PROGRAM = Path(fetch_weights.__file__)
BF16 = "kyutai/moshiko-pytorch-bf16"
Q8 = "kyutai/moshiko-pytorch-q8"
MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"


def noise(size: int, seed: str) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def bf16() -> Repository:
    return Repository(
        {
            "README.md": b"# a card\n",
            "config.json": json.dumps({"dim": 4096, "dep_q": 8, "n_q": 16}).encode(),
            "model.safetensors": noise(3_000_000, "model"),
            MIMI: noise(200_000, "mimi"),
            TOKENIZER: noise(50_000, "tokenizer"),
            "optimizer.bin": noise(10_000, "never needed"),
        }
    )


def q8() -> Repository:
    names = {
        "quantize": True,
        "moshi_name": "model.q8.safetensors",
        "mimi_name": f"hf://{BF16}/{MIMI}",
        "tokenizer_name": f"hf://{BF16}/{TOKENIZER}",
    }
    return Repository(
        {"config.json": json.dumps(names).encode(), "model.q8.safetensors": noise(1_500_000, "q8")}
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running({BF16: bf16(), Q8: q8()}) as hub:
        yield hub


class Waits(list[float]):
    """Takes the place of time.sleep and notes how long it would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(fetch_weights, "CHUNK", 64 * 1024)
    return waits


def fetch(  # noqa: PLR0917
    models: Path,
    hub: Hub,
    waits: Waits,
    repository: str = BF16,
    revision: str = "main",
    token: str = "",
    update: bool = False,
) -> Path:
    """One run, as main() does it; returns the record."""
    models.mkdir(exist_ok=True)
    to = fetch_weights.Hub(hub.url, token, fetch_weights.Progress(models), pause=waits)
    run = fetch_weights.Fetch(models, repository, revision, to, update)
    return (None if update else run.record_if_complete()) or run.run()


def assert_whole(models: Path, record: Path, hub: Hub) -> None:
    """Every file of the record is what its repository holds, and nothing unfinished lies around."""
    entries = json.loads(record.read_text())["files"]
    assert {"moshi_weight", "mimi_weight", "tokenizer"} <= set(entries)
    for entry in entries.values():
        path = models / entry["path"]
        assert path.read_bytes() == hub.repositories[entry["repository"]].files[path.name]
        assert entry["commit"] == hub.repositories[entry["repository"]].commit
    assert not list(models.rglob("*.part"))


# ------------------------------------------------------------------------------------------------- what is
# fetched, and once


def test_the_revision_becomes_the_hubs_commit_and_is_written_down(
    tmp_path: Path, hub: Hub, waits: Waits
) -> None:
    record = fetch(tmp_path, hub, waits)
    commit = hub.repositories[BF16].commit
    assert json.loads(record.read_text())["commit"] == commit
    assert record.parent.name == f"kyutai--moshiko-pytorch-bf16@{commit}"
    assert json.loads((tmp_path / "resolved.json").read_text())[f"{BF16}@main"]["commit"] == commit
    assert_whole(tmp_path, record, hub)


def test_only_what_the_model_needs_is_fetched(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    fetch(tmp_path, hub, waits)
    assert not hub.asked_for("optimizer.bin")
    assert len(hub.asked_for("model.safetensors")) == 1


def test_a_q8_repository_takes_mimi_and_tokenizer_from_where_it_points(
    tmp_path: Path, hub: Hub, waits: Waits
) -> None:
    record = fetch(tmp_path, hub, waits, Q8)
    files = json.loads(record.read_text())["files"]
    assert files["moshi_weight"]["repository"] == Q8
    assert files["mimi_weight"]["repository"] == files["tokenizer"]["repository"] == BF16
    assert_whole(tmp_path, record, hub)
    assert not hub.asked_for("model.safetensors")


def test_a_second_run_asks_nobody(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    record = fetch(tmp_path, hub, waits, Q8)
    hub.asked.clear()
    assert fetch(tmp_path, hub, waits, Q8) == record
    assert not hub.asked


def test_a_branch_that_moves_on_changes_nothing_until_told_to(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    first = fetch(tmp_path, hub, waits)
    moved = bf16()
    moved.files["model.safetensors"] = noise(2_000_000, "newer")
    hub.repositories[BF16] = Repository(moved.files)
    assert fetch(tmp_path, hub, waits) == first
    second = fetch(tmp_path, hub, waits, update=True)
    assert second != first
    assert_whole(tmp_path, second, hub)


def test_a_tag_is_resolved_like_a_branch(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.repositories[BF16].revision = "v1/stable"
    record = fetch(tmp_path, hub, waits, revision="v1/stable")
    assert_whole(tmp_path, record, hub)
    assert "/api/models/kyutai/moshiko-pytorch-bf16/revision/v1/stable?blobs=true" in [
        asked.path for asked in hub.asked
    ]


def test_a_repository_without_config_is_the_7b_of_old(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    del hub.repositories[BF16].files["config.json"]
    record = fetch(tmp_path, hub, waits)
    assert "config" not in json.loads(record.read_text())["files"]
    assert serve_weights.lay_out(tmp_path, record, {})
    assert json.loads((tmp_path / "serving/config.json").read_text())["num_layers"] == 32


# -------------------------------------------------------------------------------------- broken connections


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.faults["model.safetensors"] = ["break 1000000", "break 700000"]
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)
    first, second, third = hub.asked_for("model.safetensors")
    assert first.range is None
    assert second.range == "bytes=1000000-"
    assert third.range == "bytes=1700000-"


def test_a_run_that_was_ended_is_taken_up_by_the_next(
    tmp_path: Path, hub: Hub, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults["model.safetensors"] = ["break 2000000"]
    monkeypatch.setattr(fetch_weights, "TRIES", 1)
    with pytest.raises(fetch_weights.FetchError, match="run again: what was fetched is kept"):
        fetch(tmp_path, hub, waits)
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)
    assert hub.asked_for("model.safetensors")[-1].range == "bytes=2000000-"


def test_a_process_that_was_killed_is_taken_up_by_the_next(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    """kill -9 in the middle of the largest file, with the real program."""
    gate = threading.Event()
    hub.faults["model.safetensors"] = ["break 1048576", "silence"]
    command = [
        sys.executable,
        str(PROGRAM),
        "--models",
        str(tmp_path),
        "--repository",
        BF16,
        "--endpoint",
        hub.url,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "the connection broke" in line:
                process.kill()
                gate.set()
                break
    assert gate.is_set()
    assert next(iter(tmp_path.rglob("*.part"))).stat().st_size == 1048576
    hub.faults.clear()
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)
    assert hub.asked_for("model.safetensors")[-1].range == "bytes=1048576-"


def test_a_server_without_ranges_sends_it_all_again(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.ranges = False
    hub.faults["model.safetensors"] = ["break 1000000"]
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(breaks=st.lists(st.integers(0, 250_000), max_size=6), ranges=st.booleans())
def test_wherever_it_breaks_the_content_is_right(
    tmp_path_factory: pytest.TempPathFactory, hub: Hub, waits: Waits, breaks: list[int], ranges: bool
) -> None:
    hub.ranges = ranges
    hub.faults[MIMI] = [f"break {count}" for count in breaks]
    models = tmp_path_factory.mktemp("models")
    assert_whole(models, fetch(models, hub, waits), hub)


def test_a_silent_connection_counts_as_broken(
    tmp_path: Path, hub: Hub, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_weights, "SILENCE", 0.3)
    hub.faults["model.safetensors"] = ["silence"]
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)
    assert len(hub.asked_for("model.safetensors")) == 2


def test_the_hubs_own_pauses_are_kept(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.faults["model.safetensors"] = ["429 37", "503", "502", "500", "429 86400"]
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)
    assert waits == [37.0, 2.0, 4.0, 8.0, fetch_weights.LONGEST_PAUSE]


def test_a_hub_that_stays_down_is_named_with_what_to_check(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.faults["model.safetensors"] = ["503"] * 20
    with pytest.raises(fetch_weights.FetchError, match=r"answers 503.*HTTPS_PROXY.*moshi_hf_endpoint"):
        fetch(tmp_path, hub, waits)
    assert len(hub.asked_for("model.safetensors")) == fetch_weights.TRIES


def test_a_host_without_a_network_is_told_so(tmp_path: Path, waits: Waits) -> None:
    nowhere = Hub({}, port=9)  # discard: nothing listens there
    with pytest.raises(fetch_weights.FetchError, match=r"Connection refused.*name resolution, firewall"):
        fetch(tmp_path, nowhere, waits)


# ------------------------------------------------------------------------------------------ wrong contents


def test_wrong_content_is_thrown_away_and_fetched_again(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.faults["model.safetensors"] = ["wrong"]
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)


def test_content_that_stays_wrong_is_refused_and_nothing_of_it_kept(
    tmp_path: Path, hub: Hub, waits: Waits
) -> None:
    hub.faults["model.safetensors"] = ["wrong", "wrong"]
    with pytest.raises(
        fetch_weights.FetchError, match=r"another content than the hub states.*proxy or mirror"
    ):
        fetch(tmp_path, hub, waits)
    assert not list(tmp_path.rglob("model.safetensors*"))
    assert not list(tmp_path.rglob("record.json"))


def test_a_wrong_small_file_is_found_by_its_git_hash(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.faults["config.json"] = ["wrong", "wrong"]
    with pytest.raises(fetch_weights.FetchError, match=r"config\.json .*git-sha1"):
        fetch(tmp_path, hub, waits)


def test_a_file_cut_short_by_the_server_is_completed(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.faults["model.safetensors"] = ["short"]
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)


def test_a_file_damaged_on_the_disk_is_fetched_again(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    record = fetch(tmp_path, hub, waits)
    path = tmp_path / json.loads(record.read_text())["files"]["mimi_weight"]["path"]
    path.write_bytes(bytes(path.stat().st_size))
    hub.asked.clear()
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)
    assert hub.asked_for(MIMI)
    assert not hub.asked_for("model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "record.json"])
def test_a_file_that_was_deleted_is_fetched_again(tmp_path: Path, hub: Hub, waits: Waits, name: str) -> None:
    record = fetch(tmp_path, hub, waits)
    (record.parent / name).unlink()
    assert_whole(tmp_path, fetch(tmp_path, hub, waits), hub)


def test_a_file_that_was_only_touched_is_kept(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    record = fetch(tmp_path, hub, waits)
    os.utime(record.parent / "model.safetensors", (1, 1))
    hub.asked.clear()
    assert fetch(tmp_path, hub, waits) == record
    assert not hub.asked


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("moshi_name", "../../../etc/model.safetensors"),
        ("mimi_name", "/etc/mimi.safetensors"),
        ("tokenizer_name", "hf://kyutai/../tokenizer.model"),
        ("lora_name", "a\nb.safetensors"),
    ],
)
def test_names_that_leave_the_repository_are_refused(
    tmp_path: Path, hub: Hub, waits: Waits, key: str, name: str
) -> None:
    hub.repositories[BF16].files["config.json"] = json.dumps({key: name}).encode()
    with pytest.raises(fetch_weights.FetchError, match="Correct moshi_hf_repo"):
        fetch(tmp_path, hub, waits)


def test_weights_that_can_carry_code_are_refused(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.repositories[BF16].files["config.json"] = json.dumps({"moshi_name": "model.pt"}).encode()
    with pytest.raises(fetch_weights.FetchError, match="not a safetensors file"):
        fetch(tmp_path, hub, waits)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_broken_config_is_named(tmp_path: Path, hub: Hub, waits: Waits, content: bytes) -> None:
    hub.repositories[BF16].files["config.json"] = content
    with pytest.raises(fetch_weights.FetchError, match=r"config\.json of kyutai/moshiko-pytorch-bf16 is not"):
        fetch(tmp_path, hub, waits)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "wanted", "token", "mend"),
    [
        ({}, {"repository": "kyutai/nothing"}, "", "no repository kyutai/nothing at .*correct moshi_hf_repo"),
        ({}, {"repository": "kyutai/nothing"}, "hf_good", "no repository kyutai/nothing at"),
        ({}, {"revision": "v9"}, "", "no such revision.*moshi_revision"),
        ({"private": True}, {}, "", "or it is private.*moshi_hf_token"),
        (
            {"gated": True},
            {},
            "",
            "is gated: open http.*/kyutai/moshiko-pytorch-bf16 in a browser.*moshi_hf_token",
        ),
        ({}, {}, "hf_bad", "does not let this token read.*valid token"),
    ],
)
def test_a_refusal_says_what_mends_it(  # noqa: PLR0917
    tmp_path: Path,
    hub: Hub,
    waits: Waits,
    change: dict[str, Any],
    wanted: dict[str, Any],
    token: str,
    mend: str,
) -> None:
    for name, value in change.items():
        setattr(hub.repositories[BF16], name, value)
    with pytest.raises(fetch_weights.FetchError, match=f"(?s){mend}"):
        fetch(tmp_path, hub, waits, token=token, **wanted)
    assert not waits, "what cannot get better is not tried again"


def test_a_repository_for_another_engine_is_told_apart(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    hub.repositories["kyutai/moshiko-mlx-q4"] = Repository(
        {"model.q4.safetensors": b"x", "config.json": b"{}"}
    )
    with pytest.raises(fetch_weights.FetchError, match=r"no file model\.safetensors.*MLX"):
        fetch(tmp_path, hub, waits, "kyutai/moshiko-mlx-q4")


def test_a_token_opens_a_gated_repository_and_is_shown_to_the_hub_alone(
    tmp_path: Path, hub: Hub, waits: Waits
) -> None:
    hub.repositories[BF16].gated = True
    assert_whole(tmp_path, fetch(tmp_path, hub, waits, token="hf_good"), hub)
    assert {asked.authorization for asked in hub.asked if asked.path.startswith("/cdn/")} == {None}
    assert {asked.authorization for asked in hub.asked if not asked.path.startswith("/cdn/")} == {
        "Bearer hf_good"
    }


# ------------------------------------------------------------------------------------------------ the disk


def test_too_small_a_disk_is_refused_before_anything_large_is_fetched(
    tmp_path: Path, hub: Hub, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _free(1_000_000))
    with pytest.raises(
        fetch_weights.FetchError, match=r"3\.2 MB of weights .* 270\.7 MB are missing.*Make room"
    ):
        fetch(tmp_path, hub, waits)
    assert not hub.asked_for("model.safetensors")


def _free(count: int) -> Any:
    return type("Usage", (), {"free": count})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_is_named_and_the_next_run_goes_on(tmp_path: Path, hub: Hub) -> None:
    """A real full disk: other programs may take the room that was there at the beginning."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    # The early check is told a fairy tale, as it is when somebody fills the disk during the fetch.
    code = (
        "import sys, shutil, types; sys.path.insert(0, sys.argv.pop(1)); import fetch_weights\n"
        "shutil.disk_usage = lambda path: types.SimpleNamespace(free=1 << 40)\n"
        "sys.exit(fetch_weights.main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(PROGRAM.parent),
        "--models",
        str(disk),
        "--repository",
        BF16,
        "--endpoint",
        hub.url,
    ]
    try:
        full = subprocess.run(command, capture_output=True, text=True, check=False)
        assert full.returncode == 1
        assert full.stderr.splitlines()[-1] == (
            f"The disk under {disk} is full. Make room there, mount a larger disk there, or choose "
            f"moshi_quantization: q8; "
            f"then run again: what was fetched is kept."
        )
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert_whole(disk, Path(json.loads(again.stdout)["record"]), hub)
        assert hub.asked_for("model.safetensors")[-1].range is not None
    finally:
        subprocess.run(["umount", disk], check=True)


# --------------------------------------------------------------------------------------------- the program


def run_program(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**plain, **environment},
    )


def test_it_says_in_json_what_it_did(tmp_path: Path, hub: Hub) -> None:
    wanted = ("--models", tmp_path / "models", "--repository", Q8)
    plan = run_program(*wanted, "--plan", HF_ENDPOINT=hub.url)
    assert json.loads(plan.stdout) == {"complete": False, "changed": False, "record": None}
    assert not hub.asked, "a plan asks nobody"
    first = run_program(*wanted, HF_ENDPOINT=hub.url)
    said = json.loads(first.stdout)
    assert (said["complete"], said["changed"]) == (True, True)
    second = run_program(*wanted, HF_ENDPOINT="http://127.0.0.1:9")
    assert json.loads(second.stdout) == {**said, "changed": False}
    assert "verifying" in first.stderr
    assert json.loads((tmp_path / "models/progress.json").read_text())["state"] == "done"


def test_a_failure_is_one_sentence_and_status_1(tmp_path: Path, hub: Hub) -> None:
    failed = run_program("--models", tmp_path, "--repository", "kyutai/nothing", "--endpoint", hub.url)
    assert failed.returncode == 1
    assert "correct moshi_hf_repo" in failed.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "failed"
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--repository", "moshiko"], "correct moshi_hf_repo"),
        (["--repository", "../etc/passwd"], "correct moshi_hf_repo"),
        (["--repository", BF16, "--endpoint", "file:///etc"], "correct moshi_hf_endpoint"),
    ],
)
def test_what_is_no_repository_or_hub_is_refused(tmp_path: Path, arguments: list[str], says: str) -> None:
    refused = run_program("--models", tmp_path, *arguments)
    assert refused.returncode == 2
    assert says in refused.stderr


@pytest.mark.parametrize("from_file", [True, False])
def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, hub: Hub, from_file: bool) -> None:
    hub.repositories[BF16].private = True
    secret = tmp_path / "moshi-weights.env"
    secret.write_text("HF_TOKEN=hf_good\n")
    wanted = ("--models", tmp_path / "models", "--repository", BF16, "--endpoint", hub.url)
    done = (
        run_program(*wanted, "--token-file", secret)
        if from_file
        else run_program(*wanted, HF_TOKEN="hf_good")
    )
    assert done.returncode == 0, done.stderr
    assert "hf_good" not in done.stdout + done.stderr
    for path in (tmp_path / "models").rglob("*.json"):
        assert "hf_good" not in path.read_text()


def test_two_runs_at_a_time_wait_for_each_other(tmp_path: Path, hub: Hub) -> None:
    hub.faults["model.safetensors"] = ["silence"]
    command = [
        sys.executable,
        str(PROGRAM),
        "--models",
        str(tmp_path),
        "--repository",
        BF16,
        "--endpoint",
        hub.url,
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(json.loads(line)["changed"] for line in said) == [False, True]


def test_watching_ends_with_the_fetch_and_tells_how_far_it_is(tmp_path: Path, hub: Hub) -> None:
    progress = fetch_weights.Progress(tmp_path, clock=iter([0.0, 10.0, 10.0, 10.0, 10.0]).__next__)
    progress.begin(15_400_000_000, 0)
    progress.add(3_200_000_000, "model.safetensors")
    line = "model.safetensors: 3.2 GB of 15.4 GB (21 %), 320.0 MB/s, about 38 s left"
    assert run_program("--models", tmp_path, "--watch", "0.1").stdout == line + "\n"
    progress.tell("kyutai/x is complete and verified", "done")
    assert run_program("--models", tmp_path, "--watch", "600").stdout == "kyutai/x is complete and verified\n"


def test_an_unwritable_directory_is_named(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "models").write_text("a file")
    failed = run_program("--models", tmp_path / "models", "--repository", BF16, "--endpoint", hub.url)
    assert failed.returncode == 1
    assert "must be a directory of this host that root may write" in failed.stderr


def test_quota_counts_as_a_full_disk(tmp_path: Path) -> None:
    assert "is full" in fetch_weights.full_or(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path)


# ---------------------------------------------------------------------------------------------- laying out


def test_what_is_served_has_names_that_stay_and_points_at_local_files(
    tmp_path: Path, hub: Hub, waits: Waits
) -> None:
    record = fetch(tmp_path, hub, waits, Q8)
    assert serve_weights.lay_out(tmp_path, record, {})
    serving = tmp_path / "serving"
    assert (serving / "moshi.safetensors").read_bytes() == hub.repositories[Q8].files["model.q8.safetensors"]
    assert (serving / "mimi.safetensors").read_bytes() == hub.repositories[BF16].files[MIMI]
    assert (serving / "tokenizer.model").read_bytes() == hub.repositories[BF16].files[TOKENIZER]
    config = json.loads((serving / "config.json").read_text())
    assert config == {"quantize": True}, "no name is left for which the server would ask the hub"
    assert json.loads((serving / "weights.json").read_text())["commit"] == hub.repositories[Q8].commit
    assert not serve_weights.lay_out(tmp_path, record, {}), "a second time changes nothing"


def test_other_weights_take_the_place_of_the_first(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    serve_weights.lay_out(tmp_path, fetch(tmp_path, hub, waits), {})
    assert serve_weights.lay_out(tmp_path, fetch(tmp_path, hub, waits, Q8), {})
    assert "q8" in str((tmp_path / "serving/moshi.safetensors").readlink())


def test_sampling_stands_in_the_config_over_the_authors_own(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    own = {"lm_gen_config": {"temp": 0.8, "top_k": 250}}
    hub.repositories[BF16].files["config.json"] = json.dumps(own).encode()
    record = fetch(tmp_path, hub, waits)
    serve_weights.lay_out(tmp_path, record, {"temp": 0.6, "temp_text": 0.5})
    config = json.loads((tmp_path / "serving/config.json").read_text())
    assert config["lm_gen_config"] == {"temp": 0.6, "temp_text": 0.5, "top_k": 250}
    assert serve_weights.lay_out(tmp_path, record, {}), "taking the setting away is a change as well"


def test_a_fine_tunes_lora_and_mimi_config_are_local_too(tmp_path: Path, hub: Hub, waits: Waits) -> None:
    tuned = bf16()
    tuned.files |= {"lora.safetensors": b"lora", "mimi.json": b"{}"}
    tuned.files["config.json"] = json.dumps(
        {"lora": True, "lora_name": "lora.safetensors", "mimi_config_name": "mimi.json"}
    ).encode()
    hub.repositories["me/tuned"] = Repository(tuned.files)
    record = fetch(tmp_path, hub, waits, "me/tuned")
    serve_weights.lay_out(tmp_path, record, {})
    config = json.loads((tmp_path / "serving/config.json").read_text())
    assert config["lora_name"] == f"file://{record.parent}/lora.safetensors"
    assert config["mimi_config_name"] == f"file://{record.parent}/mimi.json"
