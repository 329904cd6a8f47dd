"""What the library's processors were shown once, and which of the pixels that they made are kept.

Three images, 640x480, 1440x1080 and 346x260 (the sizes of DSEC's events, its frames and the DAVIS346), and two videos
of eight frames. All are made from whole numbers or come with the package, so that they are the same everywhere.
"""

from pathlib import Path

import numpy as np

from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.recording import davis_clips

FILE = Path(__file__).with_name("reference_pixels.npz")
SIZES = {"video-llava image": 224, "video-llava video": 224, "clip image": 336, "clip image (PIL)": 336}
GRID, WINDOW = 32, slice(80, 112)
IMAGES = ("scene 640x480", "scene 1440x1080", "events 346x260")
VIDEOS = ("moving scene 640x480", "DAVIS346 346x260")


def images() -> dict[str, np.ndarray]:
    """Each image as uint8[y, x, 3]."""
    clip = davis_clips()[1]
    events = EventFrames().frames(clip.events, start_us=clip.start_us, stop_us=clip.stop_us)[2]
    return dict(zip(IMAGES, (scene(480, 640), scene(1080, 1440), events), strict=True))


def videos() -> dict[str, np.ndarray]:
    """Eight frames of each video, uint8[8, y, x, 3]."""
    moving = np.stack([scene(480, 640, shift=13 * frame) for frame in range(8)])
    film = davis_clips()[0].video
    return dict(zip(VIDEOS, (moving, film[np.linspace(0, len(film) - 1, 8).astype(int)]), strict=True))


def scene(height: int, width: int, shift: int = 0) -> np.ndarray:
    """Slopes, hard edges, fine stripes and noise, uint8[y, x, 3], moved to the left by `shift` columns."""
    y, x = np.mgrid[:height, :width]
    x = x + shift
    stripes = np.where((x * 3 + y) % 11 < 4, 70, 0)
    blocks = np.where((x // 37 + y // 29) % 2 == 0, 110, 0)
    noise = (x * 7919 + y * 104729 + x * y * 31) % 53
    slopes = np.stack([x // 16, y // 12, (x + y) // 24], axis=-1)
    return (slopes % 90 + (stripes + blocks + noise)[..., None] * [[[5, 4, 3]]] // 6).clip(0, 255).astype(np.uint8)


def kept(levels: np.ndarray) -> np.ndarray:
    """Of grey levels [..., y, x]: a grid over the whole picture, and a window of neighbours, flat, [..., k]."""
    step = -(-levels.shape[-1] // GRID)
    parts = (levels[..., step // 2 :: step, step // 2 :: step], levels[..., WINDOW, WINDOW])
    return np.concatenate([part.reshape(*levels.shape[:-2], -1) for part in parts], axis=-1)


def grey_levels(pixels: np.ndarray) -> np.ndarray:
    """Normalised pixels [..., 3, y, x] back to 0..255, with CLIP's published mean and deviation, unrounded."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    return (pixels.astype(np.float64) * deviation + mean) * 255
