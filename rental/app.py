"""The command line: `python -m rental offers|rent|release|nodes|keep`. A Typer app that can be mounted.

Exit status: 0 done; 1 the world was not as needed (no offer, a provider's fault); 2 wrong use or no key; 4 a
node could not be destroyed and costs on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from rental import keep as keeping
from rental import ssh
from rental.api import SKEW_S, Clock
from rental.cards import wanted_card
from rental.errors import NodeError, RentalError, UseError
from rental.ledger import Entry, Finding, Ledger, compare, state_folder
from rental.lines import groups, host_variables
from rental.market import Node, Wanted, choose, explain, line_of, offers_table, table
from rental.providers import NAMES, Provider, open_provider, with_keys
from rental.rent import Patience, Shop, check_line, end, rent, run_playbook
from rental.vast import LINE_PORT

SETTINGS_FILE = "/etc/hotline/hotline.env"  # role `line` writes it

# No traceback of ours shows local variables: a key is among them.
app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@dataclass
class Context:
    """What every command starts from."""

    secrets: Mapping[str, str]
    clock: Clock
    ledger: Ledger

    def provider(self, name: str) -> Provider:
        """The provider of this name, with its key."""
        return open_provider(name, self.secrets, self.clock)

    def shop(self, provider: Provider, key: Path | None = None, variables: list[str] | None = None) -> Shop:
        """A provider with everything that renting needs."""
        return Shop(
            provider,
            self.ledger,
            self.clock,
            say,
            run_playbook,
            ssh.identity(self.ledger.folder, key),
            patience(self.secrets),
            tuple(word for one in variables or [] for word in ("-e", one)),
        )


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)


def also_into(path: Path) -> Callable[[str], None]:
    """Progress on the screen and in a file, for whoever cannot see this screen."""

    def both(text: str) -> None:
        say(text)
        with path.open("a") as log:
            log.write(text + "\n")

    return both


def patience(environment: Mapping[str, str]) -> Patience:
    """The usual waits; HOTLINE_RENTAL_PATIENCE, a JSON object, changes some of them."""
    try:
        return Patience(**json.loads(environment.get("HOTLINE_RENTAL_PATIENCE") or "{}"))
    except (ValueError, TypeError) as error:
        raise UseError(f"HOTLINE_RENTAL_PATIENCE is no JSON object of waits: {error}") from None


@app.callback()
def start(
    context: typer.Context,
    secrets_from_stdin: Annotated[
        bool,
        typer.Option(help="read keys as a JSON object from standard input, as the playbooks hand them over"),
    ] = False,
) -> None:
    """Rent a GPU that carries a voice line, see what runs and what it costs, and give it back."""
    secrets = dict(os.environ)
    if secrets_from_stdin:
        try:
            given = json.load(sys.stdin)
            secrets |= {str(k): str(v) for k, v in given.items() if v}
        except (ValueError, AttributeError):
            raise typer.BadParameter("standard input holds no JSON object") from None
    context.obj = started(secrets)


def started(secrets: Mapping[str, str]) -> Context:
    """What every command starts from, with these keys and settings."""
    return Context(secrets, Clock(), Ledger(state_folder(secrets)))


def shared_by(context: typer.Context) -> Context:
    """What `start` made; in another program's command, where `start` does not run, from the environment."""
    if not isinstance(context.obj, Context):
        context.obj = started(dict(os.environ))
    return context.obj


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn our errors into a sentence and an exit status, and SIGTERM into an interruption that cleans up."""

    def interrupted(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    except RentalError as fault:
        print(f"rental: {fault}", file=sys.stderr)
        raise typer.Exit(fault.status) from None
    except KeyboardInterrupt:
        print("rental: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


Which = Annotated[str, typer.Option("--provider", "-p", help=f"one of {', '.join(NAMES)}")]
MaxPrice = Annotated[
    float, typer.Option(help="ceiling in dollars per hour, disk included; required for renting")
]
Conversations = Annotated[int, typer.Option(min=1, help="how many at the same time")]
Gpu = Annotated[str, typer.Option(help="only this card, such as 'RTX 4090'")]
Engine = Annotated[str, typer.Option(help="moshi_server (one conversation per card) or duplex")]
Quantization = Annotated[str, typer.Option(help="bf16 or q8")]
Kv = Annotated[str, typer.Option(help="duplex's keys and values: bf16 or fp8")]
MinDown = Annotated[
    float, typer.Option(help="least download speed, Mbit/s: 20 GB are fetched before it speaks")
]
MinReliability = Annotated[float, typer.Option(help="least reliability, 0 to 1, where a provider tells it")]
Kind = Annotated[str, typer.Option(help="vm (with systemd, at the same price preferred), container, or any")]
Country = Annotated[list[str] | None, typer.Option(help="two letters; may be given several times")]
Disk = Annotated[int, typer.Option(min=8, help="disk in GB")]
MaxHours = Annotated[
    float, typer.Option(min=0, help="give the node back after this many hours; 0: never by itself")
]
Idle = Annotated[
    int,
    typer.Option(
        "--release-when-idle-minutes", min=0, help="give it back after so long without a call; 0: never"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, for programs")]


def checked(wanted: Wanted) -> Wanted:
    """What was asked for, refused where it cannot be meant, names as we write them."""
    for value, choices, name in (
        (wanted.engine, ("moshi_server", "duplex"), "--engine"),
        (wanted.quantization, ("bf16", "q8"), "--quantization"),
        (wanted.kv, ("bf16", "fp8"), "--kv"),
        (wanted.kind, ("vm", "container", "any"), "--kind"),
    ):
        if value not in choices:
            raise UseError(f"{name} is '{value}'. Mend: choose from {', '.join(choices)}.")
    if not wanted.price > 0:
        raise UseError(
            "--max-price is required: the most that an hour may cost, in dollars: --max-price 0.50"
        )
    codes = tuple(code.upper() for code in wanted.countries)
    if wrong := [code for code in codes if len(code) != 2 or not code.isalpha()]:
        raise UseError(f"'{wrong[0]}' is no country. Mend: two letters, such as DE.")
    card = wanted_card(wanted.gpu).name if wanted.gpu else ""
    return replace(wanted, gpu=card, countries=codes)


@app.command()
def offers(
    context: typer.Context,
    *,
    provider: Which = "",
    max_price: MaxPrice = 1000.0,
    conversations: Conversations = 1,
    gpu: Gpu = "",
    engine: Engine = "moshi_server",
    quantization: Quantization = "bf16",
    kv: Kv = "bf16",
    min_down: MinDown = 200.0,
    min_reliability: MinReliability = 0.97,
    kind: Kind = "any",
    country: Country = None,
    disk: Disk = 60,
    limit: Annotated[int, typer.Option(min=1, help="how many to show")] = 20,
    as_json: AsJson = False,
) -> None:
    """What can be rented now, best first: cheapest that carries what you ask for."""
    with told():
        shared = shared_by(context)
        wanted = checked(
            Wanted(
                price=max_price,
                conversations=conversations,
                gpu=gpu,
                engine=engine,
                quantization=quantization,
                kv=kv,
                down=min_down,
                reliability=min_reliability,
                kind=kind,
                countries=tuple(country or ()),
                disk_gb=disk,
            )
        )
        names = [provider] if provider else with_keys(shared.secrets)
        if not names:
            shared.provider(NAMES[0])  # says which key is missing and where it is made
        market = [(name, shared.provider(name).offers(wanted)) for name in names]
        fit = choose((offer for _, found in market for offer in found), wanted)[:limit]
        if as_json:
            print(json.dumps([asdict(offer) for offer in fit], indent=1))
            return
        if not fit:
            raise RentalError(" ".join(str(explain(found, wanted, name)) for name, found in market))
        print(offers_table(fit, wanted))
        seen = sum(len(found) for _, found in market)
        print(
            f"\n{len(fit)} of {seen} offers seen. `~` is an estimate from what one H100 was measured to "
            "carry."
        )


@app.command("rent")
def rent_command(
    context: typer.Context,
    *,
    line: Annotated[str, typer.Argument(help="a name of yours for the line, such as talk")],
    max_price: MaxPrice = 0.0,
    provider: Which = "vast",
    offer: Annotated[str, typer.Option(help="this offer of `rental offers`, and no other")] = "",
    conversations: Conversations = 1,
    gpu: Gpu = "",
    engine: Engine = "moshi_server",
    quantization: Quantization = "bf16",
    kv: Kv = "bf16",
    min_down: MinDown = 200.0,
    min_reliability: MinReliability = 0.97,
    kind: Kind = "any",
    country: Country = None,
    disk: Disk = 60,
    max_hours: MaxHours = 0.0,
    idle: Idle = 0,
    ssh_key: Annotated[
        Path | None, typer.Option(help="private key to reach the node with; else one of its own")
    ] = None,
    extra_vars: Annotated[
        list[str] | None,
        typer.Option("--extra-vars", "-e", help="handed to ansible-playbook; secrets only as @FILE"),
    ] = None,
) -> None:
    """Rent until one node speaks: create, wait, pin, site.yml, verify.yml. What fails is destroyed."""
    with told():
        shared = shared_by(context)
        wanted = checked(
            Wanted(
                price=max_price,
                conversations=conversations,
                gpu=gpu,
                engine=engine,
                quantization=quantization,
                kv=kv,
                down=min_down,
                reliability=min_reliability,
                kind=kind,
                countries=tuple(country or ()),
                disk_gb=disk,
                hours=max_hours,
                idle_minutes=idle,
            )
        )
        check_line(line)
        shop = shared.shop(shared.provider(provider), ssh_key, extra_vars)
        shop.say = also_into(shared.ledger.folder / f"{line}.log")
        entry, node = rent(shop, line, wanted, offer)
        warn_of_skew(shared)
        print(summary(shop, entry, node))


def summary(shop: Shop, entry: Entry, node: Node) -> str:
    """Link, price, and how to stop paying."""
    folder = shop.ledger.folder / "nodes" / entry.label
    reach = [*ssh.options(folder / "known_hosts", shop.key.private), "-p", str(node.port)]
    there = f"{node.user}@{node.host}"

    def asked(remote: str) -> str:
        try:
            return ssh.ask(node, folder / "known_hosts", shop.key.private, remote)
        except NodeError:
            return ""

    settings = dict(
        word.partition("=")[::2]
        for word in asked(
            f"grep -E '^LINE_(ACCESS|PORT)=' {SETTINGS_FILE} | tr -d \"\\\"'\" | tr '\\n' ' '"
        ).split()
    )
    port = settings.get("LINE_PORT", str(LINE_PORT))
    if settings.get("LINE_ACCESS") == "open":
        tunnel = shlex.join(["ssh", *reach, "-N", "-L", f"{port}:127.0.0.1:{port}", there])
        link = (
            f"{entry.url}/ is closed: everybody may call (line_access: open), so nginx listens on loopback.\n"
            f"               From here:  {tunnel}\n               and open https://localhost:{port}/"
        )
    else:
        made = asked("hotline link --no-qr 2>/dev/null | head -n 1")
        link = (
            made
            if made.startswith("http")
            else f"make one: {shlex.join(['ssh', *reach, there, 'hotline link'])}"
        )
    ends = keeping.remaining(entry, shop.clock.there())
    who = (
        "by itself"
        if entry.ends_itself
        else "by `python -m rental keep` on this machine: start it now and leave it running"
    )
    return (
        f"\nLine '{entry.line}' speaks.\n\n"
        f"  link         {link}\n"
        f"  price        ${node.price:.3f} an hour, ${node.price * 24:.2f} a day\n"
        f"  ends         {ends}{f', {who}' if ends != 'when released' else ''}\n"
        f"  inventory    {folder / 'inventory.yml'}\n"
        f"  stop paying  python -m rental release {entry.line}"
    )


@app.command()
def release(
    context: typer.Context,
    line: Annotated[str, typer.Argument(help="the line, or nothing with --all")] = "",
    node: Annotated[str, typer.Option(help="only this node (its id), when a line has several")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="every node with a label of ours, at every provider")
    ] = False,
) -> None:
    """Destroy a line's node and see that it is gone. Its disk goes with it."""
    with told():
        shared = shared_by(context)
        if bool(line) == everything:
            raise UseError("name a line, or --all. Mend: rental nodes shows them.")
        found, problems = survey(shared)
        mine = [
            f
            for f in found
            if (everything or f.line == line)
            and (not node or node in (f.node.id if f.node else "", f.entry.id if f.entry else ""))
        ]
        if not mine:
            trouble = " ".join(problems)
            raise UseError(
                f"nothing of {'ours' if everything else f'line {line!r}'} is known or "
                f"listed{f' ({trouble})' if trouble else ''}. "
                "Mend: rental nodes"
            )
        running = [f for f in mine if f.runs]
        if len(running) > 1 and not everything and not node:
            told_ids = ", ".join(f"{f.node.id} ({f.node.label})" for f in running if f.node)
            raise UseError(
                f"line '{line}' has {len(running)} nodes: {told_ids}. Mend: --node ID for one, or --all for "
                "every one."
            )
        for finding in mine:
            give_back(shared, finding)
        if problems:
            raise RentalError("not everything could be looked at: " + " ".join(problems))


