"""Moshi and Mimi, one frame of 80 ms at a time, for a batch of conversations chosen anew for every step.

Everything a conversation remembers lies in tensors with a leading slot dimension. A step is given a compact
batch of slot numbers, gathers what those slots remember, and puts it back; a slot that is not named is not
touched. What pads a batch to a size with a CUDA graph is the trash slot, the last one, whose memory nobody
reads. Joining is a counter set to zero; so is a reset.

One counter per slot, ``offset``, the frames heard so far, tells everything that depends on time, as
upstream's server has it (moshi 0.2.13, ``server.py`` and ``LMGen._step``):

    0   the first frame: the model's inputs are start tokens, what was heard is thrown away, nothing comes out
    1   the encoder begins, as if there had been no frame before; the first frame of sound comes out
    n   its codes enter the token cache at n + delay, are read one frame later, and so on

The weights are upstream's, read by name from its files. Nothing here builds upstream's modules except for
Mimi, whose layers are walked once for their weights and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from duplex.kernels import (
    BLOCK,
    Rings,
    Weight,
    attend,
    attend_codebooks,
    linear,
    make_rings,
    rope_angles,
    rotate_and_store,
    sample,
)

SAMPLE_RATE = 24_000
FRAME = 1920
"""Samples in a frame, 80 ms."""


class UnsupportedModel(ValueError):  # noqa: N818 - names the model, not the error
    """A model of the moshi family that this engine does not speak."""


# ------------------------------------------------------------------------------------------------------ Moshi


@dataclass(frozen=True)
class Shape:
    """The sizes of a Moshi, from upstream's config.json."""

    dim: int
    heads: int
    layers: int
    context: int
    n_q: int
    dep_q: int
    card: int
    text_card: int
    hidden: int
    max_period: float
    delays: tuple[int, ...]
    dep_dim: int
    dep_heads: int
    dep_layers: int
    dep_hidden: int

    @property
    def max_delay(self) -> int:
        """Return how many frames the slowest codebook is behind the text."""
        return max(self.delays)


def gate_width(dim: int, feedforward: int) -> int:
    """Return the inner width of upstream's gated feed-forward layer."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


PLAIN = {
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "layer_scale": None,
    "causal": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_weights_per_step": True,
}
ABSENT = (
    "conditioners",
    "fuser",
    "lora",
    "depformer_weights_per_step_schedule",
    "depformer_low_rank_embeddings",
    "depformer_norm",
    "demux_second_stream",
    "norm_emb",
    "bias_proj",
    "kv_repeat",
    "cross_attention",
    "extra_heads_num_heads",
)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read upstream's config. Raises UnsupportedModel for what is not a plain Moshi."""
    for key, wanted in PLAIN.items():
        if config.get(key, wanted) != wanted:
            raise UnsupportedModel(
                f"duplex speaks models with {key}={wanted!r}, this one has {config[key]!r}: use moshi.server"
            )
    for key in ABSENT:
        if config.get(key):
            raise UnsupportedModel(f"duplex does not speak models with {key}: use moshi.server")
    dim, dep_dim = config["dim"], config["depformer_dim"]
    feedforward = config.get("depformer_dim_feedforward") or int(config["hidden_scale"] * dep_dim)
    if not isinstance(feedforward, int):
        raise UnsupportedModel("duplex speaks models whose depformer layers have one width: use moshi.server")
    return Shape(
        dim=dim,
        heads=config["num_heads"],
        layers=config["num_layers"],
        context=config["context"],
        n_q=config["n_q"],
        dep_q=config["dep_q"],
        card=config["card"],
        text_card=config["text_card"],
        hidden=gate_width(dim, int(config["hidden_scale"] * dim)),
        max_period=config["max_period"],
        delays=tuple(config["delays"]),
        dep_dim=dep_dim,
        dep_heads=config["depformer_num_heads"],
        dep_layers=config["depformer_num_layers"],
        dep_hidden=gate_width(dep_dim, feedforward),
    )


@dataclass
class Layer:
    """One transformer layer: norms (dim,), projections (3 * dim, dim), (dim, dim), (2 * hidden, dim), (dim,
    hidden).
    """

    norm1: Tensor
    into: Weight
    out: Weight
    norm2: Tensor
    gate: Weight
    down: Weight


