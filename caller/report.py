"""What a call was like, in numbers that keep their names: the JSON of the command line is this.

**Moshi's 160 and 200 ms.** "Moshi has a theoretical latency of 160 ms (80 ms for the frame size of Mimi and
80 ms of acoustic delay), with a practical overall latency as low as 200 ms on an L4 GPU" (Défossez et al.,
Moshi: a speech-text foundation model for real-time dialogue, arXiv 2410.00037). A frame can be sent only
when its 80 ms have been spoken; its answer begins `lag` frames later, which is the acoustic delay (see
measure.py); and then comes the turnaround, which is what the machine, nginx and the network add. The sum is

    80 ms + lag x 80 ms + turnaround

and 200 ms in practice leaves 40 ms for the turnaround. The caller's own microphone, sound card and jitter
buffer are not in it, nor in kyutai's figure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from caller.line import CLOSE_WORDS, Outcome, Patience, Recording, call
from caller.measure import (
    FRAME_S,
    Answers,
    Pairing,
    Playback,
    Spread,
    answers,
    drift_ms_per_minute,
    pair,
    playback,
    spread,
    text,
)
from caller.ogg import OggError
from caller.speech import Speech

FORMAT = 1
"""Version of the JSON; a key that changes its meaning raises it."""
FRAME_MS = round(1000 * FRAME_S)
THEORY_MS, PRACTICE_MS = 160, 200
OWN_LATENESS_MS = 10
"""Above this (p99) the caller's own machine is too busy for its figures to be the line's."""


@dataclass(frozen=True)
class Handshake:
    """From dialling to the engine's greeting, in milliseconds; None: it did not come to that."""

    dns_ms: float | None
    tcp_ms: float | None
    tls_ms: float | None
    upgrade_ms: float | None
    engine_ms: float | None
    """From the upgrade to the kind 0 byte: waiting for the engine."""
    total_ms: float | None


@dataclass(frozen=True)
class Frames:
    """Frames of 80 ms."""

    sent: int
    answered: int
    lag: int | None
    """Heard before the first answer; moshi.server: 1. None: nothing came, or not clocked by the input."""
    lost: int
    """Answers lost on the way (a hole in the stream) and frames that never got an answer, together."""
    lost_on_the_way: int


@dataclass(frozen=True)
class Latency:
    """The sum that compares with Moshi's 160 ms in theory and 200 ms in practice."""

    frame_ms: int
    acoustic_delay_ms: int
    turnaround_p50_ms: float
    sum_p50_ms: float
    sum_p99_ms: float
    theory_ms: int = THEORY_MS
    practice_ms: int = PRACTICE_MS


@dataclass(frozen=True)
class Judgement:
    """What a transcriber heard, against what the engine said it said."""

    heard: str
    said: str
    words: int
    """Words that the engine said."""
    word_error_rate: float | None
    """None: there is nothing to compare."""
    meaningful: bool
    verdict: str


@dataclass
class Report:
    """One call. `outcome` is ok when it was held to its end; `reason` says in a sentence why not."""

    url: str
    started_at: str
    outcome: Outcome
    reason: str
    speech: str
    seconds: float
    tls: str | None
    handshake: Handshake
    first_audio_ms: float | None
    """From the first frame, which is sent when the engine greets, to the first audio."""
    turnaround_ms: Spread
    """Last byte of a frame in, first byte of its answer out, per 80 ms frame."""
    frames: Frames
    playback: Playback
    drift_ms_per_minute: float | None
    latency: Latency | None
    clock_ms: Spread
    """How late this machine sent its own frames."""
    text: str
    text_pieces: int
    close_code: int | None
    close_words: str
    error: dict[str, str] | None
    remarks: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    judgement: Judgement | None = None
    turnarounds_ms: list[float] = field(default_factory=list)
    """Each answered frame's turnaround, in order."""

    def as_json(self, samples: bool = False) -> dict[str, object]:
        """Everything as plain values; `samples` adds each frame's turnaround."""
        body: dict[str, object] = {"format": FORMAT, **asdict(self)}
        if not samples:
            del body["turnarounds_ms"]
        return body


