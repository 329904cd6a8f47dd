import numpy as np
import pytest

from xmsd_jax.data.event_files import read_events
from xmsd_jax.data.events import EventError

COLUMNS = {"x": np.array([3, 0, 9]), "y": np.array([1, 2, 0]), "p": np.array([False, True, True])}
COLUMNS["t"] = np.array([1, 1, 5])


def npz(folder, **arrays):
    np.savez(folder / "e.npz", **arrays)
    return folder / "e.npz"


def test_the_frame_is_the_given_one_else_the_files_else_as_far_as_events_reach(tmp_path):
    path = npz(tmp_path, **COLUMNS, height=np.int64(20), width=np.int64(30))
    events = read_events(path)
    assert (events.height, events.width) == (20, 30)
    assert read_events(path, (40, 50)).width == 50
    assert all(np.array_equal(getattr(events, name), COLUMNS[name]) for name in "xypt")
    events = read_events(npz(tmp_path, **COLUMNS))
    assert (events.height, events.width) == (3, 10)


def test_the_pickled_kind_is_read_by_its_ending(tmp_path):
    np.save(tmp_path / "e.npy", COLUMNS, allow_pickle=True)  # type: ignore[arg-type]
    assert len(read_events(tmp_path / "e.npy")) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t": np.array([5, 1, 1])}, "not sorted"),
        ({"height": np.int64(2), "width": np.int64(30)}, "out of the frame"),
        ({"height": np.zeros(3, int), "width": np.int64(30)}, "one integer each"),
        ({name: np.zeros(0, int) for name in "xypt"}, "no event"),
        ({"x": np.array(["a", "b", "c"])}, "integer"),
        ({"x": np.array([1, 2, None], object)}, "not a readable npz"),
    ],
)
def test_bad_events_and_objects_are_refused_with_the_path(changes, words, tmp_path):
    with pytest.raises(EventError, match=rf"e\.npz.*{words}"):
        read_events(npz(tmp_path, **{**COLUMNS, **changes}))


def test_missing_truncated_foreign_and_unknown_files_are_refused(tmp_path):
    path = npz(tmp_path, **COLUMNS)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:-30], whole[:200]):
        path.write_bytes(content)
        with pytest.raises(EventError, match="not a readable npz"):
            read_events(path)
    with pytest.raises(EventError, match="lacks p, t"):
        read_events(npz(tmp_path, x=COLUMNS["x"], y=COLUMNS["y"]))
    with pytest.raises(EventError, match="no such file"):
        read_events(tmp_path / "none.npz")
    with pytest.raises(EventError, match="unknown kind"):
        read_events(tmp_path / "events.h5")
