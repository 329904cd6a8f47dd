"""Dropout masks: as many as asked for, without a pattern, and the same wherever they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import noise
from xmsd_jax.adapters.noise import Noise, drop, mixed

RATE, ROWS, COLUMNS = 0.1, 256, 512


def kept(rate: float = RATE, *, site: int | None = None, shape=(1, ROWS, COLUMNS), **where) -> np.ndarray:
    """Which places of the answers stay, bool[shape]."""
    whole = noise(rate, rows=shape[0], **where)
    return np.asarray(drop(jnp.ones(shape), whole if site is None else whole.at(site))) > 0


def deviations(found: np.ndarray, axis=None, rate: float = RATE) -> np.ndarray:
    """By how many standard deviations the share of dropped places is off."""
    count = found.size if axis is None else found.shape[axis]
    return ((1 - found.mean(axis)) - rate) / np.sqrt(rate * (1 - rate) / count)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks, in standard deviations of that of independent ones."""
    centred = [x - x.mean() for x in (a, b)]
    return float(np.sqrt(a.size) * (centred[0] * centred[1]).mean() / (a.std() * b.std()))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate_overall_and_in_every_row_and_column(rate):
    found = kept(rate, seed=1)[0]
    assert abs(deviations(found, rate=rate)) < 4
    for axis in (0, 1):
        off = deviations(found, axis, rate)
        assert abs(off).max() < 5, "of some hundred draws the largest is beyond 4 now and then"
        assert off.std() == pytest.approx(1, abs=0.2), "rows and columns vary as independent draws do"


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 64), (0, 256), (16, 0)])
def test_neighbouring_places_do_not_know_of_each_other(down, right):
    found = kept(seed=2)[0]
    assert abs(correlation(found[down:, right:], found[: ROWS - down, : COLUMNS - right])) < 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"seed": 0}, {"seed": 1}),
        ({"step": 0}, {"step": 1}),
        ({"step": 7}, {"step": 8}),
        ({"seed": 0, "step": 1}, {"seed": 1, "step": 0}),
        ({"site": None}, {"site": 0}),
        ({"site": 0}, {"site": 1}),
        ({"site": 5}, {"site": 6}),
    ],
)
def test_masks_of_other_seeds_steps_and_places_in_the_network_are_independent(one, other):
    assert abs(correlation(kept(**one), kept(**other))) < 4


def test_answers_of_a_batch_have_independent_masks():
    found = kept(shape=(6, 128, 256))
    for a in range(6):
        for b in range(a):
            assert abs(correlation(found[a], found[b])) < 4


def test_no_two_answers_steps_seeds_or_places_share_a_seed():
    seeds = [
        np.asarray(noise(seed=seed, step=step, rows=64).at(site).seeds)
        for seed in range(4)
        for step in range(50)
        for site in range(4)
    ]
    found = np.concatenate(seeds)
    # Of 51,200 numbers of 32 bits drawn at random, 0.3 pairs are equal; of a bad hash, thousands.
    assert len(found) - len(np.unique(found)) < 5


def test_the_hash_is_a_bijection_of_which_each_output_bit_depends_on_each_input_bit():
    drawn = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32))
    assert len(np.unique(mixed(jnp.arange(100_000, dtype=jnp.uint32)))) == 100_000
    for bit in range(32):
        changed = np.asarray(mixed(drawn) ^ mixed(drawn ^ jnp.uint32(1 << bit)))
        shares = (changed[:, None] >> np.arange(32, dtype=np.uint32) & 1).mean(0)
        assert shares.min() > 0.4
        assert shares.max() < 0.6


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_expectation_is_kept_and_what_stays_is_scaled(rate):
    dropped = np.asarray(drop(jnp.full((1, ROWS, COLUMNS), 2.0), noise(rate, rows=1)))
    assert dropped.mean() == pytest.approx(2.0, rel=0.01)
    assert (dropped == 0).mean() == pytest.approx(rate, rel=0.05)
    np.testing.assert_allclose(dropped[dropped > 0], 2.0 / (1 - rate), rtol=1e-6)


def test_over_steps_every_place_is_dropped_as_often_as_asked():
    whole = jax.jit(lambda step: drop(jnp.ones((2, 4, 32)), noise(0.5)._replace(seeds=seeds_of(step))) > 0)

    def seeds_of(step):
        return Noise.of(jnp.float32(0.5), jnp.int32(0), step, jnp.arange(2, dtype=jnp.int32)).seeds

    found = np.stack([np.asarray(whole(jnp.int32(step))) for step in range(1000)])
    assert abs(deviations(found.reshape(1000, -1), 0, 0.5)).max() < 5


def test_without_noise_or_at_rate_zero_nothing_is_dropped():
    x = jnp.ones((2, 3, 4))
    assert drop(x, None) is x
    np.testing.assert_array_equal(drop(x, noise(0.0, rows=2)), x)


@pytest.mark.parametrize("shape", [(4, 32), (4, 5, 24), (4, 8, 10, 10)])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_batch_that_is_cut_over_devices_has_the_masks_of_the_whole(shape, cut):
    x, rate, size = jnp.ones(shape), jnp.float32(0.3), shape[0] // cut
    whole = drop(x, noise(0.3, seed=4, step=9, rows=shape[0]).at(2))
    for part in range(cut):
        slots = part * size + jnp.arange(size, dtype=jnp.int32)
        own = Noise.of(rate, jnp.int32(4), jnp.int32(9), slots).at(2)
        np.testing.assert_array_equal(drop(x[slots], own), whole[slots])


def test_half_precision_drops_the_same_places():
    x = jnp.ones((2, 16, 32))
    low = drop(x.astype(jnp.bfloat16), noise(rows=2))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low > 0, drop(x, noise(rows=2)) > 0)
