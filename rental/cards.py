"""What a card carries: conversations at the same time, measured where we measured and estimated elsewhere.

The measurements are those of docs/duplex.md and docs/benchmarks, all of them on one H100 SXM. An estimate
scales them: memory decides how many fit, bandwidth whether a step of all of them ends in time. It is no
promise, and every table says `~` in front of it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from rental.errors import UseError

GB_PER_GIB = 1.073741824
MEASURED_ON = "H100 SXM"
MEASURED_BANDWIDTH = 3352.0  # GB/s, NVIDIA's data sheet
STEP_LIMIT_MS = 60.0  # a step of all conversations; `python -m duplex --slots auto` holds itself to the same
MOST_IN_TIME = 76  # more than this was never seen in time in one process (docs/duplex.md)
FREE = 0.96  # of a card's memory; the rest is the driver's and the CUDA context's


@dataclass(frozen=True)
class Card:
    """One GPU as NVIDIA's data sheet has it: memory in GiB, bandwidth in GB/s, compute capability."""

    name: str
    memory_gib: float
    bandwidth: float
    capability: float


@dataclass(frozen=True)
class Carries:
    """How many conversations, and how that is known."""

    conversations: int
    measured: bool
    how: str

    def __str__(self) -> str:
        return f"{'' if self.measured else '~'}{self.conversations}"


@dataclass(frozen=True)
class _Engine:
    """An engine's needs as measured: GB and ms per step, for itself and for each conversation."""

    base_gb: float
    each_gb: float
    base_ms: float
    each_ms: float
    measured: int
    source: str


# duplex bf16: 38 conversations in 77.8 GB, steps of 10.5 ms (1) and 35.2 ms (38):
# docs/benchmarks/duplex-h100-{bf16,steps}.json.
# 8-bit keys and values halve both shares: 76 in 79.5 GB. q8 weights with them: 16 in 22.9 GB.
DUPLEX = {
    ("bf16", "bf16"): _Engine(18.0, 1.573, 9.8, 0.668, 38, "docs/benchmarks/duplex-h100-bf16.json"),
    ("bf16", "fp8"): _Engine(18.9, 0.797, 9.8, 0.334, 76, "docs/benchmarks/duplex-h100-fp8.json"),
    ("q8", "bf16"): _Engine(11.0, 1.573, 9.8, 0.668, 0, ""),
    ("q8", "fp8"): _Engine(10.2, 0.797, 9.8, 0.334, 16, "docs/benchmarks/duplex-h100-q8-fp8-24gb.json"),
}
# moshi.server carries one caller. GB of memory as role preflight asks for; ms per frame on the H100, launches
# included.
MOSHI_SERVER_GB = {"bf16": 18_300 * 1.048576e-3, "q8": 10_800 * 1.048576e-3}
MOSHI_SERVER_MS = 22.8
WEIGHTS_GB = {"bf16": 15.4, "q8": 8.0}
FRAME_MS = 80.0

# Names as Vast writes them where it has the card.
CARDS = tuple(
    Card(*row)
    for row in (
        ("RTX 2080 Ti", 11, 616, 7.5),
        ("Titan RTX", 24, 672, 7.5),
        ("RTX 3060", 12, 360, 8.6),
        ("RTX 3060 Ti", 8, 448, 8.6),
        ("RTX 3070", 8, 448, 8.6),
        ("RTX 3080", 10, 760, 8.6),
        ("RTX 3080 Ti", 12, 912, 8.6),
        ("RTX 3090", 24, 936, 8.6),
        ("RTX 3090 Ti", 24, 1008, 8.6),
        ("RTX 4060 Ti", 16, 288, 8.9),
        ("RTX 4070", 12, 504, 8.9),
        ("RTX 4070 Ti", 12, 504, 8.9),
        ("RTX 4070S Ti", 16, 672, 8.9),
        ("RTX 4080", 16, 717, 8.9),
        ("RTX 4080S", 16, 736, 8.9),
        ("RTX 4090", 24, 1008, 8.9),
        ("RTX 5070", 12, 672, 12.0),
        ("RTX 5070 Ti", 16, 896, 12.0),
        ("RTX 5080", 16, 960, 12.0),
        ("RTX 5090", 32, 1792, 12.0),
        ("RTX A4000", 16, 448, 8.6),
        ("RTX A4500", 20, 640, 8.6),
        ("RTX A5000", 24, 768, 8.6),
        ("RTX A6000", 48, 768, 8.6),
        ("RTX 4000Ada", 20, 360, 8.9),
        ("RTX 5000Ada", 32, 576, 8.9),
        ("RTX 6000Ada", 48, 960, 8.9),
        ("RTX PRO 6000", 96, 1792, 12.0),
        ("L4", 24, 300, 8.9),
        ("L40", 48, 864, 8.9),
        ("L40S", 48, 864, 8.9),
        ("A10", 24, 600, 8.6),
        ("A30", 24, 933, 8.0),
        ("A40", 48, 696, 8.6),
        ("A100 PCIE", 80, 1935, 8.0),
        ("A100 SXM4", 80, 2039, 8.0),
        ("H100 PCIE", 80, 2039, 9.0),
        ("H100 NVL", 94, 3938, 9.0),
        ("H100 SXM", 80, 3352, 9.0),
        ("H200", 141, 4800, 9.0),
        ("H200 NVL", 141, 4800, 9.0),
        ("B200", 180, 8000, 10.0),
        ("Tesla V100", 16, 900, 7.0),
        ("Tesla T4", 16, 320, 7.5),
    )
)
# How RunPod (the names that the driver reports) and Salad write what would not be found by its letters alone.
ALIASES = {
    "H100 80GB HBM3": "H100 SXM",
    "H100": "H100 SXM",
    "H100 SXM5": "H100 SXM",
    "A100 80GB PCIe": "A100 PCIE",
    "A100-SXM4-80GB": "A100 SXM4",
    "A100": "A100 PCIE",
    "A100 SXM": "A100 SXM4",
    "H200 SXM": "H200",
    "RTX 4000 Ada Generation": "RTX 4000Ada",
    "RTX 5000 Ada Generation": "RTX 5000Ada",
    "RTX 6000 Ada Generation": "RTX 6000Ada",
    "RTX 4070 Ti Super": "RTX 4070S Ti",
    "RTX 4080 Super": "RTX 4080S",
    "RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000",
    "RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "V100": "Tesla V100",
    "T4": "Tesla T4",
}


