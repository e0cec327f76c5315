"""Write random weights of the real shape, in 16 and in 8 bits, as if they had been fetched.

``build_weights.py MODELS TOKENIZER DEVICE [small]`` makes ``MODELS/bf16`` and ``MODELS/q8``, each with a
``record.json`` for serve_weights.py. ``small`` takes the tiny model's shape, for a rehearsal on a CPU.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from moshi.models import loaders
from safetensors.torch import save_file

from roles.moshi.files import tiny_weights
from tests.engine.quantized import quantize

PARTS = {
    "config": "config.json",
    "moshi_weight": "model.safetensors",
    "mimi_weight": "mimi.safetensors",
    "tokenizer": "tokenizer.model",
}


def record(folder: Path) -> None:
    """Write the record of a folder."""
    parts = PARTS | ({"mimi_config": "mimi.json"} if (folder / "mimi.json").exists() else {})
    files = {
        part: {"path": f"{folder.name}/{name}", "size": (folder / name).stat().st_size}
        for part, name in parts.items()
    }
    (folder / "record.json").write_text(
        json.dumps({"repository": f"random/{folder.name}", "commit": None, "files": files})
    )


def say(what: str, began: float, path: Path) -> None:
    """Print what was written and how long it took."""
    print(f"  {what}: {path.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s", flush=True)


def main(models: Path, tokenizer: Path, device: str, small: bool) -> None:
    """Build both."""
    torch.manual_seed(tiny_weights.SEED)
    config: dict[str, Any] = {**loaders._lm_kwargs, **(tiny_weights.LM if small else {})}
    bf16, q8 = models / "bf16", models / "q8"
    for folder in (bf16, q8):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(tokenizer, folder / "tokenizer.model")
    began = time.perf_counter()
    mimi = tiny_weights.mimi_config(loaders) if small else None
    save_file(tiny_weights.random_mimi(loaders.get_mimi(None, mimi)), bf16 / "mimi.safetensors")
    shutil.copy(bf16 / "mimi.safetensors", q8 / "mimi.safetensors")
    say("Mimi", began, bf16 / "mimi.safetensors")
    began = time.perf_counter()
    lm = loaders.get_moshi_lm(None, config, device=device, dtype=torch.bfloat16)
    save_file(
        {name: value.detach().contiguous() for name, value in lm.state_dict().items()},
        bf16 / "model.safetensors",
    )
    say("Moshi in 16 bits", began, bf16 / "model.safetensors")
    began = time.perf_counter()
    scales = quantize(lm, q8 / "model.safetensors")
    say(f"Moshi in 8 bits, {scales} scales", began, q8 / "model.safetensors")
    for folder, extra in ((bf16, {}), (q8, {"quantize": True})):
        if mimi is not None:
            (folder / "mimi.json").write_text(json.dumps(mimi))
            extra = extra | {"mimi_config_name": "mimi.json"}  # noqa: PLW2901
        (folder / "config.json").write_text(json.dumps({**config, **extra}))
        record(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], "small" in sys.argv[4:])
