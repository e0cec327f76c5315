"""The figures of a call whose times are known, limits, the table and the JSON."""

from datetime import datetime, timezone

import pytest

from caller import Limits, Recording, Report, evaluate, prepare, table
from caller.measure import FRAME_S
from caller.report import shorten, verdict

FRAMES = 125
MESSAGES = [message[1:] for message in prepare(seconds=FRAMES * FRAME_S).messages]


def recording(
    turnaround_s: float = 0.03, lag: int = 1, late_s: float = 0.0, frames: int = FRAMES
) -> Recording:
    """A call to an engine that answers every frame after exactly `turnaround_s`."""
    greeted = 1000.0
    due = [greeted + number * FRAME_S for number in range(frames)]
    sent = [at + late_s for at in due]
    audio = [(sent[number + lag] + turnaround_s, MESSAGES[number]) for number in range(frames - lag)]
    return Recording(
        url="wss://line:8998/api/chat",
        started_at=datetime(2026, 11, 22, tzinfo=timezone.utc),
        speech="hello.wav",
        dialled=999.9,
        resolved=999.901,
        connected=999.903,
        secured=999.910,
        upgraded=999.930,
        greeted=greeted,
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        due=due,
        sent=sent,
        audio=audio,
        text=[(1001.0, b" Hello"), (1001.1, b"\x1b[2J")],
        drained=True,
        close_code=1000,
    )


@pytest.mark.parametrize("turnaround_s", [0.001, 0.03, 0.079, 0.08, 0.0801, 0.5, 2.0])
def test_thirty_milliseconds_are_measured_as_thirty(turnaround_s: float) -> None:
    report = evaluate(recording(turnaround_s))
    figures = report.turnaround_ms
    for value in (figures.mean, figures.p50, figures.p95, figures.p99, figures.max):
        assert value == pytest.approx(1000 * turnaround_s, abs=0.001)
    assert (report.frames.sent, report.frames.answered, report.frames.lost) == (FRAMES, FRAMES - 1, 0)
    assert report.first_audio_ms == pytest.approx(80 + 1000 * turnaround_s)
    assert report.drift_ms_per_minute == pytest.approx(0, abs=0.001)


def test_the_parts_of_the_handshake() -> None:
    hands = evaluate(recording()).handshake
    parts = (hands.dns_ms, hands.tcp_ms, hands.tls_ms, hands.upgrade_ms, hands.engine_ms)
    assert parts == pytest.approx((1, 2, 7, 20, 70), abs=0.001)
    assert hands.total_ms == pytest.approx(100)


def test_the_sum_that_compares_with_moshis_200_ms() -> None:
    sums = evaluate(recording(0.03)).latency
    assert sums is not None
    assert (sums.frame_ms, sums.acoustic_delay_ms) == (80, 80)
    assert sums.sum_p50_ms == pytest.approx(190)
    assert (sums.theory_ms, sums.practice_ms) == (160, 200)


def test_a_caller_that_cannot_keep_time_says_so() -> None:
    report = evaluate(recording(late_s=0.025))
    assert any("too busy to measure" in remark for remark in report.remarks)
    assert evaluate(recording()).remarks == []


def test_an_engine_that_greets_and_answers_nothing_is_silent() -> None:
    silent = recording()
    silent.audio = []
    report = evaluate(silent)
    assert (report.outcome, verdict(report)[0]) == ("silent", 3)
    assert "answered none of 125 frames" in report.reason


def test_bytes_that_are_no_ogg_are_garbage() -> None:
    broken = recording()
    broken.audio[3] = (broken.audio[3][0], b"garbage")
    assert evaluate(broken).outcome == "garbage"


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(turnaround_p99_ms=20), "turnaround p99 is 30 ms, the limit is 20 ms"),
        (Limits(turnaround_p50_ms=29.9), "turnaround p50 is 30 ms, the limit is 29.9 ms"),
        (Limits(turnaround_p95_ms=1), "turnaround p95 is 30 ms"),
        (Limits(handshake_ms=99), "the handshake took 100 ms"),
        (Limits(first_audio_ms=50), "the first audio came after 110 ms"),
    ],
)
def test_a_missed_limit_is_a_sentence(limits: Limits, sentence: str) -> None:
    report = evaluate(recording(0.03))
    report.missed = limits.missed(report)
    assert len(report.missed) == 1
    assert sentence in report.missed[0]
    status, reason = verdict(report)
    assert status == 1
    assert sentence in reason


