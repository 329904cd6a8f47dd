import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips import ClipError, save_clip
from xmsd_jax.data.events import EventError, EventFrames, Events, serves
from xmsd_jax.data.npy import read_event_npy
from xmsd_jax.data.video import VideoError, write_video
from xmsd_jax.report.png import encode_png

START = 51_837_449_776
SEQUENCES = {"interlaken_00_a": 2, "thun_01_a": 1}


def study_events(seed: int, count: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "p": rng.integers(0, 2, count).astype(np.uint8), "t": START + np.sort(rng.integers(0, 10**6, count)),
        "x": rng.integers(0, 60, count).astype(np.uint16), "y": rng.integers(0, 40, count).astype(np.uint16),
    }  # fmt: skip


def study_picture(x, y, p) -> np.ndarray:
    """The fast renderer of the study: sized by its own largest coordinates, red first, then blue over it."""
    image = np.full((y.max() + 1, x.max() + 1, 3), 255, np.uint8)
    image[y[p == 1], x[p == 1]] = (255, 0, 0)
    image[y[p == 0], x[p == 0]] = (0, 0, 255)
    return image


def make_tree(root, *, keep_events=True):
    """A tree as the study's own scripts left it: numpy's pickled dicts, RGB pictures, mp4, one list."""
    index, columns = [], {}
    for sequence, count in SEQUENCES.items():
        for folder in ("event_npy", "event_image", "mp4"):
            (root / folder / sequence).mkdir(parents=True)
        for number in range(count):
            stem = f"{sequence}/{number:06d}"
            events = columns[stem] = study_events(len(columns))
            if keep_events:
                notes = {
                    "time_start": START,
                    "duration_ms": 1000.0,
                    "image_indices_in_clip": [0, 1, 2],
                    "num_events": 400,
                }
                np.save(root / "event_npy" / f"{stem}.npy", events | notes, allow_pickle=True)
            for i in range(5):
                part = {name: column[80 * i : 80 * (i + 1)] for name, column in events.items() if name != "t"}
                (root / "event_image" / f"{stem}_{i}.png").write_bytes(encode_png(study_picture(**part)))
            write_video(root / "mp4" / f"{stem}.mp4", np.full((20, 32, 48, 3), 40 * number + 20, np.uint8), 20)
            index.append(
                {
                    "id": f"uuid {stem}", "split": "my_egpt_dsec_train_1s", "event_data": f"{stem}.npy",
                    "video_data": stem, "mp4_data": f"{stem}.mp4",
                    "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": ""}],
                    "event_image": [f"{stem}_{i}.png" for i in range(5)],
                }
            )  # fmt: skip
    (root / "EventGPT_Instruction_Subset.json").write_text(json.dumps(index, indent=2))
    return columns


def change_index(root, change):
    path = root / "EventGPT_Instruction_Subset.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(change(index) or index))


def test_a_tree_of_the_study_reads_as_it_is(tmp_path):
    columns = make_tree(tmp_path)
    folder = ClipFolder.open(tmp_path)
    assert folder.splits == ("my_egpt_dsec_train_1s",)
    assert [entry.name for entry in folder.clips] == [
        "interlaken_00_a_000000", "interlaken_00_a_000001", "thun_01_a_000000",
    ]  # fmt: skip
    assert [entry.sequence for entry in folder.clips] == ["interlaken_00_a", "interlaken_00_a", "thun_01_a"]
    for entry, written in zip(folder.clips, columns.values(), strict=True):
        clip = folder.load(entry)
        for name, column in written.items():
            assert np.array_equal(getattr(clip.events, name), column)
        assert (clip.events.height, clip.events.width) == (written["y"].max() + 1, written["x"].max() + 1)
        assert np.array_equal(clip.frame_times_us, written["t"][0] + 50_000 * np.arange(20))
        assert clip.start_us == written["t"][0]
        assert clip.stop_us == max(written["t"][-1], clip.frame_times_us[-1]) + 1
        assert clip.video.shape == (20, 32, 48, 3)
        assert clip.rendered is None  # the events are there: frames are drawn from them, as they should be
        assert np.array_equal(clip.event_frames(EventFrames()), EventFrames().frames(clip.events))


def test_without_events_the_frames_stand_in_and_say_that_blue_won(tmp_path):
    columns = make_tree(tmp_path / "whole")
    make_tree(tmp_path / "frames", keep_events=False)
    whole, frames = ClipFolder.open(tmp_path / "whole"), ClipFolder.open(tmp_path / "frames")
    blue = EventFrames(rule="blue-wins")
    for one, two, written in zip(whole.clips, frames.clips, columns.values(), strict=True):
        clip = frames.load(two)
        events = Events(**written, height=clip.events.height, width=clip.events.width)
        assert np.array_equal(clip.event_frames(blue), blue.frames(events))
        assert np.array_equal(clip.event_frames(replace(blue, use="first")), blue.frames(events)[:1])
        assert np.array_equal(clip.video, whole.load(one).video)
        with pytest.raises(ClipError, match=r"keeps event frames made with .*blue-wins.* set pair\.event_frames"):
            clip.event_frames(EventFrames())
    split = frames.splits[0]
    for folder, how in ((whole, EventFrames()), (whole, blue), (frames, blue), (frames, replace(blue, use="first"))):
        folder.require_frames(split, how)
    with pytest.raises(ClipError, match=r"interlaken_00_a_000000 keeps event frames made with .*blue-wins"):
        frames.require_frames(split, EventFrames())
    with pytest.raises(ClipError, match="no split 'x'"):
        frames.require_frames("x", blue)


