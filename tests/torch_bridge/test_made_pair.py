"""A pair of random weights: the public models' shapes and prompts, placed as loaded ones are, the same for a seed."""

import numpy as np
import pytest
import torch

from tests.llama_vocabulary import STUDY_LENGTHS
from tests.torch_bridge.fake_pair import fake_clip
from torch_bridge.answers import Batch
from torch_bridge.made_pair import EOS_ID, made_pair, unfilled_drafter, unfilled_target
from torch_bridge.made_tokenizer import made_tokenizer
from torch_bridge.quantize import dense_weight, quantised
from torch_bridge.video_llava import VIDEO_FRAMES
from torch_bridge.vlm import VLM, prompt_ids
from xmsd_jax.config import ConfigError
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS

SMALL = MadeShape(
    width=64, layers=2, heads=4, ffn=128, vocabulary=256, target_vocabulary=320, tower_width=64, tower_layers=2,
    tower_heads=4, tower_ffn=128, patch=14, target_image=28, drafter_image=42,
)  # fmt: skip
VICUNA_7B = 6_738_415_616
"""Parameters of a Llama 7B with an untied head of 32,000 rows."""


def small_pair(format="none", dtype=torch.float32, seed=0, shape=SMALL):
    return made_pair(shape, Quantisation(format=format), device="cpu", dtype=dtype, seed=seed)


def parameters(*modules) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_by_default_the_shapes_are_those_of_the_public_models():
    shape = MadeShape()
    target, drafter = unfilled_target(shape), unfilled_drafter(shape)
    drafter_llama = [drafter.model.embed_tokens, drafter.model.layers, drafter.model.norm, drafter.lm_head]
    assert parameters(*drafter_llama) == VICUNA_7B
    assert parameters(target.model.language_model, target.lm_head) == VICUNA_7B + 2 * 64 * 4096
    assert target.config.video_seq_length == 2056
    assert target.config.image_token_index == 32000
    assert len(drafter.model.visual_tower.visual_tower.embeddings.position_ids[0]) == 577
    tower = parameters(drafter.model.visual_tower)
    assert abs(tower - 303_507_456) < 1e3  # CLIP ViT-L/14-336's vision tower
    assert all(parameter.is_meta for parameter in target.parameters())


def test_prompts_are_as_long_as_under_llamas_vocabulary():
    drafter = [len(prompt_ids(vlm, question)) for vlm in small_pair()[1:] for question in QUESTIONS]
    assert drafter[0] == 59
    assert np.allclose(drafter, STUDY_LENGTHS, rtol=0.1)
    target = [len(prompt_ids(small_pair()[0], question)) for question in QUESTIONS]
    assert abs(target[0] - 20) <= 2


def test_no_piece_of_a_prompt_is_unknown():
    for vlm in small_pair():
        assert not [question for question in QUESTIONS if 0 in prompt_ids(vlm, question)]
        assert vlm.tokenizer.get_vocab_size() >= SMALL.vocabulary


def test_each_model_is_a_vlm_that_answers_to_the_limit_with_finite_states():
    clips = [fake_clip(0), fake_clip(1)]
    for vlm in small_pair():
        assert isinstance(vlm, VLM)
        answers = Batch(vlm, clips, QUESTIONS[:3]).answer(6)
        assert answers.lengths.tolist() == [6] * 6
        assert torch.isfinite(answers.hidden).all()
        assert answers.hidden.std() > 0.1
        assert len({tuple(row.tolist()) for row in answers.ids}) > 1
        assert not vlm.lm_head.weight[EOS_ID].any()


def test_visual_tokens_are_counted_as_in_the_public_models():
    target, drafter = small_pair()
    assert len(target.encode(fake_clip(0))) == VIDEO_FRAMES * SMALL.target_frame_tokens
    assert len(drafter.encode(fake_clip(0))) == 5 + SMALL.drafter_frame_tokens


def test_a_seed_gives_the_same_weights_and_name_of_them():
    (one, _), (same, _), (other, _) = small_pair(), small_pair(), small_pair(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), same.model.parameters(), strict=True))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
    target, drafter = small_pair()
    assert target.fingerprint != drafter.fingerprint


def test_in_four_bits_it_is_the_same_pair_rounded(one_thread):
    for full, small in zip(small_pair(), small_pair(format="nf4", dtype=torch.bfloat16), strict=True):
        assert small.quantisation.startswith("nf4, double")
        assert quantised(small.model) is not None
        assert small.lm_head.weight.dtype == torch.bfloat16
        layers = [vlm.language_model.layers[0].mlp.down_proj for vlm in (full, small)]
        exact, rounded = (dense_weight(layer).float() for layer in layers)
        assert 0.01 < (exact - rounded).norm() / exact.norm() < 0.15
        answers = Batch(small, [fake_clip(0)], QUESTIONS[:2]).answer(3)
        assert torch.isfinite(answers.hidden).all()
        assert small.footprint.total < full.footprint.total / 2
        assert small.fingerprint != full.fingerprint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 66}, "heads"), ({"target_image": 30}, "patch"), ({"target_vocabulary": 256}, "placeholders"),
        ({"layers": 0}, "at least 1"), ({"tower_layers": 1}, "layer -2"), ({"width": 36}, "even width"),
    ],
)  # fmt: skip
def test_shapes_that_give_no_model_are_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        MadeShape(**{**SMALL.__dict__, **changes})


def test_a_vocabulary_too_small_for_the_prompts_is_refused():
    with pytest.raises(ConfigError, match="pieces"):
        made_tokenizer(40)
