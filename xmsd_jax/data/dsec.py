"""DSEC as it is published: where a sequence's files lie, its image times, its windows, its pictures.

Accepted, under any of the given roots (the zips for events and for images may be unpacked into trees of their own):

events    <seq>/events/left/events.h5 | <seq>/events_left/events.h5 | <seq>/events.h5
times     <seq>/images/timestamps.txt | <seq>/image_timestamps.txt | <seq>/<seq>_image_timestamps.txt
          | <seq>/image_timestamps/<seq>_image_timestamps.txt
pictures  <seq>/images/left/rectified/%06d.png | <seq>/images_rectified_left/%06d.png

Line i of the times (whole microseconds) belongs to picture i. https://dsec.ifi.uzh.ch/data-format
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.pictures import PictureError, decode_png

HEIGHT, WIDTH = 480, 640
CLIP_US = 1_000_000
STRIDE_US = 500_000
FPS = 20
EVENTS = ("events/left/events.h5", "events_left/events.h5", "events.h5")
TIMES = (
    "images/timestamps.txt",
    "image_timestamps.txt",
    "{name}_image_timestamps.txt",
    "image_timestamps/{name}_image_timestamps.txt",
)
PICTURES = ("images/left/rectified", "images_rectified_left")

MISSING = "missing file"
UNREADABLE = "unreadable file"
BACKWARDS = "time runs backwards"
FOREIGN = "values out of range"
EMPTY = "no event"


class Damage(UserError):
    """Input that is damaged: the kind of damage, the path and the reason; raised or listed, as the policy says."""

    def __init__(self, kind: str, path: Path | str, reason: str) -> None:
        super().__init__(kind, str(path), reason)  # all three, or it would not come back from another process
        self.kind, self.path, self.reason = kind, str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Drive:
    """Where one sequence lies: its events, its image times, the folder of its pictures."""

    name: str
    events: Path
    times: Path
    pictures: Path

    @property
    def parts(self) -> tuple[Path, Path, Path]:
        """All three."""
        return self.events, self.times, self.pictures


def find_drive(roots: Sequence[Path], name: str) -> Drive:
    """Look a sequence up; a part that is nowhere gets the path at which it was expected first.

    Raises ConfigError where no root has the sequence at all.
    """
    homes = [root / name for root in roots if (root / name).is_dir()]
    if not homes:
        raise ConfigError(
            f"roots: none of {', '.join(map(str, roots))} has a folder {name}; give the folders that hold the"
            " sequences' folders, or leave it out of the splits"
        )
    events, times, pictures = (_first(homes, forms, name) for forms in (EVENTS, TIMES, PICTURES))
    return Drive(name=name, events=events, times=times, pictures=pictures)


def _first(homes: Sequence[Path], forms: Sequence[str], name: str) -> Path:
    places = [home / form.format(name=name) for home in homes for form in forms]
    return next((place for place in places if place.exists()), places[0])


def image_times(path: Path) -> np.ndarray:
    """Read image times, int64[f] microseconds, which increase.

    Raises Damage for a missing file, a line that is no whole number, and time that stands still or runs backwards.
    """
    try:
        times = np.array([int(line) for line in path.read_text(encoding="ascii").split()], np.int64)
    except FileNotFoundError as error:
        raise Damage(MISSING, path, "no image times; unpack the sequence's images again") from error
    except (OSError, ValueError, OverflowError) as error:
        raise Damage(UNREADABLE, path, f"image times are whole microseconds, one a line ({error})") from error
    if not len(times):
        raise Damage(UNREADABLE, path, "holds no image time; unpack the sequence's images again")
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        line = int(back[0])
        raise Damage(
            BACKWARDS, path, f"time runs backwards: line {line + 1} is {times[line]} us, the next {times[line + 1]} us"
        )
    return times


def windows(times: np.ndarray) -> list[tuple[int, int]]:
    """Return [start, stop) of every clip in microseconds, from the first to the last image time.

    There are floor((last - first - 1e6) / 5e5) + 1 of them, none where the images last less than a second.
    """
    first, last = int(times[0]), int(times[-1])
    count = max((last - first - CLIP_US) // STRIDE_US + 1, 0)
    return [(first + STRIDE_US * i, first + STRIDE_US * i + CLIP_US) for i in range(count)]


def pictures_within(times: np.ndarray, start_us: int, stop_us: int, most: int | None) -> np.ndarray:
    """Return numbers of the pictures with start <= time < stop, int64[f]: all, or `most` of them at even places.

    Thinned as the target does it, `linspace(0, n - 1, most)` rounded down: from what is kept it takes the same ones.
    """
    low, high = np.searchsorted(times, (start_us, stop_us), side="left")
    within = np.arange(low, high)
    if most is None or len(within) <= most:
        return within
    return within[np.linspace(0, len(within) - 1, most).astype(int)]


def read_pictures(drive: Drive, numbers: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Read pictures, uint8[f, y, x, 3] RGB, scaled to (height, width) where a size is given.

    Raises Damage for a missing or damaged one and for sizes that differ.
    """
    frames = [_picture(drive.pictures / f"{number:06d}.png", size) for number in numbers]
    for number, frame in zip(numbers, frames, strict=True):
        if frame.shape != frames[0].shape:
            path = drive.pictures / f"{number:06d}.png"
            raise Damage(FOREIGN, path, f"is {frame.shape[:2]}, others of its clip are {frames[0].shape[:2]}")
    return np.stack(frames)


def _picture(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    try:
        return decode_png(path.read_bytes(), size=size)
    except FileNotFoundError as error:
        raise Damage(MISSING, path, "picture is missing; unpack the sequence's images again") from error
    except (OSError, PictureError) as error:
        raise Damage(UNREADABLE, path, str(error)) from error
