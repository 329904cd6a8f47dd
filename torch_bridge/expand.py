"""4-bit layers computed once: their full weights in memory, the same numbers as the library makes for each product.

For more than a few rows bitsandbytes writes a layer's full weight and multiplies with it, every time. Held, a 7B model
takes 13 GB in place of 3.3, and a pass reads them instead of making them. For extraction, where rows are many; live
decoding multiplies few rows, by other kernels.
"""

from typing import Any, Literal

import torch
from torch import nn

from torch_bridge.quantize import dense_weight, is_4bit
from torch_bridge.vlm import VLM

Expand = Literal["auto", "always", "never"]
SHARE = 0.5  # of the free memory that "auto" gives to full weights


def expand(vlm: VLM, wanted: Expand) -> bool:
    """Replace the 4-bit layers of the language model by full ones, for good; returns whether that was done.

    Only layers that multiply in the dtype of the states: then products are the same numbers. "auto" does so on a GPU
    if the full weights fill no more than half of the memory that is free.
    """
    found = {name: module for name, module in vlm.language_model.named_modules() if _fits(module, vlm.dtype)}
    if not found or wanted == "never" or (wanted == "auto" and not _is_room(vlm, found.values())):
        return False
    for name, module in found.items():
        vlm.language_model.set_submodule(name, _full(module, vlm.dtype))
    return True


def _fits(module: nn.Module, dtype: torch.dtype) -> bool:
    return is_4bit(module) and getattr(module, "compute_dtype", None) == dtype


def _is_room(vlm: VLM, modules: Any) -> bool:
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
