"""Files as kyutai releases them, files as newer modules write them, and what a card holds."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from duplex import measure
from duplex.engine import Engine, Sampling, ladder
from duplex.kernels import BLOCK, dequantized
from duplex.model import FRAME, Limits, UnsupportedModel, block_bytes, make_duplex, moshi_from, shape_of
from duplex.weights import Checkpoint, find_checkpoint, load_mimi, load_moshi, random_state

CPU = torch.device("cpu")


def released(state: dict[str, Any]) -> dict[str, Any]:
    """Rename a state as the released files have it: all steps of a projection stacked in one."""
    stacked: dict[str, list[Any]] = {}
    result = {}
    for name, value in state.items():
        head, mark, tail = name.partition("_projs.")
        if not mark:
            result[name] = value
            continue
        suffix = tail.partition(".weight")[2]  # "" or "_scb"
        stacked.setdefault(f"{head}_proj_weight{suffix}", []).append(value)
    return result | {name: torch.cat(values) for name, values in stacked.items()}


@pytest.mark.parametrize("quantized", [False, True])
def test_released_files_and_newer_ones_give_the_same_model(checkpoint: Checkpoint, quantized: bool) -> None:
    shape = shape_of(checkpoint.config)
    state = random_state(shape, CPU, torch.float32, quantized, seed=4)
    old = moshi_from(released(state), shape, torch.float32)
    new = moshi_from(dict(state), shape, torch.float32)
    for one, other in ((old.layers[1], new.layers[1]), (old.dep_layers[5][1], new.dep_layers[5][1])):
        for name in ("into", "out", "gate", "down"):
            a, b = getattr(one, name), getattr(other, name)
            assert torch.equal(a.data, b.data), name
            assert (a.scale is None and b.scale is None) or torch.equal(a.scale, b.scale), name


def test_eight_bit_weights_are_what_bitsandbytes_means_by_them(checkpoint: Checkpoint) -> None:
    """int8 times the row's largest over 127, the scales in float32 whatever the model's dtype (moshi#271)."""
    shape = shape_of(checkpoint.config)
    exact = moshi_from(random_state(shape, CPU, torch.float32, False, seed=4), shape, torch.float32)
    small = moshi_from(random_state(shape, CPU, torch.float32, True, seed=4), shape, torch.bfloat16)
    weight = small.layers[0].gate
    assert (
        weight.data.dtype == torch.int8 and weight.scale is not None and weight.scale.dtype == torch.float32
    )
    wanted = exact.layers[0].gate.data
    step = wanted.abs().amax(1, keepdim=True) / 127
    assert ((dequantized(weight, torch.float32) - wanted).abs() <= step * 0.51).all()


def test_eight_bit_weights_speak(checkpoint: Checkpoint) -> None:
    moshi = load_moshi(
        Checkpoint(checkpoint.config, checkpoint.mimi_config), CPU, torch.float32, quantized=True
    )
    engine = Engine(make_duplex(moshi, load_mimi(checkpoint, CPU), Limits(1, 250, torch.float32)))
    slot = engine.join(Sampling(seed=1))
    answers = [engine.step([(slot, torch.zeros(FRAME).numpy())])[0] for _ in range(3)]
    assert answers[0].tokens is None
    assert len(answers[2].tokens or ()) == 9


def test_local_files_ask_nothing_of_the_network(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = find_checkpoint("kyutai/nothing", config=str(tiny / "config.json"))
    assert found.moshi == tiny / "model.safetensors"
    assert found.mimi_config["seanet"]["n_filters"] == 4


@pytest.mark.parametrize(
    "change",
    [{"conditioners": {"x": {}}}, {"norm": "layer_norm"}, {"kv_repeat": 4}, {"depformer_pos_emb": "rope"}],
)
def test_a_model_it_does_not_speak_is_named_with_the_mend(
    checkpoint: Checkpoint, change: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModel, match=r"use moshi\.server"):
        shape_of({**checkpoint.config, **change})


# ------------------------------------------------------------------------------------------ what a card holds


def test_the_ladder_ends_with_the_first_size_that_holds_every_slot() -> None:
    assert ladder(1) == [1]
    assert ladder(3) == [1, 2, 4]
    assert ladder(38)[-2:] == [32, 40]


def test_a_full_ring_takes_what_the_facts_say(checkpoint: Checkpoint) -> None:
    from moshi.models import loaders

    shape = shape_of(loaders._lm_kwargs)
    full = 3000 / BLOCK
    assert block_bytes(shape, torch.bfloat16) * full == pytest.approx(1.573e9, rel=0.001)
    assert block_bytes(shape, torch.float8_e4m3fn) * full == pytest.approx(1.573e9 / 2, rel=0.02)


class Card:
    """Stands for a GPU: so much memory, and steps that take so long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, usable: float, ms: Any) -> None:
        monkeypatch.setenv("CACHE_DIRECTORY", str(cache))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(measure, "usable_bytes", lambda memory_gb: usable)
        self.timed: list[int] = []

        def time_steps(engine: Engine, count: int, steps: int) -> dict[str, float]:
            assert count <= engine.slots
            self.timed.append(count)
            return {"p50": ms(count), "p95": ms(count), "p99": ms(count)}

        monkeypatch.setattr(measure, "time_steps", time_steps)


def test_auto_takes_what_memory_holds_and_lowers_it_until_steps_are_in_time(
    weights: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moshi, mimi = weights
    each = Engine(make_duplex(moshi, mimi, Limits(1, 250, torch.float32))).memory_per_slot()
    card = Card(monkeypatch, tmp_path, each * 12.5, lambda count: 8.0 * count)
    lines: list[str] = []
    slots = measure.most_slots(moshi, mimi, 250, torch.float32, None, lines.append)
    assert card.timed == [12, 7]  # 96 ms are too many: 12 * 60 / 96 is 7, which take 56
    assert slots == 7
    assert any("12 conversations" in line for line in lines)
    assert measure.most_slots(moshi, mimi, 250, torch.float32, None, lines.append) == 7
    assert card.timed == [12, 7]  # remembered
    assert 7 in json.loads((tmp_path / "hotline-duplex-slots.json").read_text()).values()


def test_a_card_that_is_too_small_says_what_would_help(
    weights: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Card(monkeypatch, tmp_path, 1000, lambda count: 1.0)
    with pytest.raises(UnsupportedModel, match="GPU memory are needed: use q8"):
        measure.most_slots(*weights, 250, torch.float32, None, lambda line: None)


def test_blocks_that_do_not_fit_are_shared_out(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, limits = shape_of(checkpoint.config), Limits(4, 250, torch.bfloat16)
    block = block_bytes(shape, torch.bfloat16)
    own = limits.slots * measure.OWN_GB * 1e9
    for blocks, wanted in ((100, 16), (9, 9)):
        monkeypatch.setattr(
            measure, "usable_bytes", lambda memory_gb, blocks=blocks: own + block * (blocks + 0.5)
        )
        assert measure.affordable_blocks(shape, limits, None) == wanted
    monkeypatch.setattr(measure, "usable_bytes", lambda memory_gb: own)
    with pytest.raises(UnsupportedModel, match="fewer --slots"):
        measure.affordable_blocks(shape, limits, None)
