"""The tiny model: random weights of upstream's own classes, the same each time, which make a sound."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from moshi.models import LMGen, loaders

from roles.moshi.files import serve_weights, tiny_weights


def test_upstreams_loaders_take_it_and_every_frame_makes_a_sound(models: Path) -> None:
    serving = models / "serving"
    info = loaders.CheckpointInfo.from_hf_repo(
        "nobody/asked",
        str(serving / "moshi.safetensors"),
        str(serving / "mimi.safetensors"),
        str(serving / "tokenizer.model"),
        config_path=serving / "config.json",
    )
    mimi, tokenizer = info.get_mimi(), info.get_text_tokenizer()
    generator = LMGen(info.get_moshi(), **info.lm_gen_config)
    pieces = tokenizer.get_piece_size()
    loudest = []
    with torch.no_grad():
        mimi.streaming_forever(1)
        generator.streaming_forever(1)
        for _ in range(10):
            pcm = torch.rand(1, 1, 1920) * 0.4 - 0.2  # (batch, channel, samples), 80 ms
            tokens = generator.step(mimi.encode(pcm))
            if tokens is not None:
                assert tokens.shape == (1, 9, 1)
                assert 0 <= int(tokens[0, 0, 0]) < pieces, "a text token that the tokenizer does not have"
                loudest.append(float(mimi.decode(tokens[:, 1:]).abs().max()))
    assert len(loudest) >= 7
    assert min(loudest) > 1e-3


def test_it_is_small(models: Path) -> None:
    assert sum(path.stat().st_size for path in (models / "tiny").iterdir()) < 12_000_000


def test_the_same_recipe_gives_the_same_weights(models: Path, tmp_path: Path) -> None:
    tiny_weights.main(tmp_path / "tiny")
    assert (tmp_path / "tiny/record.json").read_text() == (models / "tiny/record.json").read_text()


def test_what_is_whole_is_left_alone_and_what_is_not_is_built_anew(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    assert tiny_weights.main(tiny)
    assert not tiny_weights.main(tiny)
    (tiny / "mimi.safetensors").write_bytes(b"cut off")
    assert tiny_weights.main(tiny)
    record = json.loads((tiny / "record.json").read_text())
    (tiny / "record.json").write_text(json.dumps(record | {"recipe": "an older one"}))
    assert tiny_weights.main(tiny)
    assert not tiny_weights.main(tiny)


def test_what_a_builder_left_behind_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "tiny.new").mkdir()
    (tmp_path / "tiny.new/model.safetensors").write_bytes(b"half")
    assert tiny_weights.main(tmp_path / "tiny")
    assert not (tmp_path / "tiny.new").exists()


def test_a_repository_without_config_is_served_as_upstream_would_assume() -> None:
    assert loaders._lm_kwargs == serve_weights.MOSHI_7B


def test_sampling_reaches_the_generator(models: Path, tmp_path: Path) -> None:
    config = json.loads((models / "serving/config.json").read_text())
    config["lm_gen_config"] = {"temp": 0.6, "temp_text": 0.5, "top_k": 100, "top_k_text": 10}
    generator = LMGen(
        loaders.get_moshi_lm(None, tiny_weights.LM | {"delays": [0] * 17, "n_q": 16, "card": 2048}),
        **config["lm_gen_config"],
    )
    assert (generator.temp, generator.temp_text, generator.top_k, generator.top_k_text) == (0.6, 0.5, 100, 10)
