"""Projections that read the same input as one product: query, key and value; gate and up.

For few rows a product costs what reading its weight costs, plus a launch: 128 of them instead of 224 in a 7B Llama.
The weights are held once: the library's own modules go on working, on views of the fused memory. Those of 4 bits are
joined by `torch_bridge.nf4.linear` for the kernel there, and by `torch_bridge.joined_4bit` for the library's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel

from torch_bridge.graphs import CAPTURING
from torch_bridge.joined_4bit import Joined4bit, can_join
from torch_bridge.nf4.linear import PARALLEL, parallel_of

_FUSED = "fused_weight"


def fuse(llama: LlamaModel) -> int:
    """Lay the weights of every layer's parallel projections together; returns how many products that makes less.

    Layers with biases stay as they are, and 4-bit ones that are joined already. Doing it again changes nothing.
    """
    saved = 0
    for layer in llama.layers:
        block: Any = layer
        for owner, names in ((block.self_attn, ("q_proj", "k_proj", "v_proj")), (block.mlp, ("gate_proj", "up_proj"))):
            joined = fused_of(owner) is not None or parallel_of(owner) is not None
            if not joined and _fuse_one(owner, [getattr(owner, name) for name in names]):
                saved += len(names) - 1
    if saved and llama.device.type == "cuda":
        torch.cuda.synchronize(llama.device)  # launches that overlap the one before them read weights early
        with CAPTURING:
            torch.cuda.empty_cache()  # the single weights' memory would stay reserved, as much again
    return saved


def fused_of(owner: Any) -> Tensor | None:
    """The fused weight of an attention block or feed-forward part; None where it is not fused."""
    return getattr(owner, _FUSED, None)


def queries_keys_values(block: Any, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projections of an attention block's input [b, m, d]: [b, h, m, e], and [b, k, m, e] twice."""
    fused, joined = fused_of(block), parallel_of(block)
    if joined is not None:
        parts = joined(inputs)
    elif fused is None:
        parts = (block.q_proj(inputs), block.k_proj(inputs), block.v_proj(inputs))
    else:
        sizes = [projection.out_features for projection in (block.q_proj, block.k_proj, block.v_proj)]
        parts = functional.linear(inputs, fused).split(sizes, -1)
    query, key, value = (part.unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for part in parts)
    return query, key, value


def feed_forward(mlp: Any, inputs: Tensor) -> Tensor:
    """The gated feed-forward part of a layer, [b, m, d] -> [b, m, d]."""
    fused, joined = fused_of(mlp), parallel_of(mlp)
    if joined is not None:
        gate, up = joined(inputs)
    elif fused is None:
        return mlp(inputs)
    else:
        gate, up = functional.linear(inputs, fused).chunk(2, -1)
    return mlp.down_proj(mlp.act_fn(gate) * up)


def _fuse_one(owner: nn.Module, linears: list[nn.Linear]) -> bool:
    if can_join(linears):
        setattr(owner, PARALLEL, Joined4bit(linears))
        return True
    if any(type(linear) is not nn.Linear or linear.bias is not None for linear in linears):
        return False
    weight = torch.cat([linear.weight.detach() for linear in linears])
    rows = [len(linear.weight) for linear in linears]
    for linear, view in zip(linears, weight.split(rows), strict=True):
        linear.weight.data = view
    setattr(owner, _FUSED, weight)  # a plain attribute: neither a parameter nor part of what is saved
    return True
