"""EventGPT is the published model: one adaptor, the weightless aggregator, two prompt pieces and one BOS.

That its logits are those of the tensors in the file: test_eventgpt_checkpoints.py.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

import torch_bridge
from tests.torch_bridge.fake_pair import fake_clip
from torch_bridge.eventgpt import EventGPTForCausalLM, aggregate, load_drafter
from torch_bridge.eventgpt_files import save_drafter
from torch_bridge.vlm import VLM
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.questions import QUESTIONS

TOKENIZER = Path(torch_bridge.__file__).parent / "tiny" / "weights" / "drafter" / "tokenizer.json"
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
LLAMA = {
    "vocab_size": 1024, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
# FACTS of the study, word by word, so that a change of the code's constants is noticed
BEFORE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: <ev_start>"
)
AFTER = "<ev_end>\n{question} ASSISTANT:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved random model; wide weights make every part of it count."""
    path = tmp_path_factory.mktemp("eventgpt")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = EventGPTForCausalLM(LlamaConfig(**LLAMA), CLIPVisionConfig(**VISION))
        for tensor in model.parameters():
            torch.nn.init.normal_(tensor, std=0.15)
    save_drafter(model, path, dtype=torch.float32)
    shutil.copy(TOKENIZER, path / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_drafter(folder)


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_the_adaptor_is_applied_once(model):
    """The original applied it twice (and its figures carry that); the identity would hide it, a doubling does not."""
    clip = fake_clip(1)
    adaptor = model.model.model.feature_adaptor
    plain = model.encode(clip)
    kept = adaptor.weight.data.clone(), adaptor.bias.data.clone()
    try:
        adaptor.weight.data.mul_(2)
        adaptor.bias.data.mul_(2)
        torch.testing.assert_close(model.encode(clip), 2 * plain)
    finally:
        adaptor.weight.data, adaptor.bias.data = kept


def test_the_file_has_the_public_names(tensors):
    assert "model.visual_tower.visual_tower.vision_model.embeddings.patch_embedding.weight" in tensors
    assert "model.visual_tower.visual_tower.vision_model.encoder.layers.1.mlp.fc2.bias" in tensors
    projector = {f"model.visual_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert projector | {"model.feature_adaptor.weight", "model.feature_adaptor.bias"} <= set(tensors)
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"} <= set(tensors)
    assert "lm_head.weight" in tensors


def test_saving_and_loading_changes_nothing(model, folder, tmp_path):
    save_drafter(model.model, tmp_path, dtype=torch.float32)
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.json")
    for name in ("model.safetensors", "config.json", "clip/config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert load_drafter(tmp_path).fingerprint == model.fingerprint


@pytest.mark.parametrize(("frames", "tokens"), [(5, 582), (1, 578)])
def test_the_aggregator_gives_a_token_a_frame_and_a_token_a_patch(frames, tokens):
    features = torch.randn(frames, 577, 8)
    out = aggregate(features)
    assert out.shape == (tokens, 8)
    torch.testing.assert_close(out[frames - 1], features[frames - 1].mean(0))
    torch.testing.assert_close(out[frames + 576], features[:, 576].mean(0))


def test_the_aggregator_by_hand():
    features = torch.tensor([[[1.0], [3.0]], [[5.0], [11.0]]])  # two frames of two tokens
    assert aggregate(features).flatten().tolist() == [2.0, 8.0, 3.0, 7.0]


def test_the_prompt_is_the_studys_with_one_bos(model):
    before, after = model.prompt_pieces(QUESTIONS[0])
    assert before.dtype == after.dtype == np.int32
    assert np.concatenate([before, after]).tolist().count(1) == 1
    assert before[0] == 1
    assert model.tokenizer.decode(before[1:].tolist()) == BEFORE
    assert model.tokenizer.decode(after.tolist()) == AFTER.format(question=QUESTIONS[0])


def test_a_question_that_names_the_placeholder_is_only_text(model):
    before, after = model.prompt_pieces("Is <event> {system} a word?")
    assert before.tolist() == model.prompt_pieces("x")[0].tolist()
    assert "Is <event> {system} a word?" in model.tokenizer.decode(after.tolist())


def test_the_true_shape_has_the_parameters_of_vicuna_clip_and_two_connectors():
    """By eval-shape: 7B parameters that take no memory; five frames are [582, 4096], one frame is [578, 4096]."""
    llama = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, rms_norm_eps=1e-5)
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    with torch.device("meta"):
        model = EventGPTForCausalLM(llama, vision)
        shapes = [tuple(aggregate(model.event_features(torch.empty(n, 3, 336, 336))).shape) for n in (5, 1)]
    assert shapes == [(582, 4096), (578, 4096)]
    connectors = (1024 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 4096 + 4096)
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616 + 303_507_456 + connectors


def test_event_frames_decide_the_number_of_tokens(folder):
    clip = fake_clip(0)
    single = load_drafter(folder, event_frames=EventFrames(n=5, use="first"))
    assert len(single.encode(clip)) == 1 + 5
    assert len(load_drafter(folder).encode(clip)) == 5 + 5


def test_it_is_a_vlm_in_evaluation_mode(model, folder):
    assert isinstance(model, VLM)
    assert not model.model.training
    assert not any(p.requires_grad for p in model.model.parameters())
    assert (model.width, model.real_vocabulary, model.eos_id) == (48, 1024, 2)
    half = load_drafter(folder, dtype="bfloat16")
    assert half.dtype == torch.bfloat16 == half.encode(fake_clip(0)).dtype
