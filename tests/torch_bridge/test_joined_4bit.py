"""bitsandbytes' layers joined are the same layers: their numbers, what is saved of them, and one program for all."""

import pytest
import torch
from torch import nn

from tests.torch_bridge.test_nf4_linear import DEVICES, llama, quantised, relative, saved
from torch_bridge.footprint import footprint
from torch_bridge.fused_projections import feed_forward, fuse, queries_keys_values
from torch_bridge.joined_4bit import Joined4bit, can_join, unjoin
from torch_bridge.nf4.linear import ParallelNF4, choose_products, fuse_nf4, parallel_of, restore
from torch_bridge.quantize import is_4bit

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("count", [1, 6, 40])
def test_a_joined_product_is_each_layers_own(count, double, device):
    model, apart = llama(device, double=double), llama(device, double=double)
    assert fuse(model) == 3 * len(model.layers)
    assert fuse(model) == 0, "done twice, nothing is left to do"
    x = torch.randn(1, count, 128, device=device).bfloat16()
    for layer, other in zip(model.layers, apart.layers, strict=True):
        found = queries_keys_values(layer.self_attn, x)
        for name, one, expected in zip(NAMES, found, queries_keys_values(other.self_attn, x), strict=True):
            assert relative(one, expected) < 3e-3, name
        assert relative(feed_forward(layer.mlp, x), feed_forward(other.mlp, x)) < 1e-2
        assert relative(layer.self_attn.v_proj(x), other.self_attn.v_proj(x)) == 0, "apart it is what it was"


def test_what_is_saved_and_held_stays_what_it_was():
    """Weights are views of the joined codes, so that they are held once."""
    model, before = llama(), saved(llama())
    fuse(model)
    assert saved(model).keys() == before.keys()
    for name, value in saved(model).items():
        assert torch.equal(value, before[name]), name
    block = model.layers[0].self_attn
    codes = parallel_of(block)._codes
    rows = [getattr(block, name).weight.data_ptr() - codes.data_ptr() for name in NAMES]
    assert rows == [0, 128 * 128 // 2, 128 * (128 + 64) // 2]


def test_layers_are_one_program_without_a_break():
    model, traced = llama(), []
    fuse(model)
    backend = lambda graph, _: traced.append(graph) or graph.forward  # noqa: E731
    compiled = torch.compile(queries_keys_values, fullgraph=True, backend=backend)
    x = torch.randn(1, 3, 128).bfloat16()
    with torch.inference_mode():
        for layer in model.layers:
            expected = queries_keys_values(layer.self_attn, x)
            assert all(map(torch.equal, compiled(layer.self_attn, x), expected))
    assert len(traced) == 1


@pytest.mark.parametrize("together", [True, False])
def test_the_kernel_may_take_the_place_of_joined_layers(together):
    model, plain = llama(), llama()
    fuse(model)
    fuse_nf4(model, together=together)
    found = parallel_of(model.layers[0].self_attn)
    assert isinstance(found, ParallelNF4) if together else found is None
    restore(model)
    for name, value in saved(plain).items():
        assert torch.equal(saved(model)[name], value), name


def test_other_layers_are_left():
    biased, dense = llama(bias=True), nn.Linear(64, 64)
    other = quantised(nn.Sequential(nn.Linear(128, 64, bias=False)), compute="float32")[0]
    first = llama().layers[0].self_attn.q_proj
    fuse(biased)
    assert parallel_of(biased.layers[0].self_attn) is None
    assert isinstance(parallel_of(biased.layers[0].mlp), Joined4bit)
    assert not can_join([first, dense])
    assert not can_join([first, other]), "another dtype of computation"
    stored = llama().layers[0].self_attn.k_proj
    stored.weight.data = stored.weight.data.flatten().view(torch.bfloat16).view(-1, 1)
    assert not can_join([first, stored]), "codes in another dtype of storage"
    assert can_join([first, first])


@pytest.mark.parametrize("take", [restore, unjoin])
def test_each_layer_multiplies_for_itself_again(take):
    model, plain = llama(), llama()
    fuse(model)
    take(model)
    assert [parallel_of(owner) for layer in model.layers for owner in (layer.self_attn, layer.mlp)] == [None] * 4
    for name, value in saved(plain).items():
        assert torch.equal(saved(model)[name], value), name


def test_joined_scales_count():
    model = llama()
    before = footprint(model).parts["linears"]
    fuse(model)
    after = footprint(model).parts["linears"]
    joined = sum(layer.in_features * layer.out_features for layer in model.modules() if is_4bit(layer)) - 2 * (
        128 * 128 + 320 * 128  # the two products of a layer that read an input of their own
    )
    assert after.weights == before.weights
    assert after.scales - before.scales == joined // 64 * 4


def test_a_model_left_to_the_library_is_joined_after_that_choice():
    model = llama()
    choose_products(model, fused=False)
    assert fuse(model) == 3 * len(model.layers)