def give_back(shared: Context, finding: Finding) -> None:
    """End one node, known to the ledger or not."""
    entry, found = finding.entry, finding.node
    if entry is None and found is not None:
        entry = Entry(
            found.label,
            line_of(found.label),
            found.provider,
            "ending",
            found.gpu,
            found.price,
            found.kind,
            found.created or shared.clock.there(),
            found.id,
        )
    assert entry is not None  # noqa: S101 — a finding has one or the other
    with shared.ledger.working_on(entry.line):
        if found is None and finding.what in ("gone", "never", "ended"):
            shared.ledger.drop(entry.label)
            say(f"{entry.label} is no more: nothing to destroy.")
            return
        end(shared.shop(shared.provider(entry.provider)), entry, found.id if found else "")


def survey(shared: Context, only: str = "") -> tuple[list[Finding], list[str]]:
    """Everything of ours at every provider that has a key, or at one; and what could not be looked at."""
    entries = shared.ledger.entries()
    names = [only] if only else dict.fromkeys([*with_keys(shared.secrets), *(e.provider for e in entries)])
    nodes: list[Node] = []
    problems: list[str] = []
    looked: set[str] = set()
    for name in names:
        try:
            nodes += shared.provider(name).nodes()
            looked.add(name)
        except RentalError as fault:
            known = [e for e in entries if e.provider == name]
            cost = (
                f" {len(known)} node(s) of yours may run there, ${sum(e.price for e in known):.3f} an hour!"
                if known
                else ""
            )
            problems.append(f"{fault}{cost}")
    mine = [e for e in entries if e.provider in looked]
    return compare(mine, nodes, shared.ledger.busy(e.line for e in mine), shared.clock.there()), problems