def test_limits_on_what_was_lost_and_on_drift() -> None:
    lossy = recording()
    del lossy.audio[40]
    report = evaluate(lossy)
    assert Limits(lost=0, gaps=0).missed(report) == ["frames lost: 1, the limit is 0"]
    assert Limits(lost=1).missed(report) == []
    behind = recording()
    behind.audio = [(at + 0.001 * number, page) for number, (at, page) in enumerate(behind.audio)]
    assert "falls behind by 750 ms a minute" in Limits(drift_ms_per_minute=10).missed(evaluate(behind))[0]


def test_what_could_not_be_measured_misses_its_limit() -> None:
    silent = recording()
    silent.audio = []
    assert "nothing that could be measured" in Limits(turnaround_p99_ms=50).missed(evaluate(silent))[0]


def test_limits_that_are_kept_or_not_set_say_nothing() -> None:
    report = evaluate(recording())
    assert Limits().missed(report) == []
    assert Limits(turnaround_p99_ms=30.5, lost=0, gaps=0, handshake_ms=101).missed(report) == []
    assert verdict(report) == (0, "the line answers")


def test_the_keys_of_the_json_are_a_promise() -> None:
    body = evaluate(recording()).as_json()
    assert body["format"] == 1
    assert list(body) == [
        "format", "url", "started_at", "outcome", "reason", "speech", "seconds", "tls", "handshake",
        "first_audio_ms", "turnaround_ms", "frames", "playback", "drift_ms_per_minute", "latency", "clock_ms",
        "text", "text_pieces", "close_code", "close_words", "error", "remarks", "missed", "judgement",
    ]  # fmt: skip
    assert body["frames"] == {"sent": 125, "answered": 124, "lag": 1, "lost": 0, "lost_on_the_way": 0}
    assert list(body["turnaround_ms"]) == ["count", "mean", "p50", "p95", "p99", "max"]  # type: ignore[call-overload]
    assert len(evaluate(recording()).as_json(samples=True)["turnarounds_ms"]) == 124  # type: ignore[arg-type]


def test_the_table_shows_every_figure_and_no_control_character() -> None:
    shown = table(evaluate(recording()))
    for words in (
        "wss://line:8998/api/chat  (TLSv1.3",
        "handshake   100.0 ms: name 1.0, TCP 2.0, TLS 7.0, upgrade 20.0, engine 70.0",
        "first audio 110.0 ms",
        "p50 30.0 ms, p95 30.0 ms, p99 30.0 ms, max 30.0 ms per 80 ms frame",
        "125 sent, 124 answered, 0 lost, 1 heard before the first answer",
        "80 frame + 80 acoustic delay + 30.0 turnaround = 190.0 ms",
        "160 in theory, 200 in practice",
        "ok          the line answers",
    ):
        assert words in shown
    assert "\x1b" not in shown


def test_what_a_line_says_cannot_steer_a_terminal() -> None:
    rude = Recording("ws://line/api/chat", datetime.now(timezone.utc), "refused", "the line said: \x1b[2Jno")
    report = evaluate(rude)
    assert "\x1b" not in table(report) + verdict(report)[1]


def test_the_table_of_a_line_that_is_not_there() -> None:
    nothing = Recording("ws://line/api/chat", datetime.now(timezone.utc), "unreachable", "nothing listens")
    report: Report = evaluate(nothing)
    assert table(report).splitlines() == ["ws://line/api/chat  (no TLS)", "  unreachable nothing listens"]
    assert verdict(report) == (3, "nothing listens")


@pytest.mark.parametrize(("outcome", "status"), [("busy", 4), ("refused", 5), ("untrusted", 3), ("down", 3)])
def test_exit_statuses(outcome: str, status: int) -> None:
    failed = Recording("ws://line/api/chat", datetime.now(timezone.utc), outcome, "why")  # type: ignore[arg-type]
    assert verdict(evaluate(failed)) == (status, "why")


def test_long_words_are_cut() -> None:
    assert shorten("a" * 100) == "a" * 69 + "…"
    assert shorten("short") == "short"
