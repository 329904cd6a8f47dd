"""A layer whose norms and sums are parts of its products is the layer that the library computes."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from tests.torch_bridge.test_nf4_linear import DEVICES, llama, relative
from torch_bridge.few_layer import few_tokens, is_dense, takes_few
from torch_bridge.fused_projections import fuse
from torch_bridge.joined_4bit import Joined4bit
from torch_bridge.nf4.linear import fuse_nf4, is_fused, parallel_of
from torch_bridge.shared_prefix import summands
from torch_bridge.static_memory import StaticMemory, few_layer

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = 4e-3  # of bfloat16, relative


def attend(scale: float, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of each token to itself and to a constant: enough to see who reads what."""
    weight = (query.unflatten(1, (key.shape[1], -1)) * key[:, :, None]).sum(-1, keepdim=True).sigmoid() * scale
    return (weight * value[:, :, None]).flatten(1, 2)


def turned(model, count: int, device: str) -> tuple[Tensor, Tensor]:
    inputs = torch.zeros(1, count, 1, device=device).bfloat16()
    return model.rotary_emb(inputs, position_ids=torch.arange(5, 5 + count, device=device)[None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 6, 16])
def test_a_layer_is_the_librarys(count, device):
    library, ours = llama(device), llama(device)
    fuse_nf4(ours)
    inputs = torch.randn(1, count, 128, device=device).bfloat16()
    for one, other in zip(library.layers, ours.layers, strict=True):
        assert takes_few(other)
        assert not takes_few(one)
        for layer in (one, other):
            torch.manual_seed(1)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.data = 4 * (torch.rand(128) + 0.5).bfloat16().to(device)
                norm.variance_epsilon = 0.5
        how = turned(ours, count, device), partial(attend, 0.7)
        expected = sum(summands(one, inputs, *how))
        found = few_tokens(other, inputs, *how)
        assert relative(found, expected) < 3 * HALF  # pyright: ignore[reportArgumentType]
        assert relative(inputs, expected) > 0.1, "the layer adds something"  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 6, 16])
def test_a_dense_layer_is_the_librarys(count, device):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=64,
    )
    model = LlamaModel(config).eval().requires_grad_(False).to(device, torch.bfloat16)
    fuse(model)
    (layer,) = model.layers
    assert is_dense(layer) is takes_few(layer) is (device == "cuda")
    inputs = torch.randn(1, count, 128, device=device).bfloat16()
    how = turned(model, count, device), partial(attend, 0.7)
    expected = sum(summands(layer, inputs, *how))
    assert relative(few_tokens(layer, inputs, *how), expected) < 3 * HALF  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", DEVICES)
def test_passes_read_the_cache_as_the_librarys_layers_do(device):
    states = []
    for fused in (False, True):
        model = llama(device)
        if fused:
            fuse_nf4(model)
        memory = StaticMemory(model, columns=40, rows=8)
        draws = torch.Generator().manual_seed(0)
        inputs = [torch.randn(n, 128, generator=draws).to(device).bfloat16() for n in (20, 5)]
        with torch.inference_mode():
            memory.read_chunk(inputs[0], 0)
            hidden, added = memory.read_few(inputs[1], torch.tensor([20], device=device), few_layer)
        assert (added is None) is fused
        states.append(hidden if added is None else hidden + added)
    assert relative(states[1], states[0]) < 3 * HALF


def test_layers_with_other_products_are_left():
    apart, biased, dense = llama(), llama(bias=True), llama()
    fuse_nf4(apart, together=False)
    fuse_nf4(biased)
    fuse(dense)
    assert not any(takes_few(model.layers[0]) for model in (apart, biased, dense))


def test_products_that_the_library_joins_take_no_norm():
    model = llama()
    fuse(model)
    for layer in model.layers:
        for owner, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
            last = nn.ModuleDict({name: getattr(owner, name)})
            fuse_nf4(last)
            setattr(owner, name, last[name])
    assert is_fused(model.layers[0].self_attn.o_proj)
    assert isinstance(parallel_of(model.layers[0].mlp), Joined4bit)
    assert not any(map(takes_few, model.layers))


def test_a_layer_is_one_program_without_a_break():
    model = llama()
    fuse_nf4(model)
    inputs = torch.randn(1, 3, 128).bfloat16()
    how = turned(model, 3, "cpu"), partial(attend, 0.7)
    compiled = torch.compile(few_tokens, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for layer in model.layers:
            assert torch.equal(compiled(layer, inputs, *how), few_tokens(layer, inputs, *how))
