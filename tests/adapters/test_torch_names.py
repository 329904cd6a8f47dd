"""Checkpoints of the original: same outputs as a PyTorch twin, exact round trips, and every fault in one error."""

import numpy as np
import pytest
import torch

from tests.adapters.small import LENGTH, WIDTH, every, lively, streams
from tests.adapters.torch_twins import TWINS, random_twin, state_dict
from xmsd_jax.adapters.files import AdapterError, named_parameters
from xmsd_jax.adapters.kinds import make
from xmsd_jax.adapters.torch_names import PREFIXES, from_torch, to_torch
from xmsd_jax.config import ConfigError

MODULES = ("attn_norm", "ffn_norm", "attn.out_proj", "ffn.0", "ffn.3")
LAYER = [f"layers.0.{name}.{leaf}" for name in MODULES for leaf in ("weight", "bias")]
LAYER += ["layers.0.attn.in_proj_weight", "layers.0.attn.in_proj_bias", "alpha"]
EAGLE = [*LAYER, "pos_embed", "output_norm.weight", "output_norm.bias", "output_proj.weight", "output_proj.bias"]
NAMES = {
    "L1": ["layers.0.down_proj.weight", "layers.0.up_proj.weight", "layers.0.layer_norm.weight",
           "layers.0.layer_norm.bias", "layers.0.alpha_param", "final_norm.weight", "final_norm.bias"],
    "L4": [*LAYER, "output_proj.0.weight", "output_proj.0.bias", "output_proj.1.weight", "output_proj.1.bias"],
    "L5": [*EAGLE, "input_norm.weight", "input_norm.bias"],
    "B1": [*EAGLE, "input_norm.weight", "input_norm.bias"],
    "L5F": [*EAGLE, "fusion_proj.weight", "fusion_proj.bias", "fusion_norm.weight", "fusion_norm.bias",
            "gate.0.weight", "gate.0.bias"],
}  # fmt: skip