@dataclass
class Moshi:
    """All weights of the language model."""

    shape: Shape
    audio_emb: Tensor  # (n_q * (card + 1), dim)
    text_emb: Tensor  # (text_card + 1, dim)
    layers: list[Layer]
    out_norm: Tensor
    text_head: Weight
    dep_in: Weight  # (dep_q * dep_dim, dim)
    dep_text_emb: Tensor
    dep_emb: list[Tensor]
    dep_layers: list[list[Layer]]  # per codebook, per layer
    heads: list[Weight]  # per codebook


def moshi_from(state: dict[str, Tensor], shape: Shape, dtype: torch.dtype) -> Moshi:
    """Name the tensors of upstream's state; empties ``state`` on the way, so that nothing is held twice.

    ``state`` is what a ``model.safetensors`` holds, on its device: matrices in a floating type, or int8 with
    the float32 scales of bitsandbytes (``weight_scb``, the largest of each row; 127 steps of it).
    """

    def take(name: str) -> Tensor:
        value = state.pop(name)
        return value.to(dtype) if value.is_floating_point() else value

    def weight(prefix: str, dot: str = ".weight", parts: int = 1) -> list[Weight]:
        data = take(prefix + dot)
        scale = state.pop(f"{prefix}{dot}_scb", None)
        if data.dtype == torch.int8 and scale is None:
            raise UnsupportedModel(
                f"{prefix}{dot} is int8 and has no scale: the file is not one of kyutai's q8"
            )
        scales = (scale.float().flatten() / 127).chunk(parts) if scale is not None else [None] * parts
        return [Weight(d.contiguous(), s) for d, s in zip(data.chunk(parts), scales, strict=True)]

    def projection(prefix: str, parts: int) -> list[Weight]:
        # The released files stack the steps of a layer and say in_proj_weight; newer modules keep them apart.
        if f"{prefix}_weight" in state:
            return weight(prefix, "_weight", parts)
        if f"{prefix}.weight" in state:
            return weight(prefix, ".weight", parts)
        return [weight(f"{prefix}s.{i}")[0] for i in range(parts)]

    def layer(prefix: str, parts: int) -> list[Layer]:
        norm1, norm2 = (state.pop(f"{prefix}.norm{i}.alpha").float().flatten() for i in (1, 2))
        into, out = (
            projection(f"{prefix}.self_attn.in_proj", parts),
            projection(f"{prefix}.self_attn.out_proj", parts),
        )
        gates = [f"{prefix}.gating"] if parts == 1 else [f"{prefix}.gating.{i}" for i in range(parts)]
        rows = zip(into, out, gates, strict=True)
        return [
            Layer(norm1, i, o, norm2, weight(f"{g}.linear_in")[0], weight(f"{g}.linear_out")[0])
            for i, o, g in rows
        ]

    audio_emb = torch.cat([take(f"emb.{i}.weight") for i in range(shape.n_q)])
    dep_in = [weight(f"depformer_in.{i}")[0] for i in range(shape.dep_q)]
    by_layer = [layer(f"depformer.layers.{i}", shape.dep_q) for i in range(shape.dep_layers)]
    scales = [part.scale for part in dep_in if part.scale is not None]
    return Moshi(
        shape=shape,
        audio_emb=audio_emb,
        text_emb=take("text_emb.weight"),
        layers=[layer(f"transformer.layers.{i}", 1)[0] for i in range(shape.layers)],
        out_norm=state.pop("out_norm.alpha").float().flatten(),
        text_head=weight("text_linear")[0],
        dep_in=Weight(torch.cat([part.data for part in dep_in]), torch.cat(scales) if scales else None),
        dep_text_emb=take("depformer_text_emb.weight"),
        dep_emb=[take(f"depformer_emb.{i}.weight") for i in range(shape.dep_q - 1)],
        dep_layers=[[layers[i] for layers in by_layer] for i in range(shape.dep_q)],
        heads=[weight(f"linears.{i}")[0] for i in range(shape.dep_q)],
    )


# ------------------------------------------------------------------------------------------------------- Mimi

Module = Any  # upstream's layers, of which only shapes and weights are read


