"""A made-up tree of clips: opens as any tree does, copies read as their originals, sizes of DSEC."""

import numpy as np
import pytest

from xmsd_jax.config import ConfigError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips_made import SPLIT, STRIDE_US, MadeClips, write_made_clips
from xmsd_jax.data.dsec import HEIGHT, WIDTH
from xmsd_jax.data.events import EventFrames

SMALL = MadeClips(count=5, distinct=2, sensor=(48, 64), pictures=(72, 96), events=20_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ClipFolder:
    return write_made_clips(tmp_path_factory.mktemp("clips"), SMALL)


def test_it_opens_and_reads_as_a_tree_of_dsec(folder):
    entries = ClipFolder.open(folder.path).entries(SPLIT)
    assert len(entries) == len({entry.name for entry in entries}) == 5
    clips = [folder.load(entry) for entry in entries]
    for number, clip in enumerate(clips):
        assert clip.video.shape == (8, 72, 96, 3)
        assert clip.event_frames(EventFrames()).shape == (5, 48, 64, 3)
        assert clip.start_us == number * STRIDE_US
        assert clip.start_us <= clip.frame_times_us[0] < clip.frame_times_us[-1] < clip.stop_us


def test_copies_have_the_content_of_the_drawn_clips_and_names_of_their_own(folder):
    first, second, copy = (folder.load(folder.clips[number]) for number in (0, 1, 2))
    assert np.array_equal(copy.video, first.video)
    assert not np.array_equal(first.video, second.video)
    assert len({entry.fingerprint for entry in folder.clips}) == 5


def test_pictures_move_and_events_lie_on_some_of_the_pixels(folder):
    clip = folder.load(folder.clips[0])
    assert not np.array_equal(clip.video[0], clip.video[1])
    active = (clip.event_frames(EventFrames()) != 255).any(-1).mean(axis=(1, 2))
    assert ((active > 0.1) & (active <= 0.31)).all()


def test_by_default_the_sizes_are_dsecs():
    assert MadeClips().sensor == (HEIGHT, WIDTH)
    assert MadeClips().pictures == (1080, 1440)


@pytest.mark.parametrize(
    "changes", [{"distinct": 6}, {"distinct": 0}, {"pictures": (71, 96)}, {"sensor": (8, 64)}, {"events": 10}]
)
def test_impossible_numbers_are_refused(changes):
    with pytest.raises(ConfigError):
        MadeClips(**{**SMALL.__dict__, **changes})
