"""Where a step's time goes: ``python -m duplex.measure`` prints it for random weights of the real 7B shape.

No server, no sockets: steps of the engine with full contexts, timed one by one from the call to the answer in
host memory, then the parts of a step by CUDA events. What callers see is measured by ``python -m
duplex.bench``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from duplex import VERSION
from duplex.engine import LADDER, Engine, Sampling
from duplex.kernels import bytes_of
from duplex.model import FRAME, Duplex, Limits, Mimi, Moshi, Shape, UnsupportedModel, block_bytes, make_duplex
from duplex.weights import load_mimi, load_moshi, random_checkpoint

KV = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def build(slots: int, context: int, kv: str, quantized: bool, device: torch.device) -> Duplex:
    """Return a model of the real shape with random weights."""
    checkpoint = random_checkpoint()
    moshi = load_moshi(checkpoint, device, torch.bfloat16, quantized)
    return make_duplex(moshi, load_mimi(checkpoint, device), Limits(slots, context, KV[kv]))


def fill(duplex: Duplex) -> None:
    """Put numbers such as a talk leaves into the rings: zeros would be kind to the card."""
    memory = duplex.memory
    for rings in [*memory.rings, *memory.ear, *memory.mouth]:
        for part, scale in ((rings.k, rings.k_scale), (rings.v, rings.v_scale)):
            if scale is None:
                part.normal_()
            else:
                part.view(torch.uint8).random_(0, 120)
                scale.fill_(0.01)


def time_steps(engine: Engine, count: int, steps: int) -> dict[str, float]:
    """Return p50, p95, p99 in ms of ``steps`` steps with ``count`` conversations whose contexts are full."""
    context = engine.duplex.limits.context
    slots = [engine.join(Sampling(seed=i), spoken=context) for i in range(count)]
    chance = np.random.default_rng(1)
    frames = [(slot, chance.normal(0, 0.1, FRAME).astype(np.float32)) for slot in slots]
    for _ in range(3):
        engine.step(frames)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step(frames)
        times.append(1000 * (time.perf_counter() - start))
    for slot in slots:
        engine.leave(slot)
    return {f"p{p}": round(float(np.percentile(times, p)), 2) for p in (50, 95, 99)}


RESERVE_GB = 1.5
"""For graphs, cuDNN, cuBLAS and what PyTorch keeps in hand."""
P99_MS = 60.0
"""What a step may take with every conversation in it."""


OWN_GB = 0.025
"""What a conversation takes beside its ring: Mimi's transformers and convolutions."""


def usable_bytes(memory_gb: float | None) -> float:
    """Return how much of the card is left for conversations once the weights are there."""
    free, _ = torch.cuda.mem_get_info()
    return min(free, (memory_gb or math.inf) * 1e9 - torch.cuda.memory_allocated()) - RESERVE_GB * 1e9


def affordable_blocks(shape: Shape, limits: Limits, memory_gb: float | None) -> int:
    """Return how many blocks of rings there is memory for, at most as many as all conversations can fill.

    With fewer, conversations share them out as they grow, and those that find none left remember less.
    """
    each = block_bytes(shape, limits.kv_dtype)
    blocks = int((usable_bytes(memory_gb) - limits.slots * OWN_GB * 1e9) // each)
    if blocks < limits.slots:
        needed = (limits.slots - blocks) * each / 1e9
        raise UnsupportedModel(
            f"{needed:.1f} GB more of GPU memory are needed: use q8 weights, --kv-dtype fp8 or fewer --slots"
        )
    return min(blocks, limits.slots * limits.blocks_per_ring)


def remembered(path: Path, key: str) -> int | None:
    """Return how many conversations were found possible before, in these circumstances."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, int) else None


def most_slots(
    moshi: Moshi,
    mimi: Mimi,
    context: int,
    kv_dtype: torch.dtype,
    memory_gb: float | None,
    say: Callable[[str], None],
) -> int:
    """Return how many conversations this card holds in time: what memory allows, then lowered until p99 fits.

    The answer is kept for this card, driver, version and settings, so that the next start need not measure.
    """
    driver = torch.cuda.driver_version() if hasattr(torch.cuda, "driver_version") else ""
    weights = "q8" if moshi.layers[0].into.scale is not None else str(moshi.text_emb.dtype)
    parts = (
        torch.cuda.get_device_name(),
        driver,
        torch.__version__,
        VERSION,
        weights,
        context,
        kv_dtype,
        memory_gb,
    )
    key = " ".join(map(str, parts))
    home = (
        os.environ.get("CACHE_DIRECTORY") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    )
    path = Path(home.split(":")[0]) / "hotline-duplex-slots.json"
    if known := remembered(path, key):
        say(f"{known} conversations, as measured before on this card ({path})")
        return known
    usable = usable_bytes(memory_gb)
    probe = Engine(make_duplex(moshi, mimi, Limits(1, context, kv_dtype)))
    each = probe.memory_per_slot()
    del probe
    gc.collect()
    torch.cuda.empty_cache()
    slots = min(int(usable // each), LADDER[-1])
    if slots < 1:
        needed = (each - usable) / 1e9
        raise UnsupportedModel(
            f"{needed:.1f} GB more of GPU memory are needed: "
            "use q8 weights, --kv-dtype fp8 or a smaller --context"
        )
    engine = Engine(make_duplex(moshi, mimi, Limits(slots, context, kv_dtype)))
    fill(engine.duplex)
    engine.prepare()
    say(f"memory allows {slots} conversations of {each / 1e9:.2f} GB; steps at full context:")
    while True:
        spread = time_steps(engine, slots, 60)
        say(f"{slots:4} conversations: p50 {spread['p50']} ms, p99 {spread['p99']} ms")
        if spread["p99"] < P99_MS or slots == 1:
            break
        slots = max(1, min(slots - 1, int(slots * P99_MS / spread["p99"])))
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**old, key: slots}, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        say(f"this is measured again at the next start, since it could not be kept: {error}")
    return slots


def graph_ms(body: Callable[[], Any], repeats: int = 20) -> float:
    """Return what ``body`` takes on the GPU, in ms, as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream), torch.inference_mode():
        body()
    graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    events[0].record()
    for _ in range(repeats):
        graph.replay()
    events[1].record()
    torch.cuda.synchronize()
    return round(events[0].elapsed_time(events[1]) / repeats, 3)


