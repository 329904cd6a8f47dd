"""Small line plots keep their values inside and their labels apart."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmsd_jax.report.lineplot import Axis, Look, Plot, Series, draw

LOOK = Look(key="visited", shape="dot", words="a series")


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9))
def test_an_axis_holds_all_values_between_round_ticks(values):
    axis = Axis.over(values)
    assert axis.low <= min(values) + 1e-6 * abs(axis.high - axis.low)
    assert axis.high >= max(values) - 1e-6 * abs(axis.high - axis.low)
    assert 2 <= len(axis.ticks) <= 5
    assert axis.ticks[0] == axis.low
    assert axis.ticks[-1] == axis.high


@given(st.integers(0, 3), st.integers(1, 500))
def test_an_axis_of_whole_numbers_shows_both_ends_and_no_two_labels_meet(first, length):
    axis = Axis.counting(range(first, first + length + 1))
    assert (axis.ticks[0], axis.ticks[-1]) == (first, first + length)
    assert all(float(tick).is_integer() for tick in axis.ticks)
    assert all(axis.at(after) - axis.at(before) >= 4.9 for before, after in pairwise(axis.ticks))
    assert len(axis.ticks) <= 10


def test_one_value_is_an_axis_too():
    assert Axis.counting([1]).ticks == (1, 2)
    assert Axis.over([3.0]).low < Axis.over([3.0]).high


def test_a_point_is_drawn_where_its_value_is():
    series = Series(look=LOOK, xs=(1, 2, 3), ys=(1.0, 0.5, 0.0), band=((0.9, 0.4, 0.0), (1.0, 0.6, 0.1)))
    plot = Plot(series=(series,), x=Axis.counting([1, 3]), y=Axis(low=0, high=1, ticks=(0, 1)), said="a & b")
    drawn = draw(plot)
    assert 'polyline points="0.00,0.00 50.00,50.00 100.00,100.00"' in drawn
    assert 'polygon points="0.00,10.00 50.00,60.00 100.00,100.00 100.00,90.00 50.00,40.00 0.00,0.00"' in drawn
    assert re.findall(r'<svg x="([\d.]+)%" y="([\d.]+)%" class="open">', drawn) == [
        ("0.00", "0.00"), ("50.00", "50.00"), ("100.00", "100.00")
    ]  # fmt: skip
    assert 'aria-label="a &amp; b"' in drawn


def test_many_points_have_no_markers():
    xs = tuple(range(40))
    plot = Plot(
        series=(Series(look=LOOK, xs=xs, ys=(1.0,) * 40),), x=Axis.counting(xs), y=Axis.over([0.0, 1.0]), said="s"
    )
    assert "mark" not in draw(plot)


@pytest.mark.parametrize(("low", "high", "labels"), [(0.0, 0.3, {"0.0", "0.1"}), (0.7, 0.74, {"0.70", "0.72"})])
def test_labels_show_the_digits_that_they_need(low, high, labels):
    plot = Plot(
        series=(Series(look=LOOK, xs=(0, 1), ys=(low, high)),), x=Axis.counting([0, 1]), y=Axis.over([low, high]),
        said="s",
    )  # fmt: skip
    assert labels <= set(re.findall(r">([\d.]+)</text>", draw(plot)))