MEANS = {
    "fine": "speaks",
    "busy": "being made",
    "half": "HALF MADE, cut off: `rental keep` or the next rent ends it",
    "pending": "cut off while it was created; may still appear",
    "never": "was never created",
    "ending": "TO BE DESTROYED, STILL RUNS",
    "ended": "destroyed",
    "gone": "GONE: its provider lists it no more",
    "stranger": "has a label of ours, rented from elsewhere",
}


@app.command()
def nodes(
    context: typer.Context,
    provider: Which = "",
    as_json: AsJson = False,
) -> None:
    """Every node of ours at every provider with a key, and what it costs. Nothing is changed."""
    with told():
        shared = shared_by(context)
        if provider or not (with_keys(shared.secrets) or shared.ledger.entries()):
            shared.provider(provider or NAMES[0])  # says which key is missing and where it is made
        found, problems = survey(shared, provider)
        if as_json:
            if problems:
                raise RentalError(" ".join(problems))
            print(json.dumps([as_data(shared, f) for f in found], indent=1))
            return
        if found:
            print(nodes_table(found, shared.clock.there()))
            cost = sum(f.price for f in found if f.runs)
            print(f"\nRunning cost: ${cost:.3f} an hour, ${cost * 24:.2f} a day.")
            for f in found:
                if f.entry and f.entry.ends_at and f.runs and not f.entry.ends_itself:
                    print(f"{f.line}: only `rental keep` ends it in time; is it running?")
        else:
            print("Nothing of ours runs.")
        warn_of_skew(shared)
        if problems:
            raise RentalError(" ".join(problems))


