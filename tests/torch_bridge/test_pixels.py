"""CLIP preprocessing: the right numbers, and the right part of the picture."""

import numpy as np
import pytest
import torch

from tests.torch_bridge.reference_pixels import FILE, IMAGES, SIZES, VIDEOS, grey_levels, images, kept, videos
from torch_bridge.pixels import CLIP_MEAN, CLIP_STD, clip_pixels
from torch_bridge.video_llava import chosen_frames

SHOWN = [(name, title) for name in SIZES for title in (VIDEOS if name.endswith("video") else IMAGES)]


def denormalised(pixels: torch.Tensor) -> np.ndarray:
    """Back to 0..255 [f, y, x, 3]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return ((pixels * std + mean) * 255).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def shown() -> dict[str, np.ndarray]:
    return {**{title: image[None] for title, image in images().items()}, **videos()}


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("name", "title"), SHOWN)
def test_pixels_are_those_of_the_librarys_processors(shown, reference, name, title):
    """torchvision's processors: the very grey levels. PIL's: at most one level off, in at most one pixel of 100.

    Normalised values, those of the same grey level, agree to 1e-6.
    """
    made = clip_pixels(shown[title], SIZES[name]).numpy()
    levels, expected = kept(grey_levels(made).round()), reference[f"{name}|{title}|levels"].astype(float)
    by_pil = name in ("video-llava image", "clip image (PIL)")
    off = np.abs(levels - expected)
    assert off.max() <= (1 if by_pil else 0)
    assert off.mean() <= (0.01 if by_pil else 0)
    assert expected.std() > 10, "a picture, not a plain"

    row, wanted = made[0, :, SIZES[name] // 3], reference[f"{name}|{title}|row"]
    same = np.abs(row - wanted) < 0.5 / 255 / max(CLIP_STD)
    assert same.mean() >= (0.95 if by_pil else 1)  # neighbours in a row round alike
    np.testing.assert_allclose(row[same], wanted[same], atol=1e-6)


def test_every_kept_pixel_of_the_references_is_compared(reference):
    kinds = {f"{name}|{title}|{kind}" for name, title in SHOWN for kind in ("levels", "row")}
    assert kinds | {"versions"} == set(reference)
    assert (len(IMAGES), len(VIDEOS)) == (3, 2)
    assert {reference[f"video-llava video|{title}|levels"].shape for title in VIDEOS} == {(8, 3, 2 * 32 * 32)}


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 20, 25, 59, 250])
def test_eight_frames_are_chosen_by_linspace_cut_to_whole_numbers(count):
    """As `np.linspace(0, n - 1, 8, dtype=int)`, and by whole arithmetic; the last frame is always seen."""
    chosen = chosen_frames(count)
    assert chosen.tolist() == np.linspace(0, count - 1, 8, dtype=int).tolist()
    assert chosen.tolist() == [i * (count - 1) // 7 for i in range(8)]
    assert chosen[-1] == count - 1


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
