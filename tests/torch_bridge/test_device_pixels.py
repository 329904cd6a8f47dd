"""Pixels made by products of whole numbers are the CPU's, bit for bit."""

import numpy as np
import pytest
import torch

from torch_bridge.device_pixels import MOST_SHRUNK, device_pixels
from torch_bridge.pixels import clip_pixels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = [
    (480, 640, 336), (260, 346, 224), (72, 96, 56), (96, 72, 56), (100, 90, 224), (336, 500, 336), (224, 224, 224),
    (61, 333, 32), (1200, 41, 16), (3 * MOST_SHRUNK, 320, 3), (5, 9, 7),
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
@pytest.mark.parametrize("kind", ["noise", "black and white"])
def test_the_bits_are_those_of_the_cpu(height, width, size, kind, device):
    """Black and white: sums that are as large, and overshoots as far, as can be."""
    draws = np.random.default_rng(0)
    frames = draws.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    if kind != "noise":
        frames = (frames // 128 * 255).astype(np.uint8)
        frames[1, : height // 2, : width // 2] = 255
    found = device_pixels(list(frames), size, torch.device(device))
    assert found.device.type == device
    assert torch.equal(found.cpu(), clip_pixels(frames, size))


@pytest.mark.parametrize("device", DEVICES)
def test_chosen_frames_are_made_where_they_are_asked_for(device):
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3)).astype(np.uint8)
    found = clip_pixels(frames, 16, np.array([4, 0]), torch.device(device))
    assert found.device.type == device
    assert torch.equal(found.cpu(), clip_pixels(frames, 16)[[4, 0]])


if torch.cuda.is_available():

    def test_pictures_a_hundred_times_too_large_are_made_by_the_cpu(monkeypatch):
        monkeypatch.setattr("torch_bridge.device_pixels.device_pixels", lambda *_: pytest.fail("sums could be inexact"))
        frames = np.zeros((1, 3 * MOST_SHRUNK + 3, 400, 3), np.uint8)
        assert clip_pixels(frames, 3, device=torch.device("cuda")).device.type == "cuda"
