import numpy as np
import pytest

from xmsd_jax.data.events import Events
from xmsd_jax.data.npy import read_event_npy
from xmsd_jax.data.npy_writer import write_event_npy

NOTES = {"time_start": 51_837_449_776, "duration_ms": 1000.0, "images": [1, 2, 70_000], "none": [], "below": -129}


def some_events(count: int) -> Events:
    rng = np.random.default_rng(count)
    return Events(
        x=rng.integers(0, 640, count).astype(np.uint16), y=rng.integers(0, 480, count).astype(np.uint16),
        p=rng.integers(0, 2, count).astype(np.uint8), t=51_837_449_776 + np.sort(rng.integers(0, 10**6, count)),
        height=480, width=640,
    )  # fmt: skip


def same(one: Events, two: Events) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in "xypt")


@pytest.mark.parametrize("count", [1, 127, 128, 255, 256, 40_000])
def test_numpy_and_our_reader_read_what_is_written(count, tmp_path):
    events = some_events(count)
    write_event_npy(tmp_path / "sub" / "e.npy", events, NOTES)
    loaded = np.load(tmp_path / "sub" / "e.npy", allow_pickle=True).item()
    assert {name: loaded[name] for name in NOTES} == NOTES
    for name in "xypt":
        assert np.array_equal(loaded[name], getattr(events, name))
        assert loaded[name].dtype == getattr(events, name).dtype
    assert same(read_event_npy(tmp_path / "sub" / "e.npy", (480, 640)), events)
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["e.npy"]


def test_parts_of_a_stream_are_written_as_they_are(tmp_path):
    events = some_events(100)[10:90:2]
    write_event_npy(tmp_path / "e.npy", events)
    assert same(read_event_npy(tmp_path / "e.npy", (480, 640)), events)


def test_numpys_own_file_of_the_same_dict_reads_equal(tmp_path):
    events = some_events(1000)
    write_event_npy(tmp_path / "ours.npy", events, NOTES)
    np.save(tmp_path / "theirs.npy", {name: getattr(events, name) for name in "ptxy"} | NOTES, allow_pickle=True)
    assert same(read_event_npy(tmp_path / "ours.npy"), read_event_npy(tmp_path / "theirs.npy"))


def test_a_real_file_of_dsec_comes_back_equal(needs_shared, tmp_path):
    events = read_event_npy(needs_shared / "data" / "dsec_interlaken_00_d_000099.npy")
    write_event_npy(tmp_path / "e.npy", events)
    assert same(read_event_npy(tmp_path / "e.npy"), events)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="invalid literal"):
        write_event_npy(tmp_path / "e.npy", some_events(5), {"images": ["no number"]})
    assert list(tmp_path.iterdir()) == []
