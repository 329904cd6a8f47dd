"""A tree of clips of DSEC's sizes, made up: what reading clips costs, where DSEC is not at hand.

A few clips are drawn, the others are copies of their files under other names: reading a copy costs what reading any
clip does. Pictures are a smooth texture with grain that moves on from picture to picture, events lie on 30 % of the
pixels, along the texture's contours.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.config import ConfigError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.events import EventFrames, Events
from xmsd_jax.data.tree_writer import Cut, Keep, write_cut, write_lists

SPLIT, SEQUENCE = "train", "made_00_a"
WINDOW_US, STRIDE_US = 1_000_000, 500_000
FPS = 20
_ACTIVE, _GRAIN, _CELL = 0.3, 6, 16


@dataclass(frozen=True, kw_only=True)
class MadeClips:
    """How many clips, of which `distinct` are drawn; (height, width) of sensor and pictures, events a clip."""

    count: int = 60
    distinct: int = 6
    sensor: tuple[int, int] = (480, 640)
    pictures: tuple[int, int] = (1080, 1440)
    events: int = 2_000_000

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that give no clips."""
        if not 1 <= self.distinct <= self.count:
            raise ConfigError(f"distinct: must be in 1..count, got {self.distinct} of {self.count}")
        if min(self.sensor) < _CELL or min(self.pictures) < _CELL or any(side % 2 for side in self.pictures):
            raise ConfigError(
                f"sensor, pictures: sides of at least {_CELL} are needed, even ones for pictures, got "
                f"{list(self.sensor)} and {list(self.pictures)}"
            )
        if self.events < 100:
            raise ConfigError(f"events: must be at least 100, got {self.events}")


def write_made_clips(root: Path, how: MadeClips, seed: int = 0) -> ClipFolder:
    """Write the tree as `xmsd clips` writes one of DSEC by default, and open it."""
    keep = Keep(event_frames=EventFrames())
    drawn = [write_cut(root, _cut(how, keep, number, seed), keep, FPS) for number in range(how.distinct)]
    records = [
        drawn[number] if number < how.distinct else _copied(root, drawn[number % how.distinct], number)
        for number in range(how.count)
    ]
    about = {"made by": "xmsd_jax.data.clips_made", "distinct": how.distinct, "clips": how.count}
    write_lists(root, records, [], about=about, keep=keep, size=how.sensor)
    return ClipFolder.open(root)


def _copied(root: Path, record: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The record of a copy of a clip's files; its clock is its own."""
    old, new = f"{record['number']:06d}", f"{number:06d}"
    renamed = {file: file.replace(f"/{old}", f"/{new}") for file in record["files"]}
    for file, copy in renamed.items():
        shutil.copyfile(root / file, root / copy)
    later = (number - record["number"]) * STRIDE_US
    return {
        **record,
        "name": f"{SEQUENCE}_{new}",
        "number": number,
        "start_us": record["start_us"] + later,
        "stop_us": record["stop_us"] + later,
        "frame_times_us": [time + later for time in record["frame_times_us"]],
        "video": renamed[record["video"]],
        "images": [renamed[image] for image in record["images"]],
        "files": {renamed[file]: digest for file, digest in record["files"].items()},
    }


def _cut(how: MadeClips, keep: Keep, number: int, seed: int) -> Cut:
    rng = np.random.default_rng([seed, number])
    start = number * STRIDE_US
    count = keep.video_frames or FPS
    return Cut(
        split=SPLIT,
        sequence=SEQUENCE,
        number=number,
        start_us=start,
        stop_us=start + WINDOW_US,
        events=_events(how, rng, start),
        video=_video(how.pictures, count, rng),
        pictures=np.arange(count),
        frame_times_us=start + np.arange(count) * (WINDOW_US // count),
    )


def _events(how: MadeClips, rng: np.random.Generator, start: int) -> Events:
    texture = _texture(how.sensor, rng)
    near = np.abs(texture - np.median(texture))
    y, x = np.nonzero(near <= np.quantile(near, _ACTIVE))
    chosen = rng.integers(0, len(y), how.events)
    return Events(
        x=x[chosen].astype(np.uint16),
        y=y[chosen].astype(np.uint16),
        p=rng.integers(0, 2, how.events).astype(np.uint8),
        t=start + np.sort(rng.integers(0, WINDOW_US, how.events)),
        height=how.sensor[0],
        width=how.sensor[1],
    )


def _video(size: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[f, y, x, 3]: the texture, 2 % of its width further on in each picture, with new grain."""
    texture = 40 + 160 * _texture(size, rng)
    step = max(1, size[1] // 50)
    frames = []
    for number in range(count):
        moved = np.roll(texture, number * step, axis=1)[..., None] * np.array([1.0, 0.9, 0.8])
        frames.append(np.clip(moved + rng.normal(0, _GRAIN, (*size, 1)), 0, 255).astype(np.uint8))
    return np.stack(frames)


def _texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float[y, x] in 0..1: random values on a coarse grid, linear in between."""
    height, width = size
    grid = rng.random((height // _CELL + 2, width // _CELL + 2))
    rows, columns = np.arange(height) / _CELL, np.arange(width) / _CELL
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None], columns - left
    upper = grid[top][:, left] * (1 - right) + grid[top][:, left + 1] * right
    lower = grid[top + 1][:, left] * (1 - right) + grid[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down
