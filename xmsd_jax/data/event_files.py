"""Event files by their ending: EventGPT's `.npy`, and our plain `.npz` of x, y, p, t (and height, width)."""

import os
from pathlib import Path

import numpy as np

from xmsd_jax.data.clips import read_npz
from xmsd_jax.data.events import EventError, Events, sized
from xmsd_jax.data.npy import read_event_npy


def read_events(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Events:
    """Read and check the events of a file.

    size: the sensor's (height, width); when None the file's own `height`, `width`, else (max y + 1, max x + 1).
    Raises EventError, with the path, for a missing, damaged or foreign file and for bad events.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return read_event_npy(path, size)
    if path.suffix == ".npz":
        return _read_event_npz(path, size)
    raise EventError(f"{path}: unknown kind of event file {path.suffix!r}; give EventGPT's .npy, or .npz of x, y, p, t")


def _read_event_npz(path: Path, size: tuple[int, int] | None) -> Events:
    arrays = read_npz(path, ("x", "y", "p", "t"), optional=("height", "width"), error=EventError)
    height, width = arrays.get("height"), arrays.get("width")
    if size is None and height is not None and width is not None:
        if not all(side.ndim == 0 and np.issubdtype(side.dtype, np.integer) for side in (height, width)):
            raise EventError(f"{path}: height and width must be one integer each; leave them out or correct them")
        size = (int(height), int(width))
    return sized(arrays, size, where=str(path))
