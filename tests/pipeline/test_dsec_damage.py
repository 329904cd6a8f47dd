"""Damaged DSEC input: named with its path, fatal or skipped and listed, as the policy says."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.dsec_recordings import write_events
from tests.pipeline.dsec_runs import of, recorded
from xmsd_jax.config import UserError
from xmsd_jax.data import dsec
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.dsec import Damage, windows
from xmsd_jax.pipeline.clips import run
from xmsd_jax.pipeline.dsec_clips import skipped_clips


@pytest.fixture
def recordings(tmp_path):
    return recorded(tmp_path / "dsec")


def remove(path):
    path.unlink()


def damage_events(truth, change):
    columns = {name: column.copy() for name, column in truth.columns.items()}
    columns["t"] = columns["t"] - columns["t"][0]
    change(columns, truth)
    offset = int(truth.columns["t"][0])
    write_events(truth.events, {name: column.astype(np.int64) for name, column in columns.items()}, offset=offset)


def backwards(columns, truth):
    late = np.flatnonzero(columns["t"] > columns["t"][-1] - 300_000)
    columns["t"][late[5]], columns["t"][late[9]] = columns["t"][late[9]], columns["t"][late[5]] - 1000


def none_in_the_last_second(columns, truth):
    before = truth.columns["t"] < windows(truth.times)[-1][0]
    for name in columns:
        columns[name] = columns[name][before]


DAMAGES = {
    # of sequence c, five clips: what is done, kind, which of its clips are lost, the file that is named
    "truncated events": (
        lambda t: t.events.write_bytes(t.events.read_bytes()[:-500]), dsec.UNREADABLE, [0, 1, 2, 3, 4], "events.h5",
    ),
    "no events file": (lambda t: remove(t.events), dsec.MISSING, [0, 1, 2, 3, 4], "events.h5"),
    "missing picture": (lambda t: remove(t.pictures_folder / "000000.png"), dsec.MISSING, [0], "000000.png"),
    "truncated picture": (
        lambda t: (t.pictures_folder / "000059.png").write_bytes(b"\x89PNG\r\n"), dsec.UNREADABLE, [4], "000059.png",
    ),
    "time backwards in events": (lambda t: damage_events(t, backwards), dsec.BACKWARDS, [4], "events.h5"),
    "no event in a clip": (lambda t: damage_events(t, none_in_the_last_second), dsec.EMPTY, [4], "events.h5"),
    "time backwards in images": (
        lambda t: t.times_file.write_text("\n".join(map(str, t.times[::-1]))), dsec.BACKWARDS, [None], "timestamps.txt",
    ),
    "no image times": (lambda t: remove(t.times_file), dsec.MISSING, [None], "timestamps.txt"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_fatal_or_listed_as_the_policy_says(damage, recordings, tmp_path, capsys):
    root, truths = recordings
    change, kind, lost, file = DAMAGES[damage]
    change(truths["c"])
    with pytest.raises(Damage) as caught:
        run(of(root, damaged="stop"), tmp_path / "run")
    assert caught.value.kind == kind
    assert str(caught.value).split(": ")[0].endswith(f"/{file}")
    with pytest.raises(UserError, match="no finished clip folder"):
        ClipFolder.open(tmp_path / "run" / "clips")
    capsys.readouterr()
    folder = run(of(root, damaged="skip"), tmp_path / "run")  # goes on with what the stopped run has
    listed = skipped_clips(folder.path)
    assert [(entry["split"], entry["sequence"], entry["number"], entry["kind"]) for entry in listed] == [
        ("test", "c", number, kind) for number in lost
    ]
    assert all(Path(entry["path"]).name == file and entry["reason"] for entry in listed)
    left = [] if lost == [None] else [number for number in range(5) if number not in lost]
    assert [entry.name for entry in folder.clips if entry.sequence == "c"] == [f"c_{number:06d}" for number in left]
    told = capsys.readouterr().out
    assert f"{len(lost)} skipped ({kind} {len(lost)}), listed in {folder.path / 'skipped.json'}" in told
    with pytest.raises(UserError, match="are left out; keep that policy"):
        run(of(root, damaged="stop"), tmp_path / "run")


def test_damage_in_a_process_comes_back_whole(recordings, tmp_path):
    root, truths = recordings
    remove(truths["c"].pictures_folder / "000000.png")
    with pytest.raises(Damage, match=r"000000\.png: picture is missing") as caught:
        run(of(root, workers=2), tmp_path / "stop")
    assert (caught.value.kind, caught.value.path) == (dsec.MISSING, str(truths["c"].pictures_folder / "000000.png"))
    folder = run(of(root, workers=2, damaged="skip"), tmp_path / "skip")
    assert [entry["number"] for entry in skipped_clips(folder.path)] == [0]


def test_where_no_clip_is_left_nothing_is_finished(recordings, tmp_path):
    root, truths = recordings
    for truth in truths.values():
        remove(truth.events)
    with pytest.raises(UserError, match=r"no clip is left of the sequences; the first of 9: .*events\.h5"):
        run(of(root, damaged="skip"), tmp_path)
