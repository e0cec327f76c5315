"""What the engine counts, in Prometheus' text form
(https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

TURNAROUND_MS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 100, 150, 250, 500, 1000)
BATCH = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
DEADLINE_S = 0.080
RECENT = 2048
"""How many of the last values percentiles are made of."""


@dataclass
class Histogram:
    """Counts per bucket, and the last values themselves for percentiles."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.recent.append(value)

    def percentile(self, percent: float) -> float | None:
        """Return the percentile of the last RECENT values; None without any."""
        if not self.recent:
            return None
        values = sorted(self.recent)
        return round(values[min(len(values) - 1, int(len(values) * percent / 100))], 2)

    def lines(self, name: str, help_text: str, scale: float = 1.0) -> Iterable[str]:
        """Write it out; bounds and sum are multiplied by ``scale``."""
        yield f"# HELP {name} {help_text}"
        yield f"# TYPE {name} histogram"
        below = 0
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            below += count
            edge = "+Inf" if bound == float("inf") else f"{bound * scale:g}"
            yield f'{name}_bucket{{le="{edge}"}} {below}'
        yield f"{name}_sum {self.total * scale:g}"
        yield f"{name}_count {below}"


@dataclass
class Metrics:
    """Everything that is counted while the engine runs."""

    turnaround_ms: Histogram = field(default_factory=lambda: Histogram(TURNAROUND_MS))
    step_ms: Histogram = field(default_factory=lambda: Histogram(TURNAROUND_MS))
    batch: Histogram = field(default_factory=lambda: Histogram(BATCH))
    missed: int = 0
    dropped_in: int = 0
    dropped_out: int = 0
    caught_up: int = 0
    backlog: int = 0
    started: int = 0
    resumed: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def answered(self, seconds: float) -> None:
        """Count a frame whose answer went out ``seconds`` after it had come in."""
        self.turnaround_ms.add(seconds * 1000)
        self.missed += seconds > DEADLINE_S

    def text(
        self, gauges: dict[str, tuple[str, float]], further: dict[str, tuple[str, int]] | None = None
    ) -> str:
        """Return all of it; ``gauges`` and ``further`` counters map names to their help and value."""
        lines = [
            *self.turnaround_ms.lines(
                "duplex_turnaround_seconds", "From a frame's last byte in to its answer out.", 1e-3
            ),
            *self.step_ms.lines("duplex_step_seconds", "One step of the engine.", 1e-3),
            *self.batch.lines("duplex_batch_size", "Conversations per step."),
        ]
        counters = {
            "missed_deadlines": ("Frames answered later than 80 ms.", self.missed),
            "dropped_in_frames": ("Frames of callers that were dropped unheard.", self.dropped_in),
            "dropped_out_frames": ("Answers dropped since the page read too slowly.", self.dropped_out),
            "catch_ups": ("Times a conversation was more than 400 ms behind.", self.caught_up),
            "calls_started": ("Calls.", self.started),
            "calls_resumed": ("Broken calls that came back.", self.resumed),
            **(further or {}),
        }
        for name, (help_text, value) in counters.items():
            lines += [f"# HELP duplex_{name}_total {help_text}", f"# TYPE duplex_{name}_total counter"]
            lines.append(f"duplex_{name}_total {value}")
        for name, label, counter in (
            ("calls_ended", "reason", self.ended),
            ("calls_refused", "code", self.refused),
        ):
            lines += [f"# HELP duplex_{name}_total By {label}.", f"# TYPE duplex_{name}_total counter"]
            lines += [
                f'duplex_{name}_total{{{label}="{key}"}} {value}' for key, value in sorted(counter.items())
            ]
        for name, (help_text, number) in gauges.items():
            lines += [
                f"# HELP duplex_{name} {help_text}",
                f"# TYPE duplex_{name} gauge",
                f"duplex_{name} {number:g}",
            ]
        return "\n".join(lines) + "\n"
