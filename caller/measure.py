"""From what came when to what it means. Pure: no clock, no socket, no Opus; times are seconds of one clock.

**Which answer belongs to which frame.** An engine of Moshi's protocol is clocked by its input: one frame
of 80 ms in, one out. moshi.server 0.2.13 answers nothing to the first frame: `LMGen.step` returns nothing
while its offset is not above the model's `max_delay`, which is 1, and the answer to frame i (from 0) is frame
i - 1 of its stream. That one frame is Moshi's acoustic delay, and it is called `lag` here. (The server's
`skip_frames` skips nothing from the outside: the first frame is encoded and stepped all the same.) Its Ogg
writer sends two pages of 40 ms per frame in one message, the first message also carries OpusHead and
OpusTags, its reader waits for whole pages, and a proxy may cut or join messages as it likes. So neither
messages nor pages are counted, but audio: answer j begins with the page that carries sample 1920 j of the
engine's stream, and its time is that of the page's first byte.

The lag is measured, not assumed. With an empty wire at the end of the call, frames sent minus answers made
is lag + frames lost, and no answer can come before its question. Each answer is therefore given to the
*latest* frame that could have caused it, in order, within that total:

    offset(j) = min(sent - answered in all, smallest (frames sent when answer k came) - 1 - k for k >= j)
    turnaround(j) = time of answer j - time of frame j + offset(j)

Without losses this is exact however slow the line is, since the total leaves no choice. With losses each
one raises the offset by one where the stream proves it; a line that both loses frames and needs more than
80 ms leaves a choice, and then the lag is overestimated and the turnaround underestimated by whole frames,
unless the lag is given. A page lost on the way is known by the hole in page numbers and granule positions,
and changes no offset. If the wire was not empty at the end (the line broke, or the engine was behind),
nothing is called lost and the offset is a constant: Moshi's lag of 1, or 0 where the answers contradict it,
or the lag that was given. Lateness then shows as turnaround.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from caller.ogg import SAMPLES_PER_SECOND, Page, PageReader

FRAME_S = 0.08
"""One frame of Mimi: 1920 samples of 24 kHz, 12.5 frames a second."""
FRAME_SAMPLES = round(FRAME_S * SAMPLES_PER_SECOND)
"""The same in samples of 48 kHz, in which Ogg counts."""

MOSHI_LAG = 1
"""Frames that Moshi's model hears before its first answer, whatever server it runs in."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Frame `number` of the engine's stream (from 0) began to arrive at `at`."""

    number: int
    at: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The engine's stream in frames of 80 ms. `missing` are numbers of frames that were lost on the way."""

    arrived: tuple[Answer, ...]
    missing: tuple[int, ...]

    @property
    def made(self) -> int:
        """Frames that the engine made, as far as the stream tells."""
        return len(self.arrived) + len(self.missing)


