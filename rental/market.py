"""Offers, nodes, and which offer to take: everything that is decided about money, without a network.

Prices are US dollars per hour, disk included. Memory is per card in GiB, network in Mbit/s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rental.cards import Carries, card, carries
from rental.errors import NoOfferError

LABEL = "hotline-"  # every node of ours is called hotline-<line>-<6 hex digits>
OLDEST_CAPABILITY = (
    7.0  # torch's CUDA 12.8 wheels bring no code for anything older than Volta (role preflight)
)
BLACKWELL = 10.0
OLDEST_DRIVER, OLDEST_DRIVER_BLACKWELL = 525, 570  # role nvidia_driver's numbers
OLDEST_CUDA, OLDEST_CUDA_BLACKWELL = 12.0, 12.8  # the same, as a driver's highest CUDA version


@dataclass(frozen=True)
class Offer:
    """One thing that can be rented now. What a provider does not tell is None."""

    provider: str
    id: str
    gpu: str
    gpus: int
    price: float
    kind: str  # vm: a machine with systemd; container: the provider's PID 1, the host's driver
    memory_gib: float | None = None
    bandwidth: float | None = None
    capability: float | None = None
    down: float | None = None
    reliability: float | None = None
    country: str = ""
    driver: str = ""
    cuda: float | None = None
    detail: Mapping[str, str] = field(default_factory=dict)  # what the provider's own create call needs


@dataclass(frozen=True)
class Node:
    """One rented node as its provider tells it."""

    provider: str
    id: str
    label: str
    state: str  # starting, running, stopped, failed
    said: str = ""  # the provider's own word for it
    price: float = 0.0
    gpu: str = ""
    gpus: int = 1
    kind: str = "container"
    country: str = ""
    host: str = ""
    port: int = 0
    user: str = "root"
    fingerprint: str = ""  # of the ssh host key, SHA256:…, where the provider publishes one
    ports: Mapping[int, int] = field(default_factory=dict)  # inside → outside
    url: str = ""  # where a gateway of the provider ends TLS
    created: float | None = None  # seconds since 1970, the provider's clock


@dataclass(frozen=True)
class Wanted:
    """What is asked for. The price is a ceiling in dollars per hour, and required."""

    price: float
    conversations: int = 1
    gpu: str = ""
    engine: str = "moshi_server"
    quantization: str = "bf16"
    kv: str = "bf16"
    down: float = 200.0
    reliability: float = 0.97
    kind: str = "any"
    countries: tuple[str, ...] = ()
    disk_gb: int = 60
    hours: float = 0.0  # 0: until it is released
    idle_minutes: int = 0  # 0: idle or not


def carried(offer: Offer, wanted: Wanted) -> Carries:
    """How many conversations all cards of an offer carry."""
    known = card(offer.gpu)
    memory = offer.memory_gib or (known.memory_gib if known else 0)
    bandwidth = offer.bandwidth or (known.bandwidth if known else 0)
    if not memory or not bandwidth:
        return Carries(0, False, "an unknown card")
    each = carries(
        memory,
        bandwidth,
        name=offer.gpu,
        engine=wanted.engine,
        quantization=wanted.quantization,
        kv=wanted.kv,
    )
    return Carries(each.conversations * offer.gpus, each.measured and offer.gpus == 1, each.how)


def faults(offer: Offer, wanted: Wanted) -> list[str]:
    """Why an offer is not what is wanted, each reason as one phrase; the price is the last one asked."""
    known = card(offer.gpu)
    capability = offer.capability or (known.capability if known else None)
    blackwell = capability is not None and capability >= BLACKWELL
    told: list[str] = []
    if wanted.gpu and (not known or known != card(wanted.gpu)):
        told.append(f"is not a {wanted.gpu}")
    if wanted.kind not in ("any", offer.kind):
        told.append(f"is a {offer.kind}, not a {wanted.kind}")
    if wanted.countries and offer.country not in wanted.countries:
        told.append(f"stands outside {', '.join(wanted.countries)}")
    if capability is None:
        told.append("is a card that is unknown here")
    elif capability < OLDEST_CAPABILITY:
        told.append(f"is older than torch supports (compute capability below {OLDEST_CAPABILITY:g})")
    # A virtual machine's driver is ours to install; a container's belongs to its host.
    if offer.kind == "container":
        oldest = OLDEST_DRIVER_BLACKWELL if blackwell else OLDEST_DRIVER
        branch = offer.driver.partition(".")[0]
        if branch.isdigit() and int(branch) < oldest:
            told.append(f"has a driver older than {oldest}")
        if offer.cuda is not None and offer.cuda < (OLDEST_CUDA_BLACKWELL if blackwell else OLDEST_CUDA):
            told.append("has a driver too old for CUDA 12")
    if carried(offer, wanted).conversations < wanted.conversations:
        told.append(f"carries fewer than {wanted.conversations} conversation(s)")
    if offer.down is not None and offer.down < wanted.down:
        told.append(f"downloads slower than {wanted.down:g} Mbit/s")
    if offer.reliability is not None and offer.reliability < wanted.reliability:
        told.append(f"is less reliable than {wanted.reliability:g}")
    if offer.price > wanted.price:
        told.append(f"costs more than ${wanted.price:g} an hour")
    return told


def choose(offers: Iterable[Offer], wanted: Wanted) -> list[Offer]:
    """What may be rented, cheapest first; at the same price VMs before containers, then the reliable."""
    fit = [offer for offer in offers if not faults(offer, wanted)]
    return sorted(
        fit,
        key=lambda o: (
            round(o.price, 2),
            o.kind != "vm",
            -(o.reliability or 0),
            -(o.down or 0),
            o.price,
            o.id,
        ),
    )


def explain(offers: Sequence[Offer], wanted: Wanted, provider: str) -> NoOfferError:
    """Why nothing is left, with the mend that costs least."""
    if not offers:
        return NoOfferError(
            f"{provider} offers nothing at all for this question right now. Mend: ask again in a while, or "
            "another provider."
        )
    reasons: dict[str, int] = {}
    for offer in offers:
        for reason in faults(offer, wanted):
            reasons[reason] = reasons.get(reason, 0) + 1
    told = "; ".join(
        f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])
    )
    only_price = [
        o.price for o in offers if faults(o, wanted) == [f"costs more than ${wanted.price:g} an hour"]
    ]
    if only_price:
        least = min(only_price)
        mend = f"the cheapest that fits costs ${least:.2f} an hour: --max-price {ceil_cents(least):.2f}"
    elif all(offer.kind != wanted.kind for offer in offers) and wanted.kind == "vm":
        mend = (
            f"{provider} has only containers here: --kind any takes them as well (supervisord keeps the line "
            "there), or take a provider with virtual machines (Vast)"
        )
    else:
        mend = "ask for less: another --gpu, fewer --conversations, a lower --min-down or --min-reliability"
    return NoOfferError(f"none of {provider}'s {len(offers)} offers fits: {told}. Mend: {mend}.")


def ceil_cents(price: float) -> float:
    """The next whole cent that is not below a price."""
    return -(-round(price * 10_000) // 100) / 100


def line_of(label: str) -> str:
    """The line that a label of ours names: `talk` of `hotline-talk-3fa9c1`; empty for other labels."""
    bare = label.removeprefix(LABEL)
    return "" if bare == label else bare.rpartition("-")[0]


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Rows as text in columns, the first one a head. Columns in `right` are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def offers_table(offers: Sequence[Offer], wanted: Wanted) -> str:
    """The offers as `rental offers` prints them."""
    rows = [
        [
            "provider",
            "offer",
            "GPU",
            "GiB",
            "conv.",
            "$/h",
            "$/conv. h",
            "Mbit/s",
            "reliab.",
            "kind",
            "country",
        ]
    ]
    for offer in offers:
        many = carried(offer, wanted)
        known = card(offer.gpu)
        memory = offer.memory_gib or (known.memory_gib if known else 0)
        rows.append(
            [
                offer.provider,
                offer.id,
                (f"{offer.gpus}x " if offer.gpus > 1 else "") + (known.name if known else offer.gpu),
                f"{memory:.0f}",
                str(many),
                f"{offer.price:.3f}",
                f"{offer.price / many.conversations:.4f}" if many.conversations else "-",
                "-" if offer.down is None else f"{offer.down:.0f}",
                "-" if offer.reliability is None else f"{offer.reliability:.3f}",
                offer.kind,
                offer.country or "-",
            ]
        )
    return table(rows, right=frozenset({3, 4, 5, 6, 7, 8}))
