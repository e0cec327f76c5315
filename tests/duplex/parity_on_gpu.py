"""On a GPU with the real 7B shape: where duplex and upstream part, and where upstream parts from itself.

In float32 the two say the same. In bf16 random weights leave candidates so close that rounding decides
between them, so greedy tokens part soon, also between upstream in bf16 and upstream in float32, which is the
measure. `python tests/duplex/parity_on_gpu.py` (80 GB).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))
import torch
from moshi.models import LMGen, loaders

from duplex.engine import Engine, Sampling
from duplex.model import FRAME, Limits, make_duplex, mimi_from, moshi_from, shape_of
from duplex.weights import random_state

FRAMES = 40
Talk = list[tuple[list[int], Any]]


def upstream(mimi: Any, lm: Any, pcm: Any, batch: int) -> Talk:
    """Return tokens and sound of moshi.server's loop, the first of ``batch`` equal conversations."""
    generator = LMGen(lm, use_sampling=False)
    said: Talk = []
    with torch.no_grad(), mimi.streaming(batch), generator.streaming(batch):
        for i, frame in enumerate(pcm):
            codes = mimi.encode(frame.expand(batch, 1, -1))
            if i == 0:
                mimi.reset_streaming()
            tokens = generator.step(codes)
            if tokens is not None:
                said.append((tokens[0, :, 0].tolist(), mimi.decode(tokens[:, 1:])[0, 0].cpu()))
    return said


def ours(mimi: Any, moshi: Any, pcm: Any) -> Talk:
    """Return the same of duplex."""
    engine = Engine(make_duplex(moshi, mimi_from(mimi), Limits(1, 3000, moshi.text_emb.dtype)))
    engine.prepare()
    slot = engine.join(Sampling(temperature=0, text_temperature=0))
    answers = [engine.step([(slot, frame.cpu().numpy())])[0] for frame in pcm]
    return [(answer.tokens, torch.from_numpy(answer.pcm)) for answer in answers if answer.tokens]


def compare(name: str, one: Talk, other: Talk) -> None:
    """Print where two talks part and how far their sound differs until there."""
    parted = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a[0] != b[0]), None)
    same = sum(x == y for a, b in zip(one, other, strict=True) for x, y in zip(a[0], b[0], strict=True))
    until = len(one) if parted is None else parted
    apart = max(
        (float((a[1] - b[1]).abs().max()) for a, b in zip(one[:until], other[:until], strict=True)),
        default=0.0,
    )
    first = "never"
    if parted is not None:
        equal = [x == y for x, y in zip(one[parted][0], other[parted][0], strict=True)]
        first = f"at frame {parted}, codebook {equal.index(False)}"
    print(f"{name}: part {first}; {same} of {9 * len(one)} tokens equal", end="; ")
    print(f"sound until then differs by {apart:.1e}", flush=True)


def main() -> None:
    """Compare and print."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    mimi = loaders.get_mimi(None, None, "cpu", 8)
    for name, buffer in mimi.named_buffers():
        if name.endswith("embedding_sum"):
            buffer.normal_()
    mimi = mimi.to(device)
    config = dict(loaders._lm_kwargs)
    shape = shape_of(config)
    state = random_state(shape, device, torch.bfloat16, False, 0)
    pcm = torch.randn(FRAMES, FRAME, device=device) * 0.1

    def model(dtype: Any) -> Any:
        lm = loaders.get_moshi_lm(None, config, "meta", dtype)
        lm.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
        return lm.eval()

    lm = model(torch.bfloat16)
    alone, pair = upstream(mimi, lm, pcm, 1), upstream(mimi, lm, pcm, 2)
    mine = ours(mimi, moshi_from(dict(state), shape, torch.bfloat16), pcm)
    del lm
    exact = upstream(mimi, model(torch.float32), pcm, 1)
    torch.cuda.empty_cache()
    mine_exact = ours(mimi, moshi_from({n: v.float() for n, v in state.items()}, shape, torch.float32), pcm)
    compare("float32: upstream and duplex", exact, mine_exact)
    compare("bf16: upstream alone and upstream in a batch of 2", alone, pair)
    compare("bf16: upstream and duplex", alone, mine)
    compare("upstream in bf16 and in float32", alone, exact)
    compare("duplex in bf16 and upstream in float32", mine, exact)


if __name__ == "__main__":
    main()