def answers(messages: Iterable[tuple[float, bytes]]) -> Answers:
    """Find the frames in audio messages `(time, Ogg bytes)`.

    Raises caller.ogg.OggError when the bytes are no Ogg stream.
    """
    reader = PageReader()
    arrived: list[Answer] = []
    missing: list[int] = []
    position, following = 0, 0
    last: Page | None = None
    for at, payload in messages:
        for page in reader.feed(payload, at):
            samples = page.samples
            if last is not None and page.sequence > last.sequence + 1:
                hole = page.granule - max(last.granule, 0) - samples
                if hole > 0:
                    position += hole
                    begun = -(-position // FRAME_SAMPLES)
                    missing.extend(range(following, begun))
                    following = max(following, begun)
            last = page
            position += samples
            begun = -(-position // FRAME_SAMPLES)
            arrived.extend(Answer(number, page.at) for number in range(following, begun))
            following = max(following, begun)
    return Answers(tuple(arrived), tuple(missing))


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which frame each answer belongs to. `lag` is None when the engine is not clocked by its input."""

    lag: int | None
    inputs: tuple[int, ...]
    """For each answer that arrived, in order, the number of the frame that caused it."""
    unanswered: int
    """Frames that never got an answer, beyond the lag; 0 when the wire was not empty at the end."""


def pair(sent: Sequence[float], heard: Answers, *, drained: bool, lag: int | None = None) -> Pairing:
    """Give each answer to the frame that caused it; see the module's text for the rule.

    `sent` are the times at which frames 0, 1, … were handed over; `drained` says that the engine had fallen
    silent before the call ended; `lag` is the engine's lag where it is known.
    """
    if not heard.arrived or not sent:
        return Pairing(lag, (), 0)
    offsets: list[int] = []
    smallest: int | None = None
    for answer in reversed(heard.arrived):
        possible = bisect_right(sent, answer.at) - 1 - answer.number
        smallest = possible if smallest is None else min(smallest, possible)
        offsets.append(smallest)
    offsets.reverse()
    first = offsets[0]
    if first < 0:
        return Pairing(None, (), 0)
    most = len(sent) - heard.made if drained else min(first, MOSHI_LAG if lag is None else lag)
    offsets = [min(offset, most) for offset in offsets]
    known = min(offsets[0], lag) if lag is not None else offsets[0]
    inputs = tuple(answer.number + offset for answer, offset in zip(heard.arrived, offsets, strict=True))
    return Pairing(known, inputs, most - known if drained else 0)


@dataclass(frozen=True, slots=True)
class Spread:
    """A sample in milliseconds; percentiles are interpolated linearly. All None when there is no sample."""

    count: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


def percentile(ordered: Sequence[float], share: float) -> float:
    """Value below which `share` (0 to 1) of an ascending sample lies, interpolated linearly."""
    if not ordered:
        raise ValueError("a percentile of nothing")
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(seconds: Iterable[float]) -> Spread:
    """Summarise durations given in seconds; the result is in milliseconds, to the microsecond."""
    ordered = sorted(1000 * value for value in seconds)
    if not ordered:
        return Spread(0, None, None, None, None, None)
    return Spread(
        count=len(ordered),
        mean=round(sum(ordered) / len(ordered), 3),
        p50=round(percentile(ordered, 0.50), 3),
        p95=round(percentile(ordered, 0.95), 3),
        p99=round(percentile(ordered, 0.99), 3),
        max=round(ordered[-1], 3),
    )


@dataclass(frozen=True, slots=True)
class Playback:
    """What a listener who plays the answers in real time has to put up with, in milliseconds."""

    gaps: int
    """Answers that came more than two frames (160 ms) after the one before: heard as a hole."""
    longest_ms: float | None
    """The longest time between two answers."""
    buffer_ms: float | None
    """The smallest buffer with which nothing would have been late: how far the latest answer lagged behind
    a clock that started with the first one."""


def playback(heard: Answers) -> Playback:
    """Judge the regularity of the answers."""
    arrived = heard.arrived
    if not arrived:
        return Playback(0, None, None)
    steps = [after.at - before.at for before, after in pairwise(arrived)]
    start = arrived[0].at - arrived[0].number * FRAME_S
    return Playback(
        gaps=sum(step > 2 * FRAME_S for step in steps),
        longest_ms=round(1000 * max(steps), 3) if steps else None,
        buffer_ms=round(1000 * max(answer.at - start - answer.number * FRAME_S for answer in arrived), 3),
    )


def drift_ms_per_minute(times: Sequence[float], delays: Sequence[float]) -> float | None:
    """Slope of `delays` over `times` (both seconds) by least squares, in milliseconds per minute.

    Positive: the engine falls behind real time. None below five seconds of call, where a slope is noise.
    """
    if len(times) < 2 or times[-1] - times[0] < 5:
        return None
    middle_time = sum(times) / len(times)
    middle_delay = sum(delays) / len(delays)
    slope = sum(
        (at - middle_time) * (delay - middle_delay) for at, delay in zip(times, delays, strict=True)
    ) / sum((at - middle_time) ** 2 for at in times)
    return round(slope * 60_000, 3)


_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def text(pieces: Iterable[bytes]) -> str:
    """Join text pieces; byte-fallback pieces (`<0x41>`, as sentencepiece spells them) become their bytes."""
    raw = _BYTE.sub(lambda match: bytes([int(match[1], 16)]), b"".join(pieces))
    return raw.decode("utf-8", errors="replace").strip()


def byte_fallback_share(pieces: Sequence[bytes]) -> float:
    """Share (0 to 1) of pieces that are byte fallback: rare in speech, the rule with random weights."""
    return sum(bool(_BYTE.fullmatch(piece.strip())) for piece in pieces) / len(pieces) if pieces else 0.0