@dataclass(frozen=True)
class Limits:
    """What the line must keep to; None: no limit. `missed` tells which ones a call broke."""

    handshake_ms: float | None = None
    first_audio_ms: float | None = None
    turnaround_p50_ms: float | None = None
    turnaround_p95_ms: float | None = None
    turnaround_p99_ms: float | None = None
    lost: int | None = None
    gaps: int | None = None
    drift_ms_per_minute: float | None = None
    word_error_rate: float | None = None

    def missed(self, report: Report) -> list[str]:
        """One sentence per limit that the call did not keep, or that could not be measured."""
        judged = report.judgement
        rate = judged.word_error_rate if judged is not None and judged.meaningful else None
        measured: dict[str, tuple[str, float | None, str]] = {
            "handshake_ms": ("the handshake took", report.handshake.total_ms, " ms"),
            "first_audio_ms": ("the first audio came after", report.first_audio_ms, " ms"),
            "turnaround_p50_ms": ("turnaround p50 is", report.turnaround_ms.p50, " ms"),
            "turnaround_p95_ms": ("turnaround p95 is", report.turnaround_ms.p95, " ms"),
            "turnaround_p99_ms": ("turnaround p99 is", report.turnaround_ms.p99, " ms"),
            "lost": ("frames lost:", report.frames.lost, ""),
            "gaps": ("gaps heard:", report.playback.gaps, ""),
            "drift_ms_per_minute": ("the engine falls behind by", report.drift_ms_per_minute, " ms a minute"),
            "word_error_rate": ("the word error rate of its voice is", rate, ""),
        }
        sentences = []
        for item in fields(self):
            limit = getattr(self, item.name)
            what, value, unit = measured[item.name]
            if limit is None:
                continue
            if value is None:
                if item.name not in ("word_error_rate", "drift_ms_per_minute"):
                    sentences.append(f"{what} nothing that could be measured, the limit is {limit:g}{unit}")
            elif value > limit:
                sentences.append(f"{what} {value:g}{unit}, the limit is {limit:g}{unit}")
        return sentences


async def speak(
    url: str,
    speech: Speech,
    *,
    ca: Path | None = None,
    insecure: bool = False,
    patience: Patience | None = None,
    lag: int | None = None,
    origin: str | None = None,
    start_at: float | None = None,
) -> Report:
    """Call a line, speak, measure. See caller.line.call; `lag` is the engine's where it is known."""
    recording = await call(
        url, speech, ca=ca, insecure=insecure, patience=patience, origin=origin, start_at=start_at
    )
    return evaluate(recording, lag)


def evaluate(recording: Recording, lag: int | None = None) -> Report:
    """Turn what came when into what it was like."""
    outcome, reason = recording.outcome, recording.reason
    try:
        heard = answers(recording.audio)
    except OggError as error:
        heard = Answers((), ())
        outcome, reason = "garbage", f"what came as audio is no Ogg/Opus: {error}"
    if outcome == "ok" and not heard.arrived:
        outcome = "silent"
        reason = f"the engine greeted and answered none of {len(recording.sent)} frames"
    pairing = pair(recording.sent, heard, drained=recording.drained, lag=lag)
    turnarounds = [
        answer.at - recording.sent[number]
        for answer, number in zip(heard.arrived, pairing.inputs, strict=False)
    ]
    frames = Frames(
        sent=len(recording.sent),
        answered=len(heard.arrived),
        lag=pairing.lag,
        lost=len(heard.missing) + pairing.unanswered,
        lost_on_the_way=len(heard.missing),
    )
    pieces = [piece for _, piece in recording.text]
    turnaround = spread(turnarounds)
    clock = spread(sent - due for sent, due in zip(recording.sent, recording.due, strict=True))
    begun = heard.arrived[0].at if heard.arrived else None
    return Report(
        url=recording.url,
        started_at=recording.started_at.isoformat(timespec="seconds"),
        outcome=outcome,
        reason=reason,
        speech=recording.speech,
        seconds=round(len(recording.sent) * FRAME_S, 2),
        tls=recording.tls,
        handshake=_handshake(recording),
        first_audio_ms=_ms(recording.sent[0] if recording.sent else None, begun),
        turnaround_ms=turnaround,
        frames=frames,
        playback=playback(heard),
        drift_ms_per_minute=drift_ms_per_minute([recording.sent[i] for i in pairing.inputs], turnarounds),
        latency=_latency(pairing, turnaround),
        clock_ms=clock,
        text=text(pieces),
        text_pieces=len(pieces),
        close_code=recording.close_code,
        close_words=CLOSE_WORDS.get(recording.close_code or 0, ""),
        error=recording.error,
        remarks=_remarks(recording, outcome, heard, pairing, clock),
        turnarounds_ms=[round(1000 * value, 3) for value in turnarounds],
    )


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(1000 * (end - start), 3)


def _handshake(recording: Recording) -> Handshake:
    dialled = recording.dialled
    return Handshake(
        dns_ms=_ms(dialled, recording.resolved),
        tcp_ms=_ms(recording.resolved or dialled, recording.connected),
        tls_ms=_ms(recording.connected, recording.secured),
        upgrade_ms=_ms(recording.secured or recording.connected, recording.upgraded),
        engine_ms=_ms(recording.upgraded, recording.greeted),
        total_ms=_ms(dialled, recording.greeted),
    )


def _latency(pairing: Pairing, turnaround: Spread) -> Latency | None:
    if pairing.lag is None or turnaround.p50 is None or turnaround.p99 is None:
        return None
    fixed = FRAME_MS + pairing.lag * FRAME_MS
    return Latency(
        frame_ms=FRAME_MS,
        acoustic_delay_ms=pairing.lag * FRAME_MS,
        turnaround_p50_ms=turnaround.p50,
        sum_p50_ms=round(fixed + turnaround.p50, 3),
        sum_p99_ms=round(fixed + turnaround.p99, 3),
    )


