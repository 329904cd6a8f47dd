"""A Llama layer over few tokens by products of our own, with sums as parts of them, and in 4 bits norms too.

A norm is a number a row, known where a product's block of threads reads whole rows; a sum is one more number where the
product's is written. As kernels of their own they cost their launches, and a layer has two of each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from torch_bridge.few_rows import has_triton
from torch_bridge.few_rows_linear import linear_few
from torch_bridge.fused_projections import fused_of
from torch_bridge.nf4.kernel import MOST_NORMED
from torch_bridge.nf4.linear import ParallelNF4, is_fused, parallel_of

_HALVES = torch.bfloat16, torch.float16


def takes_few(layer: Any) -> bool:
    """Whether `few_tokens` can read by this layer: parallel products are joined, in 4 bits or dense."""
    owners = layer.self_attn, layer.mlp
    last = layer.self_attn.o_proj, layer.mlp.down_proj
    if all(is_fused(product) and product.bias is None for product in last) and _plain_norms(layer):
        return all(_is_narrow(parallel_of(owner)) for owner in owners)
    return is_dense(layer) and all(fused_of(owner) is not None for owner in owners)


def is_dense(layer: Any) -> bool:
    """Whether a layer's products are plain ones in 16 bits, without biases, on a GPU with triton."""
    block, mlp = layer.self_attn, layer.mlp
    products = block.q_proj, block.k_proj, block.v_proj, block.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    plain = all(type(p) is nn.Linear and p.bias is None and p.weight.dtype in _HALVES for p in products)
    return plain and _plain_norms(layer) and block.o_proj.weight.device.type == "cuda" and has_triton()


def few_tokens(
    layer: Any, inputs: Tensor, turned: tuple[Tensor, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """One layer over [1, m, d] in 16 bits; `turned` are the rotary embeddings at the positions, cosine and sine."""
    block, mlp = layer.self_attn, layer.mlp
    parts = _normed(block, (block.q_proj, block.k_proj, block.v_proj), layer.input_layernorm, inputs)
    query, key, value = (part.unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for part in parts)
    attended = attend(*apply_rotary_pos_emb(query, key, *turned), value)
    inputs = _onto(inputs, block.o_proj, attended.transpose(1, 2).flatten(2))
    gate, up = _normed(mlp, (mlp.gate_proj, mlp.up_proj), layer.post_attention_layernorm, inputs)
    return _onto(inputs, mlp.down_proj, mlp.act_fn(gate) * up)


def _plain_norms(layer: Any) -> bool:
    norms = layer.input_layernorm, layer.post_attention_layernorm
    return all(type(norm) is LlamaRMSNorm and norm.weight.dtype in _HALVES for norm in norms)


def _is_narrow(joined: Any) -> bool:
    return isinstance(joined, ParallelNF4) and joined.in_features <= MOST_NORMED


def _normed(owner: Any, products: tuple[Any, ...], norm: Any, inputs: Tensor) -> tuple[Tensor, ...]:
    """The products that read the normalised inputs."""
    joined = parallel_of(owner)
    if isinstance(joined, ParallelNF4):
        return joined.normed(inputs, norm)
    weight: Any = fused_of(owner)
    made = linear_few(norm(inputs), weight)
    return made.split([product.out_features for product in products], -1)


def _onto(inputs: Tensor, product: Any, values: Tensor) -> Tensor:
    """The inputs plus a product."""
    return product.onto(inputs, values) if is_fused(product) else linear_few(values, product.weight, inputs)
