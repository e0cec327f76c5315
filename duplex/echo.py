"""Sound for the transcriber: 24 kHz to 16 kHz, and Moshi's voice taken out of what the caller's microphone
heard.

A caller on loudspeakers sends Moshi back. The engine knows what it sent, so the way from there into the
microphone (network, jitter buffer, loudspeaker, room) is learned, and what came along it is subtracted: a
partitioned-block frequency-domain Kalman filter (Enzner and Vary, "Frequency-domain adaptive Kalman filter
for acoustic echo control in hands-free telephones", Signal Processing 86, 2006; in partitions: Kuech,
Mabande and Enzner, ICASSP 2014). It learns fast and holds still by itself while the caller talks. Opus on
both ways leaves a rest that no filter predicts; sound that is no more than such a rest is made silent.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float32]

RATE = 16_000
FRAME = 1280
"""Samples of 80 ms at 16 kHz."""
HOP = 640
"""Samples of a step of the filter: 40 ms."""
REACH_S = 1.0
"""Longest way of the echo, from leaving the engine to coming back."""
TAPS = 64
FORGET = 0.9995
"""How sure the filter stays, per hop, that the way is still the same."""
PRIOR = 0.1
"""Variance of a way that nothing is known of; an echo as loud as Moshi has 1 in all its 25 parts together.
With more, the filter learns the caller's voice at first, and takes a minute to forget it.
"""
WORTH = 0.7
"""A hop that loses this much of its power by the subtraction is Moshi's."""
TRUST_HOPS, TRUST = 50, 0.5
"""Hops over which is measured how much of the found echo is really there; the least that is subtracted."""
QUIET = 1e-5
"""Mean power, -50 dB of full scale, below which Moshi is taken to be silent."""
LEAST_REST, MOST_REST = 0.01, 0.15
"""Bounds of what is taken for a rest, as power over that of the echo that was found."""
OPEN_HOPS = 4
"""Hops for which the caller stays audible after his voice was louder than the rest."""


def low_pass() -> Sound:
    """Return a low-pass for 48 kHz with its edge before 8 kHz (Kaiser window)."""
    n = np.arange(2 * TAPS) - (2 * TAPS - 1) / 2
    taps = np.sinc(n * 2 * 7300 / 48_000) * np.kaiser(2 * TAPS, 7.0)
    return (taps * 2 / taps.sum()).astype(np.float32)


class Resampler:
    """24 kHz to 16 kHz, block by block without a seam: a polyphase FIR filter, flat to 0.5 dB up to 6.8
    kHz, 70 dB down from 8.4 kHz, 1.3 ms late.

    A few lines of numpy and 70 µs a frame; soxr would do as well and be one more dependency, under the LGPL.
    """

    def __init__(self) -> None:
        taps = low_pass()
        self._phases = taps[0::2][::-1], taps[1::2][::-1]
        self._rest: Sound = np.zeros(TAPS - 1, dtype=np.float32)

    def take(self, pcm: Sound) -> Sound:
        """Return the 2/3 as many samples that ``pcm``, a multiple of 3 long, becomes."""
        line = np.concatenate((self._rest, pcm))
        self._rest = line[-(TAPS - 1) :]
        windows = np.lib.stride_tricks.sliding_window_view(line, TAPS)
        # Of the sound at 48 kHz (every second sample a zero) every third is kept: number 6 k is input 3 k in
        # phase 0, number 6 k + 3 is input 3 k + 1 in phase 1.
        even = windows[0 : len(pcm) : 3] @ self._phases[0]
        odd = windows[1 : len(pcm) : 3] @ self._phases[1]
        return np.stack((even, odd), axis=1).reshape(-1).astype(np.float32)


class Canceller:
    """Learns the way of the echo and subtracts what came along it; float32 sound at 16 kHz."""

    def __init__(self) -> None:
        self.parts, bins = int(REACH_S * RATE / HOP), HOP + 1
        shape = (self.parts, bins)
        self._said = np.zeros(shape, dtype=np.complex64)
        """Spectra of what was said, the newest first."""
        self._way = np.zeros(shape, dtype=np.complex64)
        self._doubt = np.full(shape, PRIOR, dtype=np.float32)
        """Variance of the way."""
        self._near = np.full(bins, 1e-3, dtype=np.float32)
        self._last: Sound = np.zeros(HOP, dtype=np.float32)
        self._share = 0.0
        """Of the echo that is subtracted, with a ramp between."""
        self._there = self._found = 0.0

    def take(self, heard: Sound, said: Sound) -> tuple[Sound, Sound]:
        """Take HOP samples of each; return what is left of ``heard``, and the echo that was found in it."""
        x = self._said
        x[1:] = x[:-1]
        x[0] = np.fft.rfft(np.concatenate((self._last, said)))
        self._last = said
        echo = np.fft.irfft((self._way * x).sum(axis=0))[HOP:].astype(np.float32)
        rest = heard - echo
        error = np.fft.rfft(np.concatenate((np.zeros(HOP, dtype=np.float32), rest))).astype(np.complex64)
        size = error.real**2 + error.imag**2
        self._near += 0.2 * (size - self._near)
        power = x.real**2 + x.imag**2
        gain = self._doubt / ((power * self._doubt).sum(axis=0) + np.maximum(self._near, size) + 1e-6)
        # A way of HOP taps per part: what a circular convolution would wrap around is cut off.
        taps = np.fft.irfft(gain * np.conj(x) * error, axis=1)
        taps[:, HOP:] = 0
        self._way += np.fft.rfft(taps, axis=1).astype(np.complex64)
        size = self._way.real**2 + self._way.imag**2
        self._doubt = FORGET**2 * (1 - 0.5 * gain * power) * self._doubt + (1 - FORGET**2) * size
        share = self._worth(heard, echo, rest)
        ramp = np.linspace(self._share, share, HOP, dtype=np.float32)
        self._share = share
        return heard - ramp * echo, echo

    def _worth(self, heard: Sound, echo: Sound, rest: Sound) -> float:
        """Return how much of the echo to subtract. What was learned may be wrong, above all at first, or no
        longer so; under a louder voice one hop cannot tell. Over many the voice averages out, and what is
        left of the product is what of the echo is in there.
        """
        power = float(np.dot(heard, heard))
        weight = 1 / (TRUST_HOPS * (power + 1e-4))
        keep = 1 - 1 / TRUST_HOPS
        self._there = keep * self._there + weight * float(np.dot(heard, echo))
        self._found = keep * self._found + weight * float(np.dot(echo, echo))
        if float(np.dot(rest, rest)) < WORTH * power:
            return 1.0
        trust = min(1.0, self._there / (self._found + 1e-9))
        return trust if trust > TRUST else 0.0