@dataclass
class Conv:
    """A causal convolution and what it carries from frame to frame: (channels, carried) per conversation.

    For a convolution the end of its input, for a transposed one the end of its output, without the bias.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int
    dilation: int
    groups: int
    transposed: bool
    channels: int
    carried: int


@dataclass
class Residual:
    """Layers around which the input is carried unchanged."""

    layers: list[Conv | Residual | str]


Layers = list["Conv | Residual | str"]


def conv_of(module: Module) -> Conv:
    """Read one of upstream's StreamingConv1d or StreamingConvTranspose1d."""
    transposed = hasattr(module, "convtr")
    conv = module.convtr.convtr if transposed else module.conv.conv
    kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    return Conv(
        weight=conv.weight.data,
        bias=None if conv.bias is None else conv.bias.data,
        stride=stride,
        dilation=dilation,
        groups=conv.groups,
        transposed=transposed,
        channels=conv.out_channels if transposed else conv.in_channels,
        carried=kernel - stride if transposed else (kernel - 1) * dilation + 1 - stride,
    )


def layers_of(sequence: Module) -> Layers:
    """Read one of upstream's SEANet sequences."""
    result: Layers = []
    for module in sequence:
        name = type(module).__name__
        if name == "ELU" and module.alpha == 1.0:
            result.append("elu")
        elif (
            name in ("StreamingConv1d", "StreamingConvTranspose1d")
            and getattr(module, "pad_mode", "constant") == "constant"
        ):
            result.append(conv_of(module))
        elif name == "SEANetResnetBlock" and type(module.shortcut).__name__ == "Identity":
            result.append(Residual(layers_of(module.block)))
        else:
            raise UnsupportedModel(f"duplex does not know this layer of Mimi: {module}")
    return result


def carried_of(layers: Layers) -> int:
    """Return how many numbers per conversation these layers carry from frame to frame."""
    total = 0
    for layer in layers:
        if isinstance(layer, Residual):
            total += carried_of(layer.layers)
        elif isinstance(layer, Conv):
            total += layer.channels * layer.carried
    return total


@dataclass
class MimiLayer:
    """One layer of Mimi's transformers; norms are (weight, bias)."""

    norm1: tuple[Tensor, Tensor]
    into: Tensor
    out: Tensor
    scale1: Tensor
    norm2: tuple[Tensor, Tensor]
    up: Tensor
    down: Tensor
    scale2: Tensor


@dataclass
class MimiTransformer:
    """One of Mimi's two transformers."""

    layers: list[MimiLayer]
    heads: int
    width: int
    context: int
    max_period: float


@dataclass
class Mimi:
    """All weights of the codec."""

    encoder: Layers
    ear: MimiTransformer
    downsample: Conv
    project: tuple[Tensor, Tensor]  # of the first codebook, of the others: (dimension, channels)
    codebooks: list[Tensor]  # (bins, dimension), float32
    squares: list[Tensor]  # (bins,) of each entry
    sounds: Tensor  # (codebooks * bins, channels): each entry as the decoder's input
    upsample: Conv
    mouth: MimiTransformer
    decoder: Layers
    per_frame: int  # what the transformers see of one frame: 2


def mimi_from(mimi: Module) -> Mimi:
    """Read upstream's MimiModel, whose tensors are shared, not copied."""

    def transformer(module: Module) -> MimiTransformer:
        if module.input_proj is not None or type(module.output_projs[0]).__name__ != "Identity":
            raise UnsupportedModel("duplex speaks a Mimi whose transformers are as wide as its convolutions")
        inner = module.transformer
        if inner.positional_embedding != "rope":
            raise UnsupportedModel("duplex speaks a Mimi with rotary positions")
        layers = []
        for layer in inner.layers:
            attention = layer.self_attn
            norm = [(n.weight.data, n.bias.data) for n in (layer.norm1, layer.norm2)]
            scale = [s.scale.data for s in (layer.layer_scale_1, layer.layer_scale_2)]
            layers.append(
                MimiLayer(
                    norm1=norm[0],
                    into=attention.in_projs[0].weight.data,
                    out=attention.out_projs[0].weight.data,
                    scale1=scale[0],
                    norm2=norm[1],
                    up=layer.linear1.weight.data,
                    down=layer.linear2.weight.data,
                    scale2=scale[1],
                )
            )
        first = inner.layers[0].self_attn
        return MimiTransformer(
            layers, first.num_heads, first.embed_dim // first.num_heads, first.context, inner.max_period
        )

    quantizer = mimi.quantizer
    first, rest = quantizer.rvq_first, quantizer.rvq_rest
    books = [*first.vq.layers[: first.n_q], *rest.vq.layers[: rest.n_q]]
    tables = [book._codebook.embedding.data.float() for book in books]
    out = [(first if i < first.n_q else rest).output_proj.weight.data[..., 0] for i in range(len(books))]
    if first.n_q != 1:
        raise UnsupportedModel("duplex speaks a Mimi with one semantic codebook")
    downsample = conv_of(mimi.downsample.conv)
    return Mimi(
        encoder=layers_of(mimi.encoder.model),
        ear=transformer(mimi.encoder_transformer),
        downsample=downsample,
        project=(first.input_proj.weight.data[..., 0], rest.input_proj.weight.data[..., 0]),
        codebooks=tables,
        squares=[-table.pow(2).sum(-1) for table in tables],
        sounds=torch.cat([table @ matrix.T for table, matrix in zip(tables, out, strict=True)]),
        upsample=conv_of(mimi.upsample.convtr),
        mouth=transformer(mimi.decoder_transformer),
        decoder=layers_of(mimi.decoder.model),
        per_frame=downsample.stride,
    )


