"""Weights in 8 bits as upstream's q8 repositories hold them, made from a model in 16 bits.

For every linear layer an int8 ``weight`` and a float32 ``weight_scb`` with a scale per row
(moshi/utils/quantize.py); all else stays. Used by the tests on a CPU, small, and by gpu/build_weights.py, in
the real shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from moshi.utils.quantize import replace_linear_with_qlinear
from safetensors.torch import save_file


def quantize(model: Any, path: Path) -> int:
    """Quantize ``model`` in place, write it to ``path``, and return how many scales it has."""
    with torch.no_grad():
        replace_linear_with_qlinear(model)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path)
    return sum(name.endswith("weight_scb") for name in state)


def quantized_config(config: Path, target: Path) -> None:
    """Write a ``config.json`` for the quantized weights."""
    target.write_text(json.dumps({**json.loads(config.read_text()), "quantize": True}, indent=2) + "\n")
