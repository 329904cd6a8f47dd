"""CLIP preprocessing: the right numbers, and the right part of the picture."""

import numpy as np
import pytest
import torch

from torch_bridge.pixels import CLIP_MEAN, CLIP_STD, clip_pixels


def denormalised(pixels: torch.Tensor) -> np.ndarray:
    """Back to 0..255 [f, y, x, 3]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return ((pixels * std + mean) * 255).permute(0, 2, 3, 1).numpy()


def test_frames_of_the_right_size_are_only_normalised():
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    pixels = clip_pixels(frames, 96)
    assert (tuple(pixels.shape), pixels.dtype) == ((2, 3, 96, 96), torch.float32)
    np.testing.assert_allclose(denormalised(pixels), frames, atol=1e-3)
    red = (frames[1, 5, 7, 0] / 255 - 0.48145466) / 0.26862954  # CLIP's published mean and deviation
    assert pixels[1, 0, 5, 7].item() == pytest.approx(red, abs=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_of_the_longer_side_is_kept(turned):
    """4 x 9 to 4 x 4: nothing to resize, columns 2..5 stay (the odd one is cut on the right)."""
    columns = np.arange(9, dtype=np.uint8) * 10
    frames = np.broadcast_to(columns[None, None, :, None], (1, 4, 9, 3))
    kept = np.broadcast_to(columns[None, None, 2:6, None], (1, 4, 4, 3))
    if turned:
        frames, kept = frames.transpose(0, 2, 1, 3), kept.transpose(0, 2, 1, 3)
    np.testing.assert_allclose(denormalised(clip_pixels(frames, 4)), kept, atol=1e-3)


def test_a_wide_frame_is_resized_by_its_shortest_edge_before_the_crop():
    """8 x 24 -> 4 x 12 -> columns 4..7: the middle third, black | white at its own middle."""
    frames = np.zeros((1, 8, 24, 3), np.uint8)
    frames[:, :, 12:] = 255
    kept = denormalised(clip_pixels(frames, 4))
    assert kept.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(kept[0, :, 0], 0, atol=1e-3)
    np.testing.assert_allclose(kept[0, :, 3], 255, atol=1e-3)
    np.testing.assert_allclose(kept[0, :, 1], 255 - kept[0, :, 2], atol=1.01)  # the edge, symmetric


def test_resized_pixels_are_whole_8_bit_values():
    frames = np.random.default_rng(1).integers(0, 256, (1, 31, 20, 3), dtype=np.uint8)
    levels = denormalised(clip_pixels(frames, 12))
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert levels.min() + 1e-3 >= 0
    assert levels.max() - 1e-3 <= 255


def test_shrinking_averages_instead_of_skipping():
    """Antialiased: one bright column in four becomes its mean; sampling without a filter would see none of it."""
    columns = np.where(np.arange(48) % 4 == 0, 200, 0).astype(np.uint8)
    frames = np.broadcast_to(columns[None, None, :, None], (1, 48, 48, 3))
    middle = denormalised(clip_pixels(frames, 12))[:, 3:-3, 3:-3]
    np.testing.assert_allclose(middle, 50, atol=6)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 1), np.uint8),
     np.zeros((0, 8, 8, 3), np.uint8)],
)  # fmt: skip
def test_frames_that_are_not_rgb_bytes_are_refused(frames):
    with pytest.raises(ValueError, match=r"frames are uint8\[f, y, x, 3\], got .*; convert"):
        clip_pixels(frames, 8)
