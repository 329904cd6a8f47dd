import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.dsec_runs import of, recorded
from tests.source_tree import ROOT
from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips import ClipError
from xmsd_jax.data.dsec import windows
from xmsd_jax.data.event_files import read_events
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.tree_writer import Keep
from xmsd_jax.pipeline import dsec_clips, dsec_cut
from xmsd_jax.pipeline.clips import ClipsConfig, run
from xmsd_jax.pipeline.dsec_clips import skipped_clips

CONFIGS = ROOT / "configs" / "clips"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Recordings that tests only read."""
    return recorded(tmp_path_factory.mktemp("dsec"))


@pytest.fixture
def recordings(tmp_path):
    return recorded(tmp_path / "dsec")


def contents(path: Path) -> dict[str, str]:
    """sha256 of what a tree holds, but for times and the notes of a run about itself."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "stage.json")
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if "records" not in file.parts
    }


def test_the_packaged_configs_hold_the_public_splits_and_what_they_give():
    train, test = (
        configs.load(ClipsConfig, CONFIGS / f"dsec_{split}.yaml").dsec.splits[split] for split in ("train", "test")
    )
    assert (len(train), len(test)) == (41, 12)
    assert not set(train) & set(test)
    assert "Expect: 5208 clips" in (CONFIGS / "dsec_train.yaml").read_text()
    assert "Expect: 1100 clips" in (CONFIGS / "dsec_test.yaml").read_text()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"splits": {"train": ("a", "b"), "test": ("b",)}}, r"splits: sequence b is given twice \(train, test\)"),
        ({"splits": {"train": ("a", "a")}}, r"splits: sequence a is given twice \(train, train\)"),
        ({"splits": {}}, "needs roots"),
        ({"roots": ()}, "needs roots"),
        ({"workers": 0}, "workers: must be at least 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        of(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"video_frames": 0}, "video_frames"), ({"video_size": (3, 4)}, "video_size"), ({"crf": 52}, "crf")],
)
def test_what_no_file_can_hold_is_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        Keep(**fields)


def test_dsec_is_a_tree_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="tree of its own"):
        replace(of(tmp_path), recording=True)


def test_clips_have_the_windows_frames_and_pictures_of_their_recording(sound, tmp_path, capsys):
    root, truths = sound
    folder = run(of(root), tmp_path)
    assert {split: len(folder.entries(split)) for split in folder.splits} == {"train": 4, "test": 5}
    assert "clips: 9 clips (train 4, test 5), none skipped" in capsys.readouterr().out
    assert skipped_clips(folder.path) == []
    spans = {name: windows(truth.times) for name, truth in truths.items()}
    for entry in folder.clips:
        clip, truth, number = folder.load(entry), truths[entry.sequence], int(entry.name[-6:])
        assert (clip.start_us, clip.stop_us) == spans[entry.sequence][number]
        inside = np.flatnonzero((truth.times >= clip.start_us) & (truth.times < clip.stop_us))
        chosen = inside[np.linspace(0, len(inside) - 1, 8).astype(int)]
        assert np.array_equal(clip.frame_times_us, truth.times[chosen])
        assert abs(clip.video.astype(int) - truth.pictures[chosen]).max() <= 4  # what H.264 loses of a plain picture
        whole = read_whole(truth, clip.start_us, clip.stop_us)
        assert np.array_equal(clip.event_frames(EventFrames()), EventFrames().frames(whole))
        assert not len(clip.events)
    assert sorted(path.name for path in (folder.path / "event_image" / "b").iterdir()) == [
        f"000000_{i}.png" for i in range(5)
    ]


def read_whole(truth, start, stop):
    from xmsd_jax.data.events import Events

    return Events(**truth.within(start, stop), height=480, width=640)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_events_are_kept_when_asked_and_read_back_equal(kind, sound, tmp_path):
    root, truths = sound
    folder = run(of(root, keep=Keep(events=kind, video_frames=None, video_size=(16, 24))), tmp_path)
    for entry in folder.clips:
        clip = folder.load(entry)
        whole = read_whole(truths[entry.sequence], clip.start_us, clip.stop_us)
        for name in "xypt":
            assert np.array_equal(getattr(clip.events, name), getattr(whole, name))
        other = EventFrames(rule="blue-wins", n=2)
        assert np.array_equal(clip.event_frames(other), other.frames(whole))
        assert clip.video.shape[1:] == (16, 24, 3)
        assert len(clip.video) == 20
    stem = f"event_{kind}/a/000001.{kind}"
    assert np.array_equal(read_events(folder.path / stem, (480, 640)).t, folder.load(folder.clips[1]).events.t)


def test_the_index_is_the_studys(sound, tmp_path):
    root, _ = sound
    folder = run(of(root, keep=Keep(events="npy")), tmp_path)
    index = json.loads((folder.path / "EventGPT_Instruction_Subset.json").read_text())
    first = index[0]
    assert first["event_data"] == "a/000000.npy"
    assert first["mp4_data"] == "a/000000.mp4"
    assert first["event_image"] == [f"a/000000_{i}.png" for i in range(5)]
    assert first["split"] == "train"
    assert first["conversations"] == [{"from": "human", "value": ""}, {"from": "gpt", "value": ""}]
    assert len({entry["id"] for entry in index}) == len(index) == 9
    for entry in index:
        assert (folder.path / "event_npy" / entry["event_data"]).is_file()
        assert (folder.path / "mp4" / entry["mp4_data"]).is_file()
        assert all((folder.path / "event_image" / image).is_file() for image in entry["event_image"])


