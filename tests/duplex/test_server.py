"""The door: what a caller meets, in good order and in every disorder.

The engine is a real one with tiny weights; time is real, so waits are short and bounded.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import random
import sys
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sphn = pytest.importorskip("sphn")
import aiohttp  # noqa: E402
from aiohttp import WSMsgType, web  # noqa: E402

from duplex.conductor import BEHIND, CAUGHT_UP, Conductor, Ear  # noqa: E402
from duplex.engine import Answer, Engine, Sampling  # noqa: E402
from duplex.model import FRAME, Limits, make_duplex  # noqa: E402
from duplex.opus import Codecs  # noqa: E402
from duplex.server import Rules, Server, Words, sampling_of  # noqa: E402

GREEDY = Sampling(temperature=0, text_temperature=0)


class Line:
    """A server in this event loop, and a client session for it."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, url: str, status: str) -> None:
        self.server, self.session, self.url, self.status = server, session, url, status

    @asynccontextmanager
    async def call(self, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        query = options.pop("query", "")
        async with self.session.ws_connect(
            self.url + query, autoping=options.pop("autoping", True), **options
        ) as ws:
            yield ws

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.status + path) as answer:
            return answer.status, await answer.text()


@asynccontextmanager
async def line(build: Callable[[], Any], near: int = 8, **rules: Any) -> AsyncIterator[Line]:
    codecs = Codecs(1 if near == 0 else 0, near=near)
    server = Server(build, codecs, lambda token: f"\u2581w{token}", rules=Rules(**rules), sampling=GREEDY)
    await server.start()
    runners, addresses = [], []
    for app in (server.door(), server.window()):
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        addresses.append(f"127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession() as session:
            yield Line(server, session, f"ws://{addresses[0]}/api/chat", f"http://{addresses[1]}")
    finally:
        server.over.set()
        await server.stop()
        for runner in runners:
            await runner.cleanup()


@pytest.fixture
def build(weights: Any) -> Callable[[], Engine]:
    return lambda: Engine(make_duplex(*weights, Limits(slots=2, context=250, kv_dtype=torch.float32)))


class Echo:
    """An engine without a model: says what it hears. For everything that is not about the model."""

    slots = 2

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.stepped: list[list[int]] = []

    def join(self, sampling: Sampling, spoken: int = 0) -> int:
        from duplex.engine import NoRoom

        free = [slot for slot in range(self.slots) if slot not in self.taken]
        if not free:
            raise NoRoom("full")
        self.taken.add(free[0])
        return free[0]

    def leave(self, slot: int) -> None:
        self.taken.remove(slot)

    def restart(self, slot: int, sampling: Sampling) -> None:
        assert slot in self.taken

    def step(self, frames: list[tuple[int, Any]]) -> list[Answer]:
        slots = [slot for slot, _ in frames]
        assert len(set(slots)) == len(slots) and set(slots) <= self.taken
        self.stepped.append(slots)
        return [Answer(slot, [7, *range(8)], pcm) for slot, pcm in frames]


def opus(frames: int, seed: int = 0) -> list[bytes]:
    writer = sphn.OpusStreamWriter(24_000)
    noise = np.random.default_rng(seed).normal(0, 0.1, (frames, FRAME)).astype(np.float32)
    return [b"\x01" + bytes(writer.append_pcm(frame)) for frame in noise]


async def until(ws: aiohttp.ClientWebSocketResponse, kind: int) -> bytes:
    while True:
        message = await asyncio.wait_for(ws.receive(), 20)
        assert message.type is WSMsgType.BINARY, (message, ws.close_code)
        if message.data[0] == kind:
            return bytes(message.data[1:])


async def refusal(ws: aiohttp.ClientWebSocketResponse) -> tuple[str, int | None]:
    body = json.loads(await until(ws, 5))
    assert set(body) == {"code", "message"} and body["message"]
    while (await asyncio.wait_for(ws.receive(), 20)).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED):
        pass
    return body["code"], ws.close_code


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def eventually(check: Callable[[], bool], seconds: float = 10) -> None:
    for _ in range(int(seconds / 0.02)):
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


# --------------------------------------------------------------------------------------------- a conversation


