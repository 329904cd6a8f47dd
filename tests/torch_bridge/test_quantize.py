"""NF4 is bitsandbytes' own, by a policy that says what stays; the traps on the way are closed."""

import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, VideoLlavaForConditionalGeneration

import torch_bridge
from torch_bridge import quantize
from torch_bridge.eventgpt import load_drafter
from torch_bridge.folders import ModelFolderError, quiet_transformers
from torch_bridge.footprint import footprint
from torch_bridge.generate import prompt_row
from torch_bridge.pair import load_pair
from torch_bridge.quantize import check_kept, dense_weight, place
from torch_bridge.video_llava import Target, load_target
from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.pipeline.pair import PairConfig, pair_options

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = Path(torch_bridge.__file__).parent / "tiny" / "weights"
NF4 = Quantisation(format="nf4")
EXACT = Quantisation(format="nf4", compute="float32")
CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SKIPPED = ["lm_head", "model.video_tower", "model.image_tower", "model.multi_modal_projector"]


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target(WEIGHTS / "target", dtype="bfloat16", quantisation=NF4)


@pytest.fixture(scope="module")
def clip():
    return davis_clips()[0]


def by_the_library(skipped: list[str], device: str = "cpu") -> VideoLlavaForConditionalGeneration:
    """The target as transformers quantises it while loading; its layers dequantise as ours do."""
    asked = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skipped,
    )
    with quiet_transformers():
        model = VideoLlavaForConditionalGeneration.from_pretrained(
            WEIGHTS / "target", quantization_config=asked, dtype=torch.bfloat16, device_map={"": device}
        )
    for module in four_bit(model).values():
        module.support_avx512bf16_for_cpu = False
    return model


def four_bit(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


def layer(inside: int = 128, outside: int = 64, **changes) -> nn.Module:
    """One linear layer, seeded, placed in NF4."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(inside, outside)).eval()
    return place(
        model, Quantisation(**{"format": "nf4", "compute": "float32", **changes}), dtype=torch.float32, device=CPU
    )


def states(model: nn.Module) -> dict[str, bytes]:
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in found.items()}


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
def test_the_target_is_what_transformers_loads_quantised(clip, device):
    target = load_target(WEIGHTS / "target", dtype="bfloat16", device=device, quantisation=NF4)
    other = by_the_library(SKIPPED, device)
    assert set(four_bit(other)) == set(four_bit(target.model))
    assert len(four_bit(other)) == 4 * 7
    assert states(other) == states(target.model)

    ids = torch.from_numpy(prompt_row(target, QUESTIONS[2]))[None].to(device)
    pixels = target.pixels(clip)[None].to(device, torch.bfloat16)
    logits = [m(input_ids=ids, pixel_values_videos=pixels).logits for m in (target.model, other)]
    assert torch.equal(*logits)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 24, "pad_token_id": 2}
    told = [
        m.generate(input_ids=ids, pixel_values_videos=pixels, **options)[0, ids.shape[1] :].tolist()
        for m in (target.model, other)
    ]
    assert told[0] == told[1]
    assert len(set(told[0])) > 5


def test_the_head_is_quantised_only_when_asked(target):
    """transformers' list replaces the default, so that without `lm_head` in it the head goes; ours is always whole."""
    assert "lm_head" in four_bit(by_the_library(SKIPPED[1:]))
    assert type(target.lm_head) is nn.Linear
    asked = Quantisation(format="nf4", keep=tuple(name for name in NF4.keep if name != "lm_head"))
    without = load_target(WEIGHTS / "target", dtype="bfloat16", quantisation=asked)
    assert "lm_head" in four_bit(without.model)
    assert (without.width, without.device, without.dtype) == (target.width, target.device, torch.bfloat16)
    dense = dense_weight(without.lm_head)
    assert (dense.shape, dense.dtype) == (target.lm_head.weight.shape, torch.bfloat16)
    error = (dense.float() - target.lm_head.weight.float()).norm() / target.lm_head.weight.float().norm()
    assert 0.05 < error < 0.15


def test_towers_and_projectors_of_both_models_stay_and_every_layer_of_the_llama_goes(target):
    drafter = load_drafter(WEIGHTS / "drafter", dtype="bfloat16", quantisation=NF4)
    for vlm, layers in ((target, 4), (drafter, 3)):
        changed = four_bit(vlm.model)
        assert len(changed) == 7 * layers
        assert all(".layers." in name and "tower" not in name for name in changed)
        assert vlm.dtype == vlm.language_model.norm.weight.dtype == torch.bfloat16
        assert vlm.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_entries_of_keep_are_full_names_or_last_parts_of_them():
    policy = Quantisation(format="nf4", keep=("model.video_tower", "layers.1.mlp", "lm_head"))
    kept = ("model.video_tower", "model.video_tower.encoder.layers.0.fc1", "lm_head", "x.layers.1.mlp.up_proj")
    assert all(policy.keeps(name) for name in kept)
    assert not any(
        policy.keeps(name) for name in ("model.image_tower.fc1", "x.layers.11.mlp", "my_lm_head", "layers.1")
    )


@torch.inference_mode()
def test_reading_or_saving_the_weights_after_a_forward_changes_neither_file_nor_model():
    """bitsandbytes packs weights anew at the first forward on some CPUs; `state_dict` then gives and leaves garbage."""
    model = layer()
    before, x = states(model), torch.randn(5, 128)
    said = model(x)
    assert states(model) == before
    assert torch.equal(model(x), said)
    assert not getattr(model[0].weight.quant_state, "packing_format_for_cpu", False)


@torch.inference_mode()
@pytest.mark.parametrize("double", [True, False])
def test_a_layer_computes_in_the_dtype_of_the_policy(double):
    x = torch.randn(5, 128)
    exact, coarse = (layer(double=double, compute=dtype) for dtype in ("float32", "bfloat16"))
    by_hand = nn.functional.linear(x, dense_weight(exact[0]), exact[0].bias)
    torch.testing.assert_close(exact(x), by_hand, atol=1e-5, rtol=0)
    off = (coarse(x) - by_hand).abs().max()
    assert 1e-4 < off < 0.05
    assert coarse(x).dtype == torch.float32
    assert exact[0].weight.quant_state.nested is double


@pytest.mark.parametrize(("inside", "outside"), [(96, 64), (64, 100)])
def test_sides_that_are_no_multiples_of_64_are_refused(inside, outside):
    with pytest.raises(ConfigError, match=rf"multiples of 64; 0 is \[{outside}, {inside}\].*quantisation.keep"):
        layer(inside, outside)


def test_nothing_changes_in_a_model_that_is_refused():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 100))
    with pytest.raises(ConfigError, match="1 is"):
        place(model, NF4, dtype=torch.float32, device=CPU)
    assert type(model[0]) is nn.Linear
    kept = place(model, Quantisation(format="nf4", keep=("1",)), dtype=torch.bfloat16, device=CPU)
    assert [type(m).__name__ for m in kept] == ["Linear4bit", "Linear"]
    assert kept[1].weight.dtype == torch.bfloat16


