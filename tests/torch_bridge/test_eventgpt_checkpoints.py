"""A public EventGPT checkpoint computes what its tensors say, however it is stored; what does not fit is one error."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.torch_bridge import plain_eventgpt
from tests.torch_bridge.fake_pair import fake_clip
from tests.torch_bridge.public_checkpoint import (
    CLIP_CONFIG,
    IMAGE,
    LLAMA_CONFIG,
    THETA,
    TOWER,
    clip_weights,
    llama_weights,
    nested,
    old_buffers,
    write,
    write_checkpoint,
)
from torch_bridge.eventgpt import EventGPT, load_drafter
from torch_bridge.folders import ModelFolderError
from torch_bridge.pixels import clip_pixels
from torch_bridge.weights import WeightFiles
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.questions import QUESTIONS

FILES = ("safetensors", "sharded safetensors", "bin", "sharded bin", "old bin")
TEXT = {"text_model.embeddings.token_embedding.weight": (9, 8), "text_projection.weight": (24, 8), "logit_scale": ()}
WHOLE_CLIP = {
    "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 24, "text_config": {"hidden_size": 8},
    "vision_config": CLIP_CONFIG | {"hidden_size": 768, "model_type": "clip_vision_model"},
    "vision_config_dict": {"hidden_size": CLIP_CONFIG["hidden_size"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> dict[str, Tensor]:
    return llama_weights()


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    return clip_weights()


@pytest.fixture
def clip_folder(tmp_path, clip) -> Path:
    return write(tmp_path / "clip-vit", CLIP_CONFIG, nested(clip), "safetensors")


def with_tower(llama, clip, *, names: str = "nested") -> dict[str, Tensor]:
    if names == "nested":
        return llama | nested(clip, TOWER) | old_buffers()
    return llama | {TOWER + name: tensor for name, tensor in clip.items()}


def expected(llama, clip, model: EventGPT, passes: int = 1) -> Tensor:
    """Logits from the tensors alone; ids by the model's tokenizer, whose test is another one."""
    frames = EventFrames().frames(fake_clip(3).events)
    before, after = (torch.from_numpy(piece).long() for piece in model.prompt_pieces(QUESTIONS[0]))
    found = plain_eventgpt.logits(llama, clip, clip_pixels(frames, IMAGE), before, after, passes)
    assert found.std() > 0.1  # and so nothing below compares zeros
    return found


@torch.inference_mode()
def ours(model: EventGPT) -> Tensor:
    table = model.language_model.get_input_embeddings()
    before, after = (table(torch.from_numpy(piece).long()) for piece in model.prompt_pieces(QUESTIONS[0]))
    row = torch.cat([before, model.encode(fake_clip(3)), after])
    return model.lm_head(model.language_model(inputs_embeds=row[None]).last_hidden_state[0])


