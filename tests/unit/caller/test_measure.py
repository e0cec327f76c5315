"""Which answer belongs to which frame, and what the figures mean. No clock and no socket here."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caller.measure import (
    FRAME_S,
    Answer,
    Answers,
    answers,
    byte_fallback_share,
    drift_ms_per_minute,
    pair,
    percentile,
    playback,
    spread,
    text,
)
from caller.speech import encode

MESSAGES = [message[1:] for message in encode(np.zeros(0, dtype=np.float32), seconds=4.8).messages]


def clock(frames: int) -> list[float]:
    return [100 + frame * FRAME_S for frame in range(frames)]


def engine(
    frames: int, lag: int, delays: list[float], skipped: frozenset[int] = frozenset()
) -> tuple[list[int], Answers]:
    """An engine that answers frame i, from `lag` on, `delays[i]` seconds later, in order; the truth and what
    is heard of it."""
    sent, truth, heard, last = clock(frames), [], [], 0.0
    for number in range(lag, frames):
        if number in skipped:
            continue
        last = max(last, sent[number] + delays[number])
        heard.append(Answer(len(heard), last))
        truth.append(number)
    return truth, Answers(tuple(heard), ())


@given(st.data())
def test_without_losses_every_answer_is_paired_exactly_however_late_it_is(data: st.DataObject) -> None:
    frames = data.draw(st.integers(2, 60))
    lag = data.draw(st.integers(0, min(3, frames - 1)))
    delays = data.draw(st.lists(st.floats(0, 2), min_size=frames, max_size=frames))
    truth, heard = engine(frames, lag, delays)
    pairing = pair(clock(frames), heard, drained=True)
    assert list(pairing.inputs) == truth
    assert pairing.lag == lag
    assert pairing.unanswered == 0


@given(st.data())
def test_skipped_frames_are_found_where_they_are(data: st.DataObject) -> None:
    frames = data.draw(st.integers(4, 60))
    lag = data.draw(st.integers(0, 2))
    skipped = frozenset(data.draw(st.sets(st.integers(lag + 1, frames - 1), max_size=8)))
    delays = data.draw(st.lists(st.floats(0, 0.079), min_size=frames, max_size=frames))
    truth, heard = engine(frames, lag, delays, skipped)
    pairing = pair(clock(frames), heard, drained=True)
    assert list(pairing.inputs) == truth
    assert (pairing.lag, pairing.unanswered) == (lag, len(skipped))


@given(st.data())
def test_no_answer_is_ever_paired_with_a_frame_that_was_sent_after_it(data: st.DataObject) -> None:
    frames = data.draw(st.integers(1, 40))
    sent = clock(frames)
    times = sorted(data.draw(st.lists(st.floats(99, 110), max_size=60)))
    heard = Answers(tuple(Answer(number, at) for number, at in enumerate(times)), ())
    lag = data.draw(st.none() | st.integers(0, 3))
    pairing = pair(sent, heard, drained=data.draw(st.booleans()), lag=lag)
    for answer, number in zip(heard.arrived, pairing.inputs, strict=False):
        assert sent[number] <= answer.at
    assert all(after > before for before, after in pairwise(pairing.inputs))


def test_a_line_that_breaks_loses_nothing() -> None:
    _, heard = engine(50, 1, [0.02] * 50)
    cut = Answers(heard.arrived[:30], ())
    pairing = pair(clock(50), cut, drained=False)
    assert (pairing.lag, pairing.unanswered) == (1, 0)
    assert pairing.inputs == tuple(range(1, 31))


def test_an_engine_that_falls_behind_is_late_and_not_lossy() -> None:
    """Half real time, and the caller hangs up before the end: 160 ms per frame, growing."""
    sent = clock(50)
    heard = Answers(tuple(Answer(n, sent[0] + 0.16 * (n + 1)) for n in range(40) if n < 25), ())
    pairing = pair(sent, heard, drained=False)
    assert pairing.unanswered == 0
    lateness = [
        answer.at - sent[number] for answer, number in zip(heard.arrived, pairing.inputs, strict=True)
    ]
    assert lateness == sorted(lateness)
    assert lateness[-1] > 1.9


def test_a_late_first_answer_of_a_line_that_breaks_is_late_and_no_lag() -> None:
    """Seen on a CPU too busy for its engine: the first answer came after four frames."""
    delays = [0.25] * 50
    _, heard = engine(50, 1, delays)
    pairing = pair(clock(50), heard, drained=False)
    assert (pairing.lag, pairing.inputs[0]) == (1, 1)


def test_a_given_lag_tells_a_loss_from_a_lag() -> None:
    """120 ms and one frame never answered: without the lag nobody can tell."""
    _, heard = engine(50, 1, [0.12] * 50, frozenset({20}))
    assert pair(clock(50), heard, drained=True, lag=1).unanswered == 1


def test_an_engine_that_talks_more_than_it_is_talked_to_has_no_turnaround() -> None:
    heard = Answers(tuple(Answer(number, 100 + number * 0.01) for number in range(20)), ())
    pairing = pair(clock(5), heard, drained=True)
    assert (pairing.lag, pairing.inputs) == (None, ())


def test_nothing_heard_is_nothing_paired() -> None:
    assert pair(clock(5), Answers((), ()), drained=True).inputs == ()
    assert pair([], Answers((Answer(0, 1.0),), ()), drained=True).inputs == ()


@given(st.data())
@settings(max_examples=50)
def test_messages_lost_on_the_way_are_named_by_the_hole_they_leave(data: st.DataObject) -> None:
    """But for those before the first that came: nobody knows where the stream began."""
    lost = data.draw(st.sets(st.integers(1, len(MESSAGES) - 2), max_size=10))
    heard = answers((float(number), m) for number, m in enumerate(MESSAGES) if number not in lost)
    kept = [number for number in range(len(MESSAGES)) if number not in lost]
    assert set(heard.missing) == lost
    assert [answer.at for answer in heard.arrived] == kept


@given(st.lists(st.integers(0, sum(map(len, MESSAGES))), max_size=80))
@settings(max_examples=50)
def test_frames_do_not_depend_on_how_messages_were_cut(cuts: list[int]) -> None:
    whole = b"".join(MESSAGES)
    edges = sorted({0, len(whole), *cuts})
    heard = answers((float(a), whole[a:b]) for a, b in pairwise(edges))
    assert [answer.number for answer in heard.arrived] == list(range(len(MESSAGES)))
    assert heard.missing == ()


def test_a_frame_begins_with_its_first_page_not_with_its_last() -> None:
    """moshi.server's frame is two pages of 40 ms; the first one counts."""
    middle = MESSAGES[3].index(b"OggS", 4)
    parts = [*enumerate(MESSAGES[:3]), (3.0, MESSAGES[3][:middle]), (3.5, MESSAGES[3][middle:])]
    assert [answer.at for answer in answers(parts).arrived] == [0, 1, 2, 3.0]


