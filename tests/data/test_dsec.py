import sys

import h5py
import numpy as np
import pytest

from tests.data.dsec_recordings import FIRST, LAYOUTS, OFFSET, event_columns, write_events, write_recording
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data import dsec
from xmsd_jax.data.dsec import Damage, find_drive, image_times, pictures_within, read_pictures, windows
from xmsd_jax.data.dsec_events import EventFile
from xmsd_jax.report.png import encode_png

SECOND = 1_000_000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_are_found_and_give_the_same(layout, tmp_path):
    truth = write_recording(tmp_path, "thun_00_a", layout=layout)
    drive = find_drive([tmp_path / "elsewhere", tmp_path], "thun_00_a")
    assert drive.parts == (truth.events, truth.times_file, truth.pictures_folder)
    assert np.array_equal(image_times(drive.times), truth.times)
    assert np.array_equal(read_pictures(drive, np.array([3, 7]), None), truth.pictures[[3, 7]])
    with EventFile(drive.events) as file:
        assert len(file.cut(FIRST, FIRST + SECOND)) == len(truth.within(FIRST, FIRST + SECOND)["t"])


def test_events_and_images_may_lie_in_trees_of_their_own(tmp_path):
    truth = write_recording(tmp_path / "images", "thun_00_a")
    (tmp_path / "events" / "thun_00_a").mkdir(parents=True)
    (truth.home / "events").rename(tmp_path / "events" / "thun_00_a" / "events")
    drive = find_drive([tmp_path / "events", tmp_path / "images"], "thun_00_a")
    assert drive.events == tmp_path / "events" / "thun_00_a" / "events" / "left" / "events.h5"
    assert drive.times == truth.times_file
    assert drive.pictures == truth.pictures_folder


def test_a_sequence_that_lies_nowhere_is_an_error_of_the_config(tmp_path):
    with pytest.raises(ConfigError, match=r"roots: none of .* has a folder thun_00_a"):
        find_drive([tmp_path], "thun_00_a")


