"""Small recordings in DSEC's own format, written with h5py and Blosc, and the truth about them."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from xmsd_jax.report.png import encode_png

OFFSET = 51_837_000_000
FIRST = OFFSET + 200_123
"""The first image: no whole millisecond on the events' clock."""
LAYOUTS = {
    "as the study had it": ("events/left/events.h5", "images/timestamps.txt", "images/left/rectified"),
    "one folder a download": (
        "events_left/events.h5",
        "image_timestamps/{}_image_timestamps.txt",
        "images_rectified_left",
    ),
    "flat": ("events.h5", "{}_image_timestamps.txt", "images_rectified_left"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What was written: columns with t on the images' clock, image times, pictures [f, y, x, 3]."""

    home: Path
    events: Path
    times_file: Path
    pictures_folder: Path
    columns: dict[str, np.ndarray]
    times: np.ndarray
    pictures: np.ndarray

    def within(self, start: int, stop: int) -> dict[str, np.ndarray]:
        chosen = (self.columns["t"] >= start) & (self.columns["t"] < stop)
        return {name: column[chosen] for name, column in self.columns.items()}


def event_columns(seconds: float, count: int, seed: int) -> dict[str, np.ndarray]:
    """Random events from 0 to FIRST + seconds on the file's clock, with some on and beside the ends of windows."""
    rng = np.random.default_rng(seed)
    stop = FIRST - OFFSET + int(seconds * 1e6) + 100_000
    edges = FIRST - OFFSET + 500_000 * np.arange(int(seconds * 2) + 1)
    t = np.sort(np.concatenate([rng.integers(0, stop, count), *(edges + shift for shift in (-1, 0, 0, 1))]))
    x, y = rng.integers(0, 640, len(t)).astype(np.uint16), rng.integers(0, 480, len(t)).astype(np.uint16)
    x[np.isin(t, edges)], y[np.isin(t, edges)] = 639, 479  # each clip reaches the sensor's corner
    return {"p": rng.integers(0, 2, len(t)).astype(np.uint8), "t": t.astype(np.uint32), "x": x, "y": y}


def write_events(path: Path, columns: dict[str, np.ndarray], *, offset: int = OFFSET, ms_to_idx=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = columns["t"]
    # As DSEC defines it: t[ms_to_idx[ms]] >= ms * 1000 and t[ms_to_idx[ms] - 1] < ms * 1000.
    table = [int((t < ms * 1000).sum()) for ms in range(int(t.max()) // 1000 + 1)] if ms_to_idx is None else ms_to_idx
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            blosc = hdf5plugin.Blosc(cname="zstd", clevel=1, shuffle=hdf5plugin.Blosc.SHUFFLE)
            file.create_dataset(f"events/{name}", data=column, chunks=(256,), **blosc)
        file["ms_to_idx"] = np.array(table, np.uint64)
        file["t_offset"] = np.int64(offset)


def write_recording(
    root: Path,
    name: str,
    *,
    seconds: float = 2.35,
    count: int = 3000,
    layout: str = "as the study had it",
    seed: int = 0,
) -> Truth:
    """A sequence of `seconds` between the first and the last image; pictures of 32 x 48 at 20 a second."""
    events, times_file, folder = (root / name / part.format(name) for part in LAYOUTS[layout])
    columns = event_columns(seconds, count, seed)
    write_events(events, columns)
    times = FIRST + np.arange(0, int(seconds * 1e6) + 1, 50_000)
    times_file.parent.mkdir(parents=True, exist_ok=True)
    times_file.write_text("".join(f"{time}\n" for time in times))
    folder.mkdir(parents=True, exist_ok=True)
    shades = np.linspace(20, 230, len(times)).astype(np.uint8)
    pictures = np.stack([np.full((32, 48, 3), shade, np.uint8) for shade in shades])
    for number, picture in enumerate(pictures):
        (folder / f"{number:06d}.png").write_bytes(encode_png(picture))
    truth = columns | {"t": columns["t"].astype(np.int64) + OFFSET}
    return Truth(
        home=root / name, events=events, times_file=times_file, pictures_folder=folder, columns=truth, times=times,
        pictures=pictures,
    )  # fmt: skip
