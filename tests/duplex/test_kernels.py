"""Each kernel agrees with its plain PyTorch twin, on fresh random numbers.

On a GPU the real kernels run. Without one they run in Triton's interpreter when TRITON_INTERPRET=1 is set and
Triton is installed: slow, but the arithmetic and every index are the same.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from duplex import kernels  # noqa: E402
from duplex.kernels import BLOCK, Weight, make_rings, rope_angles  # noqa: E402

GPU = torch.cuda.is_available()
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.bfloat16 if GPU else torch.float32


SIZES = (
    [(1, 1024, 4096), (1, 300, 2816), (5, 320, 64), (38, 512, 1024), (130, 96, 132)]
    if GPU
    else [(3, 48, 96), (1, 20, 96)]
)


def error(value: Any, wanted: Any) -> float:
    value, wanted = value.double(), wanted.double()
    return float((value - wanted).norm() / wanted.norm())


def quantized(weight: Any) -> Weight:
    scale = weight.float().abs().amax(1) / 127
    return Weight((weight.float() / scale[:, None]).round().to(torch.int8), scale)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("rows", "n", "k"), SIZES)
def test_linear(rows: int, n: int, k: int, extras: bool, gated: bool, int8: bool) -> None:
    x = torch.randn(rows, k, device=DEVICE, dtype=DTYPE)
    matrix = torch.randn(n * (2 if gated else 1), k, device=DEVICE, dtype=DTYPE) * k**-0.5
    weight = quantized(matrix) if int8 else Weight(matrix)
    norm = torch.rand(k, device=DEVICE) + 0.5 if extras else None
    residual = torch.randn(rows, n, device=DEVICE, dtype=DTYPE) if extras else None
    value = kernels._linear_triton(x, weight, norm, residual, gated)
    exact = Weight(weight.data if int8 else weight.data.double(), weight.scale)
    wanted = kernels.linear_plain(
        x.double(), exact, norm, None if residual is None else residual.double(), gated
    )
    assert error(value, wanted) < (1e-2 if GPU else 1e-5)


@pytest.mark.parametrize("kind", ["plain", "fp8"])
@pytest.mark.parametrize(
    ("frames", "capacity", "width"),
    [(1, 3 * BLOCK + 7, 128), (2, 250, 64)] if GPU else [(1, 130, 16), (2, 130, 16)],
)
def test_rings(frames: int, capacity: int, width: int, kind: str) -> None:
    dtype = torch.float8_e4m3fn if kind == "fp8" else DTYPE
    batch, heads, blocks = 4, 4, -(-capacity // BLOCK)
    mine, twin = (
        make_rings(1, batch * blocks, heads, width, dtype, torch.device(DEVICE))[0] for _ in range(2)
    )
    table = torch.randperm(batch * blocks, device=DEVICE).int().view(batch, blocks)
    sizes = torch.full((batch,), capacity, device=DEVICE)
    sizes[-1] = BLOCK  # a ring that could not grow
    position = torch.tensor([0, capacity - 8, capacity * 5, 30], device=DEVICE) // 2 * 2
    for step in range(40 if GPU else 12):
        qkv = torch.randn(batch, frames, 3 * heads * width, device=DEVICE, dtype=DTYPE)
        angles = rope_angles(position, frames, width, 10_000)
        args = (table, position, sizes)
        value = kernels._rotate_and_store_triton(qkv, angles, mine, *args)
        wanted = kernels.rotate_and_store_plain(qkv, angles, twin, *args)
        assert error(value, wanted) < (4e-3 if GPU else 1e-5)
        if step % 6 == 5:
            value = kernels._attend_triton(wanted, mine, *args)
            wanted = kernels.attend_plain(wanted, twin, *args)
            # Triton's interpreter cuts 8-bit floats off where cards and PyTorch round.
            assert error(value, wanted) < (
                (2e-2 if kind == "fp8" else 1e-2) if GPU else (0.1 if kind == "fp8" else 1e-5)
            )
        position += frames


def test_attend_codebooks() -> None:
    mine, twin = ([torch.zeros(3, 4, 8, 64, device=DEVICE, dtype=DTYPE) for _ in range(2)] for _ in range(2))
    for codebook in range(8):
        qkv = torch.randn(3, 3 * 4 * 64, device=DEVICE, dtype=DTYPE)
        value = kernels._attend_codebooks_triton(qkv, *mine, codebook)
        wanted = kernels.attend_codebooks_plain(qkv, *twin, codebook)
        assert error(value, wanted) < (1e-2 if GPU else 1e-5)
    assert torch.equal(mine[0], twin[0])


@pytest.mark.parametrize("card", [2048, 32_000] if GPU else [300])
@pytest.mark.parametrize("half", [False, True])
def test_sample(card: int, half: bool) -> None:
    logits = (torch.randn(6, card, device=DEVICE) * 3).to(torch.bfloat16 if half else torch.float32)
    temperature = torch.tensor([0.0, 0.5, 0.8, 1.0, 2.0, 0.7], device=DEVICE)
    top_k = torch.tensor([5, 1, 20, card, 50, 250], device=DEVICE)
    seed = torch.randint(0, 2**32, (6,), device=DEVICE)
    same = 0
    for position in range(20 if GPU else 2):
        args = (temperature, top_k, seed, torch.full((6,), position, device=DEVICE), position % 9)
        same += int((kernels._sample_triton(logits, *args) == kernels.sample_plain(logits, *args)).sum())
    # A logarithm's last bit may decide between two candidates once in a great while.
    assert same >= 6 * (20 if GPU else 2) - 1
