"""Layers of a loaded NF4 model replaced by ones that multiply few rows with the fused kernel, and back.

Weights are held once, in tiles; of bitsandbytes' layer all but its codes is kept aside, so that saving and `restore`
give its format back, bit for bit. For inference, on a model that stays on its device.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_bridge.graphs import CAPTURING
from torch_bridge.nf4 import layout
from torch_bridge.nf4.kernel import MOST_ROWS, kernel_of
from torch_bridge.nf4.op import nf4_expand, nf4_matmul
from torch_bridge.quantize import in_own_order, is_4bit
from xmsd_jax.config import ConfigError

PARALLEL, _CHOSEN = "parallel_nf4", "_xmsd_products"
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # they read the same input


class FusedNF4Linear(nn.Module):
    """In the place of a `Linear4bit` that computes in bfloat16: up to 64 rows by the kernel, more by a full weight.

    That full weight is made for each product and is, number by number, the one that bitsandbytes makes.
    """

    def __init__(self, original: Any, tiles: Tensor):
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.bias = original.bias
        self.register_buffer("tiles", tiles, persistent=False)
        self.tiles: Tensor
        self._original = (original,)  # in a tuple: not a part of this module
        self._storage = original.weight.dtype, original.weight.shape

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """bfloat16[..., out] plus the product of few rows bfloat16[..., in], rounded once."""
        return nf4_matmul(x, self.tiles, self.bias, self.out_features, residual)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of x."""
        inputs = x.to(torch.bfloat16)
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        if _is_few(x):
            return nf4_matmul(inputs, self.tiles, bias, self.out_features).to(x.dtype)
        scales = layout.absmax(self.quant_state)
        weight = nf4_expand(self.tiles, scales, self.out_features, self.in_features)
        return functional.linear(inputs, weight, bias).to(x.dtype)

    @property
    def quant_state(self) -> Any:
        """The scales as bitsandbytes holds them."""
        return self._original[0].weight.quant_state

    def codes(self) -> Tensor:
        """The weight as bitsandbytes holds it, in its own dtype and shape."""
        dtype, shape = self._storage
        return layout.unpack(self.tiles, (self.out_features, self.in_features)).view(dtype).view(shape)

    def original(self) -> Any:
        """The layer that this one replaced, with its weight."""
        original = self._original[0]
        original.weight.data = self.codes()
        return original

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save what bitsandbytes' layer saves."""
        destination[prefix + "weight"] = self.codes()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()
        for name, value in self.quant_state.as_dict(packed=True).items():
            destination[f"{prefix}weight.{name}"] = value if keep_vars else value.detach()


