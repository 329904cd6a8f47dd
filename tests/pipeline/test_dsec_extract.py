"""From a recording in DSEC's format to stored states: the real stages, the small pair."""

import shutil

import numpy as np
import pytest

from tests.data.dsec_recordings import write_recording
from torch_bridge.video_llava import VIDEO_FRAMES
from xmsd_jax.data.clips import ClipError
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.store import Store
from xmsd_jax.data.tree_writer import Keep
from xmsd_jax.pipeline import clips, extract
from xmsd_jax.pipeline.clips import ClipsConfig
from xmsd_jax.pipeline.dsec_clips import DsecConfig
from xmsd_jax.pipeline.extract import ExtractConfig
from xmsd_jax.pipeline.pair import PairConfig

FIELDS = ("drafter_hidden", "target_hidden", "drafter_synced", "drafter_ids", "target_ids")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    root = tmp_path_factory.mktemp("dsec")
    write_recording(root, "thun_00_a", seconds=1.5)
    return root


def made(root, path, **keep):
    config = DsecConfig(roots=(root,), splits={"train": ("thun_00_a",)}, keep=Keep(**keep), workers=1)
    return clips.run(ClipsConfig(dsec=config), path).path


def states(folder, path, **pair):
    config = ExtractConfig(
        clips=folder, pair=PairConfig(threads=1, **pair), questions=(0,), max_new_tokens=4, batch=2, shard_rows=2
    )
    (store,) = extract.run(config, path).values()
    return {name: np.asarray(Store.open(store).read(name)) for name in FIELDS}


def test_as_many_pictures_are_kept_as_the_target_looks_at():
    assert Keep().video_frames == VIDEO_FRAMES


def test_what_is_kept_by_default_gives_the_states_that_all_of_it_gives(recording, tmp_path):
    little = states(made(recording, tmp_path / "little"), tmp_path / "one")
    much = states(made(recording, tmp_path / "much", events="npy"), tmp_path / "two")
    for name in FIELDS:
        assert np.array_equal(little[name], much[name]), name
    assert len(little["target_ids"]) == 2


def test_a_tree_of_the_studys_form_is_extracted_as_it_is(recording, tmp_path):
    own = made(recording, tmp_path / "own", events="npy", event_frames=EventFrames(rule="blue-wins"))
    study = tmp_path / "my_egpt_dsec_train_1s"
    shutil.copytree(own, study, ignore=shutil.ignore_patterns("clips.json", "stage.json", "skipped.json", "records"))
    blue = EventFrames(rule="blue-wins")
    ours, theirs = (states(folder, tmp_path / folder.name, event_frames=blue) for folder in (own, study))
    shutil.rmtree(study / "event_npy")
    alone = states(study, tmp_path / "alone", event_frames=blue)
    for name in FIELDS:
        assert np.array_equal(ours[name], alone[name]), name
        assert np.array_equal(ours[name], theirs[name]), name
    with pytest.raises(ClipError, match="blue-wins"):
        states(study, tmp_path / "refused")
