"""Scenes repeat exactly, places belong to one split, and the ground truth is what the frames and events show."""

from collections import Counter

import numpy as np
import pytest

from xmsd_jax.config import ConfigError
from xmsd_jax.data.events import checked
from xmsd_jax.data.world import (
    CLIP_US,
    COLOURS,
    LANES,
    PIXELS_PER_SECOND,
    ROADS,
    SETTINGS,
    TIMES,
    WorldConfig,
    sample_facts,
    sample_place,
    scene_rng,
    split_sizes,
    world_clip,
    world_clips,
)

PLACE = (2966773082, "night", "straight", "city")
VEHICLES = [
    ("truck", "green", 0, "steadily", 29.91), ("truck", "blue", 1, "steadily", 30.13),
    ("bus", "purple", 2, "slowly", 57.8), ("car", "purple", 3, "fast", 27.6),
]  # fmt: skip
CONFIG = WorldConfig(sequences={"train": 6, "test": 2}, clips_per_sequence=2, seed=3)


@pytest.fixture(scope="module")
def clips():
    return list(world_clips(CONFIG, "train"))


@pytest.fixture(scope="module")
def scenes():
    """Places and facts of many clips, without their pictures."""
    places = [sample_place(1, "train", number) for number in range(400)]
    return [(place, sample_facts(place, scene_rng(place, index))) for place in places for index in range(2)]


def test_the_same_seed_gives_the_same_clips(clips):
    for clip, again in zip(clips[:4], world_clips(CONFIG, "train"), strict=False):
        assert clip.fingerprint() == again.fingerprint()


def test_a_clip_does_not_depend_on_how_many_others_are_made(clips):
    place = sample_place(CONFIG.seed, "train", 1)
    alone = world_clip(place, 1, WorldConfig(sequences={"train": 2}, clips_per_sequence=9, seed=3))
    assert alone.fingerprint() == clips[3].fingerprint()


def test_another_seed_gives_other_clips(clips):
    other = next(world_clips(WorldConfig(sequences={"train": 1}, clips_per_sequence=1, seed=4), "train"))
    assert other.fingerprint() not in {clip.fingerprint() for clip in clips}


def test_a_clip_of_a_fixed_seed_keeps_its_facts():
    """The shipped weights were trained on these scenes: a change of the draws would be a change of the data."""
    place = sample_place(7, "pair-test", 0)
    facts = sample_facts(place, scene_rng(place, 0))
    assert (place.seed, place.time, place.road, place.setting) == PLACE
    assert [(v["kind"], v["colour"], v["lane"], v["speed"], v["x"]) for v in facts["vehicles"]] == VEHICLES


def test_splits_share_no_sequence():
    """Names say the split; the seeds that draw everything are different too, for as many places as we ever make."""
    counts = {"pair-train": 4000, "pair-test": 100, "train": 500, "validation": 200, "test": 500, "vocabulary": 400}
    for seed in (0, 7):
        places = [sample_place(seed, split, number) for split, n in counts.items() for number in range(n)]
        assert len({place.name for place in places}) == len(places)
        owners: dict[int, set[str]] = {}
        for place in places:
            owners.setdefault(place.seed, set()).add(place.name.split("_")[1])
        assert all(len(splits) == 1 for splits in owners.values())


def test_clips_of_a_sequence_share_the_place_and_differ_in_traffic(clips):
    first, second = clips[0], clips[1]
    assert first.sequence == second.sequence
    assert first.name != second.name
    shared = ("time", "road", "setting", "camera")
    assert [first.facts[key] for key in shared] == [second.facts[key] for key in shared]
    assert first.facts["vehicles"] != second.facts["vehicles"]


def test_split_sizes_count_the_clips(clips):
    assert split_sizes(CONFIG) == {"train": len(clips), "test": 4}
    assert list(world_clips(CONFIG, "validation")) == []


def test_events_are_sorted_in_the_frame_and_of_a_sane_number(clips):
    for clip in clips:
        events = checked(clip.events, where=clip.name)
        assert (events.height, events.width) == (96, 96)
        assert 0 <= events.t[0] <= events.t[-1] < CLIP_US == clip.stop_us
        assert 500 < len(events) < 80_000
        share = np.bincount(events.t * 10 // CLIP_US, minlength=10) / len(events)
        assert share.max() < 0.5  # spread over the clip
        assert 0.2 < events.p.mean() < 0.8


def test_the_video_has_the_frames_it_promises(clips):
    for clip in clips:
        assert clip.video.shape == (20, 96, 96, 3)
        assert clip.video.dtype == np.uint8
        assert clip.frame_times_us.tolist() == list(range(0, CLIP_US, 50_000))


def test_facts_agree_with_each_other(scenes):
    for place, facts in scenes:
        lanes = [vehicle["lane"] for vehicle in facts["vehicles"]]
        assert 1 <= len(lanes) <= LANES
        assert lanes == sorted(set(lanes))  # nearest first, one a lane
        assert facts["vehicles"][0]["speed"] != "stopped"
        moving = [v for v in facts["vehicles"] if v["pixels_per_second"] > 0]
        assert facts["moving"] == len(moving) + len(facts["people"])
        for vehicle in facts["vehicles"]:
            low, high = PIXELS_PER_SECOND[vehicle["speed"]]
            assert low <= vehicle["pixels_per_second"] <= high
            assert vehicle["direction"] == place.lane_direction(vehicle["lane"])
        near, far = ({place.lane_direction(lane) for lane in lanes} for lanes in ((0, 1), (2, 3)))
        assert len(near) == len(far) == 1
        assert near != far


def test_every_value_of_every_fact_occurs_about_as_often_as_it_should(scenes):
    for key, values in (("time", TIMES), ("road", ROADS), ("setting", SETTINGS)):
        counts = Counter(facts[key] for _, facts in scenes)
        assert set(counts) == set(values)
        assert min(counts.values()) > len(scenes) / len(values) / 2
    first = [facts["vehicles"][0] for _, facts in scenes]
    assert min(Counter(v["colour"] for v in first)[c] for c in COLOURS) > len(scenes) / len(COLOURS) / 2
    assert 0.3 < np.mean([v["direction"] == "left" for v in first]) < 0.7
    assert {facts["moving"] for _, facts in scenes} == set(range(1, 7))


def test_brightness_says_nothing_about_colour(scenes):
    vehicles = [v for _, facts in scenes for v in facts["vehicles"]]
    means = [np.mean([v["brightness"] for v in vehicles if v["colour"] == colour]) for colour in COLOURS]
    assert max(means) - min(means) < 8  # of a spread of 27; two modes, drawn without looking at the colour


@pytest.mark.parametrize("wrong", [{"video_fps": 0}, {"event_fps": 90}, {"event_fps": 110}, {"video_fps": 30}])
def test_rates_that_make_no_clip_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"multiple of video_fps and at least 100, got .*; try 100 and 20"):
        WorldConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"sequences": {"train": -1}}, {"clips_per_sequence": 0}])
def test_counts_that_count_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"0 or more of each split and clips_per_sequence 1 or more, got .*-1|.* 0;"):
        WorldConfig(**wrong)
