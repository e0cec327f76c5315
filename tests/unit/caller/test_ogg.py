"""Pages and durations, as RFC 3533, 7845 and 6716 define them."""

from itertools import pairwise

import numpy as np
import pytest
import sphn
from hypothesis import given
from hypothesis import strategies as st

from caller.ogg import OggError, PageReader, packet_samples

RATE, FRAME = 24_000, 1920


def stream(frames: int) -> list[bytes]:
    writer = sphn.OpusStreamWriter(RATE)
    noise = np.random.default_rng(1).normal(0, 0.1, (frames, FRAME)).astype(np.float32)
    return [bytes(writer.append_pcm(frame)) for frame in noise]


STREAM = stream(6)


def test_sphn_writes_two_pages_of_40_ms_per_frame_and_the_headers_first() -> None:
    pages = PageReader().feed(STREAM[0], 0.0)
    assert [page.is_header for page in pages] == [True, True, False, False]
    assert [page.samples for page in pages] == [0, 0, 1920, 1920]
    assert [page.sequence for page in pages] == [0, 1, 2, 3]
    assert [page.granule for page in pages] == [0, 0, 1920, 3840]


@given(st.lists(st.integers(1, 2000), max_size=30))
def test_a_stream_cut_anywhere_gives_the_same_pages(cuts: list[int]) -> None:
    whole = b"".join(STREAM)
    edges = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    reader = PageReader()
    pages = [page for a, b in pairwise(edges) for page in reader.feed(whole[a:b], float(a))]
    expected = PageReader().feed(whole, 0.0)
    assert [(page.sequence, page.body) for page in pages] == [(page.sequence, page.body) for page in expected]


def test_a_page_has_the_time_of_its_first_byte() -> None:
    reader = PageReader()
    assert reader.feed(STREAM[0] + STREAM[1][:10], 1.0)[-1].at == 1.0
    assert reader.feed(STREAM[1][10:20], 2.0) == []
    first, second = reader.feed(STREAM[1][20:], 3.0)
    assert (first.at, second.at) == (1.0, 3.0)


@pytest.mark.parametrize("garbage", [b"hello", b"OggX", b"\0" * 40, b"RIFF" + b"\0" * 40])
def test_what_is_no_page_is_refused(garbage: bytes) -> None:
    with pytest.raises(OggError, match="an Ogg page must begin here"):
        PageReader().feed(garbage, 0.0)


def test_garbage_between_pages_is_found_where_it_stands() -> None:
    reader = PageReader()
    reader.feed(STREAM[0], 0.0)
    with pytest.raises(OggError):
        reader.feed(b"no page" + STREAM[1], 0.0)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    try:
        for page in PageReader().feed(data, 0.0):
            assert page.samples >= 0
    except OggError:
        pass


@pytest.mark.parametrize(
    ("first_bytes", "samples"),
    [
        (bytes([0 << 3]), 480),  # SILK 10 ms
        (bytes([3 << 3]), 2880),  # SILK 60 ms
        (bytes([13 << 3]), 960),  # hybrid 20 ms
        (bytes([13 << 3 | 2]), 1920),  # two of them: what sphn writes
        (bytes([16 << 3]), 120),  # CELT 2.5 ms
        (bytes([31 << 3 | 1]), 1920),  # CELT, twice 20 ms
        (bytes([31 << 3 | 3, 4]), 3840),  # CELT, four times 20 ms
        (bytes([31 << 3 | 3]), 0),  # code 3 without its count
        (b"", 0),
    ],
)
def test_a_packet_lasts_what_its_first_byte_says(first_bytes: bytes, samples: int) -> None:
    assert packet_samples(first_bytes) == samples
