"""Calls against the echo engine, which writes down what really happened; and what each failure is called."""

import asyncio
import datetime
import ssl
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from caller import Patience, Recording, Report, Speech, call, evaluate, prepare
from caller.echo import Behaviour, EchoEngine, running
from caller.errors import AddressError
from caller.line import address, metronome
from caller.measure import FRAME_S

# Long enough for a machine that does ten other things.
IMPATIENT = Patience(connect_s=10, engine_s=1.5, stall_s=1.5, quiet_s=0.8, drain_s=5)


@pytest.fixture(scope="module")
def speech() -> Speech:
    return prepare(seconds=1.2)


async def held(behaviour: Behaviour, speech: Speech, **more: object) -> tuple[Report, Recording, EchoEngine]:
    async with running(behaviour) as (url, engine):
        recording = await call(url, speech, patience=IMPATIENT, **more)  # type: ignore[arg-type]
        return evaluate(recording), recording, engine


def check_against_the_truth(report: Report, recording: Recording, engine: EchoEngine) -> None:
    """The engine saw each frame after it was sent, and its answer was there after the engine had made it."""
    exchanges = engine.diary.exchanges
    assert report.frames.answered == len(exchanges)
    for exchange, turnaround in zip(exchanges, report.turnarounds_ms, strict=True):
        assert recording.sent[exchange.input] <= exchange.heard_at
        answered_after = exchange.due_at - recording.sent[exchange.input]
        assert turnaround >= 1000 * answered_after - 0.002, "an answer cannot be there before it was due"


# --- the clock