def test_processes_give_the_same_tree_as_one(sound, tmp_path, monkeypatch):
    root, _ = sound
    monkeypatch.setattr(dsec_clips, "TASK_CLIPS", 2)
    one, two = run(of(root), tmp_path / "one"), run(of(root, workers=2), tmp_path / "two")
    assert contents(one.path) == contents(two.path)
    assert one.fingerprint == two.fingerprint


def test_a_finished_tree_is_reused_and_a_changed_input_is_noticed(recordings, tmp_path, capsys):
    root, truths = recordings
    first = run(of(root), tmp_path / "run")
    assert run(of(root, workers=2, damaged="skip"), tmp_path / "run").fingerprint == first.fingerprint
    assert "clips: reused" in capsys.readouterr().out
    picture = truths["a"].pictures_folder / "000002.png"  # one of the eight that clip 0 shows
    picture.write_bytes((truths["a"].pictures_folder / "000030.png").read_bytes())
    with pytest.raises(UserError, match="holds clips of other settings or input; give --fresh"):
        run(of(root), tmp_path / "run")
    assert ClipFolder.open(tmp_path / "run" / "clips").fingerprint == first.fingerprint
    assert run(of(root), tmp_path / "run", fresh=True).fingerprint != first.fingerprint


@pytest.mark.parametrize("after", [0, 1, 3, 8])
def test_a_run_that_ends_early_goes_on_and_gives_the_same_tree(after, sound, tmp_path, monkeypatch, capsys):
    root, _ = sound
    whole = run(of(root), tmp_path / "whole")
    write, count = dsec_cut.write_cut, []

    def killed(*arguments):
        if len(count) == after:
            raise KeyboardInterrupt
        count.append(1)
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dsec_cut, "write_cut", killed)
        with pytest.raises(KeyboardInterrupt):
            run(of(root), tmp_path / "cut")
    with pytest.raises(ClipError, match="no finished clip folder"):
        ClipFolder.open(tmp_path / "cut" / "clips")
    for log in (tmp_path / "cut").rglob("*.jsonl"):  # the kill came in the middle of a line
        log.write_text(log.read_text() + '{"name": "a_0000')
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut" / "clips" / "mp4").rglob("*.mp4")}
    assert len(written) == after
    again = run(of(root), tmp_path / "cut")
    assert contents(again.path) == contents(whole.path)
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    kept = f", {after} of them already there" if after else ""
    assert f"clips: 9 clips (train 4, test 5){kept}, none skipped" in capsys.readouterr().out


def test_a_file_that_came_to_harm_since_is_made_anew(sound, tmp_path, monkeypatch, capsys):
    root, _ = sound
    whole = run(of(root), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(dsec_clips, "write_lists", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(of(root), tmp_path / "cut")
    clips = tmp_path / "cut" / "clips"
    (clips / "mp4" / "a" / "000001.mp4").write_bytes(b"")
    (clips / "event_image" / "c" / "000000_2.png").unlink()
    assert contents(run(of(root), tmp_path / "cut").path) == contents(whole.path)
    assert "7 of them already there" in capsys.readouterr().out


def interrupt(*_, **__):
    raise KeyboardInterrupt


class Deadly:
    """A task at which a process dies, as one that is killed for memory does."""

    numbers = range(1)

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_told_in_one_line():
    with pytest.raises(UserError, match=r"workers: a process was killed.* fewer workers, it goes on"):
        list(dsec_clips._in_processes([Deadly()], 2))


def test_kill_9_of_a_parallel_run_leaves_no_process_and_loses_nothing(sound, tmp_path):
    root, _ = sound
    config = tmp_path / "config.yaml"
    config.write_text(configs.to_yaml(of(root, workers=2)))
    command = [sys.executable, "-m", "xmsd_jax.cli", "clips", str(config), "--run-dir", str(tmp_path / "cut")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not any((tmp_path / "cut").rglob("*.jsonl")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # or it might be done before it is killed
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    again, whole = run(of(root), tmp_path / "cut"), run(of(root), tmp_path / "whole")
    assert contents(again.path) == contents(whole.path)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_drafts_of_a_killed_run_are_removed_and_other_things_are_not_written_among(sound, tmp_path):
    root, _ = sound
    draft = tmp_path / "run" / "clips" / "mp4" / "a" / ".000000.mp4.1.tmp"
    draft.parent.mkdir(parents=True)
    draft.write_bytes(b"half")
    run(of(root), tmp_path / "run")
    assert not draft.exists()
    thesis = tmp_path / "other" / "clips" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.txt"):
        run(of(root), tmp_path / "other")


def test_a_disk_that_cannot_be_written_is_told_in_one_line(sound, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dsec_cut, "write_cut", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left") as caught:
        run(of(sound[0], damaged="skip"), tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("part", ["mp4/a/000000.mp4", "event_image/a/000000_3.png", "event_npy/a/000000.npy"])
def test_a_file_that_was_changed_later_is_not_taken_for_the_listed_one(part, sound, tmp_path):
    folder = run(of(sound[0], keep=Keep(events="npy")), tmp_path)
    path = folder.path / part
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ClipError, match=f"{path.name}: is not the file that clips.json lists"):
        folder.load(folder.clips[0])
    path.unlink()
    with pytest.raises(ClipError, match=f"{path.name}: cannot be read"):
        folder.load(folder.clips[0])


def test_other_frames_than_the_kept_ones_need_the_events(sound, tmp_path):
    folder = run(of(sound[0]), tmp_path)
    clip = folder.load(folder.clips[0])
    assert np.array_equal(clip.event_frames(EventFrames(use="first")), clip.event_frames(EventFrames())[:1])
    for how in (EventFrames(rule="blue-wins"), EventFrames(n=4), EventFrames(split="time")):
        with pytest.raises(ClipError, match="keeps event frames made with"):
            clip.event_frames(how)
