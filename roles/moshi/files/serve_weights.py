"""Lay weights out under names that stay the same, so that an engine can be told once where they are.

``serve_weights.py --models DIRECTORY --record RECORD.json --sampling JSON`` makes ``DIRECTORY/serving`` with
``moshi.safetensors``, ``mimi.safetensors`` and ``tokenizer.model`` (links into the models), ``config.json``
(the repository's own with every name turned into a local one, and the operator's sampling in it) and
``weights.json`` (what is being served, for people and programs). It prints one JSON line: whether anything
changed.

Standard library only. What a hub brought is never edited: it stays as it was verified.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

LINKS = {
    "moshi_weight": "moshi.safetensors",
    "mimi_weight": "mimi.safetensors",
    "tokenizer": "tokenizer.model",
}
# Files that the server has no flag for; its loader takes file:// in their place (moshi/models/loaders.py,
# hf_get).
BY_CONFIG = {"mimi_config": "mimi_config_name", "lora_weight": "lora_name"}

# What moshi's loader assumes for a repository without a config.json (its own 7B; moshi/models/loaders.py,
# _lm_kwargs). Written out, since without a --config-path the server would ask the hub for one.
MOSHI_7B: dict[str, Any] = {
    "dim": 4096,
    "text_card": 32000,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 3000,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}


def served_config(files: dict[str, Path], sampling: dict[str, float], base: dict[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` to serve with: the repository's, names local, sampling on top."""
    config = {
        key: value for key, value in base.items() if key not in {"moshi_name", "mimi_name", "tokenizer_name"}
    }
    config.update((key, f"file://{files[part]}") for part, key in BY_CONFIG.items() if part in files)
    if sampling:
        config["lm_gen_config"] = {**config.get("lm_gen_config", {}), **sampling}
    return config


def content_of(directory: Path) -> dict[str, str]:
    """Return what lies in a directory: links by where they point, files by their text."""
    found: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            found[path.name] = (
                f"-> {path.readlink()}" if path.is_symlink() else path.read_text(encoding="utf-8")
            )
    return found


def lay_out(models: Path, record_path: Path, sampling: dict[str, float]) -> bool:
    """Make ``serving`` what the record says; return whether it was anything else before."""
    record = json.loads(record_path.read_text(encoding="utf-8"))
    files = {part: models / entry["path"] for part, entry in record["files"].items()}
    base = json.loads(files["config"].read_text(encoding="utf-8")) if "config" in files else MOSHI_7B
    draft, serving = models / "serving.new", models / "serving"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(draft)
    draft.mkdir()
    for part, name in LINKS.items():
        (draft / name).symlink_to(files[part])
    config = served_config(files, sampling, base)
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    summary = {key: record.get(key) for key in ("repository", "commit", "endpoint")}
    summary["files"] = {
        part: {key: entry[key] for key in sorted(entry) if key != "mtime_ns"}
        for part, entry in record["files"].items()
    }
    (draft / "weights.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if content_of(draft) == content_of(serving):
        shutil.rmtree(draft)
        return False
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(serving)
    draft.rename(serving)
    return True


def main(argv: list[str]) -> None:
    """Read the command line and lay out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--sampling", type=json.loads, default={})
    options = parser.parse_args(argv)
    os.umask(0o022)
    try:
        changed = lay_out(options.models, options.record, options.sampling)
    except OSError as error:
        sys.exit(
            f"{options.models}/serving cannot be written: {error}. If the disk is full, make room there and "
            f"run again."
        )
    print(json.dumps({"changed": changed}))


if __name__ == "__main__":
    main(sys.argv[1:])
