"""The real recording that is shipped with the package: 2.36 s of a DAVIS346 looking at a road (see its NOTICE)."""

from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np

from xmsd_jax.data.clips import Clip, read_npz
from xmsd_jax.data.events import Events, checked

SEQUENCE = "davis346_traffic"
CLIP_US = 1_000_000
STRIDE_US = 500_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """events: the whole stream; frames: uint8[f, y, x] grey; frame_times_us: int64[f], every 40 ms."""

    events: Events
    frames: np.ndarray
    frame_times_us: np.ndarray


def davis_recording() -> Recording:
    """Return the whole recording: 78,830 events from t = 0, and 59 frames, the first at t = -3,653 us."""
    with as_file(files("xmsd_jax.data") / "recordings" / f"{SEQUENCE}.npz") as path:
        arrays = read_npz(path, ("x", "y", "p", "t", "frames", "ft"))
    height, width = arrays["frames"].shape[1:]
    events = Events(**{key: arrays[key] for key in "xypt"}, height=height, width=width)
    return Recording(events=checked(events, where=SEQUENCE), frames=arrays["frames"], frame_times_us=arrays["ft"])


def davis_clips() -> list[Clip]:
    """Return the recording's three 1-s clips, at 0.5-s stride from the first frame, as DSEC is cut.

    Clip i is [start, start + 1 s) with start = -3,653 us + i * 0.5 s on the recording's clock, which the clips keep.
    Events and frames belong to it when start <= t < stop: 25 frames each. The events begin at t = 0, so the first
    clip has none in its first 3.7 ms; in the second, the first frame comes 20 ms after the start.
    """
    recording = davis_recording()
    first, last = int(recording.frame_times_us[0]), int(recording.frame_times_us[-1])
    count = (last - first - CLIP_US) // STRIDE_US + 1
    return [_cut(recording, index, first + index * STRIDE_US) for index in range(count)]


def _cut(recording: Recording, index: int, start: int) -> Clip:
    stop = start + CLIP_US
    times = recording.frame_times_us
    inside = (times >= start) & (times < stop)
    return Clip(
        name=f"{SEQUENCE}_{index:03d}",
        sequence=SEQUENCE,
        events=recording.events.window(start, stop),
        video=np.repeat(recording.frames[inside][..., None], 3, axis=-1),
        frame_times_us=times[inside],
        start_us=start,
        stop_us=stop,
    )