class FakeTime:
    """A clock that only moves when somebody sleeps or works."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now_s = 50.0
        self.oversleep = oversleep

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self.oversleep


def striking(
    clock: FakeTime, work: Callable[[int], float]
) -> tuple[list[float], Callable[..., Awaitable[None]]]:
    struck: list[float] = []

    async def strike(beat: int, due: float) -> None:
        assert due == pytest.approx(50 + beat * FRAME_S)
        struck.append(clock.now_s)
        clock.now_s += work(beat)

    return struck, strike


async def test_the_clock_does_not_drift_when_every_sleep_is_too_long() -> None:
    clock = FakeTime(oversleep=0.003)
    struck, strike = striking(clock, lambda _: 0.01)
    await metronome(1000, 50.0, clock.now, clock.sleep, strike)
    assert struck[-1] == pytest.approx(50 + 999 * FRAME_S + 0.003)


async def test_a_late_frame_does_not_move_the_ones_after_it() -> None:
    clock = FakeTime()
    struck, strike = striking(clock, lambda beat: 0.2 if beat == 5 else 0.0)
    await metronome(12, 50.0, clock.now, clock.sleep, strike)
    late = [round(at - 50 - beat * FRAME_S, 6) for beat, at in enumerate(struck)]
    assert late == [0, 0, 0, 0, 0, 0, 0.12, 0.04, 0, 0, 0, 0]


async def test_frames_are_sent_each_80_ms_from_the_greeting_on(speech: Speech) -> None:
    _, recording, _ = await held(Behaviour(), speech)
    assert recording.greeted is not None
    assert recording.due == pytest.approx([recording.greeted + n * FRAME_S for n in range(15)])
    assert all(sent >= due for sent, due in zip(recording.sent, recording.due, strict=True))


async def test_callers_can_be_set_against_each_other(speech: Speech) -> None:
    async with running(Behaviour()) as (url, _):
        begin = time.monotonic() + 0.5
        calls = (call(url, speech, start_at=begin + late) for late in (0.0, 0.04))
        first, second = await asyncio.gather(*calls)
    assert (first.due[0], second.due[0]) == (begin, begin + 0.04)
    assert evaluate(second).frames.answered == 15


# --- what is measured


async def test_an_engine_that_answers_at_once(speech: Speech) -> None:
    report, recording, engine = await held(Behaviour(), speech)
    assert (report.outcome, report.reason, report.missed) == ("ok", "", [])
    assert (report.frames.sent, report.frames.answered, report.frames.lost) == (15, 15, 0)
    assert report.frames.lag == 0
    assert report.close_code == 1000
    assert engine.diary.heard == 15
    check_against_the_truth(report, recording, engine)


async def test_an_engine_with_moshis_acoustic_delay(speech: Speech) -> None:
    report, recording, engine = await held(Behaviour(lag=1), speech)
    assert (report.frames.lag, report.frames.answered, report.frames.lost) == (1, 14, 0)
    assert report.latency is not None
    assert report.latency.acoustic_delay_ms == 80
    check_against_the_truth(report, recording, engine)


@pytest.mark.parametrize("latency_s", [0.03, 0.19])
async def test_an_injected_delay_is_measured_also_beyond_a_frame(speech: Speech, latency_s: float) -> None:
    report, recording, engine = await held(Behaviour(lag=1, latency_s=latency_s), speech)
    assert report.frames.lag == 1
    check_against_the_truth(report, recording, engine)
    assert min(report.turnarounds_ms) >= 1000 * latency_s
    assert min(report.turnarounds_ms) < 1000 * latency_s + 80, "one frame off would be 80 ms more"


async def test_one_late_frame_is_that_frame(speech: Speech) -> None:
    report, recording, engine = await held(
        Behaviour(latency_s=lambda number: 0.3 if number == 7 else 0.0), speech
    )
    check_against_the_truth(report, recording, engine)
    assert report.turnarounds_ms[7] >= 300
    assert report.frames.lost == 0
    assert report.playback.gaps >= 1
    assert report.playback.buffer_ms is not None
    assert report.playback.buffer_ms >= 220


async def test_an_engine_slower_than_real_time_falls_behind(speech: Speech) -> None:
    report, recording, engine = await held(Behaviour(compute_s=0.12), speech)
    check_against_the_truth(report, recording, engine)
    assert report.frames.lost == 0
    spoken_ms = 1000 * (recording.sent[-1] - recording.sent[0])  # more than 14 * 80 on a busy machine
    assert report.turnarounds_ms[-1] >= 15 * 120 - spoken_ms - 1


async def test_an_engine_too_slow_to_wait_for_is_late_and_not_lossy() -> None:
    async with running(Behaviour(compute_s=0.3)) as (url, _):
        patience = Patience(engine_s=1, stall_s=2, quiet_s=0.4, drain_s=0.5)
        report = evaluate(await call(url, prepare(seconds=1.2), patience=patience))
    assert report.outcome == "ok"
    assert report.frames.lost == 0
    assert any("slower than real time" in remark for remark in report.remarks)


async def test_answers_lost_on_the_way_leave_a_hole(speech: Speech) -> None:
    report, recording, engine = await held(Behaviour(lose=frozenset({4, 9})), speech)
    assert (report.frames.lost, report.frames.lost_on_the_way, report.frames.answered) == (2, 2, 13)
    check_against_the_truth(report, recording, engine)


async def test_frames_that_are_never_answered_are_lost(speech: Speech) -> None:
    answers = [message[1:] for message in speech.messages]
    report, recording, engine = await held(Behaviour(lag=1, answers=answers, skip=frozenset({6})), speech)
    assert (report.frames.lag, report.frames.lost, report.frames.lost_on_the_way) == (1, 1, 0)
    check_against_the_truth(report, recording, engine)


async def test_moshis_words_are_put_together(speech: Speech) -> None:
    report, _, _ = await held(Behaviour(say=[" Hello", ",", " caf", "<0xC3>", "<0xA9>"]), speech)
    assert (report.text, report.text_pieces) == ("Hello, café", 5)


async def test_the_handshake_is_told_apart(speech: Speech) -> None:
    report, _, _ = await held(Behaviour(handshake_delay_s=0.5), speech)
    hands = report.handshake
    assert None not in (hands.tcp_ms, hands.upgrade_ms, hands.engine_ms, hands.total_ms)
    assert hands.tls_ms is None and report.tls is None
    # The engine waits before this side knows of the upgrade: on a busy machine a part of it counts there.
    assert (hands.upgrade_ms or 0) + (hands.engine_ms or 0) >= 500
    assert (hands.engine_ms or 0) > (hands.upgrade_ms or 0)
    assert (hands.total_ms or 0) >= (hands.upgrade_ms or 0) + (hands.engine_ms or 0)


async def test_many_callers_share_one_speech(speech: Speech) -> None:
    async with running(Behaviour(lag=1)) as (url, engine):
        reports = [evaluate(r) for r in await asyncio.gather(*(call(url, speech) for _ in range(8)))]
    assert [report.frames.answered for report in reports] == [14] * 8
    assert engine.diary.heard == 8 * 15


# --- what goes wrong, and what it is called


@pytest.mark.parametrize(
    ("behaviour", "outcome", "reason"),
    [
        (Behaviour(refuse=("line_full", "The line is busy."), close_code=1013), "busy", "The line is busy"),
        (Behaviour(refuse=("not_allowed", "No link."), close_code=1008), "refused", "No link"),
        (
            Behaviour(refuse=("starting", "Weights are loaded."), close_code=1013),
            "down",
            "Weights are loaded",
        ),
        (Behaviour(refuse=("line_down", "It failed."), close_code=1013), "down", "It failed"),
        (Behaviour(handshake=False), "silent", "talks with somebody else"),
        (Behaviour(hang_after=0), "silent", "greeted and then fell silent"),
        (Behaviour(hang_after=3), "silent", "after 3 messages of audio the engine fell silent"),
        (Behaviour(close_after=5, close_code=1011), "broke", "code 1011 (the server failed"),
        (Behaviour(close_after=5, close_code=4321), "broke", "no meaning is known"),
        (Behaviour(abort_after=5), "broke", "of 15 frames with code 1006 (cut without"),
        (Behaviour(error_after=(4, "engine_failed", "CUDA error."), close_code=1011), "broke", "CUDA error"),
        (Behaviour(garbage_at=3), "garbage", "no Ogg/Opus"),
        (Behaviour(status=401), "refused", "HTTP 401"),
        (Behaviour(status=404), "unreachable", "/api/chat"),
        (Behaviour(status=429), "busy", "HTTP 429"),
        (Behaviour(status=502), "down", "engine does not"),
        (Behaviour(status=500), "unreachable", "HTTP 500"),
    ],
)
async def test_a_failing_line_is_named(
    speech: Speech, behaviour: Behaviour, outcome: str, reason: str
) -> None:
    report, _, _ = await held(behaviour, speech)
    assert report.outcome == outcome
    assert reason in report.reason


async def test_a_second_caller_of_an_engine_for_one_is_not_answered(speech: Speech) -> None:
    async with running(Behaviour(conversations=1)) as (url, _):
        first = asyncio.create_task(call(url, speech, patience=IMPATIENT))
        await asyncio.sleep(0.2)
        second = await call(url, speech, patience=Patience(engine_s=0.5))
        assert (second.outcome, (await first).outcome) == ("silent", "ok")
        third = await call(url, speech, patience=IMPATIENT)
        assert third.outcome == "ok", "the second one's wait is over, the line is free again"


async def test_what_was_measured_before_a_break_is_kept(speech: Speech) -> None:
    report, recording, engine = await held(Behaviour(lag=1, abort_after=9), speech)
    assert report.frames.answered == 8
    assert report.frames.lost == 0
    check_against_the_truth(report, recording, engine)


async def test_nothing_listens(speech: Speech, unused_tcp_port: int) -> None:
    recording = await call(f"ws://127.0.0.1:{unused_tcp_port}", speech)
    assert recording.outcome == "unreachable"
    assert "nothing listens" in recording.reason


async def test_a_name_that_is_none(speech: Speech) -> None:
    recording = await call("ws://nowhere.invalid:8998", speech)
    assert recording.outcome == "unreachable"
    assert "cannot be reached" in recording.reason


async def serve(answer: bytes | None) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no voice line"),
        (b"", "no voice line"),
        (None, "accepts connections but does not answer within 0.5 s"),
    ],
)
async def test_something_else_listens(speech: Speech, answer: bytes | None, reason: str) -> None:
    server = await serve(answer)
    async with server:
        port = server.sockets[0].getsockname()[1]
        recording = await call(f"ws://127.0.0.1:{port}", speech, patience=Patience(connect_s=0.5))
    assert recording.outcome == "unreachable"
    assert reason in recording.reason


# --- TLS


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS settings with a certificate for `name` that vouches for itself, and its PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "line")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = folder / "line.pem", folder / "line.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key_file)
    return context, pem


async def test_tls_with_a_trusted_authority(tmp_path: Path, speech: Speech) -> None:
    context, pem = certificate(tmp_path, "127.0.0.1")
    async with running(Behaviour(), tls=context) as (url, _):
        report = evaluate(await call(url, speech, ca=pem))
    assert report.outcome == "ok"
    assert report.tls is not None and report.tls.startswith("TLSv1.3 ")
    hands = report.handshake
    assert hands.tcp_ms is not None and hands.tls_ms is not None and hands.upgrade_ms is not None
    assert hands.tls_ms > 0


async def test_tls_that_nobody_vouches_for_is_not_trusted_unless_told(tmp_path: Path, speech: Speech) -> None:
    context, _ = certificate(tmp_path, "127.0.0.1")
    async with running(Behaviour(), tls=context) as (url, _):
        assert (await call(url, speech)).outcome == "untrusted"
        recording = await call(url, speech, insecure=True)
    assert recording.outcome == "ok"


async def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path, speech: Speech) -> None:
    context, pem = certificate(tmp_path, "192.0.2.1")
    async with running(Behaviour(), tls=context) as (url, _):
        recording = await call(url, speech, ca=pem)
    assert recording.outcome == "untrusted"
    assert "127.0.0.1" in recording.reason


async def test_tls_to_a_plain_line_says_so(speech: Speech) -> None:
    async with running(Behaviour()) as (url, _):
        recording = await call(url.replace("ws://", "wss://"), speech)
    assert recording.outcome == "unreachable"
    assert "does not speak TLS" in recording.reason


async def test_a_plain_call_that_is_sent_on_to_tls_says_so(tmp_path: Path, speech: Speech) -> None:
    context, _ = certificate(tmp_path, "127.0.0.1")
    async with running(Behaviour(), tls=context) as (url, _):
        there = f"Location: {url.replace('wss', 'https')}"
        server = await serve(f"HTTP/1.1 308 there\r\n{there}\r\nContent-Length: 0\r\n\r\n".encode())
        async with server:
            port = server.sockets[0].getsockname()[1]
            recording = await call(f"ws://127.0.0.1:{port}", speech)
    assert recording.outcome == "unreachable"
    assert "give https://" in recording.reason


def test_a_ca_file_that_is_none(tmp_path: Path, speech: Speech) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name, reason in (("none.pem", "no such file"), ("bad.pem", "not a certificate")):
        with pytest.raises(AddressError, match=reason):
            asyncio.run(call("wss://127.0.0.1:9", speech, ca=tmp_path / name))


# --- addresses


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("https://host:8998", "wss://host:8998/api/chat"),
        ("https://host:8998/", "wss://host:8998/api/chat"),
        ("http://host", "ws://host/api/chat"),
        ("host:8998", "wss://host:8998/api/chat"),
        ("wss://[::1]:8998", "wss://[::1]:8998/api/chat"),
        ("ws://127.0.0.1:8999/api/chat", "ws://127.0.0.1:8999/api/chat"),
        ("https://host/other?ticket=1", "wss://host/other?ticket=1"),
    ],
)
def test_what_people_type_becomes_the_lines_address(typed: str, url: str) -> None:
    assert address(typed) == url


@pytest.mark.parametrize(
    "typed", ["", "ftp://host", "https://", "https://h:port", "https://h:99999", "http://[::1"]
)
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(AddressError, match="not the address of a line"):
        address(typed)


async def test_a_ticket_is_never_in_the_report(speech: Speech) -> None:
    async with running(Behaviour()) as (url, _):
        report = evaluate(await call(url + "?ticket=secret", speech))
    assert "secret" not in str(report.as_json())
