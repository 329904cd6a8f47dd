"""CLIP preprocessing without torchvision: shortest edge to `size` (bicubic), centre crop, normalise."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(
    frames: np.ndarray,
    size: int,
    chosen: Sequence[int] | np.ndarray | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """RGB frames uint8[f, y, x, 3] -> float32[f, 3, size, size], as CLIP's image processor makes them.

    Frames that already have the size are only normalised. Resizing is antialiased bicubic on bytes, width first, each
    pass rounded to 8 bits: bit-equal to transformers' processors over torchvision; those over PIL round their filter
    otherwise, 3 pixels of 1000 are one grey level off.

    Args:
        frames: the pictures.
        size: of a side.
        chosen: numbers of the frames to take, in order; None takes them all. They are not copied first.
        device: where the result shall be, and on a GPU is made, to the same bits; None is the host.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"frames are uint8[f, y, x, 3], got {frames.dtype}{list(frames.shape)}; convert them to RGB first"
        )
    taken = [frames[at] for at in (range(len(frames)) if chosen is None else chosen)]
    if device is not None and device.type == "cuda":
        from torch_bridge.device_pixels import MOST_SHRUNK, device_pixels

        if min(frames.shape[1:3]) <= MOST_SHRUNK * size:
            return device_pixels(taken, size, device)
    pixels = torch.stack([_small(frame, size) for frame in taken])
    return pixels if device is None else pixels.to(device)


def resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter edge becomes `size`."""
    short, long = sorted((height, width))
    longer = int(size * long / short)
    return (size, longer) if height <= width else (longer, size)


def _small(frame: np.ndarray, size: int) -> Tensor:
    """One frame [y, x, 3] -> [3, size, size], its bytes replaced by normalised levels."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    small = _centre_crop(_shortest_edge(pixels, size), size)[0].numpy()
    return torch.from_numpy(np.stack([own[colour] for own, colour in zip(levels(), small, strict=True)]))


@cache
def levels() -> np.ndarray:
    """The normalised level of every byte, float32[3, 256]: looked up, since dividing each pixel takes longer."""
    mean, std = (torch.tensor(v)[:, None] for v in (CLIP_MEAN, CLIP_STD))
    return ((torch.arange(256, dtype=torch.uint8) / 255.0 - mean) / std).numpy()


def _shortest_edge(pixels: Tensor, size: int) -> Tensor:
    height, width = pixels.shape[-2:]
    if min(height, width) == size:
        return pixels
    target = resized(height, width, size)
    return functional.interpolate(pixels, size=target, mode="bicubic", antialias=True, align_corners=False)


def _centre_crop(pixels: Tensor, size: int) -> Tensor:
    top, left = (pixels.shape[-2] - size) // 2, (pixels.shape[-1] - size) // 2
    return pixels[..., top : top + size, left : left + size]
