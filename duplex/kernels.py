"""The five operations that a measurement asked to have written by hand, each as a Triton kernel and as plain
PyTorch.

``linear``            weights times a handful of rows, with RMSNorm before and SiLU gate or residual after
``rotate_and_store``  RoPE on queries and keys; keys and values into a conversation's ring (bf16 or 8-bit)
``attend``            one new frame against the frames a conversation has spoken, never against the whole ring
``attend_codebooks``  the depformer's attention over at most eight codebooks
``sample``            temperature, top-k and a random number per conversation

Each picks the kernel for tensors on a GPU and its twin, ``*_plain``, everywhere else; tests hold the two
together. At these sizes everything waits for memory: the weights (15 GB in bf16) and the rings (1.6 GB per
conversation) go through the chip once per frame, and the time of a frame is their size over the card's
bandwidth. So the kernels read each byte once and launch seldom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of PyTorch comes without it, and needs none
    triton = None

BLOCK = 64
"""Frames per block of a ring: 64 frames of 32 layers are 33.5 MB in bf16."""
FP8_MAX = 448.0
"""The largest number of float8_e4m3fn."""
NORM_EPS = 1e-8
"""Of upstream's ``rms_norm_f32``."""


class Weight(NamedTuple):
    """A matrix (rows out, columns in): in the model's dtype, or int8 with a scale per row."""

    data: Tensor
    scale: Tensor | None = None


@dataclass
class Rings:
    """Keys and values of one layer for all conversations, cut into blocks of BLOCK frames.

    k, v: (blocks, heads, BLOCK, D); with 8-bit values k_scale, v_scale: (blocks, heads, BLOCK).
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


def make_rings(
    layers: int, blocks: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> list[Rings]:
    """Allocate zeroed rings for ``layers`` layers. Zeroed, since what is masked is still multiplied by 0."""
    shape = (blocks, heads, BLOCK, width)
    scaled = dtype == torch.float8_e4m3fn
    rings = []
    for _ in range(layers):
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        scales = (
            torch.zeros(shape[:3], dtype=torch.bfloat16, device=device) if scaled else None for _ in range(2)
        )
        rings.append(Rings(k, v, *scales))
    return rings


# ----------------------------------------------------------------------------------------------------- linear


def dequantized(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Return the matrix in ``dtype``."""
    if weight.scale is None:
        return weight.data.to(dtype)
    return (weight.data.float() * weight.scale[:, None]).to(dtype)


def rms_norm(x: Tensor, alpha: Tensor) -> Tensor:
    """RMSNorm as upstream computes it: in float32, back to the input's dtype."""
    x32 = x.float()
    variance = NORM_EPS + x32.pow(2).mean(-1, keepdim=True)
    return (x32 * (alpha.float() * torch.rsqrt(variance))).to(x.dtype)


def linear_plain(
    x: Tensor, weight: Weight, norm: Tensor | None = None, residual: Tensor | None = None, gated: bool = False
) -> Tensor:
    """Twin of the kernel behind ``linear``."""
    if norm is not None:
        x = rms_norm(x, norm)
    y = F.linear(x, dequantized(weight, x.dtype))
    if gated:
        gate, value = y.chunk(2, dim=-1)
        y = F.silu(gate) * value
    return y if residual is None else residual + y


def linear(
    x: Tensor, weight: Weight, norm: Tensor | None = None, residual: Tensor | None = None, gated: bool = False
) -> Tensor:
    """Return ``residual + gate(norm(x) @ weight.T)``; what is not given is left out.

    x: (rows, K); weight: (N, K), for ``gated`` the gate's rows before the value's; norm: (K,) RMSNorm's
    scale. Returns (rows, N), or (rows, N / 2) when gated.
    """
    if not x.is_cuda:
        return linear_plain(x, weight, norm, residual, gated)
    return _linear_triton(x, weight, norm, residual, gated)


