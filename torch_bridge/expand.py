"""4-bit layers computed once: their full weights are held, and each product reads them instead of making them anew.

Held, a 7B model takes 13 GB in place of 3.3. For extraction, where rows are many; live decoding multiplies few rows.
The weights are the very numbers that the library makes for a product of many rows, so those products stay the same,
bit by bit. For few rows (how many depends on the GPU) it has kernels that never write a weight down and add up in
another order: there products agree to rounding. So a store says of every shard which models were expanded.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from torch_bridge.batching import ran_out
from torch_bridge.joined_4bit import unjoin
from torch_bridge.nf4.linear import is_fused
from torch_bridge.quantize import dense_weight, is_4bit
from torch_bridge.vlm import VLM
from xmsd_jax.config import UserError

Expand = Literal["auto", "always", "never"]
SHARE = 0.5  # of the free memory that "auto" gives to full weights


def expand(vlm: VLM, wanted: Expand) -> bool:
    """Replace the 4-bit layers of the language model by full ones, for good; returns whether that was done.

    Only layers that multiply in the dtype of the states: then products are the same numbers. "auto" does so on a GPU
    if the full weights fill no more than half of the memory that is free.

    Raises:
        UserError: "always", and memory does not suffice. The model is of no use then.
    """
    found = {name: module for name, module in vlm.language_model.named_modules() if _fits(module, vlm.dtype)}
    if not found or wanted == "never" or (wanted == "auto" and not _is_room(vlm, found.values())):
        return False
    unjoin(vlm.language_model)
    try:
        for name in list(found):
            vlm.language_model.set_submodule(name, _full(found.pop(name), vlm.dtype))  # one by one, the old one goes
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"expand: the full weights of {vlm.name} do not fit in the memory of {vlm.device}; set expand to auto"
        ) from error
    return True


def is_expanded(vlm: VLM) -> bool:
    """Whether it is a quantised model whose language model computes with full weights."""
    layers = vlm.language_model.modules()
    return vlm.quantisation != "none" and not any(is_4bit(layer) or is_fused(layer) for layer in layers)


def _fits(module: nn.Module, dtype: torch.dtype) -> bool:
    return is_4bit(module) and getattr(module, "compute_dtype", None) == dtype


def _is_room(vlm: VLM, modules: Iterable[Any]) -> bool:
    if vlm.device.type != "cuda":
        return False
    needed = sum(module.in_features * module.out_features for module in modules) * vlm.dtype.itemsize
    return needed <= SHARE * torch.cuda.mem_get_info(vlm.device)[0]


def _full(module: Any, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(dense_weight(module).to(dtype), requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    return linear.eval()
