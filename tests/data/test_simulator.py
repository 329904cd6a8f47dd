from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from xmsd_jax.config import ConfigError
from xmsd_jax.data.recording import davis_recording
from xmsd_jax.data.simulator import SimulatorConfig, luma, simulate, thresholds

PLAIN = SimulatorConfig(contrast=0.2, spread=0.0, eps=5.0)


def block_counts(events, first: int, last: int) -> np.ndarray:
    """Events per 8x8 block and 40 ms."""
    part = events.window(first, last)
    sides = [np.arange(0, side + 8, 8) for side in (events.height, events.width)]
    edges = (np.arange(first, last + 40_001, 40_000), *sides)
    return np.histogramdd(np.stack([part.t, part.y, part.x], axis=1).astype(float), edges)[0].ravel()


def scene(frames: int = 31, height: int = 12, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width]
    steps = np.arange(frames)[:, None, None]
    light = 110 + 80 * np.sin((x + 0.3 * steps) / 2.5) * np.cos(y / 3) + 30 * np.cos(steps / 7)
    return light.astype(np.float32), np.arange(frames, dtype=np.int64) * 10_000 + 500


def test_simulated_events_match_a_real_camera_that_saw_the_same_scene():
    real = davis_recording()
    first, last = int(real.frame_times_us[0]), int(real.frame_times_us[-1])
    simulated = simulate(real.frames, real.frame_times_us, SimulatorConfig())
    ours, theirs = block_counts(simulated, first, last), block_counts(real.events, first, last)
    assert np.corrcoef(ours, theirs)[0, 1] >= 0.90
    assert abs(ours.sum() / theirs.sum() - 1) <= 0.25


def test_events_are_sorted_in_the_frame_and_within_the_frames_times():
    frames, times = scene()
    events = simulate(frames, times, SimulatorConfig(contrast=0.1))
    assert len(events) > 1000
    assert (np.diff(events.t) >= 0).all()
    assert times[0] <= events.t[0]
    assert events.t[-1] < times[-1]
    assert events.x.max() < events.width == 16
    assert events.y.max() < events.height == 12
    assert [getattr(events, name).dtype.str[1:] for name in "xypt"] == ["u2", "u2", "u1", "i8"]


def test_a_still_scene_gives_no_event():
    frames, times = scene()
    still = np.repeat(frames[:1], len(times), axis=0)
    assert len(simulate(still, times, PLAIN)) == 0


@pytest.mark.parametrize(("start", "stop", "polarity"), [(20.0, 200.0, 1), (200.0, 20.0, 0)])
def test_a_jump_gives_one_event_a_threshold_when_linear_light_crosses_it(start, stop, polarity):
    events = simulate(np.array([start, stop]).reshape(2, 1, 1), np.array([1000, 101_000]), PLAIN)
    change = np.log((stop + 5) / (start + 5))
    count = int(abs(change) / 0.2)
    assert count > 5
    assert len(events) == count
    assert (events.p == polarity).all()
    crossed = (start + 5) * np.exp(np.sign(change) * 0.2 * np.arange(1, count + 1)) - 5
    assert np.abs(events.t - (1000 + (crossed - start) / (stop - start) * 100_000)).max() <= 1.5


def test_the_reference_is_carried_so_slow_change_counts_as_much_as_a_jump():
    light = np.geomspace(20, 200, 200).reshape(-1, 1, 1)
    slow = simulate(light, np.arange(200) * 1000, PLAIN)
    jump = simulate(light[[0, -1]], np.array([0, 199_000]), PLAIN)
    assert len(slow) == len(jump) == int(np.log(205 / 25) / 0.2)


def test_change_within_a_threshold_is_never_seen_however_often():
    light = np.tile([100.0, 118.0], 50).reshape(-1, 1, 1)  # log(123 / 105) = 0.158 < 0.2
    assert len(simulate(light, np.arange(100) * 1000, PLAIN)) == 0


def test_interpolated_frames_change_nothing_because_light_is_linear_between_frames():
    frames, times = scene()
    shares = np.arange(5).reshape(-1, 1, 1) / 5
    fine = np.concatenate([*(a + shares * (b - a) for a, b in pairwise(frames)), frames[-1:]])
    fine_times = np.append(times[:-1, None] + np.arange(5) * 2000, times[-1])
    coarse = simulate(frames.astype(np.float64), times, SimulatorConfig())
    dense = simulate(fine, fine_times, SimulatorConfig())

    def by_pixel(events):
        order = np.lexsort((events.t, events.x, events.y))
        return np.stack([events.y[order], events.x[order], events.p[order]]), events.t[order]

    (pixels, t), (dense_pixels, dense_t) = by_pixel(coarse), by_pixel(dense)
    assert np.array_equal(pixels, dense_pixels)
    assert np.abs(t - dense_t).max() <= 2


def test_the_seed_decides_the_sensor_and_the_spread_is_a_share_of_the_contrast():
    frames, times = scene()
    config = SimulatorConfig(contrast=0.1, spread=0.2, seed=3)
    first, again, other = (simulate(frames, times, c) for c in (config, config, config.reseeded(4)))
    assert np.array_equal(first.t, again.t)
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(first.t[:100], other.t[:100])
    drawn = thresholds(config, 200, 200)
    assert abs(drawn.mean() / 0.1 - 1) < 0.01
    assert abs(drawn.std() / 0.02 - 1) < 0.03
    assert thresholds(replace(config, spread=5.0), 50, 50).min() > 0


def test_bytes_and_floats_of_the_same_light_give_the_same_events():
    frames, times = scene()
    light = frames.astype(np.uint8)
    as_bytes, as_floats = simulate(light, times, PLAIN), simulate(light.astype(np.float64), times, PLAIN)
    assert len(as_bytes) == len(as_floats) > 100
    assert np.array_equal(as_bytes.t, as_floats.t)


def test_luma_weighs_green_most_and_keeps_grey():
    grey = np.full((1, 2, 2, 3), 77, np.uint8)
    assert np.allclose(luma(grey), 77, atol=1e-3)
    red, green, blue = luma(np.eye(3, dtype=np.uint8).reshape(1, 1, 3, 3) * 255).ravel()
    assert green > red > blue > 0


@pytest.mark.parametrize(
    ("frames", "times"),
    [
        (np.zeros((1, 4, 4)), np.array([0])),
        (np.zeros((3, 4, 4, 3)), np.array([0, 1, 2])),
        (np.zeros((3, 4, 4)), np.array([0, 1])),
        (np.zeros((3, 4, 4)), np.array([0, 2, 2])),
    ],
)
def test_frames_that_are_no_luma_sequence_in_time_are_refused(frames, times):
    with pytest.raises(ValueError, match="luma frames"):
        simulate(frames, times, PLAIN)


@pytest.mark.parametrize("change", [{"contrast": 0.0}, {"spread": -0.1}, {"eps": 0.0}, {"seed": -1}])
def test_an_impossible_sensor_is_refused(change):
    with pytest.raises(ConfigError, match="a sensor needs"):
        SimulatorConfig(**change)
