"""Where the weights come from: kyutai's files, read straight onto the device, or random numbers of the same
shape.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from moshi.models import loaders
from safetensors import safe_open

from duplex.model import Mimi, Moshi, Shape, UnsupportedModel, mimi_from, moshi_from, shape_of


@dataclass
class Checkpoint:
    """The files of one model. What is None is made up: weights at random, a tokenizer that says numbers."""

    config: dict[str, Any]
    mimi_config: dict[str, Any]
    moshi: Path | None = None
    mimi: Path | None = None
    tokenizer: Path | None = None
    name: str = "random"
    sampling: dict[str, float] = field(default_factory=dict)
    """``lm_gen_config`` of the file: temp, temp_text, top_k, top_k_text."""


def find_checkpoint(
    repo: str,
    config: str | None = None,
    moshi: str | None = None,
    mimi: str | None = None,
    tokenizer: str | None = None,
) -> Checkpoint:
    """Find a model's files: those that are named, those beside ``config``, the rest in the Hugging Face
    ``repo``.

    A name may be a path, ``file://`` and a path, or ``hf://`` and a file of another repository. With all of
    them local nothing is asked of the network.
    """
    config_path = Path(config) if config else Path(loaders.hf_get("config.json", repo))
    raw = json.loads(config_path.read_text(encoding="utf-8"))

    def find(given: str | None, key: str, default: str | None) -> Path | None:
        name = given or raw.get(key) or default
        if name is None:
            return None
        beside = config_path.parent / name
        return (
            beside if not given and beside.exists() else Path(loaders.hf_get(name, None if given else repo))
        )

    mimi_config = find(None, "mimi_config_name", None)
    return Checkpoint(
        config=raw,
        mimi_config=json.loads(mimi_config.read_text(encoding="utf-8"))
        if mimi_config
        else loaders._mimi_config,
        moshi=find(moshi, "moshi_name", loaders.MOSHI_NAME),
        mimi=find(mimi, "mimi_name", loaders.MIMI_NAME),
        tokenizer=find(tokenizer, "tokenizer_name", loaders.TEXT_TOKENIZER_NAME),
        name=repo if not config else str(config_path.parent.name),
        sampling=raw.get("lm_gen_config", {}),
    )


def random_checkpoint(config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return a model with no files, by default of the shape of kyutai's 7B."""
    return Checkpoint(dict(config or loaders._lm_kwargs), copy.deepcopy(loaders._mimi_config))


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the names and sizes (out, in) of all matrices that q8 keeps in 8 bits, as newer modules name
    them.
    """
    sizes: dict[str, tuple[int, int]] = {"text_linear": (shape.text_card, shape.dim)}

    def layer(prefix: str, dim: int, hidden: int, steps: int) -> None:
        for step in range(steps):
            gate = f"{prefix}.gating" if steps == 1 else f"{prefix}.gating.{step}"
            sizes[f"{prefix}.self_attn.in_projs.{step}"] = (3 * dim, dim)
            sizes[f"{prefix}.self_attn.out_projs.{step}"] = (dim, dim)
            sizes[f"{gate}.linear_in"] = (2 * hidden, dim)
            sizes[f"{gate}.linear_out"] = (dim, hidden)

    for i in range(shape.layers):
        layer(f"transformer.layers.{i}", shape.dim, shape.hidden, 1)
    for i in range(shape.dep_layers):
        layer(f"depformer.layers.{i}", shape.dep_dim, shape.dep_hidden, shape.dep_q)
    for i in range(shape.dep_q):
        sizes[f"depformer_in.{i}"] = (shape.dep_dim, shape.dim)
        sizes[f"linears.{i}"] = (shape.card, shape.dep_dim)
    return sizes


def random_state(
    shape: Shape, device: torch.device, dtype: torch.dtype, quantized: bool, seed: int
) -> dict[str, torch.Tensor]:
    """Return a state such as a file of this shape holds, drawn on the device itself."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0, scale, generator=generator)

    state: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in matrices(shape).items():
        value = normal(rows, columns, columns**-0.5)
        if quantized:
            peak = value.float().abs().amax(dim=1)
            state[f"{name}.weight_scb"] = peak
            value = (value.float() * (127 / peak[:, None])).round().to(torch.int8)
        state[f"{name}.weight"] = value
    for i in range(shape.n_q):
        state[f"emb.{i}.weight"] = normal(shape.card + 1, shape.dim, shape.dim**-0.5)
    state["text_emb.weight"] = normal(shape.text_card + 1, shape.dim, shape.dim**-0.5)
    for i in range(shape.dep_q - 1):
        state[f"depformer_emb.{i}.weight"] = normal(shape.card + 1, shape.dep_dim, shape.dep_dim**-0.5)
    state["depformer_text_emb.weight"] = normal(shape.text_card + 1, shape.dep_dim, shape.dep_dim**-0.5)
    for kind, layers, dim in (
        ("transformer", shape.layers, shape.dim),
        ("depformer", shape.dep_layers, shape.dep_dim),
    ):
        for i in range(layers):
            for norm in ("norm1", "norm2"):
                state[f"{kind}.layers.{i}.{norm}.alpha"] = torch.ones(1, 1, dim, device=device)
    state["out_norm.alpha"] = torch.ones(1, 1, shape.dim, device=device)
    return state


