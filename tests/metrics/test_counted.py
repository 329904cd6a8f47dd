"""Counted sums and their intervals, against numbers worked out by hand."""

import math
from fractions import Fraction

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmsd_jax.metrics.counted import Counted, clusters_of, exact_sum, ratio_of_sums, speed_up

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_merged_parts_are_the_whole_bit_for_bit_wherever_they_are_cut(values, cuts):
    parts = np.split(np.array(values), sorted(cut for cut in cuts if cut <= len(values)))
    merged = Counted()
    for part in reversed(parts):
        merged = merged.merge(Counted.of(part))
    assert merged == Counted.of(np.array(values))


@given(arrays.arrays(np.float64, st.integers(0, 50), elements=FLOATS))
def test_the_exact_sum_is_the_sum_of_fractions(values):
    assert exact_sum(values) == sum((Fraction(v) for v in values.tolist()), Fraction(0))


@given(arrays.arrays(st.sampled_from([np.int64, np.uint64, np.int8, np.uint32, np.bool_]), st.integers(0, 30)))
def test_the_exact_sum_of_integers_does_not_overflow(values):
    assert exact_sum(values) == sum(int(v) for v in values.tolist())


def test_a_sum_that_floats_get_wrong_is_exact():
    assert Counted.of(np.array([1e16, 1.0, -1e16])).sum == 1
    assert Counted.of(np.full(10, 0.1)).value == 0.1


def test_a_counted_value_divides_once_at_the_end():
    short, long = Counted.of([1, 1]), Counted.of([0, 0, 0, 1, 0, 0])
    assert short.merge(long).value == 3 / 8  # a mean of means would say 0.58
    assert Counted.of([6, 4], [3, 2]).value == 2.0
    assert Counted().value is None


@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [1.0, -math.inf]])
def test_what_is_not_finite_is_not_counted(bad):
    with pytest.raises(ValueError, match="finite"):
        Counted.of(bad)


def test_values_and_totals_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Counted.of([1, 2], [1, 2, 3])


def test_clusters_are_sequences_and_else_blocks_of_fifty():
    assert clusters_of(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    assert np.bincount(clusters_of(None, 120)).tolist() == [50, 50, 20]
    with pytest.raises(ValueError, match="2 sequences for 3 records"):
        clusters_of(["a", "b"], 3)


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    estimate = ratio_of_sums([30, 2], [10, 2], sequences=["a", "b"])
    assert estimate.value == pytest.approx(32 / 12)
    assert (estimate.n, estimate.clusters) == (2, 2)


def test_two_clusters_resample_to_the_three_ratios_that_they_can_give():
    # aa: 20/10 = 2, ab: 32/14 , bb: 12/4*... : each with 1/4, 1/2, 1/4, so the 95 % interval spans aa to bb
    estimate = ratio_of_sums([10, 6], [5, 2], sequences=[0, 1])
    assert (estimate.low, estimate.high) == (2.0, 3.0)
    assert estimate.value == pytest.approx(16 / 7)


def test_whole_clusters_are_drawn():
    # Within each sequence the records cancel: any resample of sequences gives exactly 1, of records it would not.
    estimate = ratio_of_sums([0, 2, 0, 2, 0, 2], sequences=["a", "a", "b", "b", "c", "c"])
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 1.0, 1.0)
    apart = ratio_of_sums([0, 2, 0, 2, 0, 2], sequences=list("abcdef"))
    assert apart.low is not None
    assert apart.low < 1.0


def test_one_cluster_has_no_interval():
    estimate = ratio_of_sums([1, 2, 3], sequences=["a"] * 3)
    assert (estimate.value, estimate.low, estimate.high, estimate.clusters) == (2.0, None, None, 1)


def test_an_empty_record_has_no_value():
    estimate = ratio_of_sums([], sequences=None)
    assert (estimate.value, estimate.low, estimate.n, estimate.clusters) == (None, None, 0, 0)


def test_a_denominator_of_zero_gives_no_value_and_no_warning():
    assert ratio_of_sums([3, 1], [0, 0], sequences=["a", "b"]).value is None
    partly = ratio_of_sums([0, 6], [0, 2], sequences=["a", "b"])
    assert (partly.value, partly.low, partly.high) == (3.0, 3.0, 3.0)  # resamples of "a" alone are left out


def test_the_seed_decides_the_interval():
    rng = np.random.default_rng(0)
    top, bottom = rng.random(200), 1 + rng.random(200)
    first, again, other = (ratio_of_sums(top, bottom, sequences=range(200), seed=s) for s in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(5.0, 1.0, 400)
    estimate = ratio_of_sums(values, sequences=range(400), draws=4000)
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.01)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.01)


def test_many_clusters_are_drawn_in_slabs_and_give_the_same_kind_of_interval(monkeypatch):
    values = np.random.default_rng(0).random(300)
    whole = ratio_of_sums(values, sequences=range(300))
    monkeypatch.setattr("xmsd_jax.metrics.counted._INDICES_AT_ONCE", 300 * 7)
    assert ratio_of_sums(values, sequences=range(300)) == whole


def test_a_speed_up_is_total_seconds_over_total_seconds():
    estimate = speed_up([2.0, 1.0], [1.0, 1.0], sequences=["a", "b"])
    assert estimate.value == 1.5
    assert (estimate.low, estimate.high) == (1.0, 2.0)


def test_pairing_cancels_the_difficulty_of_answers():
    baseline = np.array([1.0, 10.0, 100.0, 3.0])
    estimate = speed_up(baseline, baseline / 2, sequences=list("abcd"))
    assert (estimate.low, estimate.value, estimate.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("baseline", "seconds", "message"),
    [
        ([1.0, 1.0], [1.0], "paired"),
        ([1.0, -1.0], [1.0, 1.0], "baseline"),
        ([1.0, 1.0], [0.0, 0.0], "row"),
        ([1.0, math.nan], [1.0, 1.0], "baseline"),
    ],
)
def test_times_that_make_no_speed_up_are_refused(baseline, seconds, message):
    with pytest.raises(ValueError, match=message):
        speed_up(baseline, seconds, sequences=None)
