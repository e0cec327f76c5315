"""Build a Moshi that is tiny, random and real: upstream's own code, about 9 MB, real time on one CPU core.

``tiny_weights.py DIRECTORY`` writes what a repository of weights holds: ``config.json``,
``model.safetensors``, ``mimi.json``, ``mimi.safetensors`` and ``tokenizer.model``. What it says is noise, but
every frame goes the way that a real one goes. Run by the interpreter of the engine's own environment; the
same seed gives the same weights.

All five appear together or not at all: they are written beside the directory, which then takes its place in
one step, with a ``record.json`` such as fetch_weights.py writes. A directory that is whole and was built by
this very recipe is left alone. One JSON line on standard output says whether anything was built.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import io
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

SEED = 20260101
PIECES = 320  # the smallest vocabulary with which byte fallback (256 pieces) leaves room for words

# Upstream's 7B with every width and depth taken down; what is not named here stays as it is there.
LM = {
    "dim": 64,
    "text_card": PIECES,  # never above the tokenizer's vocabulary: the server looks every token up in it
    "num_heads": 4,
    "num_layers": 2,
    "context": 250,
    "depformer_dim": 32,
    "depformer_dim_feedforward": 132,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
}


FILES = {
    "config": "config.json",
    "moshi_weight": "model.safetensors",
    "mimi_weight": "mimi.safetensors",
    "mimi_config": "mimi.json",
    "tokenizer": "tokenizer.model",
}


def mimi_config(loaders: Any) -> dict[str, Any]:
    """Return upstream's Mimi, 24,000 Hz and 12.5 frames a second, with 32 instead of 512 channels inside."""
    config: dict[str, Any] = copy.deepcopy(loaders._mimi_config)
    config["seanet"].update(dimension=32, n_filters=4)
    config["quantizer"].update(dimension=16, n_q=8, bins=2048, input_dimension=32, output_dimension=32)
    config["transformer"].update(
        d_model=32, num_heads=2, num_layers=1, dim_feedforward=64, input_dimension=32, output_dimensions=[32]
    )
    return config


def random_mimi(mimi: Any) -> dict[str, Any]:
    """Return the state of a fresh Mimi with codebooks that are not silent.

    Codebooks are buffers that training fills: fresh ones are zero and would decode to silence.
    """
    state: dict[str, Any] = {name: value.detach().clone() for name, value in mimi.state_dict().items()}
    for name, value in state.items():
        if name.endswith("embedding_sum"):
            value.normal_()
        elif name.endswith("_initialized"):
            value.fill_(1)
    return state


def train_tokenizer(path: Path, pieces: int, words: int) -> None:
    """Train a sentencepiece model of ``pieces`` pieces on random ``words``, special tokens as upstream's."""
    import sentencepiece  # noqa: PLC0415

    chance = random.Random(SEED)  # noqa: S311 - words to train on, no secrets
    syllables = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]
    text = (
        " ".join("".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(10))
        for _ in range(words // 10)
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text,
        model_writer=model,
        vocab_size=pieces,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def build(directory: Path) -> None:
    """Write the five files into ``directory``."""
    os.environ.setdefault("NO_TORCH_COMPILE", "1")
    import torch  # noqa: PLC0415 - seconds to import, and a directory that is whole needs none of them
    from moshi.models import loaders  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    mimi = mimi_config(loaders)
    save_file(random_mimi(loaders.get_mimi(None, mimi)), directory / FILES["mimi_weight"])
    (directory / FILES["mimi_config"]).write_text(json.dumps(mimi, indent=2) + "\n", encoding="utf-8")
    lm = loaders.get_moshi_lm(None, {**loaders._lm_kwargs, **LM}, dtype=torch.bfloat16)
    save_file(
        {name: value.detach().contiguous() for name, value in lm.state_dict().items()},
        directory / FILES["moshi_weight"],
    )
    train_tokenizer(directory / FILES["tokenizer"], PIECES, words=4000)
    config = {
        **loaders._lm_kwargs,
        **LM,
        "moshi_name": FILES["moshi_weight"],
        "mimi_name": FILES["mimi_weight"],
        "mimi_config_name": FILES["mimi_config"],
        "tokenizer_name": FILES["tokenizer"],
        "model_type": "moshi",
    }
    (directory / FILES["config"]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def recipe() -> str:
    """Return what the weights depend on: this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def entry_of(path: Path, directory: Path) -> dict[str, Any]:
    """Return a file's part of the record; its path is below the directory of all models."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "path": f"{directory.name}/{path.name}",
        "size": path.stat().st_size,
        "algorithm": "sha256",
        "digest": digest,
    }


def is_whole(directory: Path) -> bool:
    """Say whether ``directory`` holds what this recipe builds, byte for byte as it was recorded."""
    try:
        record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
        entries = {part: entry_of(directory / name, directory) for part, name in FILES.items()}
    except (OSError, ValueError):
        return False
    return bool(record.get("recipe") == recipe() and record.get("files") == entries)


def main(directory: Path) -> bool:
    """Build into a draft beside ``directory`` and put that in place; return whether it was needed."""
    if is_whole(directory):
        return False
    draft = directory.with_name(directory.name + ".new")
    for old in (draft, directory):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(old)
    draft.mkdir(parents=True)
    build(draft)
    entries = {part: entry_of(draft / name, directory) for part, name in FILES.items()}
    record = {"repository": "tiny", "commit": None, "recipe": recipe(), "files": entries}
    (draft / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in draft.iterdir():
        path.chmod(0o644)
    draft.rename(directory)
    return True


if __name__ == "__main__":
    os.umask(0o022)
    try:
        print(json.dumps({"changed": main(Path(sys.argv[1]))}))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(
            f"The disk under {sys.argv[1]} is full: the tiny weights need 9 MB. Make room there and run "
            f"again."
        )
