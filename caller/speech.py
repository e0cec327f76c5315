"""What the caller says: a sound file made into Opus messages ahead, so that the call itself costs nothing.

sphn holds Python's global lock while it encodes (0.4 to 1.3 ms per frame); with many callers in one process
that would be in every figure. So a `Speech` is encoded once, ahead, and any number of callers may share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sphn

from caller.errors import SpeechError

RATE = 24_000
"""Samples per second of Moshi's audio, both ways."""
FRAME = 1920
"""Samples per frame: 80 ms."""
DEFAULT = Path(__file__).parent / "data" / "hello.wav"
"""Two sentences in flite's voice slt; the words are beside it in hello.txt."""
LONGEST_S = 3600.0
"""More seconds than this are refused: the whole call is encoded before it begins."""

Pcm = npt.NDArray[np.float32]
"""Mono audio, shape (samples,), -1 to 1."""


@dataclass(frozen=True)
class Speech:
    """A call's worth of speech, ready to send: `messages[i]` is kind 1 with frame i as Ogg/Opus."""

    messages: tuple[bytes, ...]
    name: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.messages) * FRAME / RATE


def resample(pcm: Pcm, source: int, target: int) -> Pcm:
    """Change the rate of mono audio from `source` to `target` samples per second.

    sphn's band-limited resampler: what the target rate cannot carry is 140 dB down. It pads its last block;
    the padding is cut off again.
    """
    if source == target:
        return pcm
    out = np.asarray(sphn.resample(pcm, source, target), dtype=np.float32)
    return out[: round(len(pcm) * target / source)]


def read(path: Path) -> Pcm:
    """Read a sound file of any rate and number of channels as 24 kHz mono.

    Raises SpeechError, with the reason, when there is no sound in it.
    """
    if not path.is_file():
        raise SpeechError(f"{path}: no such file; name a sound file, or none for the speech that comes along")
    try:
        channels, rate = sphn.read(str(path))
    except (ValueError, OSError) as error:
        reason = str(error).split(": ", 1)[-1]
        raise SpeechError(f"{path}: not a readable sound file ({reason}); a PCM WAV always is") from error
    if channels.size == 0:
        raise SpeechError(f"{path}: holds no sound")
    mono = np.asarray(channels, dtype=np.float32).mean(axis=0, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise SpeechError(f"{path}: holds samples that are not numbers; convert it to 16-bit PCM")
    return resample(np.clip(mono, -1.0, 1.0), rate, RATE)


def encode(pcm: Pcm, seconds: float | None = None, name: str = "speech") -> Speech:
    """Encode audio of 24 kHz into one message per 80 ms frame.

    `seconds` is the length of the call: silence follows the speech, or the speech is cut. None: the speech
    and the rest of its last frame. Raises SpeechError for no length at all or one above an hour.
    """
    frames = ceil(len(pcm) / FRAME) if seconds is None else ceil(seconds * RATE / FRAME)
    if frames < 1 or frames * FRAME / RATE > LONGEST_S:
        raise SpeechError(f"a call lasts 0.08 to {LONGEST_S:.0f} seconds, not {frames * FRAME / RATE:g}")
    padded = np.zeros(frames * FRAME, dtype=np.float32)
    padded[: len(pcm)] = pcm[: len(padded)]
    writer = sphn.OpusStreamWriter(RATE)
    frames_pcm = padded.reshape(-1, FRAME)
    return Speech(tuple(b"\x01" + bytes(writer.append_pcm(frame)) for frame in frames_pcm), name)


def prepare(path: Path | None = None, seconds: float | None = None, listen_s: float = 6.0) -> Speech:
    """Read and encode a sound file, by default the speech that comes with the package.

    Without `seconds` the call lasts as long as the speech and `listen_s` seconds of silence, in which a
    full-duplex model finds the time to answer.
    """
    path = path or DEFAULT
    pcm = read(path)
    return encode(pcm, len(pcm) / RATE + listen_s if seconds is None else seconds, path.name)


def decode(payloads: Iterable[bytes]) -> Pcm:
    """Decode Ogg/Opus bytes to 24 kHz mono. Raises ValueError for bytes that are no Ogg."""
    reader = sphn.OpusStreamReader(RATE)
    parts = [np.asarray(reader.append_bytes(payload), dtype=np.float32) for payload in payloads]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def save(path: Path, pcm: Pcm) -> None:
    """Write 24 kHz mono audio as a 16-bit WAV."""
    sphn.write_wav(str(path), np.clip(pcm, -1.0, 1.0), RATE)
