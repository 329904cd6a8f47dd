"""The shipped weights keep the promises about size, dimensions, and the padded head."""

from pathlib import Path

import pytest
import torch
from torch import nn

import torch_bridge
from torch_bridge.answers import Batch
from torch_bridge.eventgpt import load_drafter
from torch_bridge.tiny.models import PairShape, new_drafter, new_target
from torch_bridge.video_llava import load_target
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.world import WorldConfig, world_clips

WEIGHTS = Path(torch_bridge.__file__).parent / "tiny" / "weights"


@pytest.fixture(scope="module")
def target():
    return load_target(WEIGHTS / "target")


@pytest.fixture(scope="module")
def drafter():
    return load_drafter(WEIGHTS / "drafter")


def test_each_model_has_at_most_four_million_parameters(target, drafter):
    counts = [sum(p.numel() for p in vlm.model.parameters()) for vlm in (target, drafter)]
    assert max(counts) <= 4_000_000
    assert counts == [3_956_992, 3_290_368]  # as torch_bridge/tiny/README.md says


def test_every_dimension_of_every_layer_is_a_multiple_of_64(target, drafter):
    for vlm in (target, drafter):
        layers = list(vlm.model.modules())
        sides = [side for m in layers if isinstance(m, nn.Linear) for side in (m.in_features, m.out_features)]
        sides += [m.embedding_dim for m in layers if isinstance(m, nn.Embedding)]
        sides += [*vlm.language_model.get_input_embeddings().weight.shape, *vlm.lm_head.weight.shape]
        assert len(sides) > 50
        assert not [side for side in sides if side % 64]


def test_the_weights_are_those_of_the_default_shape(target, drafter):
    shape = PairShape()
    for vlm, new in ((target, new_target(shape)), (drafter, new_drafter(shape))):
        expected = {name: tensor.shape for name, tensor in new.state_dict().items()}
        assert {name: tensor.shape for name, tensor in vlm.model.state_dict().items()} == expected


def test_a_clip_is_at_most_300_visual_tokens(target, drafter):
    clip = davis_clips()[0]
    assert len(target.encode(clip)) == 8 * 37 <= 300
    assert len(drafter.encode(clip)) == 5 + 37 <= 300


def test_the_folder_is_small():
    sizes = {path: path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 20e6
    assert max(sizes.values()) <= 16e6
    assert {path.suffix for path in sizes} == {".json", ".safetensors"}


def test_the_two_vocabularies_share_all_text_ids(target, drafter):
    shared = drafter.tokenizer.get_vocab()
    own = target.tokenizer.get_vocab()
    assert set(shared.values()) == set(range(1024))
    extra = {token: number for token, number in own.items() if token not in shared}
    assert extra == {"<image>": 1024, "<video>": 1025, "<pad>": 1026}
    assert {token: own[token] for token in shared} == shared
    assert [shared[token] for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]


def test_the_targets_head_has_random_rows_past_its_tokens(target):
    """Rows 1024..1026 are placeholders, 1027..1087 nothing at all: as in the large model, they are not zero."""
    rows = target.lm_head.weight
    assert len(rows) == 1088 > 1027
    assert rows[1024:].std(dim=1).min() > 0.005
    assert torch.linalg.matrix_rank(rows[1027:].float()) == 1088 - 1027


def test_greedy_answers_never_hold_an_id_that_is_no_text(target, drafter):
    clips = list(world_clips(WorldConfig(sequences={"test": 3}, clips_per_sequence=1, seed=9), "test"))
    for vlm in (target, drafter):
        told = Batch(vlm, clips, QUESTIONS).answer(64)
        assert told.ids.max() < 1024
        assert told.lengths.min() >= 20
        assert told.lengths.max() < 64  # all ended by themselves
