"""Moonshine's tiny English model (Jeffries et al., "Moonshine: Speech Recognition for Live Transcription and
Voice Commands", 2024), from the wheel of moonshine-voice, in sessions of onnxruntime of our own, of one
thread. Those of the package have as many as the machine has cores, cannot be told otherwise, and take two to
three times the processor for the same text (docs/words.md).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duplex.echo import RATE, Sound

BEGIN, END = 1, 2
"""Tokens."""
LAYERS, HEADS, WIDTH = 6, 8, 36
TOKENS_PER_SECOND = 6.5
"""Nobody says more; a model that repeats itself is stopped there."""
LEAST = RATE // 4
"""Samples; shorter sound gets silence behind."""


def folder() -> Path:
    """Return where the model lies. Raises ImportError without it."""
    spec = find_spec("moonshine_voice")
    found = Path(spec.origin).parent / "assets" / "tiny-en" if spec and spec.origin else None
    if found is None or not found.is_dir():
        raise ImportError("words need moonshine-voice 0.0.73: no other version has its model in the wheel")
    return found


def pieces(data: bytes) -> list[bytes]:
    """Return the text of each token, UTF-8 or one byte of it: its length stands before it in a byte, from 128
    on in two, the lower seven bits first.
    """
    found, at = [], 0
    while at < len(data):
        length, at = data[at], at + 1
        if length >= 128:
            length, at = (length & 127) | (data[at] << 7), at + 1
        found.append(data[at : at + length])
        at += length
    return found


class Tiny:
    """The model; one thread at a time."""

    def __init__(self) -> None:
        import onnxruntime  # noqa: PLC0415 - only the processes that transcribe need it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(
                str(folder() / name), options, providers=["CPUExecutionProvider"]
            )

        self._encoder, self._decoder = session("encoder_model.ort"), session("decoder_model_merged.ort")
        self._pieces = pieces((folder() / "tokenizer.bin").read_bytes())
        self._outputs = [output.name for output in self._decoder.get_outputs()]

    def text(self, sound: Sound) -> str:
        """Return what is said in 16 kHz sound, always the likeliest token."""
        sound = np.concatenate((sound, np.zeros(max(0, LEAST - len(sound)), dtype=np.float32)))[None]
        mask = np.ones(sound.shape, dtype=np.int64)  # of samples, for the decoder too
        (states,) = self._encoder.run(None, {"input_values": sound, "attention_mask": mask})
        fixed = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        nothing = np.zeros((1, HEADS, 0, WIDTH), dtype=np.float32)
        past: dict[str, NDArray[np.float32]] = {
            f"past_key_values.{layer}.{part}.{what}": nothing
            for layer in range(LAYERS)
            for part in ("decoder", "encoder")
            for what in ("key", "value")
        }
        tokens = [BEGIN]
        for step in range(int(sound.shape[1] / RATE * TOKENS_PER_SECOND) + 1):
            given = {
                "input_ids": np.array([tokens[-1:]], dtype=np.int64),
                "use_cache_branch": np.array([step > 0]),
            }
            logits, *present = self._decoder.run(None, {**fixed, **given, **past})
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            tokens.append(token)
            for name, value in zip(self._outputs[1:], present, strict=True):
                # What comes from the encoder stays as it was in the first step; later ones give it empty.
                if step == 0 or ".decoder." in name:
                    past[name.replace("present", "past_key_values")] = value
        said = b"".join(self._pieces[token] for token in tokens[1:])
        return said.decode(errors="replace").replace("\u2581", " ").strip()