@pytest.mark.parametrize(
    ("drawn", "asked", "right"),
    [
        ({}, {}, True),
        ({}, {"use": "first"}, True),
        ({"use": "first"}, {"use": "first"}, True),
        ({"use": "first"}, {}, False),
        ({}, {"n": 4}, False),
        ({}, {"split": "time"}, False),
        ({}, {"rule": "blue-wins"}, False),
    ],
)
def test_drawn_frames_serve_only_those_who_ask_for_them(drawn, asked, right):
    assert serves(EventFrames(**drawn), EventFrames(**asked)) is right


def test_real_events_of_dsec_read_in_a_tree(needs_shared, tmp_path):
    real = needs_shared / "data" / "dsec_interlaken_00_d_000099.npy"
    make_tree(tmp_path)
    shutil.copyfile(real, tmp_path / "event_npy" / "thun_01_a" / "000000.npy")
    folder = ClipFolder.open(tmp_path)
    clip, events = folder.load(folder.clips[2]), read_event_npy(real)
    assert len(clip.events) == 135_853
    assert np.array_equal(clip.events.t, events.t)
    assert np.array_equal(clip.event_frames(EventFrames()), EventFrames().frames(events))


def test_the_fingerprint_follows_the_index_and_the_files_without_reading_them(tmp_path):
    make_tree(tmp_path)
    first = ClipFolder.open(tmp_path)
    assert ClipFolder.open(tmp_path).fingerprint == first.fingerprint
    os.utime(tmp_path / "mp4" / "thun_01_a" / "000000.mp4", ns=(1, 1))
    touched = ClipFolder.open(tmp_path)
    assert [a == b for a, b in zip(touched.clips, first.clips, strict=True)] == [True, True, False]
    change_index(tmp_path, lambda index: index[0].update(split="other"))
    assert ClipFolder.open(tmp_path).clips[0].fingerprint != first.clips[0].fingerprint
    change_index(tmp_path, lambda index: index[1:])
    assert len({folder.fingerprint for folder in (first, touched, ClipFolder.open(tmp_path))}) == 3


def test_an_older_index_without_video_or_split_reads(tmp_path):
    make_tree(tmp_path / "my_egpt_dsec_seq_1s")
    change_index(
        tmp_path / "my_egpt_dsec_seq_1s",
        lambda index: [{key: entry[key] for key in ("event_data", "event_image")} for entry in index],
    )
    folder = ClipFolder.open(tmp_path / "my_egpt_dsec_seq_1s")
    assert folder.splits == ("my_egpt_dsec_seq_1s",)
    assert folder.load(folder.clips[0]).video.shape == (20, 32, 48, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda index: {"clips": 1}, "not the study's list"),
        (lambda index: [7], "not the study's list"),
        (lambda index: [{}], "not the study's list"),
        (lambda index: index[0].update(event_data=7), "not the study's list"),
        (lambda index: index[0].update(mp4_data="../../secret.mp4"), "outside the tree"),
        (
            lambda index: index[0].update(event_data="/etc/passwd.npy", event_image=["/etc/passwd"]),
            "cannot be read",
        ),
        (lambda index: index[0].update(split="../x"), "a name is letters"),
        (lambda index: index + index[:1], "two clips have one name"),
        (lambda index: index[0].update(mp4_data="thun_01_a/9.mp4"), r"9\.mp4: is listed but cannot be read"),
        (lambda index: index[0].update(event_data="thun_01_a/9.npy", event_image=[]), "neither events nor event_image"),
    ],
)
def test_a_damaged_index_is_refused(change, told, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    make_tree(tmp_path / "tree")
    change_index(tmp_path / "tree", change)
    with pytest.raises(ClipError, match=told):
        ClipFolder.open(tmp_path / "tree")


def test_damaged_files_are_named_when_they_are_read(tmp_path):
    make_tree(tmp_path)
    make_tree(tmp_path / "frames", keep_events=False)
    folder, frames = ClipFolder.open(tmp_path), ClipFolder.open(tmp_path / "frames")
    (tmp_path / "event_npy" / "thun_01_a" / "000000.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(EventError, match=r"000000\.npy: refused"):
        folder.load(folder.clips[2])
    (tmp_path / "mp4" / "interlaken_00_a" / "000000.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"000000\.mp4"):
        folder.load(folder.clips[0])
    (tmp_path / "frames" / "event_image" / "thun_01_a" / "000000_2.png").write_bytes(b"no png")
    with pytest.raises(ClipError, match=r"000000_2\.png: cannot be read"):
        frames.load(frames.clips[2])


def test_a_clip_with_frames_alone_is_not_saved_as_one_with_events(tmp_path):
    make_tree(tmp_path / "t", keep_events=False)
    folder = ClipFolder.open(tmp_path / "t")
    clip = folder.load(folder.clips[0])
    with pytest.raises(ClipError, match="keep it in its tree"):
        save_clip(tmp_path / "c.npz", clip)
    other = replace(clip, rendered=replace(clip.rendered, frames=255 - clip.rendered.frames))
    assert other.fingerprint() != clip.fingerprint() != replace(clip, rendered=None).fingerprint()
