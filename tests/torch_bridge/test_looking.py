"""Clips of a batch pass the vision tower together, and each shows what it shows alone."""

import pytest
import torch

from tests.torch_bridge.fake_pair import fake_clip
from torch_bridge import loaded
from torch_bridge.pair import load_pair
from xmsd_jax.pipeline.pair import PairConfig, pair_options

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = ["target", "drafter"]


@pytest.fixture(scope="module")
def pair():
    return dict(zip(PAIR, load_pair(**pair_options(PairConfig())), strict=True))


@pytest.fixture(scope="module")
def seen(pair):
    clips = [fake_clip(number) for number in range(5)]
    return {which: [vlm.pixels(clip) for clip in clips] for which, vlm in pair.items()}


@pytest.mark.parametrize("which", PAIR)
@pytest.mark.parametrize("frames", [64, 16, 1])
def test_each_clip_shows_what_it_shows_alone(pair, seen, monkeypatch, which, frames):
    vlm, pixels = pair[which], seen[which]
    alone = torch.stack([vlm.look(one) for one in pixels])
    passed, visual = [], vlm.visual
    monkeypatch.setattr(vlm, "visual", lambda group: passed.append(len(group)) or visual(group))
    monkeypatch.setattr(loaded, "FRAMES", frames)
    torch.testing.assert_close(vlm.look_all(pixels), alone, rtol=0, atol=5e-5)
    assert sum(passed) == len(pixels)
    assert max(passed) == min(len(pixels), max(1, frames // len(pixels[0])))
    assert not torch.allclose(alone[0], alone[1], atol=1e-2), "the clips are worth comparing"


@pytest.mark.parametrize("which", PAIR)
def test_clips_with_different_numbers_of_frames_are_refused(pair, seen, which):
    first = seen[which][0]
    count = len(first)
    with pytest.raises(ValueError, match=rf"equally many frames; received \[{count}, {count - 1}\].*batch 1"):
        pair[which].look_all([first, first[1:]])
