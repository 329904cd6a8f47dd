"""Keys, values and states of one prompt and its answer, in memory that never moves: what a CUDA graph can read again.

Column c of the cache holds token c of the text, prompt first. Row t of `states` is h[t], the state that emits token t
of the answer: it is written when token t - 1 is read. So places are known before a pass runs, and what a rejected draft
left in columns and rows is written over by what is read next.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel

from torch_bridge.few_layer import few_tokens, takes_few
from torch_bridge.few_rows import attend_few, attend_few_fixed
from torch_bridge.shared_prefix import after_attention, before_attention, summands

_ROUNDED = 128  # columns: prompts of nearly the same length share memory and graphs

FewLayer = Callable[..., tuple[Tensor, Tensor | None]]
"""`few_layer`, plain or compiled."""
ChunkLayer = tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, Tensor]]]
"""`chunk_layer`, plain or compiled."""


class StaticMemory:
    """Room for `columns` tokens and `rows` states of one Llama, on its device and in its dtype."""

    def __init__(
        self,
        llama: LlamaModel,
        *,
        columns: int,
        rows: int,
        fixed: bool = False,
        own_products: bool = True,
        chunk_pass: ChunkLayer | None = None,
    ) -> None:
        """Take the memory: 2 * layers * key-value width numbers a column, d a row.

        Args:
            llama: the model.
            columns: tokens that fit; some more may be taken.
            rows: states that fit.
            fixed: few tokens attend by sums of one order at every length, see `attend_few_fixed`.
            own_products: few tokens are read by products of our own, where the layers allow it (`takes_few`).
            chunk_pass: how a layer reads many tokens; plainly by default.
        """
        config: Any = llama.config
        like = llama.norm.weight
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (1, config.num_key_value_heads, rounded(columns), size)
        self.llama, self.columns = llama, shape[2]
        # On a GPU it is the same operation: then the compiled program is the same too.
        self._fixed = fixed and like.device.type != "cuda"
        self._ours = own_products and all(map(takes_few, self.llama.layers))
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.num_hidden_layers)]
        self.states = like.new_zeros(rows, config.hidden_size)
        self._chunk_pass = chunk_pass or chunk_layer

    def share_programs(self) -> None:
        """Let what is compiled over this memory serve memory of any size: both models and every prompt share it."""
        for memory in (one for layer in self.layers for one in layer):
            torch._dynamo.mark_dynamic(memory, 2)

    def read_chunk(self, inputs: Tensor, start: int) -> Tensor:
        """Read embeddings [n, d] into columns `start`.. in one pass; their states [n, d]. For prompts: n is large."""
        before, after = self._chunk_pass
        positions = torch.arange(start, start + len(inputs), device=inputs.device)[None]
        hidden, added = inputs[None], torch.zeros_like(inputs[None])
        model: Any = self.llama
        turned = model.rotary_emb(hidden, position_ids=positions)
        for number, layer in enumerate(model.layers):
            summed, *asked = before(layer, *any_length(hidden, added), any_length(*turned))
            attended = self._attend_chunk(start, number, *asked)
            hidden, added = after(layer, *any_length(summed, attended.transpose(1, 2)))
        return model.norm(hidden + added)[0]

    def _attend_chunk(self, start: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        stop = start + query.shape[2]
        keys, values = self.layers[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = key, value
        grouped = query.shape[1] != key.shape[1]
        attend = partial(functional.scaled_dot_product_attention, enable_gqa=grouped)
        if start == 0:
            return attend(query, key, value, is_causal=True)
        seen = torch.ones(stop - start, stop, dtype=torch.bool, device=query.device).tril(start)
        return attend(query, keys[:, :, :stop], values[:, :, :stop], attn_mask=seen)

    def read_few(self, inputs: Tensor, length: Tensor, layer_pass: FewLayer) -> tuple[Tensor, Tensor | None]:
        """Read embeddings [m, d] behind `length` int64[1] columns; their states before the norm, [1, m, d], as two
        summands (see `few_layer`)."""
        columns = length + torch.arange(len(inputs), device=inputs.device)
        model: Any = self.llama
        hidden = inputs[None]
        added = None if self._ours else torch.zeros_like(hidden)
        turned = model.rotary_emb(hidden, position_ids=columns[None])
        for layer, (keys, values) in zip(model.layers, self.layers, strict=True):
            place = turned, keys, values, columns, length
            hidden, added = layer_pass(layer, hidden, added, *place, fixed=self._fixed, ours=self._ours)
        return hidden, added


def _before(layer: Any, hidden: Tensor, added: Tensor, turned: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The inputs of one layer, [1, n, d], from two summands; query, key and value of them."""
    inputs = hidden + added
    return inputs, *before_attention(layer, inputs, turned)


def _after(layer: Any, inputs: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's outputs as two summands; `attended` [1, n, h, e]."""
    return after_attention(layer, inputs, attended.transpose(1, 2))


chunk_layer: ChunkLayer = _before, _after
"""One layer over many tokens, in two parts: what comes before attention and after it."""


def any_length(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors [1, n, ..] as they are: one compiled program will serve them for every n."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
    return tensors


def few_layer(
    layer: Any,
    hidden: Tensor,
    added: Tensor | None,
    turned: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    columns: Tensor,
    length: Tensor,
    fixed: bool = False,
    ours: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One layer over few tokens [1, m, d]; keys and values go into `columns` int64[m] = length, length + 1, ...

    Input and output are two summands each: compiled, a layer's last sum and the next one's norm are then one kernel.
    Where the layer's products are `ours` (`takes_few`), sums and norms are parts of them, and the second one is None.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys.index_copy_(2, columns, key)
        values.index_copy_(2, columns, value)
        return (attend_few_fixed if fixed else attend_few)(query, keys, values, length)

    inputs = hidden if added is None else hidden + added
    if ours:
        return few_tokens(layer, inputs, turned, attend), None
    return summands(layer, inputs, turned, attend)


def rounded(columns: int) -> int:
    """The columns that are taken where `columns` are needed."""
    return -(-columns // _ROUNDED) * _ROUNDED