def as_data(shared: Context, finding: Finding) -> dict[str, object]:
    """One finding for programs; the inventory plugin lives on it."""
    found, entry = finding.node, finding.entry
    data: dict[str, object] = {
        "what": finding.what,
        "line": finding.line,
        "price": finding.price,
        "entry": asdict(entry) if entry else None,
        "node": asdict(found) if found else None,
    }
    if found:
        folder = shared.ledger.folder / "nodes" / found.label
        private = key_of(shared, entry)
        pinned = ssh.options(folder / "known_hosts", private) if (folder / "known_hosts").exists() else []
        data |= {"variables": host_variables(found, pinned), "groups": groups(found, finding.line)}
    return data


def key_of(shared: Context, entry: Entry | None) -> Path:
    """The private ssh key that reaches a node: the one it was rented with, else our own."""
    return Path(entry.key) if entry and entry.key else shared.ledger.folder / "id_ed25519"


def nodes_table(found: list[Finding], now: float) -> str:
    """The findings as `rental nodes` prints them."""
    rows = [["line", "provider", "node", "GPU", "state", "$/h", "so far $", "ends", "what"]]
    for f in found:
        created = f.entry.created if f.entry else f.node.created if f.node else None
        rows.append(
            [
                f.line,
                f.node.provider if f.node else f.entry.provider if f.entry else "",
                f.node.id if f.node else (f.entry.id if f.entry else "") or "-",
                f.node.gpu if f.node else f.entry.gpu if f.entry else "",
                f.node.said if f.node else "not listed",
                f"{f.price:.3f}",
                f"{max(0.0, now - created) / 3600 * f.price:.2f}" if created and f.runs else "-",
                keeping.remaining(f.entry, now) if f.entry and f.runs else "-",
                MEANS[f.what],
            ]
        )
    return table(rows, right=frozenset({5, 6}))


