"""Is it a voice? What a transcriber heard, against the text that Moshi sends with what it says.

Moshi's text messages are the words it is just saying, so they are the reference and the transcription of its
audio is the hypothesis. With random weights both are noise; that is said, and nothing is judged.

The transcriber is moonshine-voice with the small English model inside its wheel: offline, MIT. On synthetic
voices it makes about one word error in ten of its own, so that a limit below 0.3 judges the judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from caller.errors import JudgeError
from caller.measure import byte_fallback_share, text
from caller.report import Judgement
from caller.speech import RATE, Pcm, resample

RATE_HEARD = 16_000
ENOUGH_WORDS = 5
"""Fewer words than this are no ground for a rate."""
BYTES_OF_NOISE = 0.2
"""A larger share of byte-fallback pieces than this is no language."""


def model() -> Path:
    """Find the transcriber's model. Raises JudgeError when a package that judging needs is missing.

    Called before a call, it spares one that could not be judged.
    """
    for package in ("moonshine_voice", "jiwer"):
        try:
            import_module(package)
        except ImportError as error:
            name = package.replace("_", "-")
            raise JudgeError(f"--judge needs the package {name}: pip install -r requirements.txt") from error
    folder = Path(str(import_module("moonshine_voice").__file__)).parent / "assets" / "tiny-en"
    if not folder.is_dir():
        raise JudgeError("this moonshine-voice has no model inside: pip install moonshine-voice==0.0.73")
    return folder


def transcribe(pcm: Pcm) -> str:
    """Write down what is said in 24 kHz mono audio. Raises JudgeError when moonshine-voice is missing."""
    folder = model()
    from moonshine_voice import ModelArch, Transcriber  # noqa: PLC0415 - 100 MB that only a judge needs

    if not len(pcm):
        return ""
    samples = resample(np.asarray(pcm, dtype=np.float32), RATE, RATE_HEARD)
    with Transcriber(model_path=folder, model_arch=ModelArch.TINY) as transcriber:
        lines = transcriber.transcribe_without_streaming(samples.tolist(), RATE_HEARD).lines
    return " ".join(line.text.strip() for line in lines if line.text.strip())


def words(sentence: str) -> list[str]:
    """Split into lower-case words without punctuation; an apostrophe inside a word stays."""
    plain = sentence.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain)


def judge(pcm: Pcm, pieces: Sequence[bytes], random_weights: bool | None = None) -> Judgement:
    """Compare 24 kHz mono audio with the text pieces that came with it.

    `random_weights`: known to be random or known not to be; None: tell by the text, which for random weights
    is mostly byte fallback. Raises JudgeError when a package is missing.
    """
    said = text(pieces)
    random = random_weights
    if random is None:
        random = byte_fallback_share(pieces) > BYTES_OF_NOISE
    if random:
        return Judgement(
            "",
            said,
            len(words(said)),
            None,
            False,
            "not judged: the weights are random, so there is no voice",
        )
    heard = transcribe(pcm)
    reference, hypothesis = words(said), words(heard)
    if len(reference) < ENOUGH_WORDS:
        return Judgement(
            heard,
            said,
            len(reference),
            None,
            False,
            f"not judged: Moshi said {len(reference)} words, {ENOUGH_WORDS} are needed; make the call longer",
        )
    from jiwer import wer  # noqa: PLC0415

    rate = round(float(wer(" ".join(reference), " ".join(hypothesis))), 3) if hypothesis else 1.0
    verdict = f"word error rate {rate:.0%} over {len(reference)} words"
    if not hypothesis:
        verdict += ": not a word was understood; it is noise, or the weights are random"
    return Judgement(heard, said, len(reference), rate, True, verdict)