class Carry:
    """What the convolutions of a batch carry: handed out in order, collected in the same order."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows  # (B, numbers carried)
        self.new: list[Tensor] = []
        self.at = 0

    def take(self, conv: Conv) -> Tensor:
        """Return what ``conv`` left behind last time: (B, channels, carried)."""
        size = conv.channels * conv.carried
        rows = self.rows[:, self.at : self.at + size]
        self.at += size
        return rows.view(-1, conv.channels, conv.carried)

    def give(self, tail: Tensor) -> None:
        """Keep ``tail`` (B, channels, carried) for the next frame."""
        self.new.append(tail.flatten(1))

    def all(self) -> Tensor:
        """Return everything that was given: (B, numbers carried)."""
        return torch.cat(self.new, dim=1)


def convolve(x: Tensor, conv: Conv, carry: Carry, fresh: Tensor | None = None) -> Tensor:
    """Apply ``conv`` to a frame x (B, C, T). ``fresh`` (B,): these begin, and their first sample is what was
    before.
    """
    if conv.transposed:
        y = F.conv_transpose1d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)
        if not conv.carried:
            return y
        y[..., : conv.carried] += carry.take(conv)
        tail = y[..., -conv.carried :]
        carry.give(tail if conv.bias is None else tail - conv.bias[:, None])
        return y[..., : -conv.carried]
    if conv.carried:
        before = carry.take(conv)
        if fresh is not None:
            before = torch.where(fresh[:, None, None], x[..., :1], before)
        x = torch.cat([before, x], dim=-1)
        carry.give(x[..., -conv.carried :])
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, dilation=conv.dilation, groups=conv.groups)


def seanet(x: Tensor, layers: Layers, carry: Carry) -> Tensor:
    """Apply SEANet's layers to a frame x (B, C, T)."""
    for layer in layers:
        if isinstance(layer, Conv):
            x = convolve(x, layer, carry)
        elif isinstance(layer, Residual):
            x = x + seanet(x, layer.layers, carry)
        else:
            x = F.elu(x)
    return x


def mimi_transformer(
    x: Tensor, model: MimiTransformer, rings: list[Rings], table: Tensor, position: Tensor, capacity: Tensor
) -> Tensor:
    """Apply one of Mimi's transformers to x (B, T, C); position (B,) is that of the first of T."""
    angles = rope_angles(position, x.shape[1], model.width, model.max_period)
    for layer, ring in zip(model.layers, rings, strict=True):
        y = F.layer_norm(x, x.shape[-1:], *layer.norm1)
        q = rotate_and_store(F.linear(y, layer.into), angles, ring, table, position, capacity)
        y = F.linear(attend(q, ring, table, position, capacity), layer.out)
        x = torch.addcmul(x, layer.scale1, y)
        y = F.layer_norm(x, x.shape[-1:], *layer.norm2)
        y = F.linear(F.gelu(F.linear(y, layer.up)), layer.down)
        x = torch.addcmul(x, layer.scale2, y)
    return x


