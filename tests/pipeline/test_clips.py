from pathlib import Path

import numpy as np
import pytest

from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips import save_clip
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.video import write_video
from xmsd_jax.data.world import WorldConfig, split_sizes
from xmsd_jax.pipeline import clips as stage
from xmsd_jax.pipeline.clips import ClipsConfig, FileClip, file_clip, run

CONFIGS = Path(__file__).parents[2] / "configs" / "clips"
WORLD = WorldConfig(sequences={"train": 2, "test": 1}, clips_per_sequence=2)


@pytest.fixture
def files(tmp_path):
    clip = davis_clips()[1]
    folder = tmp_path / "drive_7"
    save_clip(folder / "a.npz", clip)
    write_video(folder / "a.mp4", clip.video, fps=25)
    return clip, FileClip(events=folder / "a.npz", video=folder / "a.mp4", size=(260, 346))


@pytest.mark.parametrize(("name", "count"), [("small", 75), ("davis", 3)])
def test_the_shipped_configs_load_and_make_what_their_header_expects(name, count):
    config = configs.load(ClipsConfig, CONFIGS / f"{name}.yaml")
    assert configs.load(ClipsConfig, configs.dump(config)) == config
    assert stage._count(config) == count
    assert f"Expect: {count} clips" in (CONFIGS / f"{name}.yaml").read_text()


def test_all_sources_end_in_one_folder_and_their_number_is_said(files, tmp_path, capsys):
    config = ClipsConfig(world=WORLD, recording=True, files=(files[1],))
    folder = run(config, tmp_path / "run")
    assert folder.path == tmp_path / "run" / "clips"
    assert {split: len(folder.entries(split)) for split in folder.splits} == {
        **split_sizes(WORLD), "recording": 3, "files": 1,
    }  # fmt: skip
    assert len(folder.clips) == stage._count(config)
    for entry in folder.clips:
        assert folder.load(entry).sequence == entry.sequence
    assert "clips: 10 clips (train 4, test 2, recording 3, files 1)" in capsys.readouterr().out


def test_splits_never_share_a_sequence(tmp_path):
    folder = run(ClipsConfig(world=WORLD), tmp_path)
    train, test = ({entry.sequence for entry in folder.entries(split)} for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert not train & test


def test_a_finished_stage_is_reused_unless_fresh_or_its_config_changed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(stage, "davis_clips", lambda: made.append(1) or davis_clips())
    first = run(ClipsConfig(recording=True), tmp_path)
    assert run(ClipsConfig(recording=True), tmp_path).fingerprint == first.fingerprint
    assert len(made) == 1
    assert run(ClipsConfig(recording=True), tmp_path, fresh=True).fingerprint == first.fingerprint
    assert len(made) == 2
    assert len(run(ClipsConfig(recording=True, world=WORLD), tmp_path).clips) == 9


def test_a_killed_stage_goes_on_and_gives_the_same_folder(tmp_path, monkeypatch):
    config = ClipsConfig(recording=True)
    whole = run(config, tmp_path / "whole")

    def killed():
        yield from davis_clips()[:2]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "davis_clips", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut")
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").rglob("davis*.npz")}
    assert len(written) == 2
    with pytest.raises(UserError, match="no finished clip folder"):
        ClipFolder.open(tmp_path / "cut" / "clips")
    assert run(config, tmp_path / "cut").fingerprint == whole.fingerprint
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())


def test_files_become_a_clip_on_the_events_clock(files):
    source, given = files
    clip = file_clip(given)
    assert (clip.name, clip.sequence) == ("a", "drive_7")
    assert np.array_equal(clip.events.t, source.events.t)
    first = int(source.events.t[0])
    assert np.array_equal(clip.frame_times_us, first + np.arange(25) * 40_000)
    assert (clip.start_us, clip.stop_us) == (first, int(source.events.t[-1]) + 1)
    moved = FileClip(**{**vars(given), "video_start_us": 0, "name": "b", "sequence": "s"})
    assert file_clip(moved).start_us == 0
    assert (file_clip(moved).name, file_clip(moved).sequence) == ("b", "s")


def test_missing_foreign_and_bad_files_stop_with_one_line_that_names_them(files, tmp_path):
    _, given = files
    (tmp_path / "text.mp4").write_text("no video")
    np.save(tmp_path / "numbers.npy", np.arange(4))
    for change, name in (
        ({"video": tmp_path / "none.mp4"}, "none.mp4"),
        ({"video": tmp_path / "text.mp4"}, "text.mp4"),
        ({"events": tmp_path / "numbers.npy"}, "numbers.npy"),
        ({"size": (100, 100)}, "a.npz"),
    ):
        with pytest.raises(UserError, match=name) as caught:
            run(ClipsConfig(files=(FileClip(**{**vars(given), **change}),)), tmp_path / "run")
        assert len(str(caught.value).splitlines()) == 1


def test_a_changed_file_is_read_again(files, tmp_path):
    clip, given = files
    before = run(ClipsConfig(files=(given,)), tmp_path / "run").fingerprint
    write_video(given.video, 255 - clip.video, fps=25)
    assert run(ClipsConfig(files=(given,)), tmp_path / "run").fingerprint != before


def test_a_config_without_any_source_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        ClipsConfig()
