"""Training scenes of the small pair as arrays: what each model sees, what it should say, and what it should know."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch_bridge.video_llava import VIDEO_FRAMES
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.world import COLOURS, LANES, ROADS, SETTINGS, TIMES, WorldConfig, sample_place, world_clip
from xmsd_jax.runs import progress

_Job = tuple[WorldConfig, str, int]
_Row = tuple[np.ndarray, np.ndarray, dict[str, Any]]
_KIND = {"car": 1, "truck": 2, "bus": 3}
_PERSON = {"pedestrian": 1, "cyclist": 2}
_SPEED = ("stopped", "slowly", "steadily", "fast")
MOTION_CLASSES = (2, 7, 4, 3, 3, 3, *([5] * LANES))
SIGHT_CLASSES = (3, 3, 3, *([4] * LANES), *([len(COLOURS) + 1] * LANES))
"""Classes per label: motion labels are taught to both models, sight labels to the target only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """n clips: video uint8[n,8,y,x,3], event frames uint8[n,f,y,x,3], labels int64[n,k], and the ground truth."""

    video: np.ndarray
    events: np.ndarray
    motion: np.ndarray
    sight: np.ndarray
    facts: list[dict[str, Any]]


def motion_labels(facts: Mapping[str, Any]) -> list[int]:
    """Direction and speed of the nearest vehicle, number of moving objects, camera, people, speed per lane."""
    near = facts["vehicles"][0]
    people = {p["side"]: _PERSON[p["kind"]] for p in facts["people"]}
    lanes = [0] * LANES
    for vehicle in facts["vehicles"]:
        lanes[vehicle["lane"]] = 1 + _SPEED.index(vehicle["speed"])
    camera = ("still", "panning left", "panning right").index(facts["camera"])
    head = [int(near["direction"] == "right"), facts["moving"], _SPEED.index(near["speed"]), camera]
    return [*head, people.get("near", 0), people.get("far", 0), *lanes]


def sight_labels(facts: Mapping[str, Any]) -> list[int]:
    """Time, road, setting; kind and colour per lane (0 = empty)."""
    kinds, colours = [0] * LANES, [0] * LANES
    for vehicle in facts["vehicles"]:
        kinds[vehicle["lane"]] = _KIND[vehicle["kind"]]
        colours[vehicle["lane"]] = 1 + COLOURS.index(vehicle["colour"])
    place = [TIMES.index(facts["time"]), ROADS.index(facts["road"]), SETTINGS.index(facts["setting"])]
    return [*place, *kinds, *colours]


def _one_place(job: _Job) -> list[_Row]:
    config, split, number = job
    place = sample_place(config.seed, split, number)
    chosen = np.linspace(0, config.video_fps - 1, VIDEO_FRAMES).astype(int)
    clips = [world_clip(place, index, config) for index in range(config.clips_per_sequence)]
    return [(c.video[chosen], EventFrames().frames(c.events), dict(c.facts)) for c in clips]


@contextmanager
def _places(jobs: list[_Job], workers: int) -> Iterator[Iterator[list[_Row]]]:
    if workers == 1:
        yield map(_one_place, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield pool.imap(_one_place, jobs, chunksize=4)


def make_scenes(config: WorldConfig, split: str, *, workers: int | None = None) -> Scenes:
    """Render a split in worker processes (one: in this process); the result does not depend on their number."""
    jobs = [(config, split, number) for number in range(config.sequences[split])]
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with _places(jobs, workers) as found:
        rows = [row for place in progress(found, total=len(jobs), label=f"scenes: {split}") for row in place]
    facts = [row[2] for row in rows]
    return Scenes(
        video=np.stack([row[0] for row in rows]),
        events=np.stack([row[1] for row in rows]),
        motion=np.asarray([motion_labels(f) for f in facts]),
        sight=np.asarray([sight_labels(f) for f in facts]),
        facts=facts,
    )
