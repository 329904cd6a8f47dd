"""Fused NF4 layers are bitsandbytes' layers: their products, what is saved of them, and back again without a trace."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from torch_bridge.nf4 import layout
from torch_bridge.nf4.linear import (
    FusedNF4Linear,
    ParallelNF4,
    choose_products,
    fuse_nf4,
    is_fused,
    parallel_of,
    restore,
)
from torch_bridge.quantize import is_4bit, place
from xmsd_jax.config import ConfigError
from xmsd_jax.data.quantisation import Quantisation

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CLOSE = 1e-2  # relative, of bfloat16 sums in another order and weights rounded by one side alone


def quantised(model: nn.Module, device: str = "cpu", double: bool = True, compute: str = "bfloat16") -> nn.Module:
    policy = Quantisation(format="nf4", keep=(), double=double, compute=compute)
    return place(model.eval(), policy, dtype=torch.bfloat16, device=torch.device(device))


def llama(device: str = "cpu", bias: bool = False, double: bool = True) -> LlamaModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=64, attention_bias=bias)
    return quantised(LlamaModel(config), device, double)  # pyright: ignore[reportReturnType]


def exact_weight(layer) -> Tensor:
    """The weight in float64; the library itself rounds it to the dtype of the products."""
    state = layer.weight.quant_state
    return layout.dequantise(layer.weight.data, layout.absmax(state), tuple(state.shape)).double()


def saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("sides", [(128, 192), (576, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_layer_gives_the_librarys_products(sides, bias, double, device):
    model = quantised(nn.Sequential(nn.Linear(*sides, bias=bias)), device, double)
    layer = model[0]  # pyright: ignore[reportIndexIssue]
    inputs = [torch.randn(count, sides[0], device=device).bfloat16() for count in (1, 6, 16, 17, 40)]
    expected = [layer(x) for x in inputs]
    dense = exact_weight(layer)
    assert fuse_nf4(model) == 1
    assert isinstance(model[0], FusedNF4Linear)  # pyright: ignore[reportIndexIssue]
    for x, wanted in zip(inputs, expected, strict=True):
        found = model(x)
        assert found.dtype == wanted.dtype
        assert relative(found, wanted) < CLOSE
        exact = x.double() @ dense.T + (layer.bias.double() if bias else 0)
        assert relative(found, exact) < 1.2 * relative(wanted, exact)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("double", [True, False])
def test_saving_gives_the_librarys_format_and_restoring_its_layers(bias, double, device):
    model = llama(device, bias, double)
    before, modules = saved(model), dict(model.named_modules())
    assert fuse_nf4(model) == 14
    fused = saved(model)
    assert list(fused) == list(before)
    assert all(torch.equal(fused[name], before[name]) for name in before)
    assert not any(is_4bit(module) for module in model.modules())
    assert fuse_nf4(model) == 0
    assert restore(model) == 14
    after = saved(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert dict(model.named_modules()) == modules
    assert restore(model) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_give_what_each_of_them_gives_over_the_same_memory(bias, device):
    model = llama(device, bias)
    fuse_nf4(model)
    block = model.layers[1].self_attn
    joined = parallel_of(block)
    assert isinstance(joined, ParallelNF4)
    for count in (1, 5, 16, 20):
        x = torch.randn(1, count, 128, device=device).bfloat16()
        found, each = joined(x), (block.q_proj(x), block.k_proj(x), block.v_proj(x))
        assert all(torch.equal(a, b) for a, b in zip(found, each, strict=True))
    assert block.k_proj.tiles.untyped_storage().data_ptr() == joined.tiles.untyped_storage().data_ptr()
    assert parallel_of(model.layers[1].mlp) is not None
    assert parallel_of(model) is None


@pytest.mark.parametrize("device", DEVICES)
def test_layers_can_stay_apart(device):
    model = llama(device)
    assert fuse_nf4(model, together=False) == 14
    assert parallel_of(model.layers[0].self_attn) is None


@pytest.mark.parametrize("device", DEVICES)
def test_a_fused_model_answers_as_before(device):
    model = llama(device)
    tokens = torch.randn(1, 6, 128, device=device).bfloat16()
    expected = model(inputs_embeds=tokens).last_hidden_state
    fuse_nf4(model)
    assert relative(model(inputs_embeds=tokens).last_hidden_state, expected) < 0.05


def test_a_models_products_are_chosen_once():
    for first in (True, False):
        model = llama()
        choose_products(model, fused=first)
        choose_products(model, fused=first)
        assert any(is_fused(module) for module in model.modules()) == first
        with pytest.raises(ConfigError, match=r"engine\.products: this model's layers multiply the other way already"):
            choose_products(model, fused=not first)
        restore(model)
        choose_products(model, fused=not first)
    plain = LlamaModel(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=8))
    for fused in (True, False):
        choose_products(plain, fused=fused)  # has no 4-bit layers: there is nothing to choose


def test_layers_that_the_kernel_does_not_take_stay():
    exact = quantised(nn.Sequential(nn.Linear(128, 128)), compute="float32")
    dense = nn.Sequential(nn.Linear(128, 128))
    assert fuse_nf4(exact) == fuse_nf4(dense) == 0
    assert is_4bit(exact[0])  # pyright: ignore[reportIndexIssue]


def test_scales_that_half_precision_does_not_hold_stay_exact():
    small = nn.Linear(128, 64, bias=False)
    small.weight.data *= 1e-6
    model = quantised(nn.Sequential(small), double=False)
    dense = exact_weight(model[0])  # pyright: ignore[reportIndexIssue]
    fuse_nf4(model)
    x = torch.randn(3, 128).bfloat16()
    assert relative(model(x), x.double() @ dense.T) < 2.5e-3


@pytest.mark.parametrize("count", [3, 80])
def test_fused_layers_compile_into_one_graph(count):
    model = llama()
    fuse_nf4(model)
    block = model.layers[0].self_attn

    def both(x: Tensor) -> Tensor:
        return torch.cat([*parallel_of(block)(x), block.o_proj(x)], -1)

    x = torch.randn(1, count, 128).bfloat16()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), both(x))


def test_a_layers_own_dtype_of_result_is_that_of_its_input():
    model = quantised(nn.Sequential(nn.Linear(128, 64)))
    fuse_nf4(model)
    assert model(torch.randn(2, 128)).dtype == torch.float32