def quantize(x: Tensor, mimi: Mimi) -> Tensor:
    """Return the nearest entries (B, codebooks) for x (B, channels): each codebook refines what the last ones
    left.
    """
    codes = []
    for i, (book, squares) in enumerate(zip(mimi.codebooks, mimi.squares, strict=True)):
        if i < 2:
            rest = F.linear(x, mimi.project[i])
        # The nearest entry e has the largest 2 x·e - e·e.
        code = torch.addmm(squares, rest, book.T, alpha=2).argmax(dim=-1)
        codes.append(code)
        if 0 < i < len(mimi.codebooks) - 1:
            rest = rest - F.embedding(code, book)
    return torch.stack(codes, dim=1)


# ------------------------------------------------------------------------------------------------------- step


@dataclass
class Limits:
    """How much an engine holds.

    slots: conversations. blocks: of BLOCK frames, shared by all of them, None for as many as full rings need.
    """

    slots: int
    context: int
    kv_dtype: torch.dtype
    blocks: int | None = None

    @property
    def blocks_per_ring(self) -> int:
        """Return how many blocks a full ring has."""
        return math.ceil(self.context / BLOCK)


def block_bytes(shape: Shape, kv_dtype: torch.dtype) -> int:
    """Return the bytes of one block of all layers' rings."""
    entry = shape.dim * kv_dtype.itemsize
    if kv_dtype == torch.float8_e4m3fn:
        entry += shape.heads * torch.bfloat16.itemsize
    return shape.layers * 2 * BLOCK * entry


@dataclass
class Memory:
    """Everything that conversations remember; the last slot is trash, and block 0 its ring."""

    offset: Tensor  # (slots + 1,) int64, frames heard
    tokens: Tensor  # (slots + 1, codebooks + 1, max_delay + 2) int64, by frame modulo its length
    rings: list[Rings]  # of the main transformer, in blocks that conversations share out
    table: Tensor  # (slots + 1, blocks per ring) int32
    capacity: Tensor  # (slots + 1,) int64, frames in the ring
    heard: Tensor  # (slots + 1, n) float32, what the encoder's convolutions carry
    said: Tensor  # (slots + 1, n) float32, the decoder's
    ear: list[Rings]  # of the encoder's transformer, each slot's in its place
    mouth: list[Rings]
    ear_table: Tensor
    mouth_table: Tensor
    dep_keys: Tensor  # (layers, slots + 1, heads, codebooks, D), within one step
    dep_values: Tensor
    temperature: Tensor  # (slots + 1, 2) float32: text, audio
    top_k: Tensor  # (slots + 1, 2) int64
    seed: Tensor  # (slots + 1,) int64, below 2**32


@dataclass
class Result:
    """What a step made: tokens (B, 1 + dep_q) int64, text first, and pcm (B, 1920) float32.

    Of no meaning for a conversation that had heard fewer than ``max_delay`` frames before.
    """

    tokens: Tensor
    pcm: Tensor


