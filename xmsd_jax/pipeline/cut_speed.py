"""How fast one core cuts DSEC's events into clips and draws their event frames, on a made-up recording."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

from xmsd_jax.data.dsec import CLIP_US, find_drive, image_times, windows
from xmsd_jax.data.dsec_events import EventFile
from xmsd_jax.data.dsec_made import NAME, write_made_events
from xmsd_jax.data.events import EventFrames, Events


def measure_on_one_core(folder: Path, seconds: float = 5.0, **options: int) -> dict[str, float]:
    """As `measure`, in a process of its own that no other core helps."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_stay_on_one_core) as process:
        return process.submit(partial(measure, folder, seconds, **options)).result()


def measure(
    folder: Path, seconds: float = 5.0, *, recording_seconds: int = 4, events_per_second: int = 10_000_000
) -> dict[str, float]:
    """Measure on this core, in million events of clips a second; a made recording is written to `folder` if need be.

    Returns "cut" (read, decompress, cut and check a window; what two windows share is read once), "render" (five frames
    by count, the last event wins), "cut_and_render" (one after the other), each over about `seconds`; "recording", the
    last with each event of the recording counted once, though it is in two clips; and of the recording "events"
    (millions) and "bytes_per_event" on disk.
    """
    if not (folder / NAME / "images" / "timestamps.txt").exists():
        write_made_events(folder, seconds=recording_seconds, events_per_second=events_per_second)
    drive = find_drive([folder], NAME)
    spans = windows(image_times(drive.times))
    draw = EventFrames().frames
    with EventFile(drive.events) as file:
        one = file.cut(*spans[0])
        events, size = len(file), drive.events.stat().st_size
    both = _rate(lambda: (len(cut) for cut in _cuts(drive.events, spans) if len(draw(cut))), seconds)
    return {
        "cut": _rate(lambda: map(len, _cuts(drive.events, spans)), seconds),
        "render": _rate(lambda: (len(one) for _ in cycle([0]) if len(draw(one))), seconds),
        "cut_and_render": both,
        "recording": both * (spans[-1][1] - spans[0][0]) / (len(spans) * CLIP_US),
        "events": events / 1e6,
        "bytes_per_event": size / events,
    }


def _stay_on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):  # not on every system
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _cuts(path: Path, spans: list[tuple[int, int]]) -> Iterator[Events]:
    """Window after window as a task of the stage cuts them, again and again; each round opens the file."""
    while True:
        with EventFile(path) as file:
            yield from (file.cut(*span) for span in spans)


def _rate(work: Callable[[], Iterator[int]], seconds: float) -> float:
    """Million events a second over at least `seconds` of wall clock, and at least one clip."""
    counts, start, done, passed = work(), perf_counter(), 0, 0.0
    while passed < seconds or not done:
        done += next(counts)
        passed = perf_counter() - start
    return done / passed / 1e6
