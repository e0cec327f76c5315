"""The voice is judged by a transcriber: on a synthetic voice, on noise, on silence and on random weights."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from caller.errors import JudgeError
from caller.judge import judge, transcribe, words
from caller.speech import DEFAULT, RATE, decode, encode, read

SAID = DEFAULT.with_suffix(".txt").read_text().split()
PIECES = [f" {word}".encode() for word in SAID]


@pytest.fixture(scope="module")
def heard() -> np.ndarray:
    """The bundled voice after Opus, as a caller hears it."""
    return decode(message[1:] for message in encode(read(DEFAULT)).messages)


def test_a_voice_that_says_what_it_says_it_says(heard: np.ndarray) -> None:
    verdict = judge(heard, PIECES)
    assert verdict.meaningful
    assert verdict.words == len(SAID) == 19
    assert verdict.word_error_rate is not None
    assert verdict.word_error_rate <= 0.3, verdict.heard
    assert "over 19 words" in verdict.verdict


def test_a_voice_that_says_something_else(heard: np.ndarray) -> None:
    other = [b" My", b" favourite", b" colour", b" would", b" be", b" dark", b" purple", b" I", b" think"]
    verdict = judge(heard, other)
    assert verdict.word_error_rate is not None
    assert verdict.word_error_rate > 0.8


def test_noise_is_no_voice() -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, 5 * RATE).astype(np.float32)
    verdict = judge(noise, PIECES)
    assert verdict.word_error_rate == 1.0
    assert "not a word was understood" in verdict.verdict


def test_random_weights_are_not_judged() -> None:
    pieces = [b"<0x41>", b"<0xFF>", b" a", b"<0x07>", b"b"]
    for known, said in ((True, PIECES), (None, pieces)):
        verdict = judge(np.zeros(RATE, dtype=np.float32), said, known)
        assert (verdict.meaningful, verdict.word_error_rate) == (False, None)
        assert "the weights are random" in verdict.verdict


def test_too_few_words_are_not_judged(heard: np.ndarray) -> None:
    verdict = judge(heard, [b" Hello", b"."])
    assert (verdict.meaningful, verdict.words) == (False, 1)
    assert "Moshi said 1 words" in verdict.verdict


def test_silence_and_nothing_are_no_words() -> None:
    assert transcribe(np.zeros(2 * RATE, dtype=np.float32)) == ""
    assert transcribe(np.zeros(0, dtype=np.float32)) == ""


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Hello, how ARE you?", ["hello", "how", "are", "you"]),
        ("it's a line\N{RIGHT SINGLE QUOTATION MARK}s well-kept", ["it's", "a", "line's", "well", "kept"]),
        ("2nd word…", ["2nd", "word"]),
        (" -- ' ' ", []),
    ],
)  # fmt: skip
def test_words(sentence: str, expected: list[str]) -> None:
    assert words(sentence) == expected


@pytest.mark.parametrize("package", ["moonshine_voice", "jiwer"])
def test_a_missing_package_names_the_mend(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(JudgeError, match="pip install"):
        judge(np.zeros(RATE, dtype=np.float32), PIECES)


def test_the_model_is_in_the_wheel() -> None:
    found = importlib.util.find_spec("moonshine_voice")
    assert found is not None and found.origin is not None
    assert (Path(found.origin).parent / "assets" / "tiny-en").is_dir()
