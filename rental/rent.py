"""Renting: create, wait, pin, install, verify by speaking; what fails is destroyed, the next offer tried."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rental import ssh
from rental.api import Clock
from rental.errors import (
    NodeError,
    NoOfferError,
    OfferGoneError,
    ProviderError,
    RentalError,
    StillRunningError,
    UnansweredError,
    UseError,
)
from rental.ledger import Entry, Finding, Ledger, compare
from rental.lines import host_variables, lease_variables, public_url
from rental.market import LABEL, Node, Offer, Wanted, carried, choose, explain
from rental.providers import KEYS, Provider

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"[a-z][a-z0-9]{0,30}")

Play = Callable[[str, Path, Sequence[str], Path], int]


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and how often to try."""

    boot_s: float = 1200.0  # until the provider says `running`; images are large
    ssh_s: float = 420.0  # from there until ssh answers
    poll_s: float = 10.0
    appear_s: float = 60.0  # until a node whose creation got no answer shows up in the list
    offers: int = 5
    destroys: int = 6
    destroy_pause_s: float = 5.0


@dataclass
class Shop:
    """What renting works with: everything that touches the world, handed in."""

    provider: Provider
    ledger: Ledger
    clock: Clock
    say: Callable[[str], None]
    play: Play
    key: ssh.Identity
    patience: Patience = field(default_factory=Patience)
    variables: Sequence[str] = ()  # further words for ansible-playbook, such as -e @file
    contact: Callable[[Shop, Node, Path], None] = field(default_factory=lambda: contact)

    def findings(self) -> list[Finding]:
        """Ledger and provider compared, for this provider."""
        nodes = self.provider.nodes()
        entries = [e for e in self.ledger.entries() if e.provider == self.provider.name]
        busy = self.ledger.busy(e.line for e in entries)
        return compare(entries, nodes, busy, self.clock.there())


def check_line(line: str) -> str:
    """A line's name: it becomes a part of labels, groups and file names."""
    if not LINE.fullmatch(line):
        raise UseError(
            f"'{line}' is no name for a line. Mend: small letters and digits, a letter first, at most 31."
        )
    return line


def terms(offer: Offer, wanted: Wanted, ends: tuple[bool, str], line: str) -> str:
    """What is about to be paid and how it ends, said before anything is created."""
    _, sentence = ends
    many = carried(offer, wanted)
    text = (
        f"{offer.provider} {offer.id}: {offer.gpus}x {offer.gpu}, {offer.kind}, {many} conversation(s), "
        f"${offer.price:.3f} an hour, ${offer.price * 24:.2f} a day.\n"
    )
    limits = [
        *([f"after {wanted.hours:g} h (at most ${wanted.hours * offer.price:.2f})"] if wanted.hours else []),
        *([f"after {wanted.idle_minutes} min without a call"] if wanted.idle_minutes else []),
    ]
    if limits:
        text += f"It ends {' or '.join(limits)}: {sentence}.\n"
    else:
        text += "It runs and costs until you release it: no --max-hours, no --release-when-idle.\n"
    return text + f"To stop paying at any time: python -m rental release {line}"


