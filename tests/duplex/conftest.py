"""A tiny Moshi with random weights, and upstream's own server loop to compare with."""

from __future__ import annotations

import os
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
os.environ.setdefault("NO_TORCH_COMPILE", "1")
if find_spec("torch") is None or find_spec("moshi") is None:
    collect_ignore_glob = ["test_*.py"]  # these tests run in .venv-engine
else:
    import torch

    from duplex.model import Duplex, Limits, make_duplex
    from duplex.weights import Checkpoint, find_checkpoint, load_mimi, load_moshi

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "tiny"
    runpy.run_path(str(ROOT / "roles/moshi/files/tiny_weights.py"))["main"](directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(tiny: Path) -> Checkpoint:
    return find_checkpoint("none", config=str(tiny / "config.json"))


@pytest.fixture(scope="session")
def weights(checkpoint: Checkpoint) -> tuple[Any, Any]:
    device = torch.device("cpu")
    return load_moshi(checkpoint, device, torch.float32), load_mimi(checkpoint, device)


@pytest.fixture
def duplex(weights: tuple[Any, Any]) -> Duplex:
    return make_duplex(*weights, Limits(slots=4, context=250, kv_dtype=torch.float32))


class Upstream:
    """moshi.server's own loop (server.py, recv_loop) around upstream's Mimi and LMGen, one conversation,
    greedy.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        from moshi.models import LMGen, loaders

        config = {k: v for k, v in checkpoint.config.items() if not k.endswith("_name") and k != "model_type"}
        self.mimi = loaders.get_mimi(checkpoint.mimi, checkpoint.mimi_config, "cpu", 8)
        lm = loaders.get_moshi_lm(checkpoint.moshi, config, "cpu", torch.float32)
        self.lm = LMGen(lm, use_sampling=False)
        self.mimi.streaming_forever(1)
        self.lm.streaming_forever(1)

    def converse(self, pcm: Any) -> list[tuple[list[int], Any]]:
        """pcm: (frames, 1920). Returns what each frame brought: tokens and sound; nothing for the first."""
        with torch.no_grad():
            return self._converse(pcm)

    def _converse(self, pcm: Any) -> list[tuple[list[int], Any]]:
        self.mimi.reset_streaming()
        self.lm.reset_streaming()
        answers = []
        for i, frame in enumerate(pcm):
            codes = self.mimi.encode(frame[None, None])
            if i == 0:
                self.mimi.reset_streaming()
            tokens = self.lm.step(codes)
            if tokens is not None:
                answers.append((tokens[0, :, 0].tolist(), self.mimi.decode(tokens[:, 1:])[0, 0].clone()))
        return answers


@pytest.fixture(scope="session")
def upstream(checkpoint: Checkpoint) -> Upstream:
    return Upstream(checkpoint)