def assert_same_logits(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("names", ["nested", "flat"])
def test_a_checkpoint_with_its_tower_gives_the_logits_of_its_tensors(tmp_path, clip_folder, llama, clip, names, files):
    folder = write_checkpoint(tmp_path / "model", with_tower(llama, clip, names=names), files)
    (clip_folder / "model.safetensors").unlink()  # only its config.json is needed then
    model = load_drafter(folder, vision_tower=clip_folder)
    assert_same_logits(ours(model), expected(llama, clip, model))


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("whole", [False, True], ids=["vision model", "whole CLIP"])
@pytest.mark.parametrize("names", ["nested", "flat"])
def test_a_checkpoint_without_a_tower_takes_a_clip_folders(tmp_path, llama, clip, files, whole, names):
    if whole and names == "flat":
        tower = nested(clip) | {"visual_projection.weight": torch.zeros(24, 32)}
        tower.pop("vision_model.embeddings.position_ids")  # as transformers 5 writes a CLIPModel
    else:
        tower = nested(clip) if names == "nested" else clip
    text = {name: torch.zeros(shape) for name, shape in TEXT.items()} if whole else {}
    write(tmp_path / "model" / "tower", WHOLE_CLIP if whole else CLIP_CONFIG, tower | text, files)
    folder = write_checkpoint(tmp_path / "model", llama, mm_visual_tower="tower")
    model = load_drafter(folder)
    assert_same_logits(ours(model), expected(llama, clip, model))


def test_an_absolute_folder_may_stand_in_the_config(tmp_path, clip_folder, llama, clip):
    folder = write_checkpoint(tmp_path / "model", llama, mm_visual_tower=str(clip_folder))
    model = load_drafter(folder)
    assert_same_logits(ours(model), expected(llama, clip, model))


@pytest.mark.parametrize("written", [LLAMA_CONFIG["mm_visual_tower"], "/train/host/clip-vit-large-patch14-336"])
def test_a_tower_that_is_not_there_must_be_named(tmp_path, llama, written):
    folder = write_checkpoint(tmp_path / "model", llama, mm_visual_tower=written)
    with pytest.raises(ModelFolderError, match=rf"mm_visual_tower is '{written}'.*as vision_tower"):
        load_drafter(folder)
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        load_drafter(folder, vision_tower=tmp_path / "elsewhere")


@pytest.mark.parametrize("keys", [{"event_feature_adaptor": False}, {"event_feature_adaptor": None}])
def test_a_model_without_an_adaptor_has_none(tmp_path, clip_folder, llama, clip, keys):
    without = {name: tensor for name, tensor in llama.items() if "feature_adaptor" not in name}
    folder = write_checkpoint(tmp_path / "model", without, **keys)
    model = load_drafter(folder, vision_tower=clip_folder)
    assert_same_logits(ours(model), expected(without, clip, model, passes=0))
    with pytest.raises(ConfigError, match="adaptor_passes"):
        load_drafter(folder, vision_tower=clip_folder, adaptor_passes=2)
    full = write_checkpoint(tmp_path / "full", llama, **keys)
    with pytest.raises(ModelFolderError, match=r"unexpected: model.feature_adaptor.bias, model.feature_adaptor.weight"):
        load_drafter(full, vision_tower=clip_folder)


def test_the_studys_second_pass_of_the_adaptor_is_an_option_and_changes_the_fingerprint(
    tmp_path, clip_folder, llama, clip
):
    folder = write_checkpoint(tmp_path / "model", llama)
    once, twice = (load_drafter(folder, vision_tower=clip_folder, adaptor_passes=n) for n in (1, 2))
    assert_same_logits(ours(twice), expected(llama, clip, twice, passes=2))
    assert (ours(once) - ours(twice)).abs().max() > 0.1
    assert once.fingerprint != twice.fingerprint
    # the study ran its second pass over the aggregated features: the same, as means and affine maps commute
    after_means = plain_eventgpt.affine(llama, "model.feature_adaptor", once.encode(fake_clip(3)))
    torch.testing.assert_close(twice.encode(fake_clip(3)), after_means, rtol=0, atol=1e-5)
    for passes in (0, 3):
        with pytest.raises(ConfigError, match=f"adaptor_passes.*{passes}"):
            load_drafter(folder, vision_tower=clip_folder, adaptor_passes=passes)


def test_in_bfloat16_the_rotary_frequencies_stay_exact(tmp_path, clip_folder, llama):
    """Cast to bfloat16 those of the 7B model are wrong by up to 0.4 %: at position 637, by up to 0.8 radians."""
    model = load_drafter(write_checkpoint(tmp_path / "model", llama), vision_tower=clip_folder, dtype="bfloat16")
    found = model.language_model.rotary_emb.inv_freq
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, THETA ** (-torch.arange(6) / 6), rtol=1e-6, atol=0)
    assert model.encode(fake_clip(3)).dtype == torch.bfloat16
    assert torch.equal(model.model.model.norm.weight, llama["model.norm.weight"].bfloat16())


@pytest.mark.parametrize("files", FILES)
def test_no_tensor_is_held_twice(tmp_path, clip_folder, llama, monkeypatch, files):
    """The model's parameters are the very tensors that were read, one by one, into no memory but theirs."""
    read, mapped, tensors, load = {}, [], WeightFiles.tensors, torch.load

    def watched(*options, **named):
        for name, tensor in tensors(*options, **named):
            read[name] = tensor.data_ptr()
            yield name, tensor

    monkeypatch.setattr(WeightFiles, "tensors", watched)
    monkeypatch.setattr(torch, "load", lambda *a, **k: mapped.append(k["mmap"]) or load(*a, **k))
    folder = write_checkpoint(tmp_path / "model", llama, files)
    model = load_drafter(folder, vision_tower=clip_folder, dtype="bfloat16")
    assert read == {name: parameter.data_ptr() for name, parameter in model.model.named_parameters()}
    assert set(mapped) == {"bin": {True}, "sharded bin": {True}, "old bin": {False}}.get(files, set())


