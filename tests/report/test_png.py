"""Pictures survive: what is written is what a reader of the PNG standard gets back."""

import struct
import zlib

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmsd_jax.report.png import SIGNATURE, encode_png, enlarge


def decode(data: bytes) -> np.ndarray:
    """Read the 8-bit RGB, filter-2 subset that the writer uses, checking every CRC."""
    assert data[:8] == SIGNATURE
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, *rest = struct.unpack(">II5B", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    assert list(chunks)[-1] == b"IEND"
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * 3)
    assert (lines[:, 0] == 2).all()
    return np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, 3)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_every_pixel_comes_back(image):
    np.testing.assert_array_equal(decode(encode_png(image)), image)


def test_a_grey_picture_is_written_as_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(decode(encode_png(grey)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), np.uint8)])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(ValueError, match="a picture is uint8"):
        encode_png(bad)


def test_enlarging_repeats_pixels_by_whole_factors_and_never_shrinks():
    image = np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3)
    large = enlarge(image, at_least=288)
    assert large.shape == (288, 288, 3)
    np.testing.assert_array_equal(large[1::3, 2::3], image)
    assert enlarge(image[:50], at_least=100).shape == (100, 192, 3)
    assert enlarge(image, at_least=10).shape == image.shape
