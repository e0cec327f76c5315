"""The command line, as a person and as a playbook call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rental import app as command_line
from rental import ssh
from rental.api import Clock
from rental.app import Context, app, look_after, nodes_table, survey
from rental.errors import NodeError
from rental.ledger import Entry, Ledger
from tests.providers.runpod import RunPodStandIn
from tests.providers.vast import VastStandIn, offer
from tests.unit.rental.conftest import Time, secrets_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def market() -> Iterator[VastStandIn]:
    stand_in = VastStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def environment(tmp_path: Path, market: VastStandIn) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HOTLINE_RENTAL_STATE": str(tmp_path / "state"),
        "HOTLINE_RENTAL_PATIENCE": json.dumps({"poll_s": 0.02, "destroy_pause_s": 0.02, "destroys": 3}),
    } | secrets_of(market)


def run(environment: dict[str, str], *words: str, stdin: str = "") -> tuple[int, str, str]:
    """The command in this process: exit status, standard output, standard error."""
    lacking: dict[str, str | None] = dict.fromkeys(("VAST_API_KEY", "SALAD_API_KEY", "RUNPOD_API_KEY"))
    done = CliRunner().invoke(app, list(words), input=stdin, env=lacking | environment)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def entry_of(market: VastStandIn, line: str = "talk", **changes: object) -> Entry:
    """A line that runs at the market, and its entry."""
    label = f"hotline-{line}-{len(market.instances):06x}"
    number = 7001 + len(market.instances)
    market.instances[number] = {
        "id": number, "label": label, "dph_total": 0.4, "gpu_name": "RTX 4090", "image_uuid": "kvm",
        "_age": 9, "start_date": market.clock(),
    }  # fmt: skip
    base = Entry(label, line, "vast", "ready", "RTX 4090", 0.4, "vm", market.clock(), str(number))
    return Entry(**(asdict(base) | changes))  # type: ignore[arg-type]


def test_offers_as_a_table_and_as_json(environment: dict[str, str], market: VastStandIn) -> None:
    market.offers = [
        offer(101),
        offer(102, gpu_name="H100 SXM", gpu_ram=81559, compute_cap=900, dph_total=2.1),
    ]
    status, out, _ = run(environment, "offers", "--engine", "duplex", "--conversations", "30")
    assert status == 0
    assert "H100 SXM" in out
    assert "4090" not in out, "it carries fewer"
    assert " 38 " in out
    status, out, _ = run(environment, "offers", "--json")
    assert [o["id"] for o in json.loads(out)] == ["101", "102"]


def test_no_key_is_status_2_and_says_where_one_is_made(environment: dict[str, str]) -> None:
    del environment["VAST_API_KEY"]
    for words in (["offers"], ["nodes"], ["keep", "--once"], ["rent", "talk", "--max-price", "1"]):
        status, out, err = run(environment, *words)
        assert (status, out) == (2, "")
        assert "VAST_API_KEY is not set" in err
        assert "Traceback" not in err


def test_the_key_comes_from_standard_input_for_playbooks(
    environment: dict[str, str], market: VastStandIn
) -> None:
    del environment["VAST_API_KEY"]
    status, out, _ = run(
        environment, "--secrets-from-stdin", "nodes", stdin=json.dumps({"VAST_API_KEY": market.key})
    )
    assert (status, out.strip()) == (0, "Nothing of ours runs.")
    assert run(environment, "--secrets-from-stdin", "nodes", stdin="no json")[0] == 2


def test_a_ceiling_is_required(environment: dict[str, str], market: VastStandIn) -> None:
    status, _, err = run(environment, "rent", "talk")
    assert status == 2
    assert "--max-price is required" in err
    assert market.asked == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "RTX 9999"], "did you mean"),
        (["--kind", "pod"], "vm, container, any"),
        (["--engine", "x"], "moshi_server, duplex"),
        (["--country", "Germany"], "two letters"),
        (["--provider", "aws"], "vast, salad, runpod"),
        (["--ssh-key", "/nowhere/key"], "no ssh key at"),
    ],
)
def test_wrong_use(environment: dict[str, str], market: VastStandIn, words: list[str], told: str) -> None:
    status, _, err = run(environment, "rent", "talk", "--max-price", "1", *words)
    assert status in (1, 2)
    assert told in err
    assert market.calls("PUT") == []


def test_a_wrong_key_is_told_without_the_key(environment: dict[str, str]) -> None:
    environment["VAST_API_KEY"] = "a-wrong-secret"
    status, out, err = run(environment, "offers")
    assert status == 1
    assert "does not accept the key" in err
    assert "a-wrong-secret" not in out + err


def test_a_crash_shows_no_key(environment: dict[str, str], market: VastStandIn) -> None:
    """A fault of our own ends in a traceback; the key is in its frames and must not be in its text."""
    crash = (
        "import rental.vast as v, rental.app as a\n"
        "v.Vast.nodes = lambda self: self._api._key.reveal().missing\n"
        "a.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", crash, "nodes"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "AttributeError" in done.stderr
    assert market.key not in done.stderr + done.stdout


def test_a_destroy_that_fails_is_status_4_and_shouts(
    environment: dict[str, str], market: VastStandIn
) -> None:
    Ledger(Path(environment["HOTLINE_RENTAL_STATE"])).put(entry_of(market))
    market.undying = 99
    status, out, err = run(environment, "release", "talk")
    assert status == 4
    assert "!!! 7001 STILL RUNS, $0.400 an hour" in out
    assert "COULD NOT BE DESTROYED" in err
    market.undying = 0
    status, out, _ = run(environment, "nodes")
    assert "TO BE DESTROYED, STILL RUNS" in out
    assert run(environment, "keep", "--once")[0] == 0
    assert market.instances == {}


def test_release_of_a_line_with_two_nodes_asks_which(
    environment: dict[str, str], market: VastStandIn
) -> None:
    entry_of(market)
    entry_of(market)
    status, _, err = run(environment, "release", "talk")
    assert status == 2
    assert "7001" in err
    assert "7002" in err
    assert len(market.instances) == 2
    assert run(environment, "release", "talk", "--node", "7002")[0] == 0
    assert list(market.instances) == [7001]
    assert run(environment, "release", "--all")[0] == 0
    assert market.instances == {}


def test_release_of_nothing(environment: dict[str, str]) -> None:
    status, _, err = run(environment, "release", "talk")
    assert status == 2
    assert "rental nodes" in err
    assert run(environment, "release")[0] == 2


def test_nodes_shows_every_running_cost(environment: dict[str, str], market: VastStandIn) -> None:
    Ledger(Path(environment["HOTLINE_RENTAL_STATE"])).put(entry_of(market, ends_at=market.clock() + 7200))
    entry_of(market, "other")
    status, out, _ = run(environment, "nodes")
    assert status == 0
    assert "Running cost: $0.800 an hour, $19.20 a day." in out
    assert "rented from elsewhere" in out
    assert "in 2.0 h" in out
    assert "only `rental keep` ends it in time" in out


def test_nodes_whose_key_is_lost_are_shouted(environment: dict[str, str], market: VastStandIn) -> None:
    Ledger(Path(environment["HOTLINE_RENTAL_STATE"])).put(entry_of(market))
    del environment["VAST_API_KEY"]
    status, _, err = run(environment, "nodes")
    assert status == 1
    assert "1 node(s) of yours may run there, $0.400 an hour!" in err


def test_nodes_as_json_has_host_variables_and_groups(
    environment: dict[str, str], market: VastStandIn
) -> None:
    Ledger(Path(environment["HOTLINE_RENTAL_STATE"])).put(entry_of(market))
    found = json.loads(run(environment, "nodes", "--provider", "vast", "--json")[1])[0]
    assert found["variables"]["ansible_host"] == "127.0.0.1"
    assert (found["variables"]["line_addresses"], found["variables"]["line_outside_port"]) == (
        ["127.0.0.1"],
        41998,
    )
    assert "line_talk" in found["groups"]


def test_a_wrong_clock_is_told(environment: dict[str, str], market: VastStandIn) -> None:
    market.clock = lambda: 4_000_000_000.0
    _, _, err = run(environment, "nodes")
    assert "clock is" in err
    assert "Mend: set the clock" in err


# -------------------------------------------------------------------------------- keep


@pytest.fixture
def kept(
    tmp_path: Path, vast_market: VastStandIn, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> Context:
    patience = {"HOTLINE_RENTAL_PATIENCE": json.dumps({"poll_s": 1, "destroy_pause_s": 1})}
    return Context(secrets_of(vast_market) | patience, clock, Ledger(tmp_path))


def test_keep_ends_what_is_overdue_and_nothing_else(
    kept: Context, vast_market: VastStandIn, passing: Time
) -> None:
    kept.ledger.put(entry_of(vast_market, "short", ends_at=passing.now() + 100))
    kept.ledger.put(entry_of(vast_market, "long", ends_at=passing.now() + 10_000))
    kept.ledger.put(entry_of(vast_market, "forever"))
    assert look_after(kept, {}) == []
    assert len(vast_market.instances) == 3
    passing.seconds += 200
    assert look_after(kept, {}) == []
    assert {i["label"].split("-")[1] for i in vast_market.instances.values()} == {"long", "forever"}


def test_keep_counts_by_the_providers_clock(kept: Context, vast_market: VastStandIn, passing: Time) -> None:
    kept.ledger.put(entry_of(vast_market, ends_at=passing.now() + 1000))
    vast_market.clock = lambda: passing.now() + 3600
    look_after(kept, {})
    assert vast_market.instances == {}


def test_keep_ends_a_line_that_nobody_calls(
    kept: Context, vast_market: VastStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.ledger.put(entry_of(vast_market, idle_minutes=30))
    quiet = [600.0, 1900.0]
    monkeypatch.setattr(command_line, "idle_seconds", lambda *_: quiet.pop(0))
    look_after(kept, {})
    assert vast_market.instances
    look_after(kept, {})
    assert vast_market.instances == {}


def test_keep_does_not_ask_a_node_that_ends_itself(kept: Context, vast_market: VastStandIn) -> None:
    kept.ledger.put(entry_of(vast_market, idle_minutes=30, ends_itself=True))
    assert look_after(kept, {}) == []


def test_keep_tells_what_is_gone_and_what_is_broken_once(
    kept: Context, vast_market: VastStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    kept.ledger.put(entry_of(vast_market))
    vast_market.statuses = ["exited"]
    told: dict[str, str] = {}
    look_after(kept, told)
    look_after(kept, told)
    assert capsys.readouterr().out.count("still costs: python -m rental release talk") == 1
    vast_market.instances.clear()
    look_after(kept, told)
    look_after(kept, told)
    assert capsys.readouterr().out.count("line 'talk' is down") == 1
    assert kept.ledger.entries(), "remembered until it is released"


def test_keep_goes_on_when_a_provider_does_not_answer(kept: Context, vast_market: VastStandIn) -> None:
    kept.ledger.put(entry_of(vast_market))
    vast_market.fail("GET", "/api/v1/instances/", 500, times=6)
    assert "1 node(s) of yours may run there" in look_after(kept, {})[0]
    assert look_after(kept, {}) == []


def test_keep_never_touches_strangers(kept: Context, vast_market: VastStandIn) -> None:
    entry_of(vast_market)
    look_after(kept, {})
    assert len(vast_market.instances) == 1


def test_all_providers_with_a_key_are_looked_at(
    kept: Context, vast_market: VastStandIn, runpod_market: RunPodStandIn
) -> None:
    runpod_market.pods["p1"] = {"id": "p1", "name": "hotline-b-aaaaaa", "cost": 0.5, "_age": 9}
    entry_of(vast_market)
    both = Context({**kept.secrets, **secrets_of(runpod_market)}, kept.clock, kept.ledger)
    found, problems = survey(both)
    assert {f.provider for f in found} == {"vast", "runpod"}
    assert problems == []
    assert "hotline" not in nodes_table(found, 0).splitlines()[0]


@pytest.mark.parametrize(
    ("node_says", "link"),
    [
        ({"grep": "LINE_ACCESS=open LINE_PORT=8998"}, "-N -L 8998:127.0.0.1:8998 root@127.0.0.1"),
        (
            {"grep": "LINE_ACCESS=links LINE_PORT=8998", "hotline": "https://l:41998/#t=abc"},
            "https://l:41998/#t=abc",
        ),
        ({"grep": "LINE_ACCESS=links LINE_PORT=8998", "hotline": ""}, "hotline link'"),
        ({}, "hotline link'"),
    ],
)
def test_in_the_end_link_price_and_how_to_stop_paying(
    kept: Context,
    vast_market: VastStandIn,
    monkeypatch: pytest.MonkeyPatch,
    node_says: dict[str, str],
    link: str,
) -> None:
    def ask(_node: object, _hosts: object, _key: object, remote: str, seconds: int = 30) -> str:
        if (word := remote.split(maxsplit=1)[0]) in node_says:
            return node_says[word]
        raise NodeError("no")

    monkeypatch.setattr(ssh, "ask", ask)
    entry = entry_of(vast_market, ends_at=kept.clock.now() + 7200, url="https://127.0.0.1:41998")
    shop = kept.shop(kept.provider("vast"))
    told = command_line.summary(shop, entry, shop.provider.nodes()[0])
    assert link in told
    assert "$0.400 an hour, $9.60 a day" in told
    assert "in 2.0 h, by `python -m rental keep`" in told
    assert "python -m rental release talk" in told


@pytest.mark.parametrize("name", ["gpu", None])
def test_it_can_be_mounted_into_another_command(name: str | None, environment: dict[str, str]) -> None:
    outer = typer.Typer()
    outer.add_typer(app, name=name)
    outer.command("other")(lambda: None)
    words = [name, "nodes"] if name else ["nodes"]
    shown = CliRunner().invoke(outer, words, env=environment)
    assert shown.exit_code == 0, shown.output
    assert "Nothing of ours runs" in shown.output
