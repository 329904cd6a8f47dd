"""Training scenes: what each model sees and is taught to know; the number of processes changes nothing."""

import numpy as np
import pytest

from torch_bridge.tiny.scenes import MOTION_CLASSES, SIGHT_CLASSES, make_scenes, motion_labels, sight_labels
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.world import WorldConfig, sample_facts, sample_place, scene_rng, world_clips

CONFIG = WorldConfig(sequences={"pair-train": 2}, clips_per_sequence=1, seed=7)


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(CONFIG, "pair-train", workers=1)


def test_scenes_are_the_worlds_clips(scenes):
    clips = list(world_clips(CONFIG, "pair-train"))
    assert scenes.facts == [clip.facts for clip in clips]
    for row, clip in enumerate(clips):
        np.testing.assert_array_equal(scenes.video[row], clip.video[[0, 2, 5, 8, 10, 13, 16, 19]])
        np.testing.assert_array_equal(scenes.events[row], EventFrames().frames(clip.events))


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(scenes):
    again = make_scenes(CONFIG, "pair-train", workers=2)
    for name in ("video", "events", "motion", "sight"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scenes, name))
    assert again.facts == scenes.facts


def test_labels_by_hand():
    facts = {
        "time": "dusk", "road": "curved", "setting": "countryside", "camera": "panning right", "moving": 2,
        "vehicles": [
            {"kind": "bus", "colour": "green", "lane": 1, "direction": "right", "speed": "fast"},
            {"kind": "car", "colour": "red", "lane": 3, "direction": "left", "speed": "stopped"},
        ],
        "people": [{"kind": "cyclist", "side": "far"}],
    }  # fmt: skip
    assert motion_labels(facts) == [1, 2, 3, 2, 0, 2, 0, 4, 0, 1]
    assert sight_labels(facts) == [1, 1, 2, 0, 3, 0, 1, 0, 3, 0, 1]


def test_labels_stay_within_their_classes():
    places = [sample_place(0, "pair-train", number) for number in range(200)]
    facts = [sample_facts(place, scene_rng(place, 0)) for place in places]
    for labels, classes in ((motion_labels, MOTION_CLASSES), (sight_labels, SIGHT_CLASSES)):
        table = np.asarray([labels(f) for f in facts])
        assert table.shape[1] == len(classes)
        assert (table.min(0) >= 0).all()
        assert (table.max(0) < classes).all()
        assert (table.std(0) > 0).all()


def test_no_motion_label_tells_a_colour():
    place = sample_place(0, "pair-train", 3)
    facts = sample_facts(place, scene_rng(place, 0))
    painted = facts | {"vehicles": [v | {"colour": "silver"} for v in facts["vehicles"]]}
    assert motion_labels(painted) == motion_labels(facts)