@pytest.mark.parametrize(("share", "value"), [(0, 1), (0.5, 3), (1, 5), (0.25, 2), (0.99, 4.96)])
def test_percentiles_are_interpolated(share: float, value: float) -> None:
    assert percentile([1, 2, 3, 4, 5], share) == pytest.approx(value)


def test_a_percentile_of_nothing_is_refused_and_a_spread_of_nothing_is_empty() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
    assert spread([]).p99 is None


def test_a_spread_is_in_milliseconds() -> None:
    figures = spread([0.030] * 99 + [0.050])
    assert (figures.count, figures.p50, figures.max) == (100, 30.0, 50.0)


def test_gaps_and_the_buffer_a_listener_needs() -> None:
    regular = [Answer(number, number * FRAME_S) for number in range(10)]
    assert playback(Answers(tuple(regular), ())).gaps == 0
    assert playback(Answers(tuple(regular), ())).buffer_ms == 0
    late = tuple(Answer(a.number, a.at + (0.1 if a.number >= 5 else 0)) for a in regular)
    figures = playback(Answers(late, ()))
    assert (figures.gaps, figures.longest_ms, figures.buffer_ms) == (1, 180.0, 100.0)
    assert playback(Answers((), ())).buffer_ms is None


def test_a_lost_frame_is_no_lateness_of_those_after_it() -> None:
    arrived = tuple(Answer(n, n * FRAME_S) for n in range(10) if n != 4)
    assert playback(Answers(arrived, (4,))).buffer_ms == 0


def test_drift_is_a_slope_per_minute() -> None:
    times = [number * FRAME_S for number in range(200)]
    assert drift_ms_per_minute(times, [0.02 + at * 0.001 for at in times]) == pytest.approx(60)
    assert drift_ms_per_minute(times, [0.02] * 200) == pytest.approx(0)
    assert drift_ms_per_minute(times[:10], [0.02] * 10) is None


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b" Hello", b",", b" you"], "Hello, you"),
        ([b"<0x41>", b"<0x42>"], "AB"),
        ([b" caf", b"<0xC3>", b"<0xA9>"], "café"),
        ([b"<0xC3>", b" x"], "\N{REPLACEMENT CHARACTER} x"),
        ([b"<0x4", b"1>"], "A"),
        ([], ""),
    ],
)
def test_byte_fallback_becomes_letters(pieces: list[bytes], words: str) -> None:
    assert text(pieces) == words


def test_random_weights_are_known_by_their_bytes() -> None:
    assert byte_fallback_share([b"<0x41>", b" a", b"<0xFF>", b"b"]) == 0.5
    assert byte_fallback_share([]) == 0
