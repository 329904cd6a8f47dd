import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmsd_jax.data import events as module
from xmsd_jax.data.events import (
    EventError,
    EventFrames,
    Events,
    checked,
    render,
    sized,
    split_by_count,
    split_by_time,
)

HEIGHT, WIDTH = 5, 7
COLOURS = {0: (0, 0, 255), 1: (255, 0, 0)}
fuzz = settings(max_examples=80, deadline=None)


def make(rows, height=HEIGHT, width=WIDTH) -> Events:
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    x, y, p, t = (c.astype(kind) for c, kind in zip(columns, ("u2", "u2", "u1", "i8"), strict=True))
    return Events(x=x, y=y, p=p, t=t, height=height, width=width)


def rows_of(events: Events) -> list[tuple[int, ...]]:
    return list(zip(events.x.tolist(), events.y.tolist(), events.p.tolist(), events.t.tolist(), strict=True))


event_rows = st.lists(
    st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(0, 1), st.integers(-50, 50)),
    max_size=60,
).map(lambda rows: sorted(rows, key=lambda row: row[3]))


@fuzz
@given(rows=event_rows, n=st.integers(1, 12))
def test_split_by_count_keeps_every_event_in_order_in_equal_parts_with_the_rest_in_the_last(rows, n):
    parts = split_by_count(make(rows), n)
    assert [row for part in parts for row in rows_of(part)] == rows
    assert [len(part) for part in parts] == [len(rows) // n] * (n - 1) + [len(rows) // n + len(rows) % n]


@fuzz
@given(rows=event_rows, n=st.integers(1, 12), start=st.integers(-60, 40), length=st.integers(1, 90))
def test_split_by_time_is_a_partition_of_the_window(rows, n, start, length):
    stop = start + length
    parts = split_by_time(make(rows), n, start_us=start, stop_us=stop)
    assert [row for part in parts for row in rows_of(part)] == [row for row in rows if start <= row[3] < stop]
    for i, part in enumerate(parts):
        low, high = start + length * i // n, start + length * (i + 1) // n
        assert all(low <= t < high for t in part.t.tolist())


@fuzz
@given(rows=event_rows, start=st.integers(-60, 60), stop=st.integers(-60, 60))
def test_window_is_half_open(rows, start, stop):
    assert rows_of(make(rows).window(start, stop)) == [row for row in rows if start <= row[3] < stop]


@fuzz
@given(rows=event_rows, chunk=st.integers(1, 70))
def test_last_event_wins_as_in_a_plain_loop(rows, chunk):
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for x, y, p, _ in rows:
        image[y, x] = COLOURS[p]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        assert np.array_equal(render(make(rows)), image)


@fuzz
@given(rows=event_rows)
def test_blue_wins_wherever_a_pixel_ever_darkened(rows):
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for x, y, p, _ in sorted(rows, key=lambda row: -row[2]):
        image[y, x] = COLOURS[p]
    assert np.array_equal(render(make(rows), rule="blue-wins"), image)


def test_the_two_rules_differ_where_a_pixel_brightened_last():
    events = make([(1, 1, 0, 0), (1, 1, 1, 1)])
    assert tuple(render(events)[1, 1]) == COLOURS[1]
    assert tuple(render(events, rule="blue-wins")[1, 1]) == COLOURS[0]
    with pytest.raises(ValueError, match="rule must be"):
        render(events, rule="red-wins")  # type: ignore[arg-type]


def test_last_event_wins_over_millions_of_repeats_of_few_pixels():
    rng = np.random.default_rng(1)
    x, p = rng.integers(0, 50, 1_000_000).astype(np.uint16), rng.integers(0, 2, 1_000_000).astype(np.uint8)
    events = Events(x=x, y=np.zeros_like(x), p=p, t=np.arange(len(x)), height=1, width=50)
    last = [p[len(x) - 1 - np.argmax(x[::-1] == column)] for column in range(50)]
    assert np.array_equal(render(events)[0], [COLOURS[int(polarity)] for polarity in last])


def test_rendering_keeps_up_with_ten_million_events_a_second():
    rng = np.random.default_rng(0)
    n = 2_000_000
    events = Events(
        x=rng.integers(0, 640, n).astype(np.uint16), y=rng.integers(0, 480, n).astype(np.uint16),
        p=rng.integers(0, 2, n).astype(np.uint8), t=np.arange(n), height=480, width=640,
    )  # fmt: skip
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert EventFrames().frames(events).shape == (5, 480, 640, 3)
        seconds.append(time.perf_counter() - start)
    assert n / min(seconds) > 10e6


def test_an_image_that_cannot_hold_the_events_is_refused():
    events = make([(6, 4, 1, 0)])
    assert render(events, size=(8, 9)).shape == (8, 9, 3)
    for size in ((4, 7), (5, 6)):
        with pytest.raises(EventError, match="out of the frame"):
            render(events, size=size)


def test_frames_are_the_rendered_parts_and_first_takes_one():
    events = make([(i, i % 5, i % 2, i * i) for i in range(7)])
    by_count = EventFrames(n=3).frames(events)
    assert np.array_equal(by_count, [render(part) for part in split_by_count(events, 3)])
    assert np.array_equal(EventFrames(n=3, use="first").frames(events), by_count[:1])
    by_time = EventFrames(n=2, split="time").frames(events)
    assert np.array_equal(by_time, [render(part) for part in split_by_time(events, 2, start_us=0, stop_us=37)])
    windowed = EventFrames(n=2, split="time").frames(events, start_us=0, stop_us=8)
    assert np.array_equal(windowed[0], render(events[:2]))
    blue = EventFrames(n=1, rule="blue-wins").frames(events)
    assert np.array_equal(blue[0], render(events, rule="blue-wins"))


def test_no_events_render_white_and_need_a_window_to_be_split_by_time():
    assert (EventFrames(n=2).frames(make([])) == 255).all()
    assert (EventFrames(n=2, split="time").frames(make([]), start_us=0, stop_us=9) == 255).all()
    with pytest.raises(EventError, match="window"):
        EventFrames(split="time").frames(make([]))


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_one_part_is_refused(n):
    with pytest.raises(ValueError, match="n >= 1"):
        split_by_count(make([(0, 0, 0, 0)]), n)
    with pytest.raises(ValueError, match="start < stop"):
        split_by_time(make([(0, 0, 0, 0)]), 2, start_us=5, stop_us=5)


GOOD = make([(0, 0, 0, 10), (6, 4, 1, 10), (3, 2, 1, 12)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"t": np.array([10, 9, 12])}, ["not sorted", "t[0] = 10", "sort"]),
        ({"x": np.array([0, 7, 3])}, ["out of the frame", "x runs from 0 to 7", "7x5"]),
        ({"y": np.array([0, -1, 3])}, ["out of the frame", "y runs from -1"]),
        ({"p": np.array([-1, 1, 1])}, ["0 or 1", "-1"]),
        ({"p": np.array([0, 1])}, ["one length", "'p': 2"]),
        ({"x": np.array([0.0, 1.0, 2.0])}, ["integer", "float64"]),
        ({"t": np.array([[10, 11, 12]])}, ["1-d"]),
        ({"t": np.array([1, 2, 1 << 63], np.uint64)}, ["int64"]),
        ({name: np.array([], np.int64) for name in "xypt"}, ["no event"]),
    ],
)
def test_bad_events_are_refused_in_one_line_that_names_the_place_and_the_remedy(change, words):
    with pytest.raises(EventError) as caught:
        checked(replace(GOOD, **change), where="some/file.npy")
    text = str(caught.value)
    assert text.startswith("some/file.npy: ")
    assert "\n" not in text
    assert all(word in text for word in words)


def test_checked_events_have_the_contract_types_and_the_same_values():
    wide = replace(GOOD, x=GOOD.x.astype(np.int64), p=GOOD.p.astype(bool), t=GOOD.t.astype(np.uint32))
    events = checked(wide, where="here")
    assert [getattr(events, name).dtype.str[1:] for name in "xypt"] == ["u2", "u2", "u1", "i8"]
    assert rows_of(events) == rows_of(GOOD)


def test_an_unknown_sensor_is_as_large_as_its_events_reach():
    columns = {name: getattr(GOOD, name) for name in "xypt"}
    events = sized(columns, None, where="here")
    assert (events.height, events.width) == (5, 7)
    assert sized(columns, (480, 640), where="here").height == 480
    with pytest.raises(EventError, match="no sensor is so large"):
        sized({**columns, "x": np.array([0, 1, 60_000]), "y": np.array([0, 1, 60_000])}, None, where="here")