def read_file(path: Path, device: torch.device, threads: int = 4) -> dict[str, torch.Tensor]:
    """Read a .safetensors file onto ``device``, in several threads: one is slower than the page cache."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())

    def read(share: list[str]) -> dict[str, torch.Tensor]:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in share}

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(read, (names[i::threads] for i in range(threads))))
    return {name: value for part in parts for name, value in part.items()}


def load_moshi(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, quantized: bool = False, seed: int = 0
) -> Moshi:
    """Read the language model onto ``device``. q8 files say so themselves; ``quantized`` is for random
    weights.
    """
    shape = shape_of(checkpoint.config)
    if checkpoint.moshi is None:
        state = random_state(shape, device, dtype, quantized, seed)
    elif checkpoint.moshi.suffix == ".safetensors":
        state = read_file(checkpoint.moshi, device)
    else:
        raise UnsupportedModel(
            f"{checkpoint.moshi}: duplex reads .safetensors; kyutai's repositories hold that form too"
        )
    return moshi_from(state, shape, dtype)


def load_mimi(checkpoint: Checkpoint, device: torch.device, seed: int = 0) -> Mimi:
    """Read the codec onto ``device``, in float32 as upstream runs it."""
    config = checkpoint.config
    codebooks = max(config["dep_q"], config["n_q"] - config["dep_q"])
    with torch.random.fork_rng(enabled=checkpoint.mimi is None):
        if checkpoint.mimi is None:
            torch.manual_seed(seed)
        module = loaders.get_mimi(
            checkpoint.mimi, checkpoint.mimi_config, "cpu" if checkpoint.mimi is None else device, codebooks
        )
        if checkpoint.mimi is None:
            for name, buffer in module.named_buffers():
                if name.endswith("embedding_sum"):
                    buffer.normal_()  # fresh codebooks are zero and would decode to silence
            module = module.to(device)
    with torch.no_grad():
        return mimi_from(module)


def write_random(directory: Path, device: torch.device, seed: int = 0) -> list[str]:
    """Write random weights of the 7B shape as kyutai's files are, 15.8 GB; return the flags that name them.

    moshi.server and duplex both take these flags. What is there already is kept.
    """
    import sentencepiece  # noqa: PLC0415 - nobody else trains a tokenizer
    from safetensors.torch import save_file  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)
    files = {
        name: directory / name
        for name in ("config.json", "model.safetensors", "mimi.safetensors", "tokenizer.model")
    }
    if not files["config.json"].exists():
        config = dict(loaders._lm_kwargs)
        save_file(
            random_state(shape_of(config), device, torch.bfloat16, False, seed), files["model.safetensors"]
        )
        torch.manual_seed(seed)
        mimi = loaders.get_mimi(None, None, "cpu", 8)
        state = {name: value.detach().clone() for name, value in mimi.state_dict().items()}
        for name, value in state.items():
            if name.endswith("embedding_sum"):
                value.normal_()
            elif name.endswith("_initialized"):
                value.fill_(1)
        save_file(state, files["mimi.safetensors"])
        chance = random.Random(seed)  # noqa: S311 - words to train on, no secrets
        letters = "abcdefghijklmnopqrstuvwxyz"
        lines = (
            " ".join("".join(chance.choices(letters, k=chance.randint(2, 7))) for _ in range(20))
            for _ in range(6000)
        )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, vocab_size=config["text_card"], model_type="bpe",
            byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2,
        )  # fmt: skip
        files["tokenizer.model"].write_bytes(model.getvalue())
        # Last, so that its presence says that the others are whole.
        files["config.json"].write_text(json.dumps(config), encoding="utf-8")
    flags = ("--config-path", "--moshi-weight", "--mimi-weight", "--tokenizer")
    return [part for flag, path in zip(flags, files.values(), strict=True) for part in (flag, str(path))]