@pytest.mark.parametrize("last", [999_999, SECOND, 1_499_999, 1_500_000, 1_500_001, 2_000_000, 67_499_999, 67_500_000])
def test_the_number_of_clips_is_that_of_the_formula_and_each_is_inside(last):
    spans = windows(np.array([FIRST, FIRST + last // 2, FIRST + last]))
    expected = np.floor((last - 1e6) / 5e5) + 1
    assert len(spans) == max(expected, 0)
    assert [start for start, _ in spans] == [FIRST + 500_000 * i for i in range(len(spans))]
    assert all(stop - start == SECOND and stop <= FIRST + last for start, stop in spans)
    assert not spans or spans[-1][1] + 500_000 > FIRST + last


def test_a_window_has_exactly_the_events_from_its_start_to_before_its_end(tmp_path):
    truth = write_recording(tmp_path, "a")
    with EventFile(truth.events) as file:
        for start, stop in windows(truth.times):
            cut, expected = file.cut(start, stop), truth.within(start, stop)
            for name, column in expected.items():
                assert np.array_equal(getattr(cut, name), column)
            assert cut.t[0] == start  # the recording has events on and around both ends
            assert cut.t[-1] == stop - 1
            assert {start - 1, stop} <= set(truth.columns["t"].tolist())
            assert (cut.height, cut.width) == (480, 640)
            assert [getattr(cut, name).dtype for name in "xypt"] == [np.uint16, np.uint16, np.uint8, np.int64]


@pytest.mark.parametrize("order", [[4, 0, 3, 1], [0, 2, 4], [2, 2, 1, 2]])
def test_what_windows_share_is_right_in_any_order(order, tmp_path):
    truth = write_recording(tmp_path, "a", seconds=3.2)
    spans = windows(truth.times)
    with EventFile(truth.events) as file:
        for index in order:
            assert np.array_equal(file.cut(*spans[index]).x, truth.within(*spans[index])["x"])


def test_going_forward_reads_each_event_once(tmp_path, monkeypatch):
    truth = write_recording(tmp_path, "a")
    reads = []
    read = EventFile._read
    monkeypatch.setattr(EventFile, "_read", lambda f, name, a, b: reads.append((name, b - a)) or read(f, name, a, b))
    with EventFile(truth.events) as file:
        for span in windows(truth.times):
            file.cut(*span)
    covered = truth.within(windows(truth.times)[0][0], windows(truth.times)[-1][1])
    assert sum(count for name, count in reads if name == "x") == len(covered["x"])


def test_the_offset_moves_the_clock_and_windows_outside_the_recording_are_empty(tmp_path):
    columns = event_columns(2.0, 500, 1)
    write_events(tmp_path / "e.h5", columns, offset=7)
    with EventFile(tmp_path / "e.h5") as file:
        assert np.array_equal(file.cut(0, 10**9).t, columns["t"].astype(np.int64) + 7)
        for start in (-3 * SECOND, 10**9):
            with pytest.raises(Damage, match=r"e\.h5: no event in") as caught:
                file.cut(start, start + SECOND)
            assert caught.value.kind == dsec.EMPTY


def test_pictures_are_those_within_the_window_thinned_as_the_target_does_it():
    times = FIRST + 50_000 * np.arange(48)
    assert pictures_within(times, FIRST, FIRST + SECOND, None).tolist() == list(range(20))
    assert pictures_within(times, FIRST + 500_000, FIRST + 1_500_000, None).tolist() == list(range(10, 30))
    eight = pictures_within(times, FIRST, FIRST + SECOND, 8)
    assert eight.tolist() == np.linspace(0, 19, 8).astype(int).tolist()
    assert eight[np.linspace(0, 7, 8).astype(int)].tolist() == eight.tolist()
    assert pictures_within(times, FIRST, FIRST + 100_000, 8).tolist() == [0, 1]


def test_pictures_are_scaled_when_asked(tmp_path):
    truth = write_recording(tmp_path, "a")
    scaled = read_pictures(find_drive([tmp_path], "a"), np.array([5]), (16, 24))
    assert scaled.shape == (1, 16, 24, 3)
    assert abs(scaled.astype(int) - int(truth.pictures[5, 0, 0, 0])).max() <= 2


def damaged_events(path, damage):
    columns = event_columns(2.0, 2000, 2)
    if damage == "backwards":
        columns["t"][1200], columns["t"][1300] = columns["t"][1300], columns["t"][1200]
    if damage in "xyp":
        columns[damage][1200] = {"x": 640, "y": 480, "p": 2}[damage]
    table = None
    if damage == "table":
        table = [int((columns["t"] < ms * 1000 + 2000).sum()) for ms in range(2300)]
    if damage == "table beyond":
        table = [10**6] * 2300
    write_events(path, columns, ms_to_idx=table)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    if damage == "no hdf5":
        path.write_bytes(b"no recording")
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "no t_offset":
        with h5py.File(path, "a") as file:
            del file["t_offset"]
    if damage == "lengths":
        with h5py.File(path, "a") as file:
            del file["events/x"]
            file["events/x"] = columns["x"][:-1]
    if damage == "chunk":
        with h5py.File(path, "r") as file:
            chunk = file["events/x"].id.get_chunk_info(5)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "kind", "told"),
    [
        ("backwards", dsec.BACKWARDS, r"time runs backwards: t\["),
        ("x", dsec.FOREIGN, "x runs from 0 to 640"),
        ("y", dsec.FOREIGN, "y runs from 0 to 480"),
        ("p", dsec.FOREIGN, "p runs from 0 to 2"),
        ("table", dsec.FOREIGN, "ms_to_idx does not fit"),
        ("table beyond", dsec.FOREIGN, "ms_to_idx gives 1000000"),
        ("truncated", dsec.UNREADABLE, "truncated"),
        ("no hdf5", dsec.UNREADABLE, "not a readable HDF5"),
        ("empty", dsec.UNREADABLE, "not a readable HDF5"),
        ("no t_offset", dsec.UNREADABLE, "t_offset"),
        ("lengths", dsec.UNREADABLE, "one length"),
        ("chunk", dsec.UNREADABLE, "events/x cannot be read"),
    ],
)
def test_damaged_events_are_told_with_kind_and_path(damage, kind, told, tmp_path):
    damaged_events(tmp_path / "e.h5", damage)
    with pytest.raises(Damage, match=told) as caught, EventFile(tmp_path / "e.h5") as file:
        file.cut(OFFSET + 300_000, OFFSET + 2_000_000)
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{tmp_path / 'e.h5'}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_damage_spares_the_windows_that_it_does_not_touch(tmp_path):
    truth = write_recording(tmp_path, "a", seconds=3.0)
    columns = {name: column.copy() for name, column in truth.columns.items()}
    columns["t"] = (columns["t"] - OFFSET).astype(np.uint32)
    columns["x"][-1] = 640
    write_events(truth.events, columns)
    with EventFile(truth.events) as file:
        assert np.array_equal(file.cut(FIRST, FIRST + SECOND).x, truth.within(FIRST, FIRST + SECOND)["x"])


def test_a_missing_event_file_and_missing_packages_are_told(tmp_path, monkeypatch):
    with pytest.raises(Damage, match="no event file") as caught:
        EventFile(tmp_path / "e.h5")
    assert caught.value.kind == dsec.MISSING
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(UserError, match=r"pip install 'xmsd\[dsec\]'") as caught:
        EventFile(tmp_path / "e.h5")
    assert not isinstance(caught.value, Damage)


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("", dsec.UNREADABLE, "no image time"),
        ("12\nx\n", dsec.UNREADABLE, "whole microseconds"),
        ("12\n99999999999999999999999\n", dsec.UNREADABLE, "whole microseconds"),
        ("12\n13\n13\n", dsec.BACKWARDS, "line 2 is 13 us, the next 13"),
        ("12\n11\n", dsec.BACKWARDS, "line 1 is 12 us, the next 11"),
        (None, dsec.MISSING, "no image times"),
    ],
)
def test_damaged_image_times_are_told(text, kind, told, tmp_path):
    path = tmp_path / "timestamps.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Damage, match=told) as caught:
        image_times(path)
    assert (caught.value.kind, caught.value.path) == (kind, str(path))


@pytest.mark.parametrize(
    ("damage", "kind", "told"),
    [
        (lambda path: path.unlink(), dsec.MISSING, "picture is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), dsec.UNREADABLE, "truncated"),
        (lambda path: path.write_bytes(b"GIF89a"), dsec.UNREADABLE, "not a PNG"),
        (lambda path: path.write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8))), dsec.FOREIGN, r"is \(4, 4\)"),
    ],
)
def test_damaged_pictures_are_told(damage, kind, told, tmp_path):
    truth = write_recording(tmp_path, "a")
    damage(truth.pictures_folder / "000004.png")
    with pytest.raises(Damage, match=told) as caught:
        read_pictures(find_drive([tmp_path], "a"), np.array([3, 4]), None)
    assert (caught.value.kind, caught.value.path) == (kind, str(truth.pictures_folder / "000004.png"))
