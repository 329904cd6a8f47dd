"""`clip_pixels` on a GPU, bit for bit: the CPU's filter over bytes as products of whole numbers.

torch resizes bytes on a CPU with weights of 16 bits, width first, and rounds each pass to bytes (after Pillow's
resampling). Here a pass is a product with the whole filter as a matrix. Its weights are split into two parts of 8 bits,
so that every product and sum is a whole number below 2**24, which float32 (and TF32) holds exactly in any order.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from torch_bridge.pixels import levels, resized

MOST_SHRUNK = 100  # times, of the shorter side: beyond it sums of a part could pass 2**24
_WEIGHT_BITS, _MOST_SHIFT = 15, 22
_SHARPNESS = -0.5  # of the cubic (Keys 1981)


def device_pixels(frames: Sequence[np.ndarray], size: int, device: torch.device) -> Tensor:
    """RGB frames uint8[y, x, 3] of one shape -> float32[f, 3, size, size] on the device, as `clip_pixels` makes them.

    Their shorter side must not be longer than `MOST_SHRUNK * size`.
    """
    pixels = torch.stack([torch.from_numpy(np.ascontiguousarray(frame)).to(device) for frame in frames])
    pixels = pixels.permute(0, 3, 1, 2).float()
    height, width = pixels.shape[-2:]
    new_height, new_width = resized(height, width, size)
    pixels = _filtered(pixels, new_width, size)
    pixels = _filtered(pixels.mT, new_height, size).mT
    colours = torch.arange(3, device=device)[:, None, None] * 256
    return _levels(device)[pixels.int() + colours]


def _filtered(pixels: Tensor, made: int, kept: int) -> Tensor:
    """Rows [.., n] of bytes resized to `made`, of which the `kept` in the middle are returned."""
    first, read = (made - kept) // 2, pixels.shape[-1]
    if made == read:
        return pixels[..., first : first + kept]
    parts, shift = _filter(read, made, first, kept, pixels.device)
    high, low = (pixels @ parts).int().chunk(2, -1)
    return (high * 256 + low + (1 << shift >> 1) >> shift).clamp(0, 255).float()


@lru_cache(maxsize=32)
def _filter(read: int, made: int, first: int, kept: int, device: torch.device) -> tuple[Tensor, int]:
    """Both parts of the weights of pixels `first`.. of `made`, float32[read, 2 * kept], and the bits of their scale."""
    exact = _weights(read, made)
    shift = 0
    while shift < _MOST_SHIFT and int(0.5 + exact.max() * (2 << shift)) < 1 << _WEIGHT_BITS:
        shift += 1
    scaled = exact[first : first + kept].T * (1 << shift)
    whole = np.trunc(scaled + np.copysign(0.5, scaled))
    high = np.floor(whole / 256 + 0.5)
    return torch.from_numpy(np.concatenate([high, whole - 256 * high], 1)).float().to(device), shift


def _weights(read: int, made: int) -> np.ndarray:
    """The antialiased cubic filter, float64[made, read]; rows add up to one."""
    scale = read / made
    stretch = max(scale, 1.0)
    weights = np.zeros((made, read))
    for row in range(made):
        centre = scale * (row + 0.5)
        begin, end = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), read)
        own = _cubic((np.arange(begin, end) - centre + 0.5) / stretch)
        weights[row, begin:end] = own / own.sum()
    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = _SHARPNESS, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@lru_cache(maxsize=8)
def _levels(device: torch.device) -> Tensor:
    return torch.from_numpy(levels()).flatten().to(device)