def rent(shop: Shop, line: str, wanted: Wanted, only: str = "") -> tuple[Entry, Node]:
    """Rent for `line` until one node speaks. `only`: take this offer and no other."""
    check_line(line)
    with shop.ledger.working_on(line):
        clear(shop, line)
        if elsewhere := [
            e for e in shop.ledger.entries() if e.line == line and e.provider != shop.provider.name
        ]:
            raise UseError(
                f"line '{line}' has a node at {elsewhere[0].provider} "
                f"({elsewhere[0].id or elsewhere[0].label}). Mend: `rental release {line}` first, "
                "or give the new line another name."
            )
        mine = [f for f in shop.findings() if f.line == line and f.runs]
        if mine:
            told = "; ".join(f"{f.node.id} (${f.price:.3f} an hour)" for f in mine if f.node)
            raise UseError(
                f"line '{line}' has a node at {shop.provider.name} already: {told}. Mend: `rental release "
                f"{line}` first, or give the "
                "new line another name."
            )
        offers = shop.provider.offers(wanted)
        fit = [o for o in choose(offers, wanted) if not only or o.id == only]
        if only and not fit:
            there = any(o.id == only for o in offers)
            raise NoOfferError(
                f"offer {only} {'is not what you ask for' if there else 'is not on the market any more'}. "
                "Mend: rental offers"
            )
        if not fit:
            raise explain(offers, wanted, shop.provider.name)
        if sentence := shop.provider.prepare(shop.key.public):
            shop.say(sentence)
        failed: list[str] = []
        for offer in fit[: shop.patience.offers]:
            shop.say(terms(offer, wanted, shop.provider.ends(offer.kind), line))
            try:
                return _try(shop, line, wanted, offer)
            except (OfferGoneError, NodeError, UnansweredError) as fault:
                failed.append(f"{offer.id}: {fault}")
                shop.say(f"That was nothing: {fault}")
        raise NoOfferError(
            f"none of {len(failed)} offers became a line. "
            + " | ".join(failed)
            + " Mend: try again later, or ask for something else."
        )


def _try(shop: Shop, line: str, wanted: Wanted, offer: Offer) -> tuple[Entry, Node]:
    label = f"{LABEL}{line}-{secrets.token_hex(3)}"
    now = shop.clock.there()
    itself, _ = shop.provider.ends(offer.kind)
    entry = shop.ledger.put(
        Entry(
            label=label,
            line=line,
            provider=shop.provider.name,
            state="intended",
            gpu=offer.gpu,
            price=offer.price,
            kind=offer.kind,
            created=now,
            ends_at=now + wanted.hours * 3600 if wanted.hours else 0.0,
            idle_minutes=wanted.idle_minutes,
            ends_itself=itself,
            key=str(shop.key.private),
        )
    )
    try:
        try:
            node_id = shop.provider.create(offer, label, wanted, shop.key.public)
        except UnansweredError as doubt:
            shop.say(f"{doubt}. Looking for {label}, in case it was made all the same.")
            found = _appears(shop, label)
            if not found:
                raise
            node_id = found.id
        except RentalError:
            # A refusal: nothing was made.
            shop.ledger.drop(label)
            raise
        entry = shop.ledger.change(entry, state="preparing", id=node_id)
        shop.say(f"Created {node_id} ({label}).")
        return _prepare(shop, wanted, offer, entry)
    except BaseException as fault:
        # Whatever happened, Ctrl-C and a full disk included: a node that is no line costs no more.
        if label in {e.label for e in shop.ledger.entries()}:
            if entry.id:
                end(shop, entry)
            elif not isinstance(fault, UnansweredError) and (found := _appears(shop, label)):
                end(shop, entry, found.id)
            else:
                # Kept as an intent: if it appears later, `nodes` shows it, `keep` and the next rent end it.
                shop.say(f"Whether {label} was created is not known. Look again with: python -m rental nodes")
        raise


def _prepare(shop: Shop, wanted: Wanted, offer: Offer, entry: Entry) -> tuple[Entry, Node]:
    folder = shop.ledger.folder / "nodes" / entry.label
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known_hosts, log, inventory = folder / "known_hosts", folder / "log", folder / "inventory.yml"
    began = shop.clock.monotonic()

    def since() -> str:
        return f"{(shop.clock.monotonic() - began) / 60:4.1f} min"

    node = _running(shop, wanted, offer, entry, since)
    shop.contact(shop, node, known_hosts)
    shop.say(f"{since()}  ssh answers at {node.host} port {node.port}; its host key is pinned.")
    entry = shop.ledger.change(entry, host=node.host, port=node.port, user=node.user, url=public_url(node))
    write_inventory(inventory, entry, node, wanted, ssh.options(known_hosts, shop.key.private))
    for playbook, what in (
        ("site.yml", "installing the line"),
        ("playbooks/verify.yml", "speaking through it"),
    ):
        shop.say(f"{since()}  {what}: {playbook}; everything it says: {log}")
        # The link is made at the end and shown on the terminal: it is not to stand in a log.
        words = ["-e", "site_link=false", *shop.variables] if playbook == "site.yml" else shop.variables
        status = shop.play(playbook, inventory, words, log)
        if status != 0:
            raise NodeError(f"{playbook} failed (status {status}): {last_words(log)}")
    entry = shop.ledger.change(entry, state="ready")
    shop.say(
        f"{since()}  it speaks. So far about ${(shop.clock.there() - entry.created) / 3600 * node.price:.3f}."
    )
    return entry, node


