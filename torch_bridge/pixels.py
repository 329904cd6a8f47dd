"""CLIP preprocessing without torchvision: shortest edge to `size` (bicubic), centre crop, normalise."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(frames: np.ndarray, size: int) -> Tensor:
    """RGB frames uint8[f, y, x, 3] -> float32[f, 3, size, size], as CLIP's image processor makes them.

    Frames that already have the size are only normalised. Resizing is antialiased bicubic on bytes, width first, each
    pass rounded to 8 bits: bit-equal to transformers' processors over torchvision; those over PIL round their filter
    otherwise, 3 pixels of 1000 are one grey level off.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"frames are uint8[f, y, x, 3], got {frames.dtype}{list(frames.shape)}; convert them to RGB first"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    pixels = _centre_crop(_shortest_edge(pixels, size), size) / 255.0
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _shortest_edge(pixels: Tensor, size: int) -> Tensor:
    height, width = pixels.shape[-2:]
    if min(height, width) == size:
        return pixels
    short, long = sorted((height, width))
    longer = int(size * long / short)
    target = (size, longer) if height <= width else (longer, size)
    return functional.interpolate(pixels, size=target, mode="bicubic", antialias=True, align_corners=False)


def _centre_crop(pixels: Tensor, size: int) -> Tensor:
    top, left = (pixels.shape[-2] - size) // 2, (pixels.shape[-1] - size) // 2
    return pixels[..., top : top + size, left : left + size]