class Cleaner:
    """What a call's microphone heard, without Moshi.

    Frames are paired by number: Moshi's answer to a frame goes out when the frame has come in, so its echo
    cannot be in an earlier one. A frame waits for its answer, not longer than PATIENCE further frames (an
    engine that catches up leaves some unanswered).
    """

    PATIENCE = 2

    def __init__(self) -> None:
        self._ears, self._mouth = Resampler(), Resampler()
        self._canceller = Canceller()
        self._heard: deque[Sound] = deque()
        self._said: deque[Sound] = deque()
        self._idle = 0
        self._rest = MOST_REST
        self._open = 0

    def hear(self, pcm: Sound) -> list[tuple[Sound, Sound, Sound]]:
        """Take 1920 samples of the caller at 24 kHz; return what is ready: FRAME samples clean, as heard, as
        said.
        """
        self._heard.append(self._ears.take(pcm))
        return self._ready()

    def say(self, pcm: Sound | None) -> list[tuple[Sound, Sound, Sound]]:
        """Take the 1920 samples that answer a frame (None: silence); return what is ready."""
        if pcm is None:
            pcm = np.zeros(FRAME * 3 // 2, dtype=np.float32)
        self._said.append(self._mouth.take(pcm))
        if len(self._said) > self.PATIENCE + 1:
            self._said.popleft()
        return self._ready()

    def _ready(self) -> list[tuple[Sound, Sound, Sound]]:
        done = []
        while self._heard and (self._said or len(self._heard) > self.PATIENCE):
            heard = self._heard.popleft()
            said = self._said.popleft() if self._said else np.zeros(FRAME, dtype=np.float32)
            done.append((self._clean(heard, said), heard, said))
        return done

    def _clean(self, heard: Sound, said: Sound) -> Sound:
        self._idle = 0 if np.dot(said, said) > QUIET * FRAME else self._idle + 1
        if self._idle * FRAME > 1.5 * REACH_S * RATE:
            return heard  # nothing was said that could come back
        parts = []
        for at in range(0, FRAME, HOP):
            rest, echo = self._canceller.take(heard[at : at + HOP], said[at : at + HOP])
            parts.append(rest if self._louder(rest, echo) else np.zeros_like(rest))
        return np.concatenate(parts)

    def _louder(self, rest: Sound, echo: Sound) -> bool:
        """Say whether there is more in ``rest`` than what a filter leaves of ``echo``."""
        found = float(np.dot(echo, echo))
        if found < 1e-7 * HOP:
            return True
        left = float(np.dot(rest, rest)) / found
        # What is usually left: falls at once, rises slowly, so that a caller who talks does not raise it.
        self._rest = min(MOST_REST, max(LEAST_REST, left if left < self._rest else self._rest * 1.01))
        self._open = OPEN_HOPS if left > 4 * self._rest else self._open - 1
        return self._open > 0


def resemblance(heard: Sound, said: Sound) -> float:
    """Return how much of ``heard`` is ``said`` come back, 0 to 1: the highest correlation of the two over all
    delays from 0 to REACH_S. ``said`` ends where ``heard`` does and begins as early, or up to REACH_S
    earlier.
    """
    lead = len(said) - len(heard)
    if lead < 0 or not len(heard):
        raise ValueError("what was said has to begin no later than what was heard")
    size = 1 << (len(said) + len(heard)).bit_length()
    both = np.fft.irfft(np.conj(np.fft.rfft(heard, size)) * np.fft.rfft(said, size), size)
    # both[k] is the sum of heard[n] said[n + k]; a delay d has k = lead - d.
    reach = min(lead, int(REACH_S * RATE))
    products = both[lead - reach : lead + 1]
    energy = np.concatenate(([0.0], np.cumsum(said.astype(np.float64) ** 2)))
    begins = np.arange(lead - reach, lead + 1)
    powers = energy[begins + len(heard)] - energy[begins]
    norm = np.sqrt(np.maximum(powers, 1e-9) * max(float(np.dot(heard, heard)), 1e-9))
    return float(np.max(np.abs(products) / norm))