def _running(shop: Shop, wanted: Wanted, offer: Offer, entry: Entry, since: Callable[[], str]) -> Node:
    """Wait until it runs and has an address for ssh; leave when it costs too much or never will run."""
    deadline = shop.clock.monotonic() + shop.patience.boot_s
    said = ""
    while True:
        node = next((n for n in shop.provider.nodes() if n.label == entry.label), None)
        if node is not None:
            if node.price > wanted.price + 0.0005:
                raise NodeError(
                    f"its price changed from ${offer.price:.3f} to ${node.price:.3f} an hour between offer "
                    "and rent, above your "
                    f"${wanted.price:g}"
                )
            if node.said != said:
                said = node.said
                shop.say(f"{since()}  {node.id}: {said}")
            if node.state == "failed":
                raise NodeError(f"{node.id} is '{node.said}', and never becomes more")
            if node.state == "stopped":
                raise NodeError(f"{node.id} was stopped by its provider ('{node.said}')")
            if node.state == "running" and node.host and node.port:
                return node
        if shop.clock.monotonic() >= deadline:
            raise NodeError(
                f"after {shop.patience.boot_s / 60:.0f} minutes it is still '{said or 'not listed'}' and has "
                "no address for ssh"
            )
        shop.clock.sleep(shop.patience.poll_s)


def contact(shop: Shop, node: Node, known_hosts: Path) -> None:
    """Pin its host key and run a first command."""
    deadline = shop.clock.monotonic() + shop.patience.ssh_s
    while True:
        reason = f"ssh to {node.host} port {node.port} does not answer"
        if lines := ssh.scan(node.host, node.port):
            known_hosts.write_text(ssh.pin(lines, node.fingerprint))
            try:
                ssh.ask(node, known_hosts, shop.key.private, "true")
            except NodeError as fault:
                reason = str(fault)
            else:
                return
        if shop.clock.monotonic() >= deadline:
            raise NodeError(f"{reason}, {shop.patience.ssh_s / 60:.0f} minutes after it was said to run")
        shop.clock.sleep(shop.patience.poll_s / 2)


def _appears(shop: Shop, label: str) -> Node | None:
    deadline = shop.clock.monotonic() + shop.patience.appear_s
    while True:
        try:
            found = next((n for n in shop.provider.nodes() if n.label == label), None)
        except ProviderError:
            found = None
        if found or shop.clock.monotonic() >= deadline:
            return found
        shop.clock.sleep(shop.patience.poll_s)


