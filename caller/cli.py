"""The command line: `python -m caller URL`. Thin: arguments in, report out.

Exit status: 0 the line answers; 1 it answers and misses a limit; 2 wrong arguments or an unusable sound file;
3 it does not answer (no connection, certificate, silence, a broken call, no engine); 4 busy; 5 refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from caller.errors import AddressError, CallerError
from caller.judge import judge, model
from caller.line import Patience, call, token_of
from caller.report import Limits, Report, evaluate, table, verdict
from caller.speech import Speech, decode, prepare, save

LIMIT_WORDS = {
    "handshake_ms": "from dialling to the engine's greeting",
    "first_audio_ms": "from the first frame to the first audio",
    "turnaround_p50_ms": "median turnaround per 80 ms frame",
    "turnaround_p95_ms": "95th percentile of the turnaround",
    "turnaround_p99_ms": "99th percentile of the turnaround",
    "lost": "frames lost",
    "gaps": "answers more than 160 ms after the one before",
    "drift_ms_per_minute": "how far the engine falls behind real time",
    "word_error_rate": "with --judge, 0 to 1",
}


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(
        prog="python -m caller",
        description="Speaks a sound file through a voice line in real time and measures how it answers.",
        epilog="Exit status: 0 answers, 1 misses a limit, 2 wrong arguments, 3 no answer, 4 busy, 5 refused.",
    )
    result.add_argument(
        "url", help="https://HOST:8998, or ws://127.0.0.1:8999/api/chat for an engine's own port"
    )
    result.add_argument(
        "--wav", type=Path, help="what to say, any rate (default: two sentences that come along)"
    )
    result.add_argument(
        "--seconds", type=float, help="length of the call; silence follows the speech (default: 6 s of it)"
    )
    trust = result.add_mutually_exclusive_group()
    trust.add_argument("--ca", type=Path, help="PEM file of an authority to trust beside the system's")
    trust.add_argument("--insecure", action="store_true", help="do not check the certificate")
    result.add_argument("--origin", help="Origin header (default: the line's own page)")
    result.add_argument(
        "--link",
        metavar="FILE",
        help="open this link first, from a file, or - for the standard input; a URL with #t=… is one",
    )
    result.add_argument(
        "--lag", type=int, help="frames the engine hears before its first answer (default: measured)"
    )
    result.add_argument("--connect-s", type=float, default=Patience.connect_s, help="wait for the upgrade")
    result.add_argument("--engine-s", type=float, default=Patience.engine_s, help="wait for the greeting")
    result.add_argument("--stall-s", type=float, default=Patience.stall_s, help="wait for audio in the call")
    result.add_argument("--record", type=Path, metavar="FILE.wav", help="save what was heard")
    result.add_argument("--json", metavar="FILE", help="write the report as JSON; - for the standard output")
    result.add_argument(
        "--samples", action="store_true", help="with --json: every frame's turnaround as well"
    )
    result.add_argument(
        "--judge", action="store_true", help="transcribe what was heard and compare it with Moshi's own text"
    )
    result.add_argument(
        "--random-weights",
        action="store_true",
        help="the engine has random weights: there is nothing to judge",
    )
    for item in fields(Limits):
        result.add_argument(
            f"--limit-{item.name.replace('_', '-')}",
            type=float,
            metavar="MAX",
            help=LIMIT_WORDS[item.name],
        )
    return result


def link_token(options: argparse.Namespace) -> str | None:
    """Return the token of the link that is to be opened; None without one. Raises AddressError."""
    if not options.link:
        return token_of(options.url)
    text = sys.stdin.read() if options.link == "-" else Path(options.link).read_text(encoding="utf-8")
    token = token_of(text.strip())
    if token is None:
        raise AddressError("--link: that is no link; one looks like https://HOST:8998/#t=… (hotline link)")
    return token


async def run(options: argparse.Namespace, speech: Speech) -> Report:
    """Make the call that the arguments ask for; write the recording; judge."""
    random = True if options.random_weights else None
    if options.judge and not random:
        model()
    for path in (options.record, options.json and Path(options.json)):
        if path and not path.parent.is_dir():
            raise CallerError(f"{path}: there is no folder {path.parent} to write it to; make it first")
    patience = Patience(connect_s=options.connect_s, engine_s=options.engine_s, stall_s=options.stall_s)
    recording = await call(
        options.url,
        speech,
        ca=options.ca,
        insecure=options.insecure,
        patience=patience,
        origin=options.origin,
        token=link_token(options),
    )
    report = evaluate(recording, options.lag)
    if (options.record or options.judge) and report.frames.answered:
        pcm = decode(payload for _, payload in recording.audio)
        if options.record:
            save(options.record, pcm)
        if options.judge:
            report.judgement = judge(pcm, [piece for _, piece in recording.text], random)
    limits = Limits(**{item.name: getattr(options, f"limit_{item.name}") for item in fields(Limits)})
    report.missed = limits.missed(report) if report.outcome == "ok" else []
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        report = asyncio.run(run(options, prepare(options.wav, options.seconds)))
        body = json.dumps(report.as_json(samples=options.samples), indent=2, ensure_ascii=False)
        if options.json and options.json != "-":
            Path(options.json).write_text(body + "\n", encoding="utf-8")
    except (CallerError, OSError) as error:
        print(f"caller: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(body if options.json == "-" else table(report))
    status, reason = verdict(report)
    if status:
        print(f"caller: {reason}", file=sys.stderr)
    return status