class ParallelNF4(nn.Module):
    """Layers that read the same input as one product, over memory that is theirs too.

    Calling it gives what calling each of them gives, in order.
    """

    def __init__(self, layers: Sequence[FusedNF4Linear], tiles: Tensor):
        super().__init__()
        self.register_buffer("tiles", tiles, persistent=False)
        self.tiles: Tensor
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.register_buffer("bias", torch.cat(biases).to(torch.bfloat16) if biases else None, persistent=False)
        self.bias: Tensor | None
        self.in_features = layers[0].in_features
        self.sizes = tuple(layer.out_features for layer in layers)
        self.layers = tuple(layers)  # in a tuple: they stay parts of their owner alone

    def normed(self, x: Tensor, norm: Any) -> tuple[Tensor, ...]:
        """What calling it with `norm(x)` gives, for few rows bfloat16[..., in] and a Llama's norm; nothing between."""
        how = {"norm": norm.weight, "epsilon": norm.variance_epsilon}
        return nf4_matmul(x, self.tiles, self.bias, sum(self.sizes), **how).split(self.sizes, -1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., in] -> one [..., out] for each layer."""
        if not _is_few(x):
            return tuple(layer(x) for layer in self.layers)
        y = nf4_matmul(x.to(torch.bfloat16), self.tiles, self.bias, sum(self.sizes))
        return y.to(x.dtype).split(self.sizes, -1)


def fuse_nf4(model: nn.Module, *, together: bool = True) -> int:
    """Replace the NF4 layers below `model` in place; returns how many.

    Layers that the kernel does not take (another dtype of computation, other blocks, rows of no whole blocks) stay, and
    on a GPU without the kernel all do. Doing it again changes nothing.

    Args:
        model: its layers, already quantised and on their device.
        together: query, key and value are one product, gate and up another (`parallel_of` their owner).
    """
    count, devices = 0, set[torch.device]()
    for owner in list(model.modules()):
        if any(map(_fits, owner.children())):
            owner._modules.pop(PARALLEL, None)  # of the library's own products (`torch_bridge.joined_4bit`)
        joined = next((names for names in _TOGETHER if together and _can_join(owner, names)), ())
        single = [name for name, child in owner.named_children() if _fits(child) and name not in joined]
        for names in (*([joined] if joined else []), *((name,) for name in single)):
            devices.add(_replace(owner, names).device)
            count += len(names)
    for device in devices:
        if device.type == "cuda":
            # A launch that overlaps the one before it reads tiles early: they must be finished.
            torch.cuda.synchronize(device)
            with CAPTURING, torch.cuda.device(device):
                torch.cuda.empty_cache()  # the codes' memory would stay reserved, as much again
    return count


def takes_kernel(model: nn.Module) -> bool:
    """Whether below `model` there are layers for `fuse_nf4`, replaced already or not."""
    return any(is_fused(module) or _fits(module) for module in model.modules())


def choose_products(model: nn.Module, *, fused: bool) -> None:
    """Fuse the model, or leave it to the library: once, since graphs are captured over one or the other.

    Raises:
        ConfigError: the other was chosen for this model before.
    """
    if not takes_kernel(model):
        return
    if getattr(model, _CHOSEN, fused) != fused:
        raise ConfigError(
            "engine.products: this model's layers multiply the other way already, and its graphs rely on that; load it "
            "once more for the library's products beside the fused ones"
        )
    setattr(model, _CHOSEN, fused)
    if fused:
        fuse_nf4(model)


def parallel_of(owner: Any) -> nn.Module | None:
    """The joined product of an attention block's or feed-forward part's layers; None where there is none.

    A `ParallelNF4`, or a `torch_bridge.joined_4bit.Joined4bit` where the library multiplies.
    """
    return getattr(owner, PARALLEL, None)


def is_fused(module: nn.Module) -> bool:
    """Whether the module stands in the place of a 4-bit layer."""
    return isinstance(module, FusedNF4Linear)


def restore(model: nn.Module) -> int:
    """Put bitsandbytes' layers back in place, each for itself; returns how many were replaced.

    Graphs that were captured before are of no use then.
    """
    count = 0
    if hasattr(model, _CHOSEN):
        delattr(model, _CHOSEN)
    for owner in list(model.modules()):
        owner._modules.pop(PARALLEL, None)
        for name, child in list(owner.named_children()):
            if isinstance(child, FusedNF4Linear):
                setattr(owner, name, child.original())
                count += 1
    return count


def _is_few(x: Tensor) -> bool:
    return math.prod(x.shape[:-1]) <= MOST_ROWS


def _fits(layer: Any) -> bool:
    if not is_4bit(layer) or getattr(layer, "compute_dtype", None) != torch.bfloat16:
        return False
    weight, state = layer.weight, layer.weight.quant_state
    if not in_own_order(layer) or state.quant_type != "nf4" or state.blocksize != layout.BLOCK:
        return False
    return weight.device.type == "cpu" or kernel_of(weight.device) is not None


def _can_join(owner: Any, names: Sequence[str]) -> bool:
    """Whether all are there, read equally wide inputs, fill whole tiles, and have biases all or none."""
    layers = [getattr(owner, name, None) for name in names]
    if not all(_fits(layer) for layer in layers):
        return False
    facts = {(layer.in_features, layer.bias is None, layer.weight.device) for layer in layers}  # pyright: ignore
    return len(facts) == 1 and not any(layer.out_features % layout.ROWS for layer in layers)  # pyright: ignore


def _replace(owner: nn.Module, names: Sequence[str]) -> Tensor:
    """Put fused layers in the place of those of these names; their tiles."""
    originals: list[Any] = [getattr(owner, name) for name in names]
    tiles = torch.cat(list(_packed(originals)))
    counts = [-(-original.out_features // layout.ROWS) for original in originals]
    layers = [FusedNF4Linear(*pair) for pair in zip(originals, tiles.split(counts), strict=True)]
    for name, original, layer in zip(names, originals, layers, strict=True):
        setattr(owner, name, layer.train(original.training))
        original.weight.data = original.weight.data.new_empty(0)
    if len(names) > 1:
        setattr(owner, PARALLEL, ParallelNF4(layers, tiles))
    return tiles


def _packed(originals: Sequence[Any]) -> Iterator[Tensor]:
    """The tiles of each layer, scales in one dtype for all."""
    scales = [layout.absmax(original.weight.quant_state) for original in originals]
    dtype = torch.float16 if all(layout.scale_dtype(s) is torch.float16 for s in scales) else torch.float32
    for original, own in zip(originals, scales, strict=True):
        codes = original.weight.data.contiguous().view(torch.uint8)
        yield layout.pack(codes, own, (original.out_features, original.in_features), dtype)
