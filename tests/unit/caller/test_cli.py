"""The command line: what it prints, what it writes, how it exits; and what it does without."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from caller.cli import LIMIT_WORDS, main, parser
from caller.echo import Behaviour, running
from caller.report import Limits
from caller.speech import RATE, prepare, read

ROOT = Path(__file__).parents[3]


async def caller(behaviour: Behaviour, *arguments: str) -> int:
    """Run the command against an engine of this process."""
    async with running(behaviour) as (url, _):
        return await asyncio.to_thread(main, [url, "--seconds", "1", "--engine-s", "2", *arguments])


async def test_a_line_that_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert await caller(Behaviour(lag=1)) == 0
    said = capsys.readouterr()
    assert "ok          the line answers" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        (Behaviour(refuse=("line_full", "The line is busy."), close_code=1013), 4, "The line is busy"),
        (Behaviour(refuse=("not_allowed", "No link."), close_code=1008), 5, "No link"),
        (Behaviour(handshake=False), 3, "said nothing for 2 s"),
    ],
)
async def test_a_line_that_does_not(
    capsys: pytest.CaptureFixture[str], behaviour: Behaviour, status: int, reason: str
) -> None:
    assert await caller(behaviour) == status
    assert reason in capsys.readouterr().err


async def test_a_link_is_opened_and_its_key_lets_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = "https://elsewhere.example/#t=abc"
    (tmp_path / "link").write_text(link + "\n")
    assert await caller(Behaviour(link="abc"), "--link", str(tmp_path / "link")) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(link))
    assert await caller(Behaviour(link="abc"), "--link", "-") == 0
    async with running(Behaviour(link="abc")) as (url, _):
        assert await asyncio.to_thread(main, [f"{url}#t=abc", "--seconds", "1"]) == 0
    assert "abc" not in capsys.readouterr().out


async def test_a_link_that_opens_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "link").write_text("https://elsewhere.example/#t=spent")
    assert await caller(Behaviour(link="abc"), "--link", str(tmp_path / "link")) == 5
    assert "This link does not open anything" in capsys.readouterr().err
    assert await caller(Behaviour(link="abc")) == 5
    assert await caller(Behaviour(), "--link", str(tmp_path / "link")) == 3
    assert "no orchestrator answers there" in capsys.readouterr().err
    (tmp_path / "link").write_text("https://elsewhere.example/")
    assert await caller(Behaviour(), "--link", str(tmp_path / "link")) == 2
    assert "that is no link" in capsys.readouterr().err


async def test_a_missed_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert await caller(Behaviour(latency_s=0.05), "--limit-turnaround-p99-ms", "10") == 1
    said = capsys.readouterr()
    assert "misses its limits: turnaround p99 is" in said.err
    assert "missed" in said.out


async def test_what_was_heard_and_measured_is_written(tmp_path: Path) -> None:
    record, report = tmp_path / "heard.wav", tmp_path / "report.json"
    assert await caller(Behaviour(), "--record", str(record), "--json", str(report), "--samples") == 0
    body = json.loads(report.read_text())
    assert (body["outcome"], len(body["turnarounds_ms"])) == ("ok", 13)
    assert len(read(record)) == pytest.approx(13 * 0.08 * RATE)


async def test_json_on_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert await caller(Behaviour(), "--json", "-") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["frames"]["answered"] == 13
    assert "turnarounds_ms" not in body


async def test_the_judge_hears_the_speech_that_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    said = (ROOT / "caller" / "data" / "hello.txt").read_text()
    behaviour = Behaviour(say=[f" {word}" for word in said.split()])
    status = await caller(behaviour, "--seconds", "7", "--judge", "--limit-word-error-rate", "0.5")
    out = capsys.readouterr().out
    assert status == 0, out
    assert "word error rate" in out


async def test_random_weights_are_not_judged_and_miss_no_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert await caller(Behaviour(), "--judge", "--random-weights", "--limit-word-error-rate", "0.1") == 0
    assert "not judged: the weights are random" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["ftp://host"], "not the address of a line"),
        (["ws://127.0.0.1:9", "--wav", "/etc/passwd"], "not a readable sound file"),
        (["ws://127.0.0.1:9", "--wav", "/nowhere.wav"], "no such file"),
        (["ws://127.0.0.1:9", "--seconds", "-1"], "0.08 to 3600 seconds"),
        (["wss://127.0.0.1:9", "--ca", "/nowhere.pem"], "no such file"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert reason in said.err
    assert "Traceback" not in said.err


async def test_a_report_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in ("--json", "--record"):
        assert await caller(Behaviour(), option, str(tmp_path / "no" / "folder")) == 2
        assert "make it first" in capsys.readouterr().err


def test_a_judge_without_his_packages_says_so_before_the_call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    assert main(["ws://127.0.0.1:9", "--judge"]) == 2
    assert "needs the package jiwer: pip install" in capsys.readouterr().err


def test_every_limit_has_an_option_with_words() -> None:
    options = parser().parse_args(["ws://x"])
    for name in Limits.__dataclass_fields__:
        assert hasattr(options, f"limit_{name}")
        assert LIMIT_WORDS[name]


def test_the_call_itself_needs_only_numpy_sphn_and_aiohttp() -> None:
    """On the GPU machine nothing else is carried along."""
    code = (
        "import sys\n"
        "for name in ('moonshine_voice', 'jiwer', 'torch', 'pytest'): sys.modules[name] = None\n"
        "import caller, caller.cli, caller.echo\n"
        "caller.prepare(seconds=1)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'scipy', 'soundfile', 'yaml', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "caller", "ws://127.0.0.1:9", "--seconds", "0.1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "nothing listens on 127.0.0.1:9" in done.stderr


def test_the_bundled_speech_lies_beside_its_words() -> None:
    assert prepare(seconds=1.0).name == "hello.wav"
    assert (ROOT / "caller" / "data" / "hello.txt").read_text().startswith("Hello")
