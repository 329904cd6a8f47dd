"""A Llama reads rows that share prefixes: the keys and values of a clip's prefix are held once for all its questions.

At 7B shape a prefix of 2,090 tokens takes 1.1 GB. Repeated for ten questions it would fill a GPU with six clips, and a
decode step would read it ten times. Here attention has two parts that one softmax joins:

    [ prefix of the clip, once ] [ pad .. pad | question | answer ... ] one line a row

Sizes are fixed: memory is taken once and written in place, so a decode step can be captured as a CUDA graph.
Positions and columns are tensors on the device; columns that a row must not see are masked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from torch_bridge.fused_projections import feed_forward, queries_keys_values

SCORES = 1 << 27  # attention weights held at once, in numbers; more rows are worked through in groups of clips
ALIGNED = 8  # numbers: rows of bfloat16 that do not start at 16 bytes are multiplied by kernels half as fast
PREFIX_TOKENS = 1 << 14  # read in one forward pass over prefixes, for the memory of its activations

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query [b, h, m, e], key and value [b, k, m, e]) -> [b, h, m, e]."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`clips` prefixes of `prefix` tokens; each has `group` rows of `columns` tokens: question and answer."""

    clips: int
    group: int
    prefix: int
    columns: int

    @property
    def rows(self) -> int:
        """Rows in all, clip by clip."""
        return self.clips * self.group


def forward(llama: LlamaModel, inputs: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Embeddings [b, m, d] at `positions` [b, m] -> states after the final norm."""
    model: Any = llama
    turned = model.rotary_emb(inputs, position_ids=positions)
    for number, layer in enumerate(model.layers):
        inputs = decoder_layer(layer, inputs, turned, partial(attend, number))
    return model.norm(inputs)


def decoder_layer(
    layer: Any, inputs: Tensor, turned: tuple[Tensor, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """One layer of a Llama over [b, m, d]; `turned` are the rotary embeddings at the positions, cosine and sine."""
    inputs, added = summands(layer, inputs, turned, attend)
    return inputs + added


def summands(
    layer: Any, inputs: Tensor, turned: tuple[Tensor, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """As `decoder_layer`, but its last sum is left to whoever reads the two next."""
    return after_attention(layer, inputs, attend(*before_attention(layer, inputs, turned)))


def before_attention(layer: Any, inputs: Tensor, turned: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Query [b, h, m, e], key and value [b, k, m, e] of a layer's inputs [b, m, d]."""
    query, key, value = queries_keys_values(layer.self_attn, layer.input_layernorm(inputs))
    return *apply_rotary_pos_emb(query, key, *turned), value


def after_attention(layer: Any, inputs: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer makes of its inputs [b, m, d] and of their attention [b, h, m, e], as two summands."""
    inputs = inputs + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
    return inputs, feed_forward(layer.mlp, layer.post_attention_layernorm(inputs))


class SharedPrefix:
    """Memory of one shape for one Llama, on its device and in its dtype."""

    def __init__(self, llama: LlamaModel, shape: Shape) -> None:
        """Take the memory: 2 * layers * key-value width numbers a token of `clips * prefix + rows * columns`."""
        config: Any = llama.config
        like = llama.norm.weight
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.llama, self.shape = llama, shape

        def blank(rows: int, columns: int) -> list[tuple[Tensor, Tensor]]:
            one = (rows, heads, columns, size)
            return [(like.new_zeros(one), like.new_zeros(one)) for _ in range(config.num_hidden_layers)]

        columns = aligned(shape.columns)
        self._prefix = blank(shape.clips, aligned(shape.prefix))
        self._own = blank(shape.rows, columns)
        self.real = torch.ones(shape.rows, columns, dtype=torch.bool, device=like.device)
        self._order = torch.arange(columns, device=like.device)

    def read_prefix(self, inputs: Tensor) -> None:
        """Read the prefixes [clips, prefix, d]; rows have nothing of their own then."""
        group = max(1, PREFIX_TOKENS // inputs.shape[1])
        for first in range(0, len(inputs), group):
            part = inputs[first : first + group]
            positions = torch.arange(part.shape[1], device=part.device).expand(len(part), -1)
            forward(self.llama, part, positions, partial(self._keep_prefix, slice(first, first + group)))

    def _keep_prefix(self, clips: slice, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for held, new in zip(self._prefix[layer], (key, value), strict=True):
            held[clips, :, : self.shape.prefix] = new
        grouped = query.shape[1] != key.shape[1]
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)

    def read(self, inputs: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        """Read [rows, m, d] into `columns` int64[m] of every row and return the states, [rows, m, d].

        A token sees its prefix, and the real columns up to its own.
        """
        seen = self.real[:, None] & (self._order <= columns[:, None])

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own = self._own[layer]
            own[0].index_copy_(2, columns, key)
            own[1].index_copy_(2, columns, value)
            return self._attend(query, self._prefix[layer], own, seen)

        return forward(self.llama, inputs, positions, attend)

    def _attend(self, query: Tensor, prefix: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        shape, heads, count = self.shape, query.shape[1], query.shape[2]
        size = shape.group * heads * count * (shape.prefix + shape.columns)
        step = max(1, SCORES // size)
        if step >= shape.clips:
            return _attend(query, prefix, own, seen, shape)
        parts = []
        for first in range(0, shape.clips, step):
            clips, rows = slice(first, first + step), slice(first * shape.group, (first + step) * shape.group)
            held, mine = tuple(x[clips] for x in prefix), tuple(x[rows] for x in own)
            parts.append(_attend(query[rows], held, mine, seen[rows], shape))
        return torch.cat(parts)


def _attend(query: Tensor, prefix: Any, own: Any, seen: Tensor, shape: Shape) -> Tensor:
    """Queries [c * group, h, m, e] over prefixes [c, k, p, e] and own columns [c * group, k, s, e] -> like the queries.

    `seen` bool[c * group, m, s]. Softmax over both in float32; h is a multiple of k (grouped queries).
    """
    group = shape.group
    rows, heads, count, size = query.shape
    held, shared = prefix[0].shape[1], heads // prefix[0].shape[1]
    query = (query * size**-0.5).reshape(rows, held, shared * count, size)
    wide = query.view(-1, group, held, shared * count, size).transpose(1, 2).flatten(2, 3)  # [c, k, group*shared*m, e]
    far = torch.matmul(wide, prefix[0].transpose(-1, -2))
    far[..., shape.prefix :] = float("-inf")
    far = far.unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)  # [rows, k, shared*m, p]
    near = torch.matmul(query, own[0].transpose(-1, -2))
    near = near.view(rows, held, shared, count, -1).masked_fill(~seen[:, None, None], float("-inf")).flatten(2, 3)
    weights = torch.cat([far, near], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
    far = far.unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)
    out = torch.matmul(far, prefix[1]).unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)
    out = out + torch.matmul(near, own[1])
    return out.view(rows, heads, count, size)


def aligned(count: int) -> int:
    """Rounded up so that rows start where products are fast."""
    return -(-count // ALIGNED) * ALIGNED