def test_a_policy_that_leaves_nothing_to_quantise_is_refused():
    with pytest.raises(ConfigError, match="leaves no layer"):
        place(
            nn.Sequential(nn.Linear(64, 64)), Quantisation(format="nf4", keep=("0",)), dtype=torch.float32, device=CPU
        )


def test_quantised_weights_are_not_cast_or_quantised_again(tmp_path):
    model = layer()
    for policy in (NF4, Quantisation()):
        with pytest.raises(ValueError, match=r"quantised already.*load the model again"):
            place(model, policy, dtype=torch.bfloat16, device=CPU)
    folder = Path(shutil.copytree(WEIGHTS / "target", tmp_path / "target"))
    content = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=r"quantization_config.*pair.quantisation"):
        load_target(folder)


def test_layers_are_let_go_one_by_one(monkeypatch):
    """While a layer is quantised, the full weights of those before it are gone already."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    full = [weakref.ref(linear) for linear in model]
    alive, original = [], quantize._nf4

    def watched(*args):
        alive.append(sum(ref() is not None for ref in full))
        return original(*args)

    monkeypatch.setattr(quantize, "_nf4", watched)
    place(model, NF4, dtype=torch.bfloat16, device=CPU)
    assert alive == [4, 3, 2, 1]
    assert not any(ref() for ref in full)


@torch.inference_mode()
def test_the_fingerprint_is_that_of_full_weights_and_policy(target, clip):
    first, plain = target.fingerprint, load_target(WEIGHTS / "target", dtype="bfloat16")
    target.encode(clip)
    again = load_target(WEIGHTS / "target", dtype="bfloat16", quantisation=NF4)
    again.encode(clip)
    assert again.fingerprint == first != plain.fingerprint
    others = [
        Target(place(model_of(plain), policy, dtype=torch.bfloat16, device=CPU), WEIGHTS / "target").fingerprint
        for policy in (Quantisation(format="nf4", double=False), EXACT)
    ]
    assert len({first, plain.fingerprint, *others}) == 4
    changed = load_target(WEIGHTS / "target", dtype="bfloat16").model
    changed.model.language_model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    moved = Target(place(changed, NF4, dtype=torch.bfloat16, device=CPU), WEIGHTS / "target")
    assert moved.fingerprint != first


def model_of(target: Target) -> nn.Module:
    """Its model loaded once more, from the same folder."""
    return load_target(WEIGHTS / "target", dtype="bfloat16").model


def test_the_footprint_counts_weights_and_scales_of_every_part(target):
    found = footprint(target.model)
    parts = {name: (part.weights, part.scales) for name, part in found.parts.items()}
    llama = 4 * (4 * 256 * 256 + 3 * 256 * 320)
    blocks = llama // 64
    assert parts["linears"][0] == llama // 2
    # one byte a block; a float32 for 256 blocks; an offset and two code tables of 16 and 256 float32 a layer
    layers, nested = 28, 4 * (4 * 4 + 3 * 5)
    assert parts["linears"][1] == blocks + 4 * nested + layers * 4 * (1 + 16 + 256)
    assert parts["embeddings"] == parts["head"] == (2 * 1088 * 256, 0)
    assert parts["norms"] == (2 * 9 * 256, 0)
    assert all(scales == 0 for name, (_, scales) in parts.items() if name != "linears")
    assert found.total == sum(map(sum, parts.values()))
    assert json.loads(json.dumps(found.to_json()))["linears"]["weights"] == llama // 2

    plain = footprint(load_target(WEIGHTS / "target", dtype="bfloat16").model)
    whole = [p.numel() * 2 for p in load_target(WEIGHTS / "target", dtype="bfloat16").model.parameters()]
    assert plain.total == sum(whole) + plain.parts["tables"].total
    assert found.total == plain.total - 2 * llama + sum(parts["linears"])


def test_the_pair_says_what_it_takes(capsys):
    pair = PairConfig(dtype="bfloat16", quantisation=NF4)
    target, drafter = load_pair(**pair_options(pair))
    said = capsys.readouterr().out
    for model in (target, drafter):
        assert f"{model.name}: nf4, double, compute bfloat16, kept: lm_head" in said
        assert str(model.footprint) in said
    load_pair(**pair_options(PairConfig()))
    assert not capsys.readouterr().out


def test_a_name_in_keep_that_is_no_modules_is_refused():
    models = [nn.ModuleDict({"lm_head": nn.Linear(64, 64)}), nn.ModuleDict({"other": nn.Linear(64, 64)})]
    check_kept(NF4, models)
    check_kept(Quantisation(format="nf4", keep=("lm_head", "other")), models)
    with pytest.raises(ConfigError, match=r"'layers\.99' names no module"):
        check_kept(Quantisation(format="nf4", keep=("lm_head", "layers.99")), models)


def test_the_policy_stands_in_configs_and_decides_what_a_tie_is():
    given = {"dtype": "float32", "quantisation": {"format": "nf4", "keep": ["lm_head", "layers.0"]}}
    pair = configs.load(PairConfig, given)
    assert pair.quantisation == Quantisation(format="nf4", keep=("lm_head", "layers.0"))
    assert configs.load(PairConfig, configs.dump(pair)) == pair
    assert pair.rounding == "bfloat16"
    assert PairConfig(quantisation=EXACT).rounding == PairConfig().rounding == "float32"
    with pytest.raises(ConfigError, match="keep"):
        Quantisation(keep=("model..layers",))
    with pytest.raises(ConfigError, match="format"):
        configs.load(PairConfig, {"quantisation": {"format": "int8"}})


def test_quantised_states_stay_near_the_full_ones(target, clip):
    full = load_target(WEIGHTS / "target", dtype="bfloat16")
    assert torch.equal(full.encode(clip), target.encode(clip))
    ids = torch.from_numpy(np.concatenate(full.prompt_pieces(QUESTIONS[0])))[None].long()
    with torch.inference_mode():
        one, other = (m.language_model(input_ids=ids).last_hidden_state.float() for m in (full, target))
    assert 0.02 < (one - other).norm() / one.norm() < 0.4