@app.command("keep")
def keep_command(
    context: typer.Context,
    once: Annotated[bool, typer.Option(help="look once and end, for cron")] = False,
    every: Annotated[float, typer.Option(min=5, help="seconds between two looks")] = 60.0,
) -> None:
    """Watch what runs: end it when its time is up or nobody calls, end the half made, tell what is gone."""
    with told():
        shared = shared_by(context)
        if not with_keys(shared.secrets):
            shared.provider(NAMES[0])
        told_before: dict[str, str] = {}
        while True:
            problems = look_after(shared, told_before)
            if once:
                if problems:
                    raise RentalError(" ".join(problems))
                return
            shared.clock.sleep(every)


def look_after(shared: Context, told_before: dict[str, str]) -> list[str]:
    """One look of `keep`: act on every node of ours; return what went wrong. Nothing is told twice."""
    found, problems = survey(shared)
    for problem in problems:
        tell_once(told_before, f"look {problem[:20]}", f"!!! {problem}")
    for f in found:
        entry = f.entry
        name = entry.label if entry else f.node.label if f.node else ""
        try:
            if f.what in ("half", "ending"):
                say(f"{name}: {MEANS[f.what]}. Destroying it.")
                give_back(shared, f)
            elif f.what in ("never", "ended") and entry:
                shared.ledger.drop(entry.label)
            elif f.what == "fine" and entry and f.node:
                if reason := keeping.due(
                    entry, shared.clock.there(), idle_seconds(shared, entry, f.node, told_before)
                ):
                    say(f"{name}: {reason}. Giving it back.")
                    give_back(shared, f)
                elif f.node.state in ("failed", "stopped"):
                    tell_once(
                        told_before,
                        name,
                        f"!!! {name} is '{f.node.said}' and still costs: python -m rental release "
                        f"{entry.line}",
                    )
            elif f.what == "gone" and entry:
                tell_once(
                    told_before,
                    name,
                    f"!!! {name}: its provider lists it no more, line '{entry.line}' is down. Mend: python "
                    f"-m rental rent {entry.line} …",
                )
            elif f.what == "stranger" and f.node:
                tell_once(
                    told_before,
                    name,
                    f"{name} has a label of ours and was not rented from here: ${f.price:.3f} an hour.",
                )
        except RentalError as fault:
            problems.append(str(fault))
            say(f"!!! {fault}")
    warn_of_skew(shared)
    return problems


def tell_once(told_before: dict[str, str], name: str, text: str) -> None:
    """Say it unless it was the last thing said about this."""
    if told_before.get(name) != text:
        told_before[name] = text
        say(text)


def idle_seconds(shared: Context, entry: Entry, node: Node, told_before: dict[str, str]) -> float | None:
    """How long nobody called, by the node's own clock; None when it is not asked for or not known."""
    if not entry.idle_minutes or entry.ends_itself:
        return None
    folder = shared.ledger.folder / "nodes" / entry.label
    seen = "/var/lib/hotline/lease/active"
    try:
        said = ssh.ask(
            node,
            folder / "known_hosts",
            key_of(shared, entry),
            f"echo $(( $(date +%s) - $(stat -c %Y {seen}) ))",
        )
        return float(said)
    except (RentalError, ValueError):
        tell_once(
            told_before,
            f"idle {entry.label}",
            f"!!! {entry.label}: how long nobody called cannot be asked there now.",
        )
        return None


def warn_of_skew(shared: Context) -> None:
    """Say when this machine's clock is wrong; times are counted by the provider's."""
    if abs(shared.clock.skew) > SKEW_S:
        print(
            f"rental: this machine's clock is {abs(shared.clock.skew) / 60:.0f} minutes "
            f"{'behind' if shared.clock.skew > 0 else 'ahead'}; "
            "hours are counted by the provider's. Mend: set the clock.",
            file=sys.stderr,
        )


def main() -> None:
    """Run the command line."""
    app()


__all__ = ["app", "main"]