@dataclass
class Duplex:
    """A Moshi, a Mimi and the memory of many conversations; ``step`` takes them one frame further."""

    moshi: Moshi
    mimi: Mimi
    memory: Memory
    limits: Limits
    delays: Tensor = field(init=False)  # (codebooks + 1,) int64
    start: Tensor = field(init=False)  # (codebooks + 1,) int64, the tokens that stand for "nothing yet"
    book_base: Tensor = field(init=False)  # (n_q,) int64, where each codebook begins in audio_emb
    sound_base: Tensor = field(init=False)  # (dep_q,) int64, in sounds

    def __post_init__(self) -> None:
        shape, device = self.moshi.shape, self.memory.offset.device

        def line(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        self.delays = line(list(shape.delays))
        self.start = line([shape.text_card] + [shape.card] * shape.n_q)
        self.book_base = line([i * (shape.card + 1) for i in range(shape.n_q)])
        bins = self.mimi.codebooks[0].shape[0]
        self.sound_base = line([i * bins for i in range(shape.dep_q)])

    def encode(self, pcm: Tensor, slots: Tensor, frame: Tensor) -> Tensor:
        """Return the codes (B, codebooks) of pcm (B, 1920), ``frame`` (B,) frames after each encoder's
        beginning.
        """
        mimi, memory = self.mimi, self.memory
        carry = Carry(memory.heard[slots])
        x = seanet(pcm[:, None], mimi.encoder, carry).transpose(1, 2)
        table, position = memory.ear_table[slots], frame * mimi.per_frame
        capacity = torch.full_like(position, mimi.ear.context)
        x = mimi_transformer(x, mimi.ear, memory.ear, table, position, capacity).transpose(1, 2)
        x = convolve(x, mimi.downsample, carry, fresh=frame == 0)
        memory.heard[slots] = carry.all()
        return quantize(x[..., 0], mimi)

    def decode(self, codes: Tensor, slots: Tensor, frame: Tensor) -> Tensor:
        """Return the sound (B, 1920) of codes (B, dep_q), ``frame`` (B,) frames after each decoder's
        beginning.
        """
        mimi, memory = self.mimi, self.memory
        carry = Carry(memory.said[slots])
        x = F.embedding(codes + self.sound_base, mimi.sounds).sum(1)[..., None]
        x = convolve(x, mimi.upsample, carry).transpose(1, 2)
        table, position = memory.mouth_table[slots], frame * mimi.per_frame
        capacity = torch.full_like(position, mimi.mouth.context)
        x = mimi_transformer(x, mimi.mouth, memory.mouth, table, position, capacity).transpose(1, 2)
        pcm = seanet(x, mimi.decoder, carry)
        memory.said[slots] = carry.all()
        return pcm[:, 0]

    def think(self, tokens: Tensor, slots: Tensor, offset: Tensor) -> Tensor:
        """Run the main transformer over one frame of tokens (B, codebooks + 1); return its last state (B,
        dim).
        """
        moshi, memory = self.moshi, self.memory
        sounds = F.embedding(tokens[:, 1:] + self.book_base, moshi.audio_emb).sum(1, dtype=torch.float32)
        x = (sounds + F.embedding(tokens[:, 0], moshi.text_emb)).to(moshi.text_emb.dtype)
        table, capacity = memory.table[slots], memory.capacity[slots]
        angles = rope_angles(offset, 1, moshi.shape.dim // moshi.shape.heads, moshi.shape.max_period)
        for layer, rings in zip(moshi.layers, memory.rings, strict=True):
            qkv = linear(x, layer.into, norm=layer.norm1)
            q = rotate_and_store(qkv[:, None], angles, rings, table, offset, capacity)
            x = linear(attend(q, rings, table, offset, capacity)[:, 0], layer.out, residual=x)
            x = linear(linear(x, layer.gate, norm=layer.norm2, gated=True), layer.down, residual=x)
        return x

    def speak(self, x: Tensor, draw: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Choose text and audio tokens (B, 1 + dep_q) from the main transformer's state x (B, dim)."""
        moshi, memory, batch = self.moshi, self.memory, x.shape[0]
        chosen = [draw(linear(x, moshi.text_head, norm=moshi.out_norm), 0)]
        inputs = linear(x, moshi.dep_in, norm=moshi.out_norm).view(batch, moshi.shape.dep_q, -1)
        for codebook, layers in enumerate(moshi.dep_layers):
            table = moshi.dep_text_emb if codebook == 0 else moshi.dep_emb[codebook - 1]
            y = inputs[:, codebook] + F.embedding(chosen[-1], table)
            for i, layer in enumerate(layers):
                qkv = linear(y, layer.into, norm=layer.norm1)
                seen = attend_codebooks(
                    qkv, memory.dep_keys[i, :batch], memory.dep_values[i, :batch], codebook
                )
                y = linear(seen, layer.out, residual=y)
                y = linear(linear(y, layer.gate, norm=layer.norm2, gated=True), layer.down, residual=y)
            chosen.append(draw(linear(y, moshi.heads[codebook]), codebook + 1))
        return torch.stack(chosen, dim=1)

    @torch.inference_mode()
    def step(self, pcm: Tensor, slots: Tensor) -> Result:
        """Take the conversations in ``slots`` (B,) int64 one frame further; pcm (B, 1920) float32 is what
        they heard.

        No slot twice but the trash slot. Every ring must have its block for the frame
        (``Duplex.needs_block``).
        """
        shape, memory, trash = self.moshi.shape, self.memory, self.limits.slots
        offset = memory.offset[slots]
        nowhere = torch.full_like(slots, trash)
        # What is heard first is in the past for the model; the encoder begins with the second frame.
        codes = self.encode(pcm, torch.where(offset == 0, nowhere, slots), (offset - 1).clamp(min=0))

        cache = memory.tokens[slots]  # (B, codebooks + 1, length)
        length = cache.shape[-1]
        heard = self.delays[shape.dep_q + 1 :]
        at = (offset[:, None] + heard) % length
        cache[:, shape.dep_q + 1 :].scatter_(2, at[..., None], codes[:, : len(heard), None])
        now = (offset % length)[:, None, None].expand(-1, cache.shape[1], 1)
        tokens = torch.where(offset[:, None] <= self.delays, self.start, cache.gather(2, now)[..., 0])

        temperature, top_k, seed = (
            memory.temperature[slots].T.contiguous(),
            memory.top_k[slots].T.contiguous(),
            memory.seed[slots],
        )

        def draw(logits: Tensor, stream: int) -> Tensor:
            kind = min(stream, 1)
            return sample(logits, temperature[kind], top_k[kind], seed, offset, stream)

        said = self.speak(self.think(tokens, slots, offset), draw)
        after = offset + 1
        own = cache[:, : shape.dep_q + 1]
        own.scatter_(2, (after % length)[:, None, None].expand(-1, shape.dep_q + 1, 1), said[..., None])
        memory.tokens[slots] = cache
        memory.offset[slots] = torch.where(slots == trash, 0, after)

        out = own.gather(
            2, ((after[:, None] - shape.max_delay + self.delays[: shape.dep_q + 1]) % length)[..., None]
        )[..., 0]
        silent = offset < shape.max_delay
        codes = out[:, 1:].clamp(0, shape.card - 1)
        pcm = self.decode(codes, torch.where(silent, nowhere, slots), (offset - shape.max_delay).clamp(min=0))
        return Result(out, pcm)

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Make ``slot`` forget everything."""
        self.memory.offset[slot] = 0
        self.memory.heard[slot] = 0
        self.memory.said[slot] = 0


def make_duplex(moshi: Moshi, mimi: Mimi, limits: Limits) -> Duplex:
    """Allocate the memory of ``limits.slots`` conversations and a trash slot beside the weights."""
    shape, device, dtype = moshi.shape, moshi.text_emb.device, moshi.text_emb.dtype
    rows = limits.slots + 1
    blocks = limits.slots * limits.blocks_per_ring if limits.blocks is None else limits.blocks

    def carried(*layers: Layers) -> Tensor:
        return torch.zeros(rows, sum(map(carried_of, layers)), device=device)

    def own_rings(model: MimiTransformer) -> tuple[list[Rings], Tensor]:
        each = math.ceil(model.context / BLOCK)
        rings = make_rings(len(model.layers), rows * each, model.heads, model.width, torch.float32, device)
        return rings, torch.arange(rows * each, dtype=torch.int32, device=device).view(rows, each)

    ear, ear_table = own_rings(mimi.ear)
    mouth, mouth_table = own_rings(mimi.mouth)
    books = 1 << (shape.dep_q - 1).bit_length()
    dep = (shape.dep_layers, rows, shape.dep_heads, books, shape.dep_dim // shape.dep_heads)
    memory = Memory(
        offset=torch.zeros(rows, dtype=torch.int64, device=device),
        tokens=torch.zeros(rows, shape.n_q + 1, shape.max_delay + 2, dtype=torch.int64, device=device),
        rings=make_rings(
            shape.layers, blocks + 1, shape.heads, shape.dim // shape.heads, limits.kv_dtype, device
        ),
        table=torch.zeros(rows, limits.blocks_per_ring, dtype=torch.int32, device=device),
        capacity=torch.full((rows,), limits.context, dtype=torch.int64, device=device),
        heard=carried(mimi.encoder, [mimi.downsample]),
        said=carried([mimi.upsample], mimi.decoder),
        ear=ear,
        mouth=mouth,
        ear_table=ear_table,
        mouth_table=mouth_table,
        dep_keys=torch.zeros(dep, dtype=dtype, device=device),
        dep_values=torch.zeros(dep, dtype=dtype, device=device),
        temperature=torch.zeros(rows, 2, device=device),
        top_k=torch.ones(rows, 2, dtype=torch.int64, device=device),
        seed=torch.zeros(rows, dtype=torch.int64, device=device),
    )
    return Duplex(moshi, mimi, memory, limits)
