import json
from dataclasses import replace

import numpy as np
import pytest

from xmsd_jax.data.clip_folder import ClipFolder, ClipFolderWriter
from xmsd_jax.data.clips import Clip, ClipError, load_clip, save_clip
from xmsd_jax.data.events import Events


def make_clip(name: str, sequence: str = "street") -> Clip:
    events = Events(
        x=np.array([1, 2], np.uint16), y=np.array([0, 1], np.uint16), p=np.array([0, 1], np.uint8),
        t=np.array([5, len(name) + 10]), height=4, width=4,
    )  # fmt: skip
    video = np.full((2, 4, 4, 3), len(name), np.uint8)
    return Clip(
        name=name, sequence=sequence, events=events, video=video, frame_times_us=np.array([0, 50]),
        facts={"name": name}, start_us=0, stop_us=100,
    )  # fmt: skip


def write(path, about=None, names=("a", "bb", "ccc")):
    writer = ClipFolderWriter(path, about or {"made of": ("tuples", 1)})
    for name in names:
        writer.add("train" if name != "ccc" else "test", make_clip(name))
    return writer


def test_a_folder_lists_and_loads_what_was_written_split_by_split(tmp_path):
    closed = write(tmp_path / "f").close()
    folder = ClipFolder.open(tmp_path / "f")
    assert folder.fingerprint == closed.fingerprint
    assert folder.splits == ("train", "test")
    assert [entry.name for entry in folder.entries("train")] == ["a", "bb"]
    for entry in folder.clips:
        assert folder.load(entry).fingerprint() == make_clip(entry.name).fingerprint() == entry.fingerprint
    with pytest.raises(ClipError, match="no split 'validation'"):
        folder.entries("validation")


def test_the_fingerprint_is_that_of_the_content_not_of_the_place_or_time(tmp_path):
    one, two = write(tmp_path / "f").close(), write(tmp_path / "g").close()
    assert one.fingerprint == two.fingerprint
    assert write(tmp_path / "h", names=("a", "bb")).close().fingerprint != one.fingerprint


def test_a_killed_writer_goes_on_and_keeps_whole_clips_only(tmp_path):
    write(tmp_path, names=("a", "bb"))  # never closed
    with pytest.raises(ClipError, match="no finished clip folder"):
        ClipFolder.open(tmp_path)
    kept = (tmp_path / "train" / "a.npz").stat().st_mtime_ns
    (tmp_path / "train" / "bb.npz").write_bytes(b"half")
    writer = write(tmp_path)
    assert writer.kept == 1
    assert (tmp_path / "train" / "a.npz").stat().st_mtime_ns == kept
    folder = writer.close()
    assert [folder.load(entry).name for entry in folder.clips] == ["a", "bb", "ccc"]


def test_a_clip_of_the_same_name_and_other_content_is_written_anew(tmp_path):
    ClipFolderWriter(tmp_path, {}).add("train", make_clip("a"))
    writer = ClipFolderWriter(tmp_path, {})
    writer.add("train", replace(make_clip("a"), facts={"new": True}))
    assert writer.kept == 0
    assert load_clip(tmp_path / "train" / "a.npz").facts == {"new": True}


@pytest.mark.parametrize("finished", [True, False])
def test_other_work_in_the_folder_is_removed_before_new_work_starts(finished, tmp_path):
    writer = write(tmp_path, about={"seed": 1})
    if finished:
        writer.close()
    folder = write(tmp_path, about={"seed": 2}, names=("dddd",)).close()
    assert folder.about == {"seed": 2}
    assert [file.name for file in tmp_path.glob("*/*")] == ["dddd.npz"]


def test_a_folder_that_holds_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ClipError, match="not empty and no clip folder"):
        ClipFolderWriter(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_name_is_a_file_name_and_given_once(tmp_path):
    writer = write(tmp_path, names=("a",))
    with pytest.raises(ClipError, match="two clips are named 'a'"):
        writer.add("test", make_clip("a"))
    for name in ("../a", "a/b", ".a", "", "a b"):
        with pytest.raises(ClipError, match="a name is letters"):
            writer.add("train", replace(make_clip("b"), name=name))
    with pytest.raises(ClipError, match="a name is letters"):
        writer.add("../train", make_clip("b"))


def test_a_swapped_clip_is_not_taken_for_the_listed_one(tmp_path):
    folder = write(tmp_path).close()
    save_clip(tmp_path / "train" / "a.npz", make_clip("bb"))
    with pytest.raises(ClipError, match=r"a\.npz: is not the clip"):
        folder.load(folder.clips[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda listed: listed.update(format="other"),
        lambda listed: listed.pop("clips"),
        lambda listed: listed["clips"][0].pop("file"),
        lambda listed: listed["clips"][0].update(file="../../a.npz"),
        lambda listed: listed["clips"][0].update(name="../a", file="train/../a.npz"),
        lambda listed: listed.update(clips=7),
    ],
)
def test_a_damaged_list_is_refused(change, tmp_path):
    write(tmp_path).close()
    listed = json.loads((tmp_path / "clips.json").read_text())
    change(listed)
    (tmp_path / "clips.json").write_text(json.dumps(listed))
    with pytest.raises(ClipError):
        ClipFolder.open(tmp_path)


def test_a_list_that_is_no_json_or_no_folder_is_refused(tmp_path):
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"null"):
        (tmp_path / "clips.json").write_bytes(content)
        with pytest.raises(ClipError, match=r"clips\.json: damaged or foreign"):
            ClipFolder.open(tmp_path)
        with pytest.raises(ClipError, match=r"clips\.json: damaged or foreign"):
            ClipFolderWriter(tmp_path, {})
    with pytest.raises(ClipError, match="no finished clip folder"):
        ClipFolder.open(tmp_path / "none")
