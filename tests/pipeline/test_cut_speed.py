import sys

import numpy as np
import pytest

from xmsd_jax.config import UserError
from xmsd_jax.data.dsec import find_drive, image_times, windows
from xmsd_jax.data.dsec_events import EventFile
from xmsd_jax.data.dsec_made import NAME, START_US, write_made_events
from xmsd_jax.pipeline.cut_speed import measure


def test_a_made_recording_is_one_of_dsec(tmp_path):
    write_made_events(tmp_path, seconds=2, events_per_second=100_000)
    drive = find_drive([tmp_path], NAME)
    spans = windows(image_times(drive.times))
    assert [start - START_US for start, _ in spans] == [0, 500_000, 1_000_000]
    with EventFile(drive.events) as file:
        cuts = [file.cut(*span) for span in spans]
    for (start, stop), cut in zip(spans, cuts, strict=True):
        assert abs(len(cut) - 100_000) < 2_000
        assert start <= cut.t[0] < start + 1000
        assert stop - 1000 < cut.t[-1] < stop
    assert len({cut.x.tobytes() for cut in cuts}) == 3


def test_the_same_seed_gives_the_same_recording(tmp_path):
    homes = [
        write_made_events(tmp_path / n, seconds=1, events_per_second=20_000, seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    ]
    spans = windows(image_times(homes[0] / "images" / "timestamps.txt"))
    cuts = []
    for home in homes:
        with EventFile(home / "events" / "left" / "events.h5") as file:
            cuts.append(file.cut(*spans[0]))
    assert np.array_equal(cuts[0].y, cuts[1].y)
    assert not np.array_equal(cuts[0].t[:1000], cuts[2].t[:1000])


def test_the_figures_are_rates_of_one_core_and_fit_together(tmp_path):
    figures = measure(tmp_path, 0.3, recording_seconds=2, events_per_second=1_000_000)
    assert set(figures) == {"cut", "render", "cut_and_render", "recording", "events", "bytes_per_event"}
    assert all(value > 0 for value in figures.values())
    assert figures["cut_and_render"] < figures["render"]
    assert figures["recording"] == pytest.approx(figures["cut_and_render"] * 2 / 3)  # 2 s in three clips
    assert figures["events"] == pytest.approx(2.0, rel=0.01)
    assert 1 < figures["bytes_per_event"] < 9
    assert figures["cut_and_render"] > 2  # a tenth of what is asked for, on a machine that others use too


def test_the_recording_is_written_once(tmp_path):
    measure(tmp_path, 0.01, recording_seconds=1, events_per_second=50_000)
    file = tmp_path / NAME / "events" / "left" / "events.h5"
    before = file.stat().st_mtime_ns
    measure(tmp_path, 0.01, recording_seconds=1, events_per_second=50_000)
    assert file.stat().st_mtime_ns == before


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'xmsd\[dsec\]'"):
        measure(tmp_path, 0.01)
