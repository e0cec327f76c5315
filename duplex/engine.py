"""The engine: slots, rings of memory and CUDA graphs around ``Duplex.step``. Not thread-safe: one thread owns
it.

A step launches one CUDA graph, which fetches its input from pinned memory and brings tokens and sound back
there, and waits once. Graphs are captured for a ladder of batch sizes, so that three callers do not pay for
thirty-eight.

What the host does per conversation is done without torch: each of its operations lets go of the interpreter's
lock, and with many callers the thread that serves them would take it, up to a switch interval each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from duplex.kernels import BLOCK, bytes_of
from duplex.model import FRAME, Duplex

Sound = NDArray[np.float32]

FRAME_BYTES = 4 * FRAME
LADDER = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)


class NoRoom(LookupError):  # noqa: N818 - an answer, not a fault
    """Every slot, or all memory, is taken."""


@dataclass(frozen=True)
class Sampling:
    """How a conversation draws its tokens; temperature 0 takes the likeliest. Defaults are upstream's
    (LMGen).
    """

    temperature: float = 0.8
    top_k: int = 250
    text_temperature: float = 0.7
    text_top_k: int = 25
    seed: int | None = None
    """Below 2**32; None: by chance."""


@dataclass(frozen=True)
class Answer:
    """What one frame brought: the text token and 1920 samples, or nothing yet (the first frames)."""

    slot: int
    tokens: list[int] | None
    """Text first, then dep_q codes."""
    pcm: Sound | None


@dataclass
class Seat:
    """What the host knows of a slot that is taken."""

    offset: int = 0
    blocks: list[int] = field(default_factory=list)
    capacity: int = 0


def ladder(slots: int) -> list[int]:
    """Return the batch sizes that get a graph: up to the first that holds every slot."""
    sizes = [size for size in LADDER if size < slots]
    return [*sizes, next((size for size in LADDER if size >= slots), slots)]


def bytes_in(samples: torch.Tensor) -> memoryview:
    """Return the memory of a float32 tensor on the host."""
    return samples.numpy().reshape(-1).data.cast("B")


class Engine:
    """Many conversations, taken one frame further by ``step``."""

    def __init__(self, duplex: Duplex, graphs: bool | None = None) -> None:
        """Make an engine; ``graphs`` None: on a GPU. Call ``prepare`` before the first step."""
        self.duplex = duplex
        memory, limits = duplex.memory, duplex.limits
        self.device = memory.offset.device
        self.on_gpu = self.device.type == "cuda"
        self.graphs = self.on_gpu if graphs is None else graphs
        self.slots = limits.slots
        self.sizes = ladder(self.slots)
        self.seats: dict[int, Seat] = {}
        self.free = list(range(self.slots - 1, -1, -1))
        self.free_blocks = list(range(memory.rings[0].k.shape[0] - 1, 0, -1))
        most, width = self.sizes[-1], duplex.moshi.shape.dep_q + 1
        if most > self.slots + 1:
            # The depformer's scratch has a row per slot; a batch that is padded beyond needs as many rows.
            self.sizes[-1] = most = self.slots

        def host(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=self.on_gpu)

        self._slots_host = host(most, dtype=torch.int64)
        self._tokens_host = host(most, width, dtype=torch.int64)
        self._pcm_host, self._sound_host = host(most, FRAME), host(most, FRAME)
        self._slots = torch.zeros_like(self._slots_host, device=self.device)
        self._pcm = torch.zeros_like(self._pcm_host, device=self.device)
        self._slots_host.fill_(self.slots)
        self._slots_rows, self._tokens_rows = self._slots_host.numpy(), self._tokens_host.numpy()
        self._pcm_bytes, self._sound_bytes = map(bytes_in, (self._pcm_host, self._sound_host))
        self._table_host = host(*memory.table.shape, dtype=torch.int32)
        self._table_changed = False
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream() if self.on_gpu else None
        # Waiting spins, without the interpreter's lock: an interrupt would come a good part of a millisecond
        # later.
        self._done = torch.cuda.Event() if self.on_gpu else None

    # -------------------------------------------------------------------------------------------------- start

    def prepare(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Warm up and capture a graph per batch size, the largest first, so that the others fit into its
        memory.
        """
        if not self.on_gpu:
            self._body(1)
            return
        pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        for size in reversed(self.sizes):
            with torch.cuda.stream(self._stream):
                self._body(size)  # compiles kernels, lets cuDNN and cuBLAS choose theirs
            torch.cuda.synchronize()
            if self.graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                    self._body(size)
                self._graphs[size] = graph
                say(f"graph for {size} conversations captured")
        torch.cuda.synchronize()

    def _body(self, size: int) -> None:
        self._slots[:size].copy_(self._slots_host[:size], non_blocking=True)
        self._pcm[:size].copy_(self._pcm_host[:size], non_blocking=True)
        result = self.duplex.step(self._pcm[:size], self._slots[:size])
        self._tokens_host[:size].copy_(result.tokens, non_blocking=True)
        self._sound_host[:size].copy_(result.pcm, non_blocking=True)

    # -------------------------------------------------------------------------------------------------- seats

    def join(self, sampling: Sampling | None = None, spoken: int = 0) -> int:
        """Take a slot for a new conversation. Raises NoRoom.

        ``spoken`` frames count as spoken already, with whatever lies in the rings: for measuring full
        contexts.
        """
        if not self.free or not self.free_blocks:
            raise NoRoom(f"all {self.slots} conversations are taken")
        slot = self.free.pop()
        self.seats[slot] = Seat()
        self._begin(slot, sampling or Sampling(), spoken)
        return slot

    def leave(self, slot: int) -> None:
        """Give a slot back."""
        self.free_blocks.extend(self.seats.pop(slot).blocks)
        self.free.append(slot)

    def restart(self, slot: int, sampling: Sampling | None = None) -> None:
        """Make a conversation forget everything, at once and without any other noticing."""
        self.free_blocks.extend(self.seats[slot].blocks)
        self.seats[slot] = Seat()
        self._begin(slot, sampling or Sampling(), 0)

    def _begin(self, slot: int, sampling: Sampling, spoken: int) -> None:
        memory, seat = self.duplex.memory, self.seats[slot]
        seat.capacity = self.duplex.limits.context
        seed = sampling.seed if sampling.seed is not None else random.getrandbits(32)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self.duplex.reset(slot)
            memory.capacity[slot] = seat.capacity
            memory.temperature[slot, 0] = sampling.text_temperature
            memory.temperature[slot, 1] = sampling.temperature
            memory.top_k[slot, 0] = sampling.text_top_k
            memory.top_k[slot, 1] = sampling.top_k
            memory.seed[slot] = seed & 0xFFFFFFFF
            for frame in range(0, min(spoken, seat.capacity), BLOCK):
                seat.offset = frame
                self._make_room(slot)
            seat.offset = spoken
            memory.offset[slot] = spoken

    def _make_room(self, slot: int) -> None:
        """Give the ring of ``slot`` the block that its next frame falls into, if it is a new one."""
        seat = self.seats[slot]
        if seat.offset >= seat.capacity or seat.offset % BLOCK:
            return
        if self.free_blocks:
            block = self.free_blocks.pop()
            seat.blocks.append(block)
            self._table_host[slot, len(seat.blocks) - 1] = block
            self._table_changed = True
        else:
            # No memory for more: from here on this conversation remembers only as many frames as it has.
            seat.capacity = seat.offset
            with torch.cuda.stream(self._stream), torch.inference_mode():
                self.duplex.memory.capacity[slot] = seat.capacity

    # --------------------------------------------------------------------------------------------------- step

    def step(self, frames: Sequence[tuple[int, Sound]]) -> list[Answer]:
        """Take conversations one frame further: (slot, 1920 samples) each, no slot twice."""
        size = next(size for size in self.sizes if size >= len(frames))
        for row, (slot, pcm) in enumerate(frames):
            self._make_room(slot)
            self._slots_rows[row] = slot
            heard = np.ascontiguousarray(pcm, dtype=np.float32).data.cast("B")
            self._pcm_bytes[row * FRAME_BYTES : (row + 1) * FRAME_BYTES] = heard
        self._slots_rows[len(frames) : size] = self.slots
        with torch.cuda.stream(self._stream), torch.inference_mode():
            if self._table_changed:
                self.duplex.memory.table.copy_(self._table_host, non_blocking=True)
                self._table_changed = False
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                self._body(size)
            if self._done is not None:
                self._done.record(self._stream)
        if self._done is not None:
            self._done.synchronize()
        tokens = self._tokens_rows[: len(frames)].tolist()
        said = bytearray(self._sound_bytes[: len(frames) * FRAME_BYTES])
        sound = np.frombuffer(said, dtype=np.float32).reshape(len(frames), FRAME)
        return [self._answer(slot, tokens[row], sound[row]) for row, (slot, _) in enumerate(frames)]

    def _answer(self, slot: int, tokens: list[int], sound: Sound) -> Answer:
        seat = self.seats[slot]
        seat.offset += 1
        if seat.offset <= self.duplex.moshi.shape.max_delay:
            return Answer(slot, None, None)
        return Answer(slot, tokens, sound)

    def memory_per_slot(self) -> int:
        """Return the bytes that one conversation with a full ring takes."""
        memory = self.duplex.memory
        ring = bytes_of(memory.rings) // memory.rings[0].k.shape[0] * self.duplex.limits.blocks_per_ring
        own = (memory.ear, memory.mouth, memory.heard, memory.said, memory.dep_keys, memory.dep_values)
        return ring + sum(map(bytes_of, own)) // (self.slots + 1)
