"""A Llama layer over few tokens whose products are ours: norms and sums are parts of the products around them.

A norm is a number a row, known where a product's block of threads reads whole rows; a sum is one more number where the
product's is written. As kernels of their own they cost their launches: two thirds of what a layer has.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from torch_bridge.nf4.kernel import MOST_NORMED
from torch_bridge.nf4.linear import is_fused, parallel_of


def takes_few(layer: Any) -> bool:
    """Whether all of the layer's products are ours, and its norms can be parts of them."""
    for owner, norm in (
        (layer.self_attn, layer.input_layernorm),
        (layer.mlp, layer.post_attention_layernorm),
    ):
        joined = parallel_of(owner)
        if joined is None or joined.in_features > MOST_NORMED:
            return False
        if type(norm) is not LlamaRMSNorm or norm.weight.dtype != torch.bfloat16:
            return False
    last = layer.self_attn.o_proj, layer.mlp.down_proj
    return all(is_fused(product) and product.bias is None for product in last)


def few_tokens(
    layer: Any, inputs: Tensor, turned: tuple[Tensor, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """One layer over bfloat16[1, m, d]; `turned` are the rotary embeddings at the positions, cosine and sine."""
    block, mlp = layer.self_attn, layer.mlp
    parts = parallel_of(block).normed(inputs, layer.input_layernorm)  # pyright: ignore[reportOptionalMemberAccess]
    query, key, value = (part.unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for part in parts)
    attended = attend(*apply_rotary_pos_emb(query, key, *turned), value)
    inputs = block.o_proj.onto(inputs, attended.transpose(1, 2).flatten(2))
    gate, up = parallel_of(mlp).normed(inputs, layer.post_attention_layernorm)  # pyright: ignore[reportOptionalMemberAccess]
    return mlp.down_proj.onto(inputs, mlp.act_fn(gate) * up)