def parts(duplex: Duplex, size: int) -> dict[str, float]:
    """Return the ms of each part of a step for ``size`` conversations with full contexts."""
    device = duplex.memory.offset.device
    slots = torch.arange(size, device=device)
    blocks = duplex.limits.blocks_per_ring
    table = torch.arange(duplex.limits.slots * blocks, device=device, dtype=torch.int32).view(-1, blocks) + 1
    duplex.memory.table[:-1] = table
    offset = torch.full((size,), duplex.limits.context + 5, device=device)
    pcm = torch.randn(size, FRAME, device=device) * 0.1
    shape = duplex.moshi.shape
    tokens = torch.randint(0, 300, (size, shape.n_q + 1), device=device)
    hidden = torch.randn(size, shape.dim, device=device, dtype=duplex.moshi.text_emb.dtype)
    codes = torch.randint(0, 2048, (size, shape.dep_q), device=device)

    def draw(logits: torch.Tensor, stream: int) -> torch.Tensor:
        from duplex.kernels import sample  # noqa: PLC0415

        warm = torch.ones(size, device=device)
        return sample(logits, warm, (warm * 250).long(), offset, offset, stream)

    return {
        "encode": graph_ms(lambda: duplex.encode(pcm, slots, offset)),
        "think": graph_ms(lambda: duplex.think(tokens, slots, offset)),
        "speak": graph_ms(lambda: duplex.speak(hidden, draw)),
        "decode": graph_ms(lambda: duplex.decode(codes, slots, offset)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m duplex.measure", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--slots", type=int, default=38, help="conversations to make room for")
    parser.add_argument(
        "--context", type=int, default=3000, help="frames of 80 ms that a conversation remembers"
    )
    parser.add_argument("--kv-dtype", choices=list(KV), default="bf16")
    parser.add_argument("--q8", action="store_true", help="8-bit weights")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 24, 32, 38])
    parser.add_argument("--steps", type=int, default=100, help="steps per batch size")
    parser.add_argument("--parts", type=int, nargs="*", default=[1], help="batch sizes to take apart")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    device = torch.device("cuda")
    duplex = build(options.slots, options.context, options.kv_dtype, options.q8, device)
    weights = torch.cuda.memory_allocated()
    fill(duplex)
    print(f"built in {time.perf_counter() - start:.1f} s, {weights / 1e9:.1f} GB of tensors", flush=True)
    engine = Engine(duplex)
    engine.prepare()
    ready = time.perf_counter() - start
    free, total = torch.cuda.mem_get_info()
    print(
        f"ready in {ready:.1f} s, {(total - free) / 1e9:.1f} GB used, "
        f"{engine.memory_per_slot() / 1e9:.3f} GB each",
        flush=True,
    )
    rows = {}
    for count in options.batches:
        if count <= options.slots:
            rows[count] = time_steps(engine, count, options.steps)
            print(f"B={count:<4} {rows[count]}", flush=True)
    taken = {}
    for size in options.parts:
        taken[size] = parts(duplex, size)
        print(f"parts of B={size}: {taken[size]}", flush=True)
    if options.json:
        report = {
            "card": torch.cuda.get_device_name(),
            "engine": "duplex",
            "weights": "random, q8" if options.q8 else "random, bf16",
            "kv_dtype": options.kv_dtype,
            "context": options.context,
            "step_ms": rows,
            "parts_ms": taken,
            "gpu_memory_gb": round((total - free) / 1e9, 2),
            "rings_gb": round(bytes_of(duplex.memory.rings) / 1e9, 2),
            "ready_s": round(ready, 1),
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
