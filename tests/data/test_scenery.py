"""What is drawn is what the facts say: motion in the frames, and no hue in the brightness."""

import numpy as np
import pytest

from xmsd_jax.data.scenery import AMBIENT, LANE_BOTTOM, LUMA_WEIGHTS, PAINT, bend, draw, paint
from xmsd_jax.data.simulator import SimulatorConfig, simulate
from xmsd_jax.data.world import COLOURS, sample_facts, sample_place, scene_rng

TIMES_US = np.arange(101, dtype=np.int64) * 10_000
SENSOR = SimulatorConfig(contrast=0.25, spread=0.05, eps=5.0)
STILL = {"time": "day", "road": "straight", "setting": "city", "camera": "still", "people": [], "moving": 1}
VEHICLE = {
    "kind": "car", "colour": "red", "lane": 0, "direction": "right", "speed": "steadily",
    "pixels_per_second": 30.0, "x": 48.0, "brightness": 100.0,
}  # fmt: skip


def luma(vehicles, times=(0.0, 0.5, 1.0), **facts):
    """Luma frames [f, y, x] of a scene on one and the same place."""
    rgb = draw(STILL | facts | {"vehicles": vehicles}, np.asarray(times), place_seed=5, rng=np.random.default_rng(5))
    return rgb @ LUMA_WEIGHTS


def centre(frame, background) -> float:
    """Mean column of what differs from the empty scene."""
    change = np.abs(frame - background).sum(0)
    return float(change @ (np.arange(96) + 0.5) / change.sum())


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("kind", ["car", "truck", "bus"])
@pytest.mark.parametrize("time", ["day", "night"])
def test_a_vehicle_moves_as_its_fact_says(direction, kind, time):
    vehicle = VEHICLE | {"direction": direction, "kind": kind, "pixels_per_second": 20.0}
    first, middle, last = (
        centre(frame, empty) for frame, empty in zip(luma([vehicle], time=time), luma([], time=time), strict=True)
    )
    sign = 1 if direction == "right" else -1
    assert last - first == pytest.approx(sign * 20.0, abs=1.5)
    assert middle == pytest.approx(48.0, abs=4 if time == "day" else 8)  # headlights shine ahead


def test_a_stopped_vehicle_stands_still():
    frames = luma([VEHICLE | {"speed": "stopped", "pixels_per_second": 0.0}])
    np.testing.assert_array_equal(frames[0], frames[2])


def test_only_a_panning_camera_moves_the_background():
    assert not np.ptp(luma([], camera="still"), axis=0).any()
    moved = luma([], camera="panning left")
    np.testing.assert_allclose(moved[2][40:90, 10:], moved[0][40:90, :-10], atol=1e-3)  # 10 pixels in a second


def test_a_panning_camera_moves_parked_vehicles_with_the_background():
    parked = VEHICLE | {"pixels_per_second": 0.0}
    for camera, shift in (("panning left", 10.0), ("panning right", -10.0)):
        frames, empty = luma([parked], camera=camera), luma([], camera=camera)
        assert centre(frames[2], empty[2]) - centre(frames[0], empty[0]) == pytest.approx(shift, abs=0.5)


def test_motion_of_a_tenth_of_a_pixel_changes_brightness_a_little():
    frames = luma([VEHICLE], times=(0.5, 0.5 + 0.1 / 30))
    change = np.abs(frames[1] - frames[0])
    assert 0 < change.max() < 0.11 * 255


def test_a_nearer_lane_hides_the_farther_one():
    white, black = VEHICLE | {"kind": "bus", "brightness": 105.0}, VEHICLE | {"kind": "bus", "brightness": 38.0}
    both = luma([white, black | {"lane": 1}])
    alone = luma([white])
    foot = int(LANE_BOTTOM[0]) - 3
    np.testing.assert_array_equal(both[1][foot], alone[1][foot])
    assert not np.array_equal(both[1], alone[1])


def test_a_curved_road_stands_five_pixels_higher_at_both_edges():
    columns = np.array([0.0, 48.0, 96.0])
    assert bend(columns, "curved").tolist() == [-5.0, 0.0, -5.0]
    assert not bend(columns, "straight").any()


def test_paint_has_the_brightness_it_is_asked_for_whatever_the_hue():
    for colour in COLOURS:
        for brightness in (38.0, 52.0, 94.0, 105.0):
            assert paint(colour, brightness) @ LUMA_WEIGHTS == pytest.approx(brightness, rel=1e-6)
    assert set(PAINT) == set(COLOURS)


def test_the_brightest_paint_in_the_brightest_light_loses_at_most_2_percent_to_clipping():
    """Only blue does; the threshold of the sensor is 25 percent."""
    brightest = 105.0 * AMBIENT["day"] * 1.06
    for colour in COLOURS:
        seen = float(np.clip(paint(colour, brightest), 0, 255) @ LUMA_WEIGHTS)
        assert seen == pytest.approx(brightest, rel=0.02)
        assert seen == pytest.approx(brightest, rel=1e-6) or colour == "blue"


def recoloured(place, shift: int) -> np.ndarray:
    """Luma of a sampled scene after a rotation of all colours; everything else is the same."""
    rng = scene_rng(place, 0)
    facts = sample_facts(place, rng)
    vehicles = [v | {"colour": COLOURS[(COLOURS.index(v["colour"]) + shift) % len(COLOURS)]} for v in facts["vehicles"]]
    rgb = draw(facts | {"vehicles": vehicles}, TIMES_US / 1e6, place_seed=place.seed, rng=rng)
    return rgb @ LUMA_WEIGHTS


def test_hue_does_not_show_in_the_luma_or_the_events():
    """Luma is equal up to float32 rounding (and blue's clipping in daylight), so colours carry no events of their own.

    The events are not bit-equal: a pixel that comes back to the light it had is a tie, which rounding decides.
    """
    for number in range(6):
        place = sample_place(0, "train", number)
        plain, other = recoloured(place, 0), recoloured(place, 1 + number % 5)
        clips_blue = place.time == "day"
        np.testing.assert_allclose(plain, other, rtol=0, atol=1.6 if clips_blue else 1e-4)
        events, swapped = (simulate(frames, TIMES_US, SENSOR) for frames in (plain, other))
        counts = [np.bincount(e.y.astype(int) * 96 + e.x, minlength=96 * 96) for e in (events, swapped)]
        assert np.abs(counts[0] - counts[1]).sum() <= 0.02 * len(events)


def test_the_colour_does_show_in_the_video():
    scenes = [STILL | {"vehicles": [VEHICLE | {"colour": colour}]} for colour in ("red", "blue")]
    red, blue = (draw(s, np.array([0.5]), place_seed=5, rng=np.random.default_rng(5)) for s in scenes)
    assert np.abs(red - blue).max() > 100