def end(shop: Shop, entry: Entry, node_id: str = "") -> None:
    """Destroy a node and see that it is gone; shout if it is not. The entry goes when the node went."""
    node_id = node_id or entry.id
    entry = shop.ledger.change(entry, state="ending", id=node_id)
    problem, pause = "", shop.patience.destroy_pause_s
    for attempt in range(shop.patience.destroys):
        try:
            node_id = node_id or next((n.id for n in shop.provider.nodes() if n.label == entry.label), "")
            if node_id:
                shop.provider.destroy(node_id)
            if not any(n.label == entry.label for n in shop.provider.nodes()):
                shop.ledger.drop(entry.label)
                shop.say(f"Destroyed {node_id or entry.label}: it costs nothing any more.")
                return
            problem = "its provider took the order and still lists it."
        except RentalError as fault:
            problem = str(fault)
        shop.say(
            f"!!! {node_id or entry.label} STILL RUNS, ${entry.price:.3f} an hour "
            f"(try {attempt + 1} of {shop.patience.destroys}): {problem}"
        )
        shop.clock.sleep(pause)
        pause = min(pause * 2, 60.0)
    raise StillRunningError(
        f"{node_id or entry.label} at {entry.provider} COULD NOT BE DESTROYED and goes on costing "
        f"${entry.price:.3f} an hour "
        f"(${entry.price * 24:.2f} a day): {problem} Mend: end it by hand at {shop.provider.console}, or run "
        f"`python -m rental release {entry.line}` again; `rental keep` goes on trying."
    )


def clear(shop: Shop, line: str) -> None:
    """End what an earlier rent of this line left behind; the caller works on the line."""
    for finding in shop.findings():
        entry = finding.entry
        if entry is None or entry.line != line:
            continue
        # The caller holds the line's lock: whoever was at work on it before is not any more.
        what = finding.what if finding.what != "busy" else "half" if finding.node else "never"
        if what in ("half", "ending"):
            shop.say(f"{entry.label} was left half done by an earlier run, and costs: destroying it.")
            end(shop, entry, finding.node.id if finding.node else "")
        elif what in ("never", "ended", "gone"):
            shop.ledger.drop(entry.label)


def write_inventory(path: Path, entry: Entry, node: Node, wanted: Wanted, ssh_options: Sequence[str]) -> None:
    """The node as an inventory of its own, for `ansible-playbook -i`."""
    variables: dict[str, Any] = host_variables(node, ssh_options)
    variables |= lease_variables(node, wanted, entry.ends_at, entry.ends_itself)
    if wanted.engine != "moshi_server":
        variables |= {"moshi_engine": wanted.engine, "moshi_kv_dtype": wanted.kv}
    variables["moshi_quantization"] = wanted.quantization
    path.write_text(json.dumps({"line": {"hosts": {entry.line: variables}}}, indent=1) + "\n")
    path.chmod(0o600)


def run_playbook(playbook: str, inventory: Path, words: Sequence[str], log: Path) -> int:
    """ansible-playbook of this Python's environment, its output into the log. It gets no provider's key."""
    program = Path(sys.executable).with_name("ansible-playbook")
    with log.open("a") as out:
        process = subprocess.Popen(
            [
                str(program) if program.exists() else "ansible-playbook",
                playbook,
                "-i",
                str(inventory),
                *words,
            ],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            stopper = threading.Timer(20, process.kill)
            stopper.start()
            process.wait()
            stopper.cancel()
            raise


def child_environment() -> dict[str, str]:
    """The environment for ansible-playbook: ours, without the providers' keys."""
    keys = {name for names in KEYS.values() for name in names if name.endswith("_KEY")}
    return {k: v for k, v in os.environ.items() if k not in keys} | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }


def last_words(log: Path) -> str:
    """Of Ansible's output, the last task that failed and why, in one line."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return f"see {log}"
    blocks = list(re.finditer(r"^(?:fatal|failed): \[.*?=> *\n((?:[ \t]+.*\n|\n(?=[ \t]))+)", text, re.M))
    if not blocks:
        return f"see {log}"
    tasks = re.findall(r"^(?:TASK|RUNNING HANDLER) \[(.*?)\]", text[: blocks[-1].start()], re.M)
    try:
        said = yaml.safe_load(textwrap.dedent(blocks[-1][1]))
        message = str(said.get("msg") or "").strip()
        if detail := str(said.get("stderr") or "").strip():
            message += f": {detail.splitlines()[-1]}"
    except (yaml.YAMLError, AttributeError):
        message = blocks[-1][1]
    told = " ".join(message.split())
    return f"{f'{tasks[-1]}: ' if tasks else ''}{told[:400]}{'…' if len(told) > 400 else ''}"