def _remarks(
    recording: Recording, outcome: Outcome, heard: Answers, pairing: Pairing, clock: Spread
) -> list[str]:
    remarks = []
    if clock.p99 is not None and clock.p99 > OWN_LATENESS_MS:
        remarks.append(
            f"this machine sent its own frames up to {clock.max:g} ms late (p99 {clock.p99:g} ms): it is too "
            "busy to measure with, and the figures are worse than the line"
        )
    if outcome == "ok" and not recording.drained:
        behind = len(recording.sent) - (pairing.lag or 0) - heard.made
        remarks.append(
            f"the engine was still {behind} frames behind when the call ended: it is slower than real time"
        )
    if heard.arrived and pairing.lag is None:
        remarks.append(
            "the engine sent more frames than it was sent: it is not clocked by its input, so there is no "
            "turnaround to measure"
        )
    if recording.unexpected:
        remarks.append(f"{recording.unexpected} messages were of no known kind")
    return remarks


def table(report: Report) -> str:
    """The report for people, one line per figure."""

    def number(value: float | None, unit: str = " ms") -> str:
        return "-" if value is None else f"{value:.1f}{unit}"

    def row(name: str, words: str) -> str:
        return f"  {name:<12}{words}"

    hands, spent, sizes = report.handshake, report.turnaround_ms, report.frames
    parts = (
        ("name", hands.dns_ms),
        ("TCP", hands.tcp_ms),
        ("TLS", hands.tls_ms),
        ("upgrade", hands.upgrade_ms),
        ("engine", hands.engine_ms),
    )
    plain = "no TLS" if report.url.startswith("ws:") else None
    lines = [f"{report.url}  ({report.tls or plain})" if report.tls or plain else report.url]
    steps = ", ".join(f"{name} {value:.1f}" for name, value in parts if value is not None)
    if steps:
        lines.append(row("handshake", f"{number(hands.total_ms)}: {steps}"))
    if sizes.sent:
        lines += [
            row("first audio", f"{number(report.first_audio_ms)} after the first frame"),
            row(
                "turnaround",
                f"p50 {number(spent.p50)}, p95 {number(spent.p95)}, p99 {number(spent.p99)}, "
                f"max {number(spent.max)} per 80 ms frame",
            ),
            row(
                "frames",
                f"{sizes.sent} sent, {sizes.answered} answered, {sizes.lost} lost"
                + (f", {sizes.lag} heard before the first answer" if sizes.lag else ""),
            ),
            row(
                "playback",
                f"{report.playback.gaps} gaps, longest pause {number(report.playback.longest_ms)}, "
                f"needs a buffer of {number(report.playback.buffer_ms)}"
                + (
                    f", drift {report.drift_ms_per_minute:+.1f} ms a minute"
                    if report.drift_ms_per_minute is not None
                    else ""
                ),
            ),
        ]
    if report.latency is not None:
        sums = report.latency
        lines.append(
            row(
                "latency",
                f"{sums.frame_ms} frame + {sums.acoustic_delay_ms} acoustic delay + "
                f"{sums.turnaround_p50_ms:.1f} turnaround = {sums.sum_p50_ms:.1f} ms, "
                f"p99 {sums.sum_p99_ms:.1f} "
                f"(Moshi: {sums.theory_ms} in theory, {sums.practice_ms} in practice)",
            )
        )
    if report.text_pieces:
        lines.append(row("text", f"{report.text_pieces} pieces: {shorten(report.text)}"))
    if report.judgement is not None:
        lines.append(row("heard", shorten(report.judgement.heard) or "nothing"))
        lines.append(row("voice", report.judgement.verdict))
    lines += [row("remark", remark) for remark in report.remarks]
    if report.outcome != "ok":
        lines.append(row(report.outcome, printable(report.reason)))
    lines += [row("missed", sentence) for sentence in report.missed]
    if report.outcome == "ok" and not report.missed:
        lines.append(row("ok", "the line answers"))
    return "\n".join(lines)


def printable(words: str) -> str:
    """What the other side sent, for a terminal: its control characters are shown, never obeyed."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def shorten(words: str, length: int = 70) -> str:
    """Make text fit into one line of a terminal."""
    shown = printable(words)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def verdict(report: Report) -> tuple[int, str]:
    """Exit status and the sentence that goes with it; see caller.cli."""
    if report.outcome in ("busy", "refused"):
        return (4 if report.outcome == "busy" else 5), printable(report.reason)
    if report.outcome != "ok":
        return 3, printable(report.reason)
    if report.missed:
        return 1, "the line answers but misses its limits: " + "; ".join(report.missed)
    return 0, "the line answers"
