"""A PNG writer for uint8 RGB pictures: zlib and struct are all it needs (PNG specification, 3rd edition, 2025)."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BIT = (8, 2, 0, 0, 0)


def enlarge(image: np.ndarray, *, at_least: int) -> np.ndarray:
    """Repeat pixels (nearest neighbour) by a whole factor until the longer side of uint8[y,x,3] is `at_least`."""
    factor = max(1, -(-at_least // max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def encode_png(image: np.ndarray) -> bytes:
    """Encode uint8[y,x,3] (or uint8[y,x], grey) as PNG bytes.

    Raises ValueError for another type or shape.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture is uint8[y,x,3] or uint8[y,x] with y, x > 0, got {image.dtype}{image.shape}")
    height, width = image.shape[:2]
    lines = image.reshape(height, width * 3)
    # Filter 2 ("up"): each line as its difference to the one above; repeated lines become zeros and deflate to nothing.
    above = np.vstack([np.zeros((1, width * 3), np.uint8), lines[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), lines - above])
    header = struct.pack(">II5B", width, height, *_RGB_8_BIT)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9)) + _chunk(b"IEND")


def _chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Frame one chunk: length, kind, body, CRC of kind and body."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
