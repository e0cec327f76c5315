"""Sound files of every kind become frames of 80 ms at 24 kHz; others are refused with a reason."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from caller.errors import SpeechError
from caller.measure import answers
from caller.speech import DEFAULT, FRAME, RATE, decode, encode, prepare, read, resample, save


def tone(rate: int, hertz: float = 440, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, width: int = 2) -> Path:
    """Samples of shape (time,) or (time, channels) as PCM of 8, 16, 24 or 32 bit."""
    columns = samples.reshape(-1, 1) if samples.ndim == 1 else samples
    whole = np.round(columns * (2 ** (8 * width - 1) - 1)).astype(np.int64).ravel()
    if width == 1:
        whole += 128
    raw = b"".join(int(value).to_bytes(width, "little", signed=width > 1) for value in whole)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(columns.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


def loudness(pcm: np.ndarray, hertz: float) -> float:
    """Amplitude of one tone in the middle of the sound."""
    middle = pcm[len(pcm) // 4 : -len(pcm) // 4]
    return float(2 * abs(np.mean(middle * np.exp(-2j * np.pi * hertz * np.arange(len(middle)) / RATE))))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000])
def test_any_rate_becomes_24_khz_and_keeps_its_length_and_pitch(tmp_path: Path, rate: int) -> None:
    pcm = read(write(tmp_path / "tone.wav", tone(rate), rate))
    assert abs(len(pcm) - RATE) <= 1
    assert loudness(pcm, 440) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_any_width(tmp_path: Path, width: int) -> None:
    pcm = read(write(tmp_path / "tone.wav", tone(16000), 16000, width))
    assert loudness(pcm, 440) == pytest.approx(0.5, abs=0.02)


def test_stereo_is_mixed(tmp_path: Path) -> None:
    both = np.stack([tone(24000, 440), tone(24000, 1000)], axis=1)
    pcm = read(write(tmp_path / "stereo.wav", both, 24000))
    assert loudness(pcm, 440) == pytest.approx(0.25, abs=0.01)
    assert loudness(pcm, 1000) == pytest.approx(0.25, abs=0.01)


def test_what_the_lower_rate_cannot_carry_does_not_come_back_as_something_else() -> None:
    """11 kHz at 16 kHz would be heard as 5 kHz: the transcriber gets 24 kHz audio at 16 kHz."""
    assert np.abs(resample(tone(24000, 11000), 24000, 16000)[2000:-2000]).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable sound file"),
        (b"this is text\n" * 50, "not a readable sound file"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a readable sound file"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(SpeechError, match=reason):
        read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(SpeechError, match="no such file"):
            read(path)


def test_a_file_without_a_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeechError):
        read(write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 24000))


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    data = struct.pack("<4f", 0.0, float("nan"), 0.0, 0.0) * 400
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, 24000,
                         96000, 4, 32, b"data", len(data))  # fmt: skip
    path = tmp_path / "nan.wav"
    path.write_bytes(header + data)
    with pytest.raises(SpeechError, match="not numbers"):
        read(path)


def test_one_message_per_frame_of_80_ms() -> None:
    speech = encode(tone(RATE, seconds=1.0))
    assert len(speech.messages) == 13
    assert speech.seconds == pytest.approx(1.04)
    assert all(message[0] == 1 for message in speech.messages)
    heard = answers((number, message[1:]) for number, message in enumerate(speech.messages))
    assert [answer.at for answer in heard.arrived] == list(range(13))


@pytest.mark.parametrize(("seconds", "frames"), [(0.08, 1), (0.5, 7), (2.0, 25)])
def test_a_call_is_as_long_as_it_is_told_to_be(seconds: float, frames: int) -> None:
    assert len(encode(tone(RATE), seconds).messages) == frames


@pytest.mark.parametrize("seconds", [0.0, -3.0, 3601.0])
def test_a_call_of_no_length_or_more_than_an_hour_is_refused(seconds: float) -> None:
    with pytest.raises(SpeechError, match=r"0\.08 to 3600 seconds"):
        encode(tone(RATE), seconds)


def test_what_is_encoded_can_be_heard_again(tmp_path: Path) -> None:
    pcm = decode(message[1:] for message in encode(tone(RATE, seconds=2)).messages)
    assert len(pcm) == 25 * FRAME
    assert loudness(pcm, 440) == pytest.approx(0.5, abs=0.05)
    save(tmp_path / "heard.wav", pcm)
    assert loudness(read(tmp_path / "heard.wav"), 440) == pytest.approx(0.5, abs=0.05)


def test_the_speech_that_comes_along_needs_nothing_else() -> None:
    speech = prepare()
    assert speech.name == DEFAULT.name
    assert 11 < speech.seconds < 13


def test_the_same_speech_gives_the_same_bytes_and_may_be_shared() -> None:
    assert prepare(seconds=1.0).messages == prepare(seconds=1.0).messages