if triton is not None:

    @triton.jit
    def _linear_kernel(
        x_ptr, w_ptr, scale_ptr, norm_ptr, residual_ptr, y_ptr, rows, n, k, eps,
        NORM: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, INT8: tl.constexpr,
        BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        # The weights are the left operand: their rows fill the tensor core, the few conversations are its
        # columns.
        rn = tl.program_id(0) * BN + tl.arange(0, BN)
        rr = tl.program_id(1) * BR + tl.arange(0, BR)
        n_ok = rn < n
        r_ok = rr < rows
        row = rn.to(tl.int64) * k
        acc = tl.zeros((BN, BR), dtype=tl.float32)
        value = tl.zeros((BN, BR), dtype=tl.float32)
        squares = tl.zeros((BR,), dtype=tl.float32)
        for start in range(0, k, BK):
            rk = start + tl.arange(0, BK)
            k_ok = rk < k
            w = tl.load(w_ptr + row[:, None] + rk[None, :], mask=n_ok[:, None] & k_ok[None, :], other=0.0)
            x = tl.load(x_ptr + rr[:, None] * k + rk[None, :], mask=r_ok[:, None] & k_ok[None, :], other=0.0)
            if NORM:
                alpha = tl.load(norm_ptr + rk, mask=k_ok, other=0.0).to(tl.float32)
                x32 = x.to(tl.float32)
                squares += tl.sum(x32 * x32, axis=1)
                x = (x32 * alpha[None, :]).to(x_ptr.dtype.element_ty)
            xt = tl.trans(x)
            acc = tl.dot(w.to(x_ptr.dtype.element_ty), xt, acc, input_precision="ieee")
            if GATED:
                w2 = tl.load(
                    w_ptr + row[:, None] + n.to(tl.int64) * k + rk[None, :],
                    mask=n_ok[:, None] & k_ok[None, :],
                    other=0.0,
                )
                value = tl.dot(w2.to(x_ptr.dtype.element_ty), xt, value, input_precision="ieee")
        if INT8:
            acc *= tl.load(scale_ptr + rn, mask=n_ok, other=0.0)[:, None]
            if GATED:
                value *= tl.load(scale_ptr + n + rn, mask=n_ok, other=0.0)[:, None]
        if NORM:
            inverse = 1.0 / tl.sqrt(squares / k + eps)
            acc *= inverse[None, :]
            if GATED:
                value *= inverse[None, :]
        if GATED:
            acc = acc / (1.0 + tl.exp(-acc)) * value
        out = rr[None, :] * n + rn[:, None]
        ok = r_ok[None, :] & n_ok[:, None]
        if RESIDUAL:
            acc += tl.load(residual_ptr + out, mask=ok, other=0.0).to(tl.float32)
        tl.store(y_ptr + out, acc.to(y_ptr.dtype.element_ty), mask=ok)

    @triton.jit
    def _vector_kernel(
        x_ptr, w_ptr, scale_ptr, norm_ptr, residual_ptr, y_ptr, n, k, eps,
        NORM: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, INT8: tl.constexpr,
        BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        # One row: no tensor core, no shared memory, everything a program needs in one or a few loads at once.
        rn = tl.program_id(0) * BN + tl.arange(0, BN)
        n_ok = rn < n
        row = rn.to(tl.int64) * k
        acc = tl.zeros((BN, BK), dtype=tl.float32)
        value = tl.zeros((BN, BK), dtype=tl.float32)
        squares = tl.zeros((BK,), dtype=tl.float32)
        for start in range(0, k, BK):
            rk = start + tl.arange(0, BK)
            k_ok = rk < k
            ok = n_ok[:, None] & k_ok[None, :]
            w = tl.load(w_ptr + row[:, None] + rk[None, :], mask=ok, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + rk, mask=k_ok, other=0.0).to(tl.float32)
            if NORM:
                squares += x * x
                x *= tl.load(norm_ptr + rk, mask=k_ok, other=0.0).to(tl.float32)
            acc += w * x[None, :]
            if GATED:
                w2 = tl.load(w_ptr + row[:, None] + n.to(tl.int64) * k + rk[None, :], mask=ok, other=0.0).to(
                    tl.float32
                )
                value += w2 * x[None, :]
        y = tl.sum(acc, axis=1)
        v = tl.sum(value, axis=1)
        if INT8:
            y *= tl.load(scale_ptr + rn, mask=n_ok, other=0.0)
            if GATED:
                v *= tl.load(scale_ptr + n + rn, mask=n_ok, other=0.0)
        if NORM:
            inverse = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / k + eps)
            y *= inverse
            v *= inverse
        if GATED:
            y = y / (1.0 + tl.exp(-y)) * v
        if RESIDUAL:
            y += tl.load(residual_ptr + rn, mask=n_ok, other=0.0).to(tl.float32)
        tl.store(y_ptr + rn, y.to(y_ptr.dtype.element_ty), mask=n_ok)


class Tiling(NamedTuple):
    """How the kernel behind ``linear`` cuts a product."""

    outputs: int
    inner: int
    warps: int
    stages: int


def tiling(n: int, k: int, gated: bool, columns: int) -> Tiling:
    """Choose a tiling for a product with ``n`` outputs (after the gate) of ``k`` inputs and ``columns`` rows
    of x.

    Found by trying on an H100 (docs/duplex.md). Small outputs are cut finer, since every multiprocessor of
    the card needs some weights to read.
    """
    if n < 4096:
        return Tiling(32, 128, 4, 4) if gated or n > 2048 else Tiling(16, 256, 4, 3)
    if gated:
        return Tiling(64, 128, 4, 3) if columns <= 16 else Tiling(64, 64, 4, 4)
    if k > 4096:
        return Tiling(32, 256, 4, 5)
    return Tiling(64, 128, 4, 3 if n > 4096 else 5)


def _linear_triton(
    x: Tensor,
    weight: Weight,
    norm: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    cut: Tiling | None = None,
) -> Tensor:
    rows, k = x.shape
    n = weight.data.shape[0] // (2 if gated else 1)
    y = torch.empty(rows, n, dtype=x.dtype, device=x.device)
    switches = {
        "NORM": norm is not None,
        "RESIDUAL": residual is not None,
        "GATED": gated,
        "INT8": weight.scale is not None,
    }
    if rows == 1 and k < 4096 and cut is None:
        _vector_kernel[(triton.cdiv(n, 8),)](
            x,
            weight.data,
            weight.scale,
            norm,
            residual,
            y,
            n,
            k,
            NORM_EPS,
            BN=8,
            BK=1024,
            num_warps=4,
            **switches,
        )
        return y
    columns = min(128, max(16, triton.next_power_of_2(rows)))
    cut = cut or tiling(n, k, gated, columns)
    inner = cut.inner if columns <= 64 else min(cut.inner, 128)
    if x.dtype == torch.float32:
        inner //= 2  # only for comparisons: twice the bytes have to fit into the same shared memory
    _linear_kernel[(triton.cdiv(n, cut.outputs), triton.cdiv(rows, columns))](
        x, weight.data, weight.scale, norm, residual, y, rows, n, k, NORM_EPS,
        BR=columns, BN=cut.outputs, BK=inner, num_warps=cut.warps,
        num_stages=cut.stages if columns <= 64 else 3, **switches,
    )  # fmt: skip
    return y


# ------------------------------------------------------------------------------------------------------- RoPE


def rope_angles(position: Tensor, frames: int, width: int, max_period: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine for ``frames`` positions from ``position`` (B,) on: two (B, frames, width / 2)
    float32.
    """
    steps = torch.arange(width // 2, device=position.device, dtype=torch.float32)
    frequencies = torch.exp(
        steps * (-torch.log(torch.full((), max_period, device=position.device)) * 2 / width)
    )
    times = position.float()[:, None] + torch.arange(frames, device=position.device, dtype=torch.float32)
    angles = times[..., None] * frequencies
    return torch.cos(angles), torch.sin(angles)


def _to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` (..., D) as float8 and its scale (...) as bfloat16. The scale is rounded before it is
    used.
    """
    scale = (x.float().abs().amax(-1) / FP8_MAX).clamp(min=1e-12).to(torch.bfloat16)
    scaled = (x.float() / scale.float()[..., None]).clamp(-FP8_MAX, FP8_MAX)
    return scaled.to(torch.float8_e4m3fn), scale


def rotate_and_store_plain(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    rings: Rings,
    table: Tensor,
    position: Tensor,
    capacity: Tensor,
) -> Tensor:
    """Twin of the kernel behind ``rotate_and_store``."""
    cos, sin = (angle[:, :, None] for angle in angles)
    batch, frames, _ = qkv.shape
    _, heads, _, width = rings.k.shape
    q, k, v = qkv.view(batch, frames, 3, heads, width).unbind(2)

    def rotate(x: Tensor) -> Tensor:
        real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        pairs = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        return torch.stack(pairs, dim=-1).flatten(-2).to(x.dtype)

    index = (position[:, None] + torch.arange(frames, device=qkv.device)) % capacity[:, None]
    block = table.gather(1, index // BLOCK).long()
    for target, scale, x in ((rings.k, rings.k_scale, rotate(k)), (rings.v, rings.v_scale, v)):
        if scale is None:
            target[block, :, index % BLOCK] = x.to(target.dtype)
        else:
            small, x_scale = _to_fp8(x)
            # PyTorch has no indexed assignment of 8-bit floats on the CPU: the bits are assigned.
            target.view(torch.uint8)[block, :, index % BLOCK] = small.view(torch.uint8)
            scale[block, :, index % BLOCK] = x_scale
    return rotate(q)


def rotate_and_store(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    rings: Rings,
    table: Tensor,
    position: Tensor,
    capacity: Tensor,
) -> Tensor:
    """Turn queries and keys by their position; keep keys and values in the conversations' rings; return the
    queries.

    qkv: (B, T, 3 * heads * D); angles: see ``rope_angles``; table: (B, blocks per ring) int32, where a ring's
    blocks lie in ``rings``; position: (B,) int64, of the first of T frames; capacity: (B,) int64, frames in
    each ring. Returns (B, T, heads, D).
    """
    if not qkv.is_cuda:
        return rotate_and_store_plain(qkv, angles, rings, table, position, capacity)
    return _rotate_and_store_triton(qkv, angles, rings, table, position, capacity)


if triton is not None:

    @triton.jit
    def _keep(x_even, x_odd, target_ptr, scale_ptr, base, scale_at, d, FP8: tl.constexpr):
        if FP8:
            peak = tl.maximum(tl.max(tl.abs(x_even)), tl.max(tl.abs(x_odd)))
            scale = tl.maximum(peak / 448.0, 1e-12).to(tl.bfloat16)
            tl.store(scale_ptr + scale_at, scale)
            x_even = tl.minimum(tl.maximum(x_even / scale.to(tl.float32), -448.0), 448.0)
            x_odd = tl.minimum(tl.maximum(x_odd / scale.to(tl.float32), -448.0), 448.0)
        tl.store(target_ptr + base + 2 * d, x_even.to(target_ptr.dtype.element_ty))
        tl.store(target_ptr + base + 2 * d + 1, x_odd.to(target_ptr.dtype.element_ty))

    @triton.jit
    def _rotate_and_store_kernel(
        qkv_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, position_ptr,
        capacity_ptr, blocks,
        FRAMES: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_: tl.constexpr,
        FP8: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        head = tl.program_id(1)
        b = row // FRAMES
        t = row % FRAMES
        d = tl.arange(0, D // 2)
        cos = tl.load(cos_ptr + row * (D // 2) + d)
        sin = tl.load(sin_ptr + row * (D // 2) + d)
        source = qkv_ptr + row * (3 * HEADS * D) + head * D + 2 * d
        dtype = q_ptr.dtype.element_ty
        qr = tl.load(source).to(tl.float32)
        qi = tl.load(source + 1).to(tl.float32)
        target = q_ptr + (row * HEADS + head) * D + 2 * d
        tl.store(target, (qr * cos - qi * sin).to(dtype))
        tl.store(target + 1, (qr * sin + qi * cos).to(dtype))
        kr = tl.load(source + HEADS * D).to(tl.float32)
        ki = tl.load(source + HEADS * D + 1).to(tl.float32)
        vr = tl.load(source + 2 * HEADS * D).to(tl.float32)
        vi = tl.load(source + 2 * HEADS * D + 1).to(tl.float32)
        index = (tl.load(position_ptr + b) + t) % tl.load(capacity_ptr + b)
        block = tl.load(table_ptr + b * blocks + index // BLOCK_).to(tl.int64)
        at = (block * HEADS + head) * BLOCK_ + index % BLOCK_
        # Rounded to the model's dtype first: what is kept is what upstream keeps.
        k_even = (kr * cos - ki * sin).to(dtype).to(tl.float32)
        k_odd = (kr * sin + ki * cos).to(dtype).to(tl.float32)
        _keep(k_even, k_odd, k_ptr, k_scale_ptr, at * D, at, d, FP8)
        _keep(vr, vi, v_ptr, v_scale_ptr, at * D, at, d, FP8)


def _rotate_and_store_triton(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    rings: Rings,
    table: Tensor,
    position: Tensor,
    capacity: Tensor,
) -> Tensor:
    batch, frames, _ = qkv.shape
    _, heads, _, width = rings.k.shape
    q = torch.empty(batch, frames, heads, width, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_store_kernel[(batch * frames, heads)](
        qkv, angles[0], angles[1], q, rings.k, rings.v, rings.k_scale, rings.v_scale, table, position,
        capacity, table.shape[1], FRAMES=frames, HEADS=heads, D=width, BLOCK_=BLOCK,
        FP8=rings.k_scale is not None, num_warps=1,
    )  # fmt: skip
    return q


# -------------------------------------------------------------------------------------------------- attention


def attend_plain(q: Tensor, rings: Rings, table: Tensor, position: Tensor, capacity: Tensor) -> Tensor:
    """Twin of the kernel behind ``attend``."""
    batch, frames, heads, width = q.shape
    last = position + frames - 1
    index = torch.arange(table.shape[1] * BLOCK, device=q.device)
    age = (last[:, None] % capacity[:, None] - index) % capacity[:, None]
    held = index < torch.minimum(last + 1, capacity)[:, None]
    newest = torch.arange(frames - 1, -1, -1, device=q.device)
    mask = held[:, None] & (age[:, None] >= newest[None, :, None])

    def read(x: Tensor, scale: Tensor | None) -> Tensor:
        rows = x.view(torch.uint8)[table.long()].view(x.dtype) if scale is not None else x[table.long()]
        if scale is not None:
            rows = rows.float() * scale[table.long()].float()[..., None]
        return rows.transpose(1, 2).reshape(batch, heads, -1, width).to(q.dtype)

    k, v = read(rings.k, rings.k_scale), read(rings.v, rings.v_scale)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask[:, None])
    return y.transpose(1, 2).reshape(batch, frames, heads * width)


def attend(q: Tensor, rings: Rings, table: Tensor, position: Tensor, capacity: Tensor) -> Tensor:
    """Let T new frames look at what their conversation's ring holds, each up to itself.

    q: (B, T, heads, D), already in the rings (``rotate_and_store``); the rest as there. Keys carry their
    position in their rotation, so their order in the ring does not matter, only which are held. Returns (B,
    T, heads * D).
    """
    if not q.is_cuda:
        return attend_plain(q, rings, table, position, capacity)
    return _attend_triton(q, rings, table, position, capacity)


if triton is not None:

    @triton.jit
    def _attend_kernel(
        q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, position_ptr, capacity_ptr, out_ptr,
        part_ptr, blocks, softmax_scale,
        FRAMES: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_: tl.constexpr,
        FP8: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        head = tl.program_id(1)
        split = tl.program_id(2)
        b = row // FRAMES
        t = row % FRAMES
        last = tl.load(position_ptr + b) + FRAMES - 1
        capacity = tl.load(capacity_ptr + b)
        held = tl.minimum(last + 1, capacity).to(tl.int32)
        newest = (last % capacity).to(tl.int32)
        size = capacity.to(tl.int32)
        tiles = tl.cdiv(held, BLOCK_)
        share = tl.cdiv(tiles, SPLITS)
        first = split * share
        stop = tl.minimum(first + share, tiles)
        d = tl.arange(0, D)
        i = tl.arange(0, BLOCK_)
        q = tl.load(q_ptr + (row * HEADS + head) * D + d).to(tl.float32) * softmax_scale
        peak = -float("inf")
        total = 0.0
        acc = tl.zeros((D,), dtype=tl.float32)
        for tile in tl.range(first, stop, num_stages=STAGES):
            block = tl.load(table_ptr + b * blocks + tile).to(tl.int64)
            base = (block * HEADS + head) * BLOCK_
            k = tl.load(k_ptr + base * D + i[:, None] * D + d[None, :]).to(tl.float32)
            v = tl.load(v_ptr + base * D + i[:, None] * D + d[None, :]).to(tl.float32)
            score = tl.sum(q[None, :] * k, axis=1)
            if FP8:
                score *= tl.load(k_scale_ptr + base + i).to(tl.float32)
            index = tile * BLOCK_ + i
            ok = index < held
            if FRAMES > 1:
                age = (newest - index + size) % size
                ok = ok & (age >= FRAMES - 1 - t)
            score = tl.where(ok, score, -float("inf"))
            higher = tl.maximum(peak, tl.max(score, axis=0))
            p = tl.exp(score - higher)
            shrink = tl.exp(peak - higher)
            total = total * shrink + tl.sum(p, axis=0)
            if FP8:
                p *= tl.load(v_scale_ptr + base + i).to(tl.float32)
            acc = acc * shrink + tl.sum(p[:, None] * v, axis=0)
            peak = higher
        if SPLITS == 1:
            tl.store(out_ptr + (row * HEADS + head) * D + d, (acc / total).to(out_ptr.dtype.element_ty))
        else:
            part = part_ptr + ((row * HEADS + head) * SPLITS + split) * (D + 2)
            tl.store(part + d, acc)
            tl.store(part + D, peak)
            tl.store(part + D + 1, total)

    @triton.jit
    def _combine_kernel(part_ptr, out_ptr, D: tl.constexpr, SPLITS: tl.constexpr):
        pair = tl.program_id(0)
        s = tl.arange(0, SPLITS)
        d = tl.arange(0, D)
        part = part_ptr + (pair * SPLITS + s) * (D + 2)
        peak = tl.load(part + D)
        weight = tl.exp(peak - tl.max(peak, axis=0))  # an empty split has peak -inf and weighs nothing
        total = tl.sum(tl.load(part + D + 1) * weight, axis=0)
        acc = tl.sum(tl.load(part[:, None] + d[None, :]) * weight[:, None], axis=0)
        tl.store(out_ptr + pair * D + d, (acc / total).to(out_ptr.dtype.element_ty))


PROGRAMS = 2048
"""How many programs ``attend`` wants at least: enough that the last ones to finish do not hold up the card.
"""


def _attend_triton(q: Tensor, rings: Rings, table: Tensor, position: Tensor, capacity: Tensor) -> Tensor:
    batch, frames, heads, width = q.shape
    splits = 1
    while splits < 16 and batch * frames * heads * splits < PROGRAMS and splits * 4 <= table.shape[1]:
        splits *= 2
    out = torch.empty(batch, frames, heads * width, dtype=q.dtype, device=q.device)
    parts = torch.empty(
        batch * frames * heads * splits * (width + 2) if splits > 1 else 0,
        dtype=torch.float32,
        device=q.device,
    )
    _attend_kernel[(batch * frames, heads, splits)](
        q, rings.k, rings.v, rings.k_scale, rings.v_scale, table, position, capacity, out, parts,
        table.shape[1], width**-0.5, FRAMES=frames, HEADS=heads, D=width, BLOCK_=BLOCK,
        FP8=rings.k_scale is not None, SPLITS=splits,
        STAGES=2, num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _combine_kernel[(batch * frames * heads,)](parts, out, D=width, SPLITS=splits, num_warps=1)
    return out


# -------------------------------------------------------------------------------------------------- depformer


def attend_codebooks_plain(qkv: Tensor, keys: Tensor, values: Tensor, codebook: int) -> Tensor:
    """Twin of the kernel behind ``attend_codebooks``."""
    batch, heads, _, width = keys.shape
    q, k, v = qkv.view(batch, 3, heads, width).unbind(1)
    keys[:, :, codebook], values[:, :, codebook] = k, v
    seen = slice(0, codebook + 1)
    y = F.scaled_dot_product_attention(q[:, :, None], keys[:, :, seen], values[:, :, seen])
    return y.reshape(batch, heads * width)


def attend_codebooks(qkv: Tensor, keys: Tensor, values: Tensor, codebook: int) -> Tensor:
    """Keep a codebook's key and value and let it look at itself and the ones before it.

    qkv: (B, 3 * heads * D); keys, values: (B, heads, 8, D), valid below ``codebook``. Returns (B, heads * D).
    """
    if not qkv.is_cuda:
        return attend_codebooks_plain(qkv, keys, values, codebook)
    return _attend_codebooks_triton(qkv, keys, values, codebook)


if triton is not None:

    @triton.jit
    def _attend_codebooks_kernel(
        qkv_ptr, k_ptr, v_ptr, out_ptr, codebook, softmax_scale,
        HEADS: tl.constexpr, D: tl.constexpr, BOOKS: tl.constexpr,
    ):  # fmt: skip
        b = tl.program_id(0)
        head = tl.program_id(1)
        d = tl.arange(0, D)
        c = tl.arange(0, BOOKS)
        source = qkv_ptr + b * 3 * HEADS * D + head * D + d
        q = tl.load(source).to(tl.float32)
        k_new = tl.load(source + HEADS * D)
        v_new = tl.load(source + 2 * HEADS * D)
        base = (b * HEADS + head) * BOOKS * D
        tl.store(k_ptr + base + codebook * D + d, k_new)
        tl.store(v_ptr + base + codebook * D + d, v_new)
        old = c[:, None] < codebook
        k = tl.load(k_ptr + base + c[:, None] * D + d[None, :], mask=old, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + base + c[:, None] * D + d[None, :], mask=old, other=0.0).to(tl.float32)
        here = c[:, None] == codebook
        k = tl.where(here, k_new.to(tl.float32)[None, :], k)
        v = tl.where(here, v_new.to(tl.float32)[None, :], v)
        score = tl.where(c <= codebook, tl.sum(q[None, :] * k, axis=1) * softmax_scale, -float("inf"))
        p = tl.exp(score - tl.max(score, axis=0))
        y = tl.sum(p[:, None] * v, axis=0) / tl.sum(p, axis=0)
        tl.store(out_ptr + (b * HEADS + head) * D + d, y.to(out_ptr.dtype.element_ty))


def _attend_codebooks_triton(qkv: Tensor, keys: Tensor, values: Tensor, codebook: int) -> Tensor:
    batch, heads, books, width = keys.shape
    out = torch.empty(batch, heads * width, dtype=qkv.dtype, device=qkv.device)
    _attend_codebooks_kernel[(batch, heads)](
        qkv, keys, values, out, codebook, width**-0.5, HEADS=heads, D=width, BOOKS=books, num_warps=1
    )
    return out


# --------------------------------------------------------------------------------------------------- sampling


def _mix(x: Tensor) -> Tensor:
    """Scramble 32 bits held in int64: the finaliser `lowbias32` of C. Wellons' hash-prospector (public
    domain).
    """
    mask = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


def _uniform_plain(seed: Tensor, position: Tensor, stream: int, count: int) -> Tensor:
    """Return (B, count) numbers between 0 and 1 that depend on seed, position and stream alone."""
    mask = 0xFFFFFFFF
    key = _mix((_mix((seed ^ (stream * 0x9E3779B9)) & mask) + position) & mask)
    index = torch.arange(count, device=seed.device)
    bits = _mix(_mix(key[:, None] ^ ((index * 0x85EBCA6B) & mask)[None]))
    return ((bits >> 8).float() + 0.5) / 2**24


def sample_plain(
    logits: Tensor, temperature: Tensor, top_k: Tensor, seed: Tensor, position: Tensor, stream: int
) -> Tensor:
    """Twin of the kernel behind ``sample``."""
    scores = logits.float()
    kth = scores.sort(dim=-1, descending=True).values.gather(
        1, (top_k.clamp(1, scores.shape[-1]) - 1)[:, None]
    )
    noise = -torch.log(-torch.log(_uniform_plain(seed, position, stream, scores.shape[-1])))
    drawn = scores / temperature.clamp(min=1e-6)[:, None] + noise
    drawn = torch.where(scores >= kth, drawn, -torch.inf)
    return torch.where(temperature[:, None] > 0, drawn, scores).argmax(dim=-1)


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, seed: Tensor, position: Tensor, stream: int
) -> Tensor:
    """Draw one token per conversation. The same seed and position give the same draw in whatever company.

    logits: (B, card); temperature: (B,) float32, 0 takes the likeliest; top_k: (B,) int64, candidates (more
    where the last ones tie); seed: (B,) int64 below 2**32; position: (B,) int64, the frame; stream: 0 text, 1
    … 8 audio. Returns (B,) int64. Adding Gumbel noise and taking the largest draws from the softmax.
    """
    if not logits.is_cuda:
        return sample_plain(logits, temperature, top_k, seed, position, stream)
    return _sample_triton(logits, temperature, top_k, seed, position, stream)


if triton is not None:

    @triton.jit
    def _mix_kernel(x):
        x = (x ^ (x >> 16)) * 0x7FEB352D
        x = (x ^ (x >> 15)) * 0x846CA68B
        return x ^ (x >> 16)

    @triton.jit
    def _sample_kernel(
        logits_ptr, temperature_ptr, top_k_ptr, seed_ptr, position_ptr, out_ptr, card, salt,
        CARD: tl.constexpr, LOW: tl.constexpr,
    ):  # fmt: skip
        b = tl.program_id(0)
        i = tl.arange(0, CARD)
        ok = i < card
        score = tl.load(logits_ptr + b * card + i, mask=ok, other=-float("inf")).to(tl.float32)
        temperature = tl.load(temperature_ptr + b)
        if temperature > 0:
            # The k-th largest, bit by bit: as unsigned integers, floats with their sign folded sort like
            # floats.
            wanted = tl.load(top_k_ptr + b).to(tl.int32)
            bits = score.to(tl.uint32, bitcast=True)
            keys = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
            kth = tl.zeros((), dtype=tl.uint32)
            bit = tl.full((), 0x80000000, dtype=tl.uint32)
            for _ in range(0, 32 - LOW):
                candidate = kth | bit
                enough = tl.sum((keys >= candidate).to(tl.int32), axis=0) >= wanted
                kth = tl.where(enough, candidate, kth)
                bit = bit >> 1
            seed = tl.load(seed_ptr + b).to(tl.uint32)
            position = tl.load(position_ptr + b).to(tl.uint32)
            key = _mix_kernel(_mix_kernel(seed ^ salt.to(tl.uint32)) + position)
            random = _mix_kernel(_mix_kernel(key ^ (i.to(tl.uint32) * 0x85EBCA6B)))
            uniform = ((random >> 8).to(tl.float32) + 0.5) / 16777216.0
            drawn = score / temperature - tl.log(-tl.log(uniform))
            score = tl.where(ok & (keys >= kth), drawn, -float("inf"))
        best = tl.argmax(score, axis=0)
        tl.store(out_ptr + b, best.to(tl.int64))


def _sample_triton(
    logits: Tensor, temperature: Tensor, top_k: Tensor, seed: Tensor, position: Tensor, stream: int
) -> Tensor:
    batch, card = logits.shape
    out = torch.empty(batch, dtype=torch.int64, device=logits.device)
    _sample_kernel[(batch,)](
        logits, temperature, top_k, seed, position, out, card, (stream * 0x9E3779B9) & 0xFFFFFFFF,
        CARD=triton.next_power_of_2(card), LOW=16 if logits.dtype == torch.bfloat16 else 0,
        num_warps=4 if card <= 4096 else 16,
    )  # fmt: skip
    return out


def bytes_of(item: Any) -> int:
    """Return the memory behind a tensor, or behind all tensors of a Weight, of Rings, of a list."""
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, Rings):
        return sum(bytes_of(part) for part in (item.k, item.v, item.k_scale, item.v_scale))
    if isinstance(item, list | tuple):
        return sum(bytes_of(part) for part in item)
    return 0
