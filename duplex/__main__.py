"""``python -m duplex``: the voice engine for many conversations. ``--help`` explains every option."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from duplex.engine import Engine, Sampling
from duplex.kernels import BLOCK
from duplex.measure import affordable_blocks, fill, most_slots
from duplex.model import Limits, UnsupportedModel, make_duplex
from duplex.opus import Codecs
from duplex.server import Pieces, Rules, Server
from duplex.weights import Checkpoint, find_checkpoint, load_mimi, load_moshi, random_checkpoint
from duplex.words import Moonshine

EXIT_BROKEN = 70  # sysexits.h EX_SOFTWARE: the supervisor starts it anew
KV_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "fp32": torch.float32}
NEAR_CODECS = 2
"""Calls whose Opus is handled beside the server's loop: 0.4 ms per frame and call."""
CORES = len(os.sched_getaffinity(0))
WORDS_NEED = ("moonshine_voice", "onnxruntime")
DEFAULT_REPO = "kyutai/moshiko-pytorch-bf16"


def slots_of(text: str) -> int | None:
    """Read ``--slots``: a number from 1 on, or auto (None)."""
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError("a number from 1 on, or auto")


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(
        prog="python -m duplex",
        description="Serves many conversations with Moshi on one GPU, over kyutai's own wire protocol.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    as_upstream = result.add_argument_group("as moshi.server")
    as_upstream.add_argument("--host", default="localhost", help="address to listen on")
    as_upstream.add_argument("--port", type=int, default=8998, help="port of /api/chat")
    as_upstream.add_argument(
        "--hf-repo",
        default=DEFAULT_REPO,
        help="where files that are not named come from; a q8 repository gives 8-bit weights",
    )
    as_upstream.add_argument("--config-path", help="config.json of the model")
    as_upstream.add_argument("--moshi-weight", help="the language model, .safetensors")
    as_upstream.add_argument("--mimi-weight", help="the codec, .safetensors")
    as_upstream.add_argument("--tokenizer", help="the text tokenizer, .model")
    as_upstream.add_argument("--device", default="cuda", help="cuda, cuda:1 … or cpu")
    as_upstream.add_argument(
        "--half", action="store_true", help="float16 instead of bfloat16, for cards before Ampere"
    )
    as_upstream.add_argument("--static", default="none", help="directory of a page to serve at /, or none")
    own = result.add_argument_group("conversations")
    own.add_argument(
        "--slots",
        type=slots_of,
        default="auto",
        help="conversations at the same time; auto measures what this card can",
    )
    own.add_argument(
        "--context",
        type=int,
        help="frames of 80 ms that a conversation remembers (default: the model's own, 3000: four minutes)",
    )
    own.add_argument(
        "--kv-dtype",
        choices=list(KV_DTYPES),
        default="bf16",
        help="how that memory is kept; fp8 takes half, from Ada and Hopper on; on a cpu always fp32",
    )
    own.add_argument(
        "--memory-gb", type=float, help="use at most this much of the card's memory (default: all)"
    )
    own.add_argument(
        "--codec-workers",
        type=int,
        default=max(1, min(8, (os.cpu_count() or 2) // 2)),
        help="processes that encode and decode Opus",
    )
    own.add_argument(
        "--idle-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds without audio after which a call ends; 0: never",
    )
    own.add_argument(
        "--max-call-seconds", type=float, default=0.0, metavar="S", help="longest call; 0: no limit"
    )
    own.add_argument(
        "--resume-grace",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds for which a broken call with an X-Call-Id is kept; 0: none",
    )
    own.add_argument(
        "--drain-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that running calls get after SIGTERM",
    )
    words = result.add_argument_group("words: what callers say, as text")
    words.add_argument(
        "--transcribe",
        choices=["off", "moonshine", "auto"],
        default="off",
        help="who writes it down: nobody, or moonshine-voice (English) in processes that step back for the "
        "audio; auto: moonshine with two cores or more",
    )
    words.add_argument(
        "--transcribe-workers",
        type=int,
        default=max(1, min(16, CORES - CORES // 4)),
        metavar="N",
        help="such processes; each takes at most one core and 0.3 GB",
    )
    sampling = result.add_argument_group(
        "sampling, where the caller's URL says nothing (defaults: the model's, else as shown)"
    )
    sampling.add_argument(
        "--temperature", type=float, help=f"audio; 0 takes the likeliest ({Sampling.temperature})"
    )
    sampling.add_argument("--top-k", type=int, help=f"audio candidates ({Sampling.top_k})")
    sampling.add_argument("--text-temperature", type=float, help=f"text ({Sampling.text_temperature})")
    sampling.add_argument("--text-top-k", type=int, help=f"text candidates ({Sampling.text_top_k})")
    sampling.add_argument("--seed", type=int, help="the same for every call (default: by chance)")
    inside = result.add_argument_group("seeing inside: /health /ready /status /metrics /events")
    inside.add_argument("--status-host", default="127.0.0.1", help="address to listen on")
    inside.add_argument("--status-port", type=int, default=9299, help="port; 0: none")
    measuring = result.add_argument_group("measuring")
    measuring.add_argument(
        "--random-weights",
        action="store_true",
        help="random weights of kyutai's 7B shape: nothing is downloaded",
    )
    measuring.add_argument("--random-q8", action="store_true", help="the same in 8 bits")
    measuring.add_argument(
        "--mixed-ages",
        action="store_true",
        help="with --prefilled: each call counts as anything up to that long",
    )
    measuring.add_argument(
        "--prefilled",
        type=int,
        default=0,
        metavar="FRAMES",
        help="every call counts as this long already: full contexts from the first frame on",
    )
    return result


def sampling_from(options: argparse.Namespace, checkpoint: Checkpoint) -> Sampling:
    """Join what the command line, the model's own file and upstream's defaults say, in this order."""
    own = checkpoint.sampling
    default = Sampling()

    def first(given: Any, key: str, fallback: Any) -> Any:
        return given if given is not None else own.get(key, fallback)

    return Sampling(
        temperature=first(options.temperature, "temp", default.temperature),
        top_k=first(options.top_k, "top_k", default.top_k),
        text_temperature=first(options.text_temperature, "temp_text", default.text_temperature),
        text_top_k=first(options.text_top_k, "top_k_text", default.text_top_k),
        seed=options.seed,
    )


def build(options: argparse.Namespace, checkpoint: Checkpoint) -> Engine:
    """Read the weights and make the engine ready; runs in the engine's thread."""
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        if not torch.cuda.is_available():
            raise UnsupportedModel(
                "No CUDA GPUs are available (nvidia-smi shows them): mend that, or --device cpu"
            )
        torch.cuda.set_device(device.index or 0)
        if options.memory_gb:
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gb * 1e9 / total))
    dtype = torch.float32 if not on_gpu else torch.float16 if options.half else torch.bfloat16
    kv_dtype = KV_DTYPES[options.kv_dtype] if on_gpu else torch.float32
    if kv_dtype == torch.bfloat16:
        kv_dtype = dtype
    if kv_dtype == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        raise UnsupportedModel("--kv-dtype fp8 needs an Ada, Hopper or newer card: leave it out")
    # Beside each other: reading the large file waits for copies, making the codec's modules computes.
    with ThreadPoolExecutor(1) as beside:
        codec = beside.submit(load_mimi, checkpoint, device)
        moshi = load_moshi(checkpoint, device, dtype, options.random_q8)
        mimi = codec.result()
    say(f"weights of {checkpoint.name} loaded after {age():.1f} s")
    context = options.context or moshi.shape.context
    if options.slots is None:
        slots = most_slots(moshi, mimi, context, kv_dtype, options.memory_gb, say) if on_gpu else 1
    else:
        slots = options.slots
    limits = Limits(slots, context, kv_dtype)
    if on_gpu:
        blocks = affordable_blocks(moshi.shape, limits, options.memory_gb)
        limits = replace(limits, blocks=blocks)
        if blocks < slots * limits.blocks_per_ring:
            average = blocks * BLOCK * 0.08 / slots
            say(
                f"memory for {average:.0f} s per conversation on average: "
                "who finds no more of it forgets the oldest sooner"
            )
    duplex = make_duplex(moshi, mimi, limits)
    if options.prefilled:
        fill(duplex)
    engine = Engine(duplex)
    # What was made so far stays: nobody need look through it again, not while graphs are captured (torch may
    # collect garbage at each) and not while people talk.
    gc.collect()
    gc.freeze()
    engine.prepare()
    say(f"steps for {', '.join(map(str, engine.sizes))} conversations prepared after {age():.1f} s")
    return engine


def pieces_of(checkpoint: Checkpoint) -> Pieces:
    """Return what turns a text token into its piece."""
    if checkpoint.tokenizer is None:
        return lambda token: f"\u2581{token}"
    import sentencepiece  # noqa: PLC0415 - not needed for random weights

    tokenizer = sentencepiece.SentencePieceProcessor(str(checkpoint.tokenizer))
    size = tokenizer.vocab_size()
    return lambda token: str(tokenizer.id_to_piece(token)) if token < size else ""


def age() -> float:
    """Return the seconds since this process began, imports included (/proc/self/stat, starttime)."""
    began = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def say(line: str) -> None:
    """Print for the journal. Never what people talk about."""
    print(f"duplex: {line}", flush=True)


async def serve(options: argparse.Namespace, ready: Callable[[], None]) -> int:
    """Run until told to stop; returns the exit status. ``ready`` is called when callers are taken."""
    say(f"imports took {age():.1f} s")
    if options.random_weights or options.random_q8:
        checkpoint = random_checkpoint()
    else:
        files = (options.config_path, options.moshi_weight, options.mimi_weight, options.tokenizer)
        checkpoint = await asyncio.to_thread(find_checkpoint, options.hf_repo, *files)

    transcriber = Moonshine(options.transcribe_workers) if options.transcribe == "moonshine" else None

    def describe() -> dict[str, Any]:
        about: dict[str, Any] = {"weights": checkpoint.name, "kv_dtype": options.kv_dtype}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            about |= {
                "card": torch.cuda.get_device_name(),
                "gpu_memory_bytes": total - free,
                "gpu_memory_total_bytes": total,
            }
        return about

    server = Server(
        lambda: build(options, checkpoint),
        Codecs(options.codec_workers, near=NEAR_CODECS),
        pieces_of(checkpoint),
        transcriber=transcriber,
        rules=Rules(
            resume_grace=options.resume_grace,
            idle_timeout=options.idle_timeout,
            max_call_seconds=options.max_call_seconds,
            drain_seconds=options.drain_seconds,
            prefilled=options.prefilled,
            mixed_ages=options.mixed_ages,
        ),
        sampling=sampling_from(options, checkpoint),
        describe=describe,
    )
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: draining.append(loop.create_task(server.drain())))
    runners = []

    async def listen(app: web.Application, host: str, port: int) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, host, port).start()

    try:
        if options.status_port:
            await listen(server.window(), options.status_host, options.status_port)
        await server.start()
        door = server.door()
        if options.static != "none":
            index = Path(options.static) / "index.html"

            async def page(request: web.Request) -> web.FileResponse:
                return web.FileResponse(index)

            door.router.add_get("/", page)
            door.router.add_static("/", options.static)
        await listen(door, options.host, options.port)
        slots = server.conductor.engine.slots
        say(f"ready after {age():.1f} s: {slots} conversations on {options.host}:{options.port}")
        ready()
        await server.over.wait()
    except UnsupportedModel as error:
        say(str(error))
        return 2
    finally:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(server.stop(), 10)
        for runner in runners:
            await runner.cleanup()
    if server.failure is not None:
        traceback.print_exception(server.failure)
        say(f"the engine failed, this process ends: {type(server.failure).__name__}: {server.failure}")
        return EXIT_BROKEN
    return 0


def main(arguments: Sequence[str] | None = None, ready: Callable[[], None] = lambda: None) -> None:
    """Run the command, and end the process with its exit status."""
    command = parser()
    options = command.parse_args(arguments)
    if options.transcribe == "auto":
        options.transcribe = "moonshine" if CORES > 1 and all(map(find_spec, WORDS_NEED)) else "off"
        say(f"words: {options.transcribe} ({CORES} cores)")
    elif options.transcribe == "moonshine" and not all(map(find_spec, WORDS_NEED)):
        command.error(
            "--transcribe moonshine needs the packages moonshine-voice 0.0.73 and onnxruntime 1.23.2 beside "
            "this one: install them, or leave --transcribe out"
        )
    # The engine's thread needs the interpreter for a moment, a few times per step, and must not wait 5 ms.
    sys.setswitchinterval(0.0001)
    try:
        status = asyncio.run(serve(options, ready))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        if not isinstance(error, OSError):  # a file or a port: the error names it
            traceback.print_exc()
        say(f"cannot go on: {type(error).__name__}: {error}")
        status = EXIT_BROKEN
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after a CUDA error destructors would call into CUDA again, and may hang.
    os._exit(status)


if __name__ == "__main__":
    main()
