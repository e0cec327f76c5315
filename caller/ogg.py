"""Ogg pages and Opus packet durations, as far as a stopwatch needs them. Nothing is decoded.

Sources: RFC 3533 (Ogg), RFC 7845 (Opus in Ogg), RFC 6716 section 3.1 (the first byte of an Opus packet).
Checksums are not verified: the pages come through TCP, which has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

CAPTURE = b"OggS"
CONTINUED = 0x01
SAMPLES_PER_SECOND = 48_000
"""Ogg counts Opus in samples of 48 kHz, whatever the rate of the audio that went in (RFC 7845 section 4)."""


class OggError(ValueError):
    """The bytes are no Ogg stream."""


@dataclass(frozen=True, slots=True)
class Page:
    """One Ogg page.

    `at` is when its first byte came, in whatever clock the reader was fed with.
    """

    flags: int
    granule: int
    serial: int
    sequence: int
    lacing: bytes
    body: bytes
    at: float

    @property
    def is_header(self) -> bool:
        """Whether the page carries OpusHead or OpusTags instead of audio."""
        return self.body.startswith((b"OpusHead", b"OpusTags"))

    @property
    def samples(self) -> int:
        """Audio that begins on this page, in samples of 48 kHz. 0 for the two header pages."""
        if self.is_header:
            return 0
        total, start, length = 0, 0, 0
        continued = bool(self.flags & CONTINUED)
        for segment in self.lacing:
            length += segment
            if segment == 255:
                continue
            if not continued:
                total += packet_samples(self.body[start : start + length])
            start, length, continued = start + length, 0, False
        if length and not continued:
            total += packet_samples(self.body[start : start + length])
        return total


def packet_samples(packet: bytes) -> int:
    """Duration of one Opus packet in samples of 48 kHz (RFC 6716 section 3.1). An empty packet lasts 0."""
    if not packet:
        return 0
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:
        frame = (480, 960, 1920, 2880)[configuration & 3]
    elif configuration < 16:
        frame = (480, 960)[configuration & 1]
    else:
        frame = (120, 240, 480, 960)[configuration & 3]
    if code == 3:
        return frame * (packet[1] & 0x3F) if len(packet) > 1 else 0
    return frame * (1, 2, 2)[code]


class PageReader:
    """Cuts a byte stream into pages; a page may come in any number of pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._since = 0.0

    def feed(self, data: bytes, at: float) -> list[Page]:
        """Take bytes that came at the time `at`; return the pages that are now whole.

        Raises OggError when a page does not begin where one must.
        """
        if not self._rest:
            self._since = at
        data = self._rest + data
        started = self._since
        pages, position = [], 0
        while True:
            head = data[position : position + 27]
            if not CAPTURE.startswith(head[:4]):
                raise OggError(f"an Ogg page must begin here, found {bytes(head[:8])!r}")
            if len(head) < 27 or len(data) < position + 27 + head[26]:
                break
            lacing = data[position + 27 : position + 27 + head[26]]
            begin = position + 27 + len(lacing)
            end = begin + sum(lacing)
            if len(data) < end:
                break
            pages.append(
                Page(
                    flags=head[5],
                    granule=int.from_bytes(head[6:14], "little", signed=True),
                    serial=int.from_bytes(head[14:18], "little"),
                    sequence=int.from_bytes(head[18:22], "little"),
                    lacing=lacing,
                    body=data[begin:end],
                    at=started,
                )
            )
            position, started = end, at
        self._rest, self._since = data[position:], started
        return pages
