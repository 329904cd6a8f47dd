"""The target is transformers' own Video-LLaVA: same pixels, same prompt, same logits, same greedy tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

import torch_bridge
from torch_bridge.answers import Batch
from torch_bridge.video_llava import load_target
from torch_bridge.vlm import VLM
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.world import WorldConfig, world_clips

FOLDER = Path(torch_bridge.__file__).parent / "tiny" / "weights" / "target"


@pytest.fixture(scope="module")
def target():
    return load_target(FOLDER)


@pytest.fixture(scope="module")
def clips():
    return list(world_clips(WorldConfig(sequences={"test": 4}, clips_per_sequence=1, seed=2), "test"))


def placed(target, question: str) -> torch.Tensor:
    """Ids [1, s] with a `<video>` for every video token, as transformers' processor writes them."""
    before, after = target.prompt_pieces(question)
    video = [target.model.config.video_token_index] * target.model.config.video_seq_length
    return torch.tensor([[*before.tolist(), *video, *after.tolist()]])


@torch.inference_mode()
def test_logits_equal_the_pixel_path_of_transformers(target, clips):
    for clip in (clips[0], davis_clips()[0]):
        ids = placed(target, QUESTIONS[4])
        out = target.model(input_ids=ids, pixel_values_videos=target.pixels(clip)[None])
        table = target.language_model.get_input_embeddings()
        before, after = (table(torch.from_numpy(piece).long()) for piece in target.prompt_pieces(QUESTIONS[4]))
        row = torch.cat([before, target.encode(clip), after])
        states = target.language_model(inputs_embeds=row[None]).last_hidden_state
        torch.testing.assert_close(target.lm_head(states), out.logits, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_answers_in_a_batch_equal_generate_from_pixels(target, clips):
    asked = [0, 3, 9]
    told = Batch(target, clips, [QUESTIONS[q] for q in asked]).answer(64)
    for row, (ids, length) in enumerate(zip(told.ids, told.lengths, strict=True)):
        clip, question = clips[row // len(asked)], QUESTIONS[asked[row % len(asked)]]
        prompt = placed(target, question)
        own = target.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values_videos=target.pixels(clip)[None],
            do_sample=False, max_new_tokens=64, pad_token_id=0, eos_token_id=target.eos_id,
        )  # fmt: skip
        assert ids[:length].tolist() == own[0, prompt.shape[1] :].tolist()
        assert ids[length - 1] == target.eos_id


def test_eight_frames_are_looked_at_first_and_last_included(target, clips):
    video = np.zeros_like(clips[0].video)
    video[:] = np.arange(20, dtype=np.uint8)[:, None, None, None] * 10
    shown = target.pixels(type(clips[0])(**(vars(clips[0]) | {"video": video})))
    levels = (shown[:, 0, 0, 0] * 0.26862954 + 0.48145466) * 255
    assert np.rint(levels.numpy()).astype(int).tolist() == [0, 20, 50, 80, 100, 130, 160, 190]


def test_video_tokens_are_frame_after_frame_with_cls(target, clips):
    looks = target.encode(clips[0])
    assert looks.shape == (8 * 37, target.width)
    other = clips[0].video.copy()
    other[-1] = 255 - other[-1]
    changed = target.encode(type(clips[0])(**(vars(clips[0]) | {"video": other})))
    same = (looks == changed).all(-1)
    assert same[: 7 * 37].all()
    assert not same[7 * 37 :].any()


def test_the_prompt_is_video_llavas_with_one_bos(target):
    before, after = target.prompt_pieces(QUESTIONS[0])
    assert before.dtype == after.dtype == np.int32
    assert before[0] == 1
    assert np.concatenate([before, after]).tolist().count(1) == 1
    assert target.tokenizer.decode(before[1:].tolist()) == "USER: "
    assert target.tokenizer.decode(after.tolist()) == f"\n{QUESTIONS[0]} ASSISTANT:"


def test_it_is_a_vlm_in_evaluation_mode(target):
    assert isinstance(target, VLM)
    assert not target.model.training
    assert not any(p.requires_grad for p in target.model.parameters())
    assert (target.width, target.eos_id, target.real_vocabulary, target.lm_head.out_features) == (256, 2, 1024, 1088)


def test_bfloat16_gives_bfloat16_states_near_the_float32_ones(target, clips):
    half = load_target(FOLDER, dtype="bfloat16")
    looks = half.encode(clips[0])
    assert half.dtype == looks.dtype == torch.bfloat16
    exact = target.encode(clips[0])
    assert (looks.float() - exact).norm() < 0.05 * exact.norm()
