"""bitsandbytes' 4-bit layers that read the same input, as one product of the library: where it multiplies itself.

One launch over more rows of weights keeps more of the device busy to its end than two or three.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from torch_bridge.nf4.layout import absmax
from torch_bridge.nf4.linear import PARALLEL, parallel_of
from torch_bridge.quantize import in_own_order, is_4bit


class Joined4bit(nn.Module):
    """Calling it gives what calling each of `layers` gives, in order; their codes become views of its own.

    For inference, on a model that stays on its device.
    """

    def __init__(self, layers: Sequence[Any]):
        """Lay the codes of `layers`, for which `can_join` holds, together. Scales are held once more, in float32."""
        super().__init__()
        self.in_features, self._compute = layers[0].in_features, layers[0].compute_dtype
        self.sizes = tuple(layer.out_features for layer in layers)
        self._multiply = import_module("bitsandbytes").matmul_4bit
        whole = sum(self.sizes), self.in_features
        self._codes, self.quant_state = _together([layer.weight for layer in layers], whole)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., in] -> one [..., out] for each layer, in the dtype of x."""
        y = self._multiply(x.to(self._compute), self._codes.t(), quant_state=self.quant_state)
        return y.to(x.dtype).split(self.sizes, -1)


def can_join(layers: Sequence[Any]) -> bool:
    """Whether they are 4-bit layers of one kind, in the library's own order, without biases."""
    if not all(is_4bit(layer) and layer.bias is None and in_own_order(layer) for layer in layers):
        return False
    return len(set(map(_kind, layers))) == 1


def unjoin(model: nn.Module) -> None:
    """Take the joined products below `model` away; each layer multiplies for itself again."""
    for owner in model.modules():
        if isinstance(parallel_of(owner), Joined4bit):
            del owner._modules[PARALLEL]


def _kind(layer: Any) -> tuple[Any, ...]:
    """What joined layers have in common."""
    weight, state = layer.weight, layer.weight.quant_state
    how = state.quant_type, state.blocksize, state.dtype, layer.compute_dtype
    return (layer.in_features, weight.dtype, weight.device, *how)


def _together(weights: Sequence[Any], shape: tuple[int, int]) -> tuple[Tensor, Any]:
    """The joined codes, of which each weight becomes a view, and their scales as bitsandbytes holds them."""
    states = [weight.quant_state for weight in weights]
    codes = torch.cat([weight.data.view(-1, 1) for weight in weights])
    for weight, view in zip(weights, codes.split([weight.numel() for weight in weights]), strict=True):
        weight.data = view.view(weight.shape)
    one = states[0]
    how = {"code": one.code, "blocksize": one.blocksize, "quant_type": one.quant_type, "dtype": one.dtype}
    scales = torch.cat([absmax(state).flatten() for state in states])
    return codes, type(one)(absmax=scales, shape=torch.Size(shape), **how)
