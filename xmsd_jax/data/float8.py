"""States in 8 bits: float8 e4m3 codes, and for every state vector one power of two that scales them.

    state[i] = e4m3(codes[i]) * 2 ** (scale - 127)        codes uint8[d], scale uint8 (e8m0, as in OCP's MX formats)

The power is the least at which the vector's largest number still fits (448 at most), so a vector uses all of e4m3's
range: numbers down to 1/14336 of the largest keep 4 significant bits (relative error at most 1/16), smaller ones lose
bits. A power of two costs no precision, and whatever is read is exactly a bfloat16 too: both dtypes read the same
numbers, and storing them again gives the same bytes. A vector that holds nan or inf is nan throughout (scale 255).

Decoding looks codes up in one table of 256 numbers for each power that occurs.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
NAN_CODE, NAN_SCALE = 0x7F, 255
ZERO_SCALE = 127 - 9
"""Of a vector of zeros: what the rule for the largest number gives for none."""
LEAST_SCALE = 10
"""So that the least number above zero, 2 ** (-9 + 10 - 127), is a normal float32."""


def encode(states: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Round states [..., d], float32 or bfloat16, to codes uint8[..., d] and scales uint8[...]."""
    flat = states.reshape(-1, states.shape[-1])
    codes, scales = np.empty(flat.shape, np.uint8), np.empty(len(flat), np.uint8)
    step = max(1, (1 << 18) // max(1, flat.shape[1]))  # 1 MB of float32: stays in the cache, and lets other threads in
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        codes[part], scales[part] = _encode(flat[part].astype(np.float32))
    return codes.reshape(states.shape), scales.reshape(states.shape[:-1])


def decode(codes: NDArray[np.uint8], scales: NDArray[np.uint8], dtype: np.dtype) -> NDArray:
    """Return the states [..., d], float32 or bfloat16, of codes uint8[..., d] and scales uint8[...]."""
    out = np.empty(codes.shape, dtype)
    if codes.size:
        flat = codes.reshape(-1, codes.shape[-1]), out.reshape(-1, codes.shape[-1])
        decoder, step = Decoder(scales, dtype), max(1, (1 << 18) // codes.shape[-1])
        for start in range(0, len(flat[0]), step):
            part = slice(start, start + step)
            decoder.decode_into(flat[0][part], scales.reshape(-1)[part], flat[1][part])
    return out


class Decoder:
    """Tables of numbers for the scales of one field; may be used by several threads at once."""

    def __init__(self, scales: NDArray[np.uint8], dtype: np.dtype) -> None:
        """Make the tables of the scales that occur, in the dtype that is read."""
        powers = np.unique(scales)
        self._places = np.zeros(256, np.intp)
        self._places[powers] = np.arange(len(powers)) * 256
        numbers = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # nan; the row of NAN_SCALE
            tables = np.ldexp(numbers, powers[:, None].astype(np.int32) - 127)
        tables[powers == NAN_SCALE] = np.nan
        self._bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
        self._table = np.ascontiguousarray(tables.astype(dtype)).view(self._bits).reshape(-1)

    def decode_into(self, codes: NDArray[np.uint8], scales: NDArray[np.uint8], out: NDArray) -> None:
        """Decode codes [n, d] with scales [n] into `out` [n, d], contiguous."""
        indices = codes.astype(np.intp)
        indices += self._places[scales][:, None]
        np.take(self._table, indices, out=out.view(self._bits), mode="clip")  # no index is outside; "raise" buffers


def _encode(states: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    largest = np.abs(states).max(1)
    finite = np.isfinite(largest)
    fraction, exponent = np.frexp(np.where(finite, largest, 0))
    # 448 is 14 * 2**5: a largest number that rounds to 15 or 16 sixteenths needs the next power.
    scales = exponent - 9 + (np.rint(fraction * 16) > 14) + 127
    scales = np.where(finite, np.maximum(scales, LEAST_SCALE), NAN_SCALE).astype(np.uint8)
    with np.errstate(invalid="ignore", under="ignore"):
        scaled = np.ldexp(states, 127 - scales.astype(np.int32)[:, None])
        codes = scaled.astype(E4M3).view(np.uint8)
    codes[~finite] = NAN_CODE
    scales[~(codes & 0x7F).any(1)] = ZERO_SCALE  # too small for the least scale: stored as the zeros that they become
    return codes, scales
