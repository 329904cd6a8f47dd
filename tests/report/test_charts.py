"""Charts draw what the rows say, inside of their frame."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report import made_up
from xmsd_jax.report.charts import ORIGIN_PARTS, Bar, Scale, speed_chart, stacked_chart
from xmsd_jax.report.summary import summarise
from xmsd_jax.runs import Row

RATIOS = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


@given(RATIOS)
def test_the_axis_holds_all_values_and_one(ratios):
    scale = Scale.around(ratios)
    assert all(0 < scale.at(ratio) < 100 for ratio in [1.0, *ratios])
    assert 1.0 in scale.ticks


@given(RATIOS)
def test_tick_labels_leave_room_for_each_other(ratios):
    scale = Scale.around(ratios)
    places = [scale.at(tick) for tick in scale.ticks]
    assert all(after - before >= 9 for before, after in pairwise(places))


def test_halving_and_doubling_are_equally_far_from_one():
    scale = Scale(low=0.25, high=4.0)
    assert scale.at(1.0) == pytest.approx(50)
    assert scale.at(0.5) == pytest.approx(100 - scale.at(2.0))


def rectangles(chart, kind):
    return re.findall(rf'<rect x="([\d.]+)%" y="\d+" width="([\d.]+)%" height="\d+" class="{kind}">', chart)


def test_a_gain_starts_at_one_and_a_loss_ends_there():
    rows = [
        Row(row="t", metric="speedup", value=1.0, baseline="t"),
        Row(row="up", metric="speedup", value=2.0, baseline="t"),
        Row(row="down", metric="speedup", value=0.5, baseline="t"),
    ]
    chart = speed_chart(summarise(rows).groups[0])
    one = Scale.around([2.0, 0.5]).at(1.0)
    (loss,) = rectangles(chart, "whole loss")
    gains = rectangles(chart, "whole gain")
    assert float(loss[0]) + float(loss[1]) == pytest.approx(one, abs=0.02)
    assert all(float(start) == pytest.approx(one, abs=0.02) for start, _ in gains)
    assert {line for line in ("t", "up", "down") if f'aria-label="{line}: ' in chart} == {"t", "up", "down"}


def test_a_predicted_speed_up_does_not_look_measured():
    rows = [
        Row(row="t", metric="speedup", value=1.0, baseline="t"),
        Row(row="p", metric="speedup", value=2.0, baseline="t", kind="predicted"),
    ]
    chart = speed_chart(summarise(rows).groups[0])
    assert len(rectangles(chart, "whole assumed")) == 1
    assert "predicted, not run" in chart


def test_the_segments_of_a_stacked_bar_follow_each_other():
    bars = [Bar(label="a", amounts={"prefill-draft": 0.25, "draft": 0.5, "target": 0.25})]
    chart = stacked_chart(bars, ORIGIN_PARTS, full=1.0)
    places = [rectangles(chart, f"part {part.key}")[0] for part in ORIGIN_PARTS]
    assert places == [("0.00", "25.00"), ("25.00", "50.00"), ("75.00", "25.00")]


def test_nothing_to_draw_gives_no_chart():
    (group,) = summarise([Row(row="a", metric="tau", value=1.0)]).groups
    assert speed_chart(group) is None
    assert stacked_chart([], ORIGIN_PARTS) is None


def test_every_line_with_a_speed_up_is_drawn():
    for group in summarise(made_up.rows()).groups:
        chart = speed_chart(group)
        assert chart.count('role="img"') == len(group.lines)
