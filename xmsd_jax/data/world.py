"""The small world: street scenes with exact ground truth, seen by a colour camera and by an event camera.

A *sequence* fixes the place (road, setting, time of day, camera, driving side); its clips differ in traffic.
Splits never share a sequence. The same seed always gives the same scene, on every machine.

Body brightness is drawn independently of hue and every paint is scaled to it, so the events, which see
brightness only, carry no colour beyond float32 rounding and the brightest blue's clipping in full daylight
(1.4 % of its luma); the video carries colour but only eight still frames of the motion.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xmsd_jax.config import ConfigError
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.scenery import SIZE, draw
from xmsd_jax.data.simulator import SimulatorConfig, luma, simulate

TIMES = ("day", "dusk", "night")
ROADS = ("straight", "curved", "crossing")
SETTINGS = ("city", "suburb", "countryside")
CAMERAS = ("still", "still", "still", "panning left", "panning right")
COLOURS = ("red", "blue", "green", "yellow", "purple", "silver")
KINDS = ("car", "car", "truck", "bus")
LANES = 4
CLIP_US = 1_000_000
PIXELS_PER_SECOND = {"stopped": (0.0, 0.0), "slowly": (9.0, 14.0), "steadily": (24.0, 32.0), "fast": (48.0, 62.0)}


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How many sequences each split holds, and how finely motion is rendered for the events."""

    sequences: dict[str, int] = field(default_factory=lambda: {"train": 8, "validation": 2, "test": 8})
    clips_per_sequence: int = 4
    seed: int = 0
    video_fps: int = 20
    event_fps: int = 100
    simulator: SimulatorConfig = field(default_factory=lambda: SimulatorConfig(contrast=0.25, spread=0.05, eps=5.0))

    def __post_init__(self) -> None:
        """Raise ConfigError for rates or counts that make no clip."""
        if self.video_fps < 1 or self.event_fps < 100 or self.event_fps % self.video_fps:
            raise ConfigError(
                f"event_fps must be a multiple of video_fps and at least 100, got {self.event_fps} and "
                f"{self.video_fps}; try 100 and 20"
            )
        if min(self.sequences.values(), default=0) < 0 or self.clips_per_sequence < 1:
            raise ConfigError(
                f"sequences need 0 or more of each split and clips_per_sequence 1 or more, got {self.sequences} and "
                f"{self.clips_per_sequence}; give counts"
            )


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all clips of one sequence share."""

    name: str
    seed: int
    time: str
    road: str
    setting: str
    camera: str
    near_direction: str

    def lane_direction(self, lane: int) -> str:
        """Two lanes each way: 0 and 1 (near) go one way, 2 and 3 (far) the other."""
        return self.near_direction if lane < LANES // 2 else opposite(self.near_direction)


def opposite(direction: str) -> str:
    """'left' <-> 'right'."""
    return "left" if direction == "right" else "right"


def split_sizes(config: WorldConfig) -> dict[str, int]:
    """Clips per split."""
    return {split: n * config.clips_per_sequence for split, n in config.sequences.items()}


def world_clips(config: WorldConfig, split: str) -> Iterator[Clip]:
    """All clips of one split, sequence after sequence."""
    for number in range(config.sequences.get(split, 0)):
        place = sample_place(config.seed, split, number)
        for index in range(config.clips_per_sequence):
            yield world_clip(place, index, config)


def sample_place(seed: int, split: str, number: int) -> Place:
    """The place of sequence `number` of `split`; the split's name is part of the seed, so splits are disjoint."""
    place_seed = zlib.crc32(f"{seed}/{split}/{number}".encode())
    rng = np.random.default_rng(place_seed)
    return Place(
        name=f"world_{split}_{number:04d}",
        seed=place_seed,
        time=str(rng.choice(TIMES)),
        road=str(rng.choice(ROADS)),
        setting=str(rng.choice(SETTINGS)),
        camera=str(rng.choice(CAMERAS)),
        near_direction=str(rng.choice(["left", "right"])),
    )


def world_clip(place: Place, index: int, config: WorldConfig) -> Clip:
    """One second at `place`: traffic drawn anew, rendered once at the event rate and thinned to the video rate."""
    rng = scene_rng(place, index)
    facts = sample_facts(place, rng)
    times_us = np.arange(config.event_fps + 1, dtype=np.int64) * (CLIP_US // config.event_fps)
    rgb = draw(facts, times_us / CLIP_US, place_seed=place.seed, rng=rng)
    events = simulate(luma(rgb), times_us, config.simulator).window(0, CLIP_US)
    every = config.event_fps // config.video_fps
    noisy = rgb[:-1:every] + rng.normal(0.0, 1.5, (config.video_fps, SIZE, SIZE, 1)).astype(np.float32)
    return Clip(
        name=f"{place.name}_{index:03d}",
        sequence=place.name,
        events=events,
        video=np.clip(np.rint(noisy), 0, 255).astype(np.uint8),
        frame_times_us=times_us[:-1:every],
        facts=facts,
        start_us=0,
        stop_us=CLIP_US,
    )


def scene_rng(place: Place, index: int) -> np.random.Generator:
    """The randomness of one clip of a place."""
    return np.random.default_rng((place.seed, index))


def sample_facts(place: Place, rng: np.random.Generator) -> dict[str, Any]:
    """Ground truth of one clip, JSON-able. Vehicles stand nearest first; the nearest one always moves."""
    lanes = np.sort(rng.choice(LANES, size=rng.integers(1, LANES + 1), replace=False))
    vehicles = [_vehicle(place, int(lane), nearest=i == 0, rng=rng) for i, lane in enumerate(lanes)]
    people = [_person(side, rng) for side in ("near", "far") if rng.random() < 0.4]
    moving = sum(v["speed"] != "stopped" for v in vehicles) + len(people)
    return {
        "time": place.time,
        "road": place.road,
        "setting": place.setting,
        "camera": place.camera,
        "vehicles": vehicles,
        "people": people,
        "moving": moving,
    }


def _vehicle(place: Place, lane: int, *, nearest: bool, rng: np.random.Generator) -> dict[str, Any]:
    speeds = ["slowly", "steadily", "fast"] if nearest else ["stopped", "slowly", "steadily", "fast"]
    speed = str(rng.choice(speeds))
    brightness = rng.uniform(38.0, 52.0) if rng.random() < 0.5 else rng.uniform(94.0, 105.0)
    return {
        "kind": str(rng.choice(KINDS)),
        "colour": str(rng.choice(COLOURS)),
        "lane": lane,
        "direction": place.lane_direction(lane),
        "speed": speed,
        "pixels_per_second": round(float(rng.uniform(*PIXELS_PER_SECOND[speed])), 2),
        "x": round(float(rng.uniform(26.0, 70.0)), 2),
        "brightness": round(float(brightness), 2),
    }


def _person(side: str, rng: np.random.Generator) -> dict[str, Any]:
    kind = str(rng.choice(["pedestrian", "cyclist"]))
    speed = rng.uniform(7.0, 10.0) if kind == "pedestrian" else rng.uniform(16.0, 22.0)
    return {
        "kind": kind,
        "side": side,
        "direction": str(rng.choice(["left", "right"])),
        "pixels_per_second": round(float(speed), 2),
        "x": round(float(rng.uniform(18.0, 78.0)), 2),
        "brightness": round(float(rng.uniform(20.0, 40.0)), 2),
    }