def outputs(kind: str, twin, tensors: dict, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    given = streams()
    ours = from_torch(kind, tensors)(given, mask)
    with torch.no_grad():
        theirs = twin(*(torch.from_numpy(np.array(x)) for x in given), torch.from_numpy(np.array(mask)))
    return np.asarray(ours), theirs.numpy()


@pytest.mark.parametrize("kind", PREFIXES)
def test_an_imported_adapter_computes_what_the_torch_twin_computes(kind):
    twin = random_twin(kind, WIDTH)
    ours, theirs = outputs(kind, twin, state_dict(twin), every())
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["L4", "L5", "B1", "L5F"])
def test_it_does_so_where_answers_end_early(kind):
    twin = random_twin(kind, WIDTH)
    mask = np.arange(LENGTH) < np.array([LENGTH, 7, 4])[:, None]
    ours, theirs = outputs(kind, twin, state_dict(twin), mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_l3_of_any_depth_is_read_from_its_names(blocks):
    twin = random_twin("L3", WIDTH, n=blocks)
    ours, theirs = outputs("L3", twin, state_dict(twin), every())
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_those_of_the_original(kind):
    assert sorted(TWINS[kind](WIDTH).state_dict()) == sorted(NAMES[kind])
    assert sorted(to_torch(make(kind, WIDTH), kind)) == sorted(NAMES[kind])


def test_names_of_blocks_are_those_of_the_original():
    per_block = ("down_proj.weight", "up_proj.weight", "layer_norm.weight", "layer_norm.bias", "alpha_param")
    final = ["final_norm.weight", "final_norm.bias"]
    assert sorted(to_torch(make("L2", WIDTH), "L2")) == sorted(
        [*final, *(f"blocks.{i}.{n}" for i in range(3) for n in per_block)]
    )
    wide = [f"blocks.{i}.{n}" for i in range(3) for n in ("0.weight", "1.weight", "1.bias", "4.weight")]
    norms = ["input_norm.weight", "input_norm.bias", *final]
    found = to_torch(make("L3", WIDTH, blocks=3), "L3")
    assert sorted(found) == sorted([*wide, *norms, "alphas.0", "alphas.1", "alphas.2"])


@pytest.mark.parametrize("kind", PREFIXES)
def test_the_round_trip_is_exact(kind):
    adapter = lively(kind)
    state = to_torch(adapter, kind)
    back = named_parameters(from_torch(kind, state))
    for name, value in named_parameters(adapter).items():
        np.testing.assert_array_equal(back[name], value, strict=True)
    assert all(value.flags.c_contiguous for value in state.values())
    TWINS[kind](WIDTH).load_state_dict({n: torch.from_numpy(v) for n, v in shaped(kind, state).items()})


def shaped(kind: str, state: dict) -> dict:
    """In the shapes that the twin happens to have: a leading axis of 1 for positions and for L3's alphas."""
    wanted = TWINS[kind](WIDTH).state_dict()
    return {name: value.reshape(tuple(wanted[name].shape)) for name, value in state.items()}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_alphas_may_be_scalars_or_have_one_element(shape):
    state = {name: v.reshape(shape) if "alpha" in name else v for name, v in to_torch(lively("L2"), "L2").items()}
    assert from_torch("L2", state).blocks[2].alpha.shape == ()


def test_positions_may_have_a_leading_axis():
    state = to_torch(lively("B1"), "B1")
    leading = from_torch("B1", {**state, "pos_embed": state["pos_embed"][None]})
    np.testing.assert_array_equal(leading.pos_embed[...], state["pos_embed"])


def test_the_adapter_owns_its_values():
    state = to_torch(lively("L1"), "L1")
    adapter = from_torch("L1", state)
    before = np.array(adapter.final_norm.scale[...])
    state["final_norm.weight"][:] = 7.0
    np.testing.assert_array_equal(adapter.final_norm.scale[...], before)


def test_half_precision_becomes_float32():
    state = {name: value.astype(np.float16) for name, value in to_torch(lively("L1"), "L1").items()}
    found = named_parameters(from_torch("L1", state))
    assert {str(value.dtype) for value in found.values()} == {"float32"}


def test_one_error_names_every_fault():
    state = to_torch(lively("L5"), "L5")
    del state["alpha"], state["layers.0.ffn.3.bias"]
    state["gate.0.weight"] = np.zeros((2, 2))
    state["output_proj.weight"] = np.zeros((WIDTH, 3), np.float32)
    state["output_norm.bias"] = np.full(WIDTH, np.nan)
    with pytest.raises(AdapterError) as caught:
        from_torch("L5", state)
    told = str(caught.value)
    assert "missing alpha" in told
    assert "missing layers.0.ffn.3.bias" in told
    assert "unknown gate.0.weight" in told
    assert f"output_proj.weight is [{WIDTH}, 3], needed is [{WIDTH}, {WIDTH}]" in told
    assert "output_norm.bias is not finite" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "the width is unknown: final_norm.bias and final_norm.weight must be vectors"),
        ({"final_norm.weight": np.ones((1, WIDTH))}, "the width is unknown"),
        ({"final_norm.weight": np.ones(17)}, "multiple of 16"),
        ({"module.final_norm.weight": np.ones(WIDTH)}, "unknown module.final_norm.weight"),
        ({"final_norm.weight": np.ones(WIDTH), "layers.0.alpha_param": np.ones(2)}, "alpha_param is [2], needed is []"),
    ],
)
def test_what_is_no_checkpoint_of_the_kind_is_refused(given, told):
    with pytest.raises(AdapterError) as caught:
        from_torch("L1", given)
    assert told in str(caught.value)


def test_a_gap_between_blocks_is_a_fault():
    state = to_torch(make("L3", WIDTH, blocks=3), "L3")
    gap = {name: value for name, value in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(AdapterError, match=r"missing blocks\.1\.0\.weight.*unknown blocks\.2\.0\.weight"):
        from_torch("L3", gap)


def test_only_kinds_of_the_original_are_read_and_written(monkeypatch):
    with pytest.raises(ConfigError, match="no such kind"):
        from_torch("L6", {})
    monkeypatch.delitem(PREFIXES, "L1")
    for call in (lambda: from_torch("L1", {}), lambda: to_torch(lively("L1"), "L1")):
        with pytest.raises(ConfigError, match="'L1': the original has no such adapter; it has L2, L3"):
            call()


@pytest.mark.parametrize(("made", "kind"), [("L5", "B1"), ("L1", "L2"), ("L3", "L1"), ("L5F", "L5"), ("L1", "L4")])
def test_an_adapter_is_written_as_what_it_is(made, kind):
    with pytest.raises(AdapterError, match=f"state dict of {kind}: needs an adapter as the original has it"):
        to_torch(make(made, WIDTH), kind)