async def test_a_call_hears_the_handshake_sound_and_words_of_the_model(build: Any, upstream: Any) -> None:
    messages = opus(12)
    reader = sphn.OpusStreamReader(24_000)
    heard = np.concatenate([reader.append_bytes(message[1:]) for message in messages])
    heard = heard[: len(heard) // FRAME * FRAME].reshape(-1, FRAME)
    wanted = upstream.converse(torch.from_numpy(np.clip(heard, -1, 1)))
    words = Words(lambda token: f"\u2581w{token}")
    said = "".join(words.take(tokens[0]) for tokens, _ in wanted)
    async with line(build) as here, here.call() as ws:
        assert await until(ws, 0) == b""
        text, pcm = "", []
        listener = sphn.OpusStreamReader(24_000)
        call = next(iter(here.server.calls.values()))
        for i, message in enumerate(messages):
            await ws.send_bytes(message)
            await eventually(lambda i=i: call.frames >= i)
        while sum(map(len, pcm)) < len(wanted) * FRAME - FRAME or text != said:
            message = (await asyncio.wait_for(ws.receive(), 20)).data
            if message[0] == 1:
                pcm.append(listener.append_bytes(message[1:]))
            elif message[0] == 2:
                text += message[1:].decode()
        assert text == said


async def test_kyutais_own_client_talks_to_it_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """moshi.client, with its sound card replaced by a microphone that hums and a speaker that listens."""

    class Card:
        def __init__(self, callback: Callable[..., None], **settings: Any) -> None:
            self.callback, self.rate = callback, settings["samplerate"]

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    card = types.SimpleNamespace(InputStream=Card, OutputStream=Card)
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    client = importlib.import_module("moshi.client")
    said, complaints = io.StringIO(), io.StringIO()
    printer = client.RawPrinter(said, complaints)
    async with line(Echo) as here, here.call() as ws:
        connection = client.Connection(printer, ws, asyncio.get_running_loop())
        running = asyncio.create_task(connection.run())
        hum = np.sin(np.arange(FRAME) * 0.05).astype(np.float32)[:, None] * 0.3
        for _ in range(8):
            connection._in_stream.callback(hum, FRAME, None, None)
            await asyncio.sleep(0.05)
        await eventually(lambda: connection._output_queue.qsize() >= 7)
        heard = np.zeros((FRAME, 1), dtype=np.float32)
        for _ in range(4):
            connection._out_stream.callback(heard, FRAME, None, None)
        assert np.abs(heard).max() > 0.1
        running.cancel()
    assert said.getvalue().startswith(" w7 w7")
    # Nothing that came was unknown to it but the handshake, of which it complains with moshi.server too.
    assert "unknown message kind" not in complaints.getvalue().replace("unknown message kind 0", "")


async def test_a_call_cut_in_the_middle_goes_on_as_if_it_had_not_been(weights: Any) -> None:
    """The tokens of the whole call, cut after 10 of 24 frames, are those of a call that was never cut."""
    pcm = np.random.default_rng(3).normal(0, 0.1, (24, FRAME)).astype(np.float32)

    class Diary(Engine):
        said: list[Any]

        def step(self, frames: Any) -> Any:
            frames = [(slot, pcm[len(self.said)]) for slot, _ in frames]  # Opus would differ after the cut
            answers = super().step(frames)
            self.said.extend(answer.tokens for answer in answers)
            return answers

    whole, cut = (
        Diary(make_duplex(*weights, Limits(slots=1, context=250, kv_dtype=torch.float32))) for _ in range(2)
    )
    whole.said, cut.said = [], []
    slot = whole.join(GREEDY)
    for frame in pcm:
        whole.step([(slot, frame)])
    async with line(lambda: cut, resume_grace=15) as here:
        messages = opus(24)
        async with here.call(headers={"X-Call-Id": "abc"}) as ws:
            await until(ws, 0)
            for i, message in enumerate(messages[:10]):
                await ws.send_bytes(message)
                await eventually(lambda i=i: len(cut.said) > i)
            ws._response.connection.transport.abort()  # type: ignore[union-attr]
        await eventually(lambda: here.server.calls["abc"].broken_at is not None)
        async with here.call(headers={"X-Call-Id": "abc"}) as ws:
            await until(ws, 0)
            async with here.call(headers={"X-Call-Id": "abc"}) as second:
                assert await refusal(second) == ("call_in_use", 1008)
            for i, message in enumerate(opus(14)):
                await ws.send_bytes(message)
                await eventually(lambda i=i: len(cut.said) > 10 + i)
        assert cut.said == whole.said
        assert here.server.metrics.resumed == 1


# ------------------------------------------------------------------------------------------- good citizenship


async def test_one_caller_too_many_is_told_at_once() -> None:
    async with line(Echo) as here, here.call() as one, here.call() as two:
        await until(one, 0), await until(two, 0)
        async with here.call() as third:
            assert await refusal(third) == ("line_full", 1013)
        await one.close()
        await eventually(lambda: len(here.server.calls) == 1)
        async with here.call() as fourth:
            await until(fourth, 0)


@pytest.mark.parametrize("near", [0, 8])
async def test_garbage_ends_the_call_and_frees_its_slot(near: int) -> None:
    async with line(Echo, near=near) as here, here.call() as neighbour:
        await until(neighbour, 0)
        async with here.call() as ws:
            await until(ws, 0)
            await ws.send_bytes(b"\x01" + b"this is no Ogg page" * 30)
            assert await refusal(ws) == ("bad_audio", 1008)
        await eventually(lambda: len(here.server.calls) == 1)
        await neighbour.send_bytes(opus(1)[0])
        await until(neighbour, 1)


async def test_a_dead_audio_worker_takes_its_calls_with_it_and_is_replaced() -> None:
    async with line(Echo, near=0) as here:
        async with here.call() as ws:
            await until(ws, 0)
            here.server.codecs._workers[0].process.kill()
            await ws.send_bytes(opus(1)[0])
            assert await refusal(ws) == ("codec_failed", 1013)
        await eventually(lambda: bool(here.server.codecs._workers))
        async with here.call() as ws:
            await until(ws, 0)
            await ws.send_bytes(opus(1)[0])
            await until(ws, 1)


async def test_text_frames_unknown_kinds_and_empty_messages_mean_nothing() -> None:
    async with line(Echo) as here, here.call() as ws:
        await until(ws, 0)
        await ws.send_str("hello")
        for data in (b"", b"\x00", b"\x09what", b"\x03", b"\x04{", b"\x04[]", b"\xff" * 300, b"\x01"):
            await ws.send_bytes(data)
        await ws.send_bytes(b"\x06")
        assert await until(ws, 6) == b""


async def test_an_oversized_message_closes_with_1009_and_frees_the_slot() -> None:
    async with line(Echo) as here:
        async with here.call() as ws:
            await until(ws, 0)
            await ws.send_bytes(b"\x01" + bytes(200_000))
            await asyncio.wait_for(ws.receive(), 10)
            assert ws.close_code == 1009
        await eventually(lambda: not here.server.calls)


async def test_a_flood_loses_its_own_oldest_audio_and_is_told() -> None:
    async with line(Echo) as here, here.call() as ws:
        await until(ws, 0)
        await ws.send_bytes(b"\x04" + json.dumps({"type": "hello"}).encode())
        assert json.loads(await until(ws, 4))["type"] == "welcome"
        slow = here.server.conductor.engine.step
        here.server.conductor.engine.step = lambda frames: (__import__("time").sleep(0.03), slow(frames))[1]
        for message in opus(60):
            await ws.send_bytes(message)
        while (content := json.loads(await until(ws, 4)))["type"] != "dropped":
            pass
        assert content["heard_frames"] > 10
        assert here.server.metrics.caught_up > 0


async def test_silence_on_the_wire_ends_a_call() -> None:
    async with line(Echo, idle_timeout=0.5) as here, here.call() as ws:
        await until(ws, 0)
        assert await refusal(ws) == ("idle", 1008)
        await eventually(lambda: not here.server.calls)


async def end(here: Line, call: str, **body: Any) -> int:
    async with here.session.post(f"{here.status}/calls/{call}/end", **body) as answer:
        return answer.status


async def test_a_call_can_be_ended_from_outside_and_is_told_why() -> None:
    async with line(Echo) as here, here.call(headers={"X-Call-Id": "x"}) as ws:
        await until(ws, 0)
        assert await end(here, "x", json={"reason": "revoked"}) == 202
        assert await refusal(ws) == ("revoked", 1008)
        await eventually(lambda: not here.server.calls)
        assert here.server.conductor.engine.taken == set()
        assert await end(here, "x") == 404  # it is over


async def test_a_call_in_its_grace_can_be_ended_too() -> None:
    async with line(Echo, resume_grace=60) as here:
        async with here.call(headers={"X-Call-Id": "x"}) as ws:
            await until(ws, 0)
            ws._response.connection.transport.abort()  # type: ignore[union-attr]
        await eventually(lambda: here.server.calls["x"].broken_at is not None)
        assert await end(here, "x", data=b"{nonsense") == 400
        assert await end(here, "x") == 202
        await eventually(lambda: not here.server.calls)


async def test_a_call_has_a_longest_length() -> None:
    async with line(Echo, max_call_seconds=0.5) as here, here.call() as ws:
        await until(ws, 0)
        assert await refusal(ws) == ("too_long", 1008)


async def test_a_broken_call_is_given_up_after_the_grace() -> None:
    async with line(Echo, resume_grace=0.5) as here:
        async with here.call(headers={"X-Call-Id": "x"}) as ws:
            await until(ws, 0)
            ws._response.connection.transport.abort()  # type: ignore[union-attr]
        await eventually(lambda: here.server.calls["x"].broken_at is not None)
        assert here.server.conductor.engine.taken == {0}
        await eventually(lambda: not here.server.calls)
        assert here.server.conductor.engine.taken == set()
        assert here.server.metrics.ended["broke"] == 1


async def test_a_peer_that_answers_no_ping_is_noticed_within_ten_seconds() -> None:
    async with line(Echo) as here, here.call(autoping=False) as ws:
        await until(ws, 0)
        await eventually(lambda: not here.server.calls, seconds=10)


async def test_a_restart_makes_the_conversation_forget_everything(weights: Any) -> None:
    engine = Engine(make_duplex(*weights, Limits(slots=1, context=250, kv_dtype=torch.float32)))
    async with line(lambda: engine) as here, here.call() as ws:
        await until(ws, 0)
        for message in opus(4):
            await ws.send_bytes(message)
            await asyncio.sleep(0.1)
        await eventually(lambda: engine.seats[0].offset == 4)
        await ws.send_bytes(b"\x03\x03")
        await eventually(lambda: engine.seats[0].offset == 0)


async def test_draining_tells_the_running_calls_and_takes_no_new_ones() -> None:
    async with line(Echo, drain_seconds=0.6) as here, here.call() as ws:
        await until(ws, 0)
        await ws.send_bytes(b"\x04" + json.dumps({"type": "hello"}).encode())
        await until(ws, 4)
        draining = asyncio.create_task(here.server.drain())
        while json.loads(await until(ws, 4))["type"] != "draining":
            pass
        async with here.call() as late:
            assert await refusal(late) == ("going_away", 1013)
        assert (await here.get("/ready"))[0] == 503
        await draining
        assert here.server.over.is_set()


async def test_an_engine_that_fails_ends_everything_and_tells_every_caller() -> None:
    class Broken(Echo):
        def step(self, frames: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async with line(Broken) as here, here.call() as ws, here.call() as other:
        await until(ws, 0), await until(other, 0)
        await ws.send_bytes(opus(1)[0])
        await asyncio.wait_for(here.server.over.wait(), 10)
        assert "CUDA error" in str(here.server.failure)
        assert (await here.get("/health"))[0] == 503
        stopping = asyncio.create_task(here.server.stop())
        assert await refusal(ws) == ("engine_failed", 1013)
        assert await refusal(other) == ("engine_failed", 1013)
        await stopping


# ---------------------------------------------------------------------------------------------- seeing inside


async def test_the_status_port_tells_what_goes_on() -> None:
    async with line(Echo) as here, here.call() as ws:
        await until(ws, 0)
        for message in opus(5):
            await ws.send_bytes(message)
            await until(ws, 1)
        await eventually(lambda: sum(here.server.metrics.turnaround_ms.counts) == 5)
        assert await here.get("/health") == (200, '{"status": "ok"}')
        assert (await here.get("/ready"))[0] == 200
        status = json.loads((await here.get("/status"))[1])
        assert (status["slots"], status["free"], len(status["calls"])) == (2, 1, 1)
        assert status["calls"][0]["frames"] == 5
        text = (await here.get("/metrics"))[1]
        assert "duplex_turnaround_seconds_count 5" in text
        assert "duplex_calls_started_total 1" in text
        async with here.session.get(here.status + "/events", headers={"Last-Event-ID": "0"}) as events:
            first = await asyncio.wait_for(events.content.readuntil(b"\n\n"), 5)
            assert first.startswith(b"id: 1\nevent: started\n")
            assert (await asyncio.wait_for(events.content.readuntil(b"\n\n"), 5)).startswith(
                b"id: 2\nevent: text\n"
            )


# ----------------------------------------------------------------------------------------- fuzz and long runs


async def test_whatever_one_caller_sends_no_slot_sticks_and_no_neighbour_is_disturbed() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    strategies = hypothesis.strategies
    messages: list[list[bytes]] = []
    real = opus(6)
    piece = strategies.one_of(
        strategies.binary(max_size=300), strategies.sampled_from(real), strategies.just(b"\x04{}")
    )
    mangled = strategies.builds(
        lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
        strategies.sampled_from(real),
        strategies.integers(1, 200),
        strategies.integers(0, 255),
    )

    @hypothesis.given(strategies.lists(strategies.one_of(piece, mangled), max_size=8))
    @hypothesis.settings(max_examples=25, database=None)
    def collect(batch: list[bytes]) -> None:
        messages.append(batch)

    collect()
    async with line(Echo, near=0) as here, here.call() as neighbour:
        await until(neighbour, 0)
        for turn, batch in enumerate(messages):
            async with here.call() as ws:
                await until(ws, 0)
                for data in batch:
                    if ws.closed:
                        break
                    try:
                        await ws.send_bytes(data)
                    except ConnectionError:
                        break
            if turn % 5 == 0:
                await neighbour.send_bytes(opus(1)[0] if turn == 0 else opus(turn + 1)[turn])
                await until(neighbour, 1)
            await eventually(lambda: len(here.server.calls) == 1)
        assert here.server.failure is None
        assert here.server.conductor.engine.taken == {
            here.server.calls[next(iter(here.server.calls))].ear.slot
        }


async def test_random_joins_and_leaves_leave_nothing_behind() -> None:
    """`SOAK=10000` for the long one (make soak)."""
    rounds = int(os.environ.get("SOAK", "60"))
    chance = random.Random(5)
    async with line(Echo, near=0, resume_grace=0.2) as here:

        async def one(number: int) -> None:
            headers = {"X-Call-Id": f"call-{number % 7}"} if chance.random() < 0.3 else {}
            async with here.call(headers=headers) as ws:
                for message in opus(chance.randint(0, 3), number):
                    await ws.send_bytes(message)
                if chance.random() < 0.3 and ws._response.connection is not None:
                    ws._response.connection.transport.abort()  # type: ignore[union-attr]

        await one(0)
        await eventually(lambda: not here.server.calls)
        tasks, files = len(asyncio.all_tasks()), open_files()
        for start in range(0, rounds, 4):
            await asyncio.gather(*(one(start + i) for i in range(4)), return_exceptions=True)
        await eventually(lambda: not here.server.calls and not here.server._tasks)
        assert here.server.conductor.engine.taken == set()
        assert here.server.by_ear == {}
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks + 2)
        await eventually(lambda: open_files() <= files + 8)


# --------------------------------------------------------------------------------------------- the pure parts


def test_words_are_put_together_from_byte_pieces() -> None:
    pieces = {1: "<0xC3>", 2: "<0xA9>", 4: "\u2581caf", 5: "<0xC3>"}
    words = Words(lambda token: pieces[token])
    assert "".join(words.take(token) for token in (4, 1, 2, 0, 3)) == " caf\u00e9"
    assert words.take(5) + words.take(4) == "\ufffd caf"


def test_a_url_sets_sampling_and_nonsense_names_the_mend() -> None:
    base = Sampling()
    assert sampling_of({}, base) == base
    given = {"audio_temperature": "0", "text_topk": "5", "audio_seed": "9", "unknown": "x"}
    assert sampling_of(given, base) == Sampling(temperature=0, text_top_k=5, seed=9)
    for wrong in ({"audio_topk": "0"}, {"text_temperature": "nan"}, {"seed": "abc"}):
        with pytest.raises(ValueError, match="is a number from"):
            sampling_of(wrong, base)


async def test_a_conversation_that_is_behind_keeps_the_newest_frames() -> None:
    conductor = Conductor(Echo, asyncio.get_running_loop(), lambda step: None, lambda error: None)
    ear = Ear(0)
    dropped = [conductor.hear(ear, np.full(FRAME, i, dtype=np.float32), float(i)) for i in range(BEHIND + 1)]
    assert dropped == [0] * BEHIND + [BEHIND + 1 - CAUGHT_UP]
    assert [came for _, came in ear.frames] == [float(BEHIND - 1), float(BEHIND)]
    conductor.forget(ear)
    assert conductor.hear(ear, np.zeros(FRAME, dtype=np.float32), 0.0) == 0
