"""A conversation in company says, token for token, what moshi's own LMGen and Mimi say to it alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from duplex.engine import Engine, Sampling  # noqa: E402
from duplex.model import FRAME, Limits, make_duplex  # noqa: E402

GREEDY = Sampling(temperature=0, text_temperature=0)
FRAMES = 270  # beyond the rings of the main transformer (250 frames) and of Mimi's (125), which must wrap


@pytest.fixture(scope="module")
def talk(upstream: Any) -> tuple[Any, Any]:
    pcm = torch.randn(FRAMES, FRAME, generator=torch.Generator().manual_seed(1)) * 0.1
    return pcm, upstream.converse(pcm)


@pytest.fixture
def engine(weights: Any) -> Engine:
    return Engine(make_duplex(*weights, Limits(slots=4, context=250, kv_dtype=torch.float32)))


def check(answers: list[Any], wanted: list[Any]) -> None:
    assert answers[0].tokens is None  # the first frame brings nothing, as upstream's does not
    assert [answer.tokens for answer in answers[1:]] == [tokens for tokens, _ in wanted[: len(answers) - 1]]
    for answer, (_, pcm) in zip(answers[1:], wanted, strict=False):
        assert abs(torch.from_numpy(answer.pcm) - pcm).max() < 1e-5


def test_tokens_in_company_are_those_of_upstream_alone(engine: Engine, talk: tuple[Any, Any]) -> None:
    """Neighbours join, leave in the middle, stall, restart and shout; a step holds from one to four
    conversations.
    """
    pcm, wanted = talk
    chance = random.Random(7)
    neighbours: set[int] = set()
    for _ in range(3):  # somebody was in every slot before
        neighbours.add(engine.join(Sampling(seed=3)))
    neighbours.remove(gone := next(iter(neighbours)))
    engine.step([(gone, pcm[9].numpy())])
    engine.leave(gone)
    slot = engine.join(GREEDY)
    answers = []
    for i in range(FRAMES):
        event = chance.random()
        if event < 0.08 and neighbours:
            neighbours.remove(left := chance.choice(sorted(neighbours)))
            engine.leave(left)
        elif event < 0.2 and engine.free:
            neighbours.add(engine.join(Sampling(temperature=chance.random(), seed=chance.getrandbits(32))))
        elif event < 0.25 and neighbours:
            engine.restart(chance.choice(sorted(neighbours)))
        speaking = [other for other in sorted(neighbours) if chance.random() < 0.6]
        noise = [(other, (torch.randn(FRAME) * chance.choice([0.01, 1.0])).numpy()) for other in speaking]
        batch = [*noise, (slot, pcm[i].numpy())]
        chance.shuffle(batch)
        answers.append(next(answer for answer in engine.step(batch) if answer.slot == slot))
        if noise and chance.random() < 0.3:  # the conversation stalls while others go on
            engine.step(noise)
    check(answers, wanted)


def test_a_slot_remembers_nothing_of_who_had_it_before(engine: Engine, talk: tuple[Any, Any]) -> None:
    pcm, wanted = talk
    first = engine.join(Sampling(seed=1))
    for i in range(30):
        engine.step([(first, pcm[-1 - i].numpy())])
    engine.leave(first)
    slot = engine.join(GREEDY)
    assert slot == first
    check([engine.step([(slot, frame.numpy())])[0] for frame in pcm[:20]], wanted)
    engine.restart(slot, GREEDY)
    check([engine.step([(slot, frame.numpy())])[0] for frame in pcm[:20]], wanted)


def test_the_same_seed_says_the_same_in_any_company(engine: Engine, talk: tuple[Any, Any]) -> None:
    pcm, _ = talk
    alone = engine.join(Sampling(seed=11))
    said = [engine.step([(alone, frame.numpy())])[0].tokens for frame in pcm[:15]]
    engine.leave(alone)
    other, again = engine.join(Sampling(seed=5)), engine.join(Sampling(seed=11))
    both = [engine.step([(other, pcm[50].numpy()), (again, frame.numpy())]) for frame in pcm[:15]]
    assert [answers[1].tokens for answers in both] == said
    assert [answers[0].tokens for answers in both] != said


def test_rings_that_cannot_grow_forget_the_oldest(weights: Any, talk: tuple[Any, Any]) -> None:
    """With memory for three blocks of 64 frames two conversations go on, each with what it has."""
    pcm, _ = talk
    engine = Engine(make_duplex(*weights, Limits(slots=2, context=250, kv_dtype=torch.float32, blocks=3)))
    slots = [engine.join(GREEDY) for _ in range(2)]
    for frame in pcm[:140]:
        engine.step([(slot, frame.numpy()) for slot in slots])
    assert sorted(engine.seats[slot].capacity for slot in slots) == [64, 128]
    assert not engine.free_blocks
    for slot in slots:
        engine.leave(slot)
    assert len(engine.free_blocks) == 3