def test_the_files_may_go_away_once_the_model_is_loaded(tmp_path, clip_folder, llama, clip):
    folder = write_checkpoint(tmp_path / "model", llama)
    model = load_drafter(folder, vision_tower=clip_folder)
    for file in (folder / "model.safetensors", clip_folder / "model.safetensors"):
        file.write_bytes(b"0" * file.stat().st_size)
    assert_same_logits(ours(model), expected(llama, clip, model))


@pytest.mark.parametrize("files", FILES)
def test_all_that_does_not_fit_in_any_file_stands_in_one_error(tmp_path, llama, clip, files):
    damaged = dict(llama)
    damaged["model.layers.0.mlp.extra.weight"] = damaged.pop("model.layers.0.mlp.up_proj.weight")
    damaged["lm_head.weight"] = damaged["lm_head.weight"][:, :40].contiguous()
    damaged["model.norm.weight"] = torch.ones(48, dtype=torch.int8)
    tower = nested(clip)
    tower["vision_model.surprise"] = tower.pop("vision_model.post_layernorm.bias")
    tower["vision_model.pre_layrnorm.weight"] = torch.ones(3)
    write(tmp_path / "clip-vit", CLIP_CONFIG, tower, files)
    folder = write_checkpoint(tmp_path / "model", damaged, files)
    with pytest.raises(ModelFolderError) as caught:
        load_drafter(folder, vision_tower=tmp_path / "clip-vit")
    message = str(caught.value)
    missing, rest = message.split("missing: ")[1].split("; unexpected: ")
    unexpected, shapes = rest.split("; wrong shape: ")
    assert missing == f"model.layers.0.mlp.up_proj.weight, {TOWER}post_layernorm.bias"
    assert unexpected == "model.layers.0.mlp.extra.weight, vision_model.surprise"
    assert "lm_head.weight is [1024, 40], needs [1024, 48]" in shapes
    assert "model.norm.weight is " in shapes
    assert "8[48], needs [48]" in shapes
    assert "vision_model.pre_layrnorm.weight is [3], needs [32]" in shapes
    assert "\n" not in message


def test_a_tower_under_both_namings_is_refused(tmp_path, clip_folder, llama, clip):
    twice = with_tower(llama, clip) | {TOWER + "post_layernorm.bias": torch.zeros(32)}
    folder = write_checkpoint(tmp_path / "model", twice)
    with pytest.raises(ModelFolderError, match=r"unexpected: model\S+post_layernorm.bias;"):
        load_drafter(folder, vision_tower=clip_folder)


def test_half_a_tower_is_not_filled_up_from_elsewhere(tmp_path, clip_folder, llama, clip):
    half = {name: t for name, t in nested(clip, TOWER).items() if ".layers.1." not in name}
    folder = write_checkpoint(tmp_path / "model", llama | half)
    with pytest.raises(ModelFolderError, match=r"missing: model.visual_tower.visual_tower.encoder.layers.1.\S+"):
        load_drafter(folder, vision_tower=clip_folder)


def test_a_part_that_the_published_model_has_not_is_named(tmp_path, clip_folder, llama):
    folder = write_checkpoint(tmp_path / "model", llama, use_event_qformer=True)
    with pytest.raises(ModelFolderError, match="use_event_qformer"):
        load_drafter(folder, vision_tower=clip_folder)


@dataclass
class Geometry:
    frames: EventFrames
    tokens: int


@pytest.mark.parametrize(
    "case",
    [Geometry(EventFrames(), 582), Geometry(EventFrames(n=5, use="first"), 578), Geometry(EventFrames(n=1), 578)],
    ids=["five frames", "the first of five", "one frame"],
)
def test_at_336_pixels_and_patches_of_14_a_clip_is_582_or_578_tokens(tmp_path, llama, case):
    clip, config = clip_weights(336), CLIP_CONFIG | {"image_size": 336}
    tower = write(tmp_path / "clip-vit", config, nested(clip), "safetensors")
    model = load_drafter(write_checkpoint(tmp_path / "model", llama), vision_tower=tower, event_frames=case.frames)
    assert len(model.encode(fake_clip(0))) == case.tokens


def test_old_and_new_places_of_the_rotary_base_are_read(tmp_path, clip_folder, llama):
    old = load_drafter(write_checkpoint(tmp_path / "old", llama), vision_tower=clip_folder)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    new = write_checkpoint(tmp_path / "new", llama)
    (new / "config.json").write_text(
        json.dumps(config | {"rope_parameters": {"rope_theta": THETA, "rope_type": "default"}})
    )
    assert torch.equal(ours(load_drafter(new, vision_tower=clip_folder)), ours(old))