def _letters(name: str) -> str:
    """`NVIDIA GeForce RTX 4090 (24 GB)`, `RTX_4090` and `rtx 4090` have the same letters."""
    bare = re.sub(r"\(.*?\)", "", name.upper())
    return re.sub(r"NVIDIA|GEFORCE|[^A-Z0-9]", "", bare)


_BY_LETTERS = {_letters(card.name): card for card in CARDS} | {
    _letters(alias): next(card for card in CARDS if card.name == name) for alias, name in ALIASES.items()
}


def card(name: str) -> Card | None:
    """The card that a provider means by this name, if it is one we know. A laptop's card is another card."""
    return _BY_LETTERS.get(_letters(name))


def wanted_card(name: str) -> Card:
    """The card that a person means; an unknown name is refused with what is near it."""
    if found := card(name):
        return found
    near = difflib.get_close_matches(_letters(name), list(_BY_LETTERS), n=3, cutoff=0.5)
    known = list(dict.fromkeys(_BY_LETTERS[key].name for key in near)) or [known.name for known in CARDS]
    raise UseError(
        f"no card called '{name}' is known here. Mend: {'did you mean' if near else 'choose from'} "
        f"{', '.join(known)}?"
    )


def carries(
    memory_gib: float,
    bandwidth: float,
    *,
    name: str = "",
    engine: str = "moshi_server",
    quantization: str = "bf16",
    kv: str = "bf16",
) -> Carries:
    """How many conversations one card carries with this engine; 0 if it carries none.

    `memory_gib` per card, `bandwidth` in GB/s; `kv` is duplex's `--kv-dtype`.
    """
    memory, slower = memory_gib * GB_PER_GIB, MEASURED_BANDWIDTH / bandwidth
    here = (known := card(name)) is not None and known.name == MEASURED_ON
    if engine == "moshi_server":
        if memory < MOSHI_SERVER_GB[quantization]:
            return Carries(0, False, f"moshi.server needs {MOSHI_SERVER_GB[quantization]:.1f} GB of memory")
        # What the weights' bytes take grows as the bandwidth shrinks, launches and the rest stay.
        reading = WEIGHTS_GB[quantization] / MEASURED_BANDWIDTH * 1000
        frame = MOSHI_SERVER_MS - reading + reading * slower
        if frame > FRAME_MS:
            return Carries(0, False, f"about {frame:.0f} ms per 80 ms frame: too slow")
        return Carries(
            1, here, f"docs/benchmarks/moshi-server-h100-{quantization}.json" if here else "estimate"
        )
    needs = DUPLEX[(quantization, kv)]
    fit = int((memory * FREE - needs.base_gb) / needs.each_gb)
    in_time = int((STEP_LIMIT_MS / slower - needs.base_ms) / needs.each_ms)
    if here and needs.measured:
        return Carries(min(needs.measured, max(fit, 0)), True, needs.source)
    return Carries(max(0, min(fit, in_time, MOST_IN_TIME)), False, "estimate from the H100's figures")
