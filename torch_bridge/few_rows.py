"""Attention of a few new tokens over a long static cache, at the price of reading the used part of the cache once.

A decode step has one new token, a verification a handful. Attention written for prompts gives a program whole heads, so
few tokens keep few of a GPU's processors busy; here the columns of a head are split over programs as well
(flash-decoding, Dao et al. 2023). The length of the cache is read on the device: one captured graph serves all lengths.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

MOST_TOKENS = 16  # rows of the smallest matrix product of tensor cores: fewer cost the same


@torch.library.custom_op("xmsd::attend_few", mutates_args=())
def attend_few(query: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    """Attention of the last `m` tokens of a text over all of it; softmax in float32, scale e**-0.5.

    Token i sees the columns before `length + i + 1`. On CUDA with triton its numbers do not depend on m, nor on the
    tokens read with it: a step and a verification give equal bits. Columns from `length + m` on may hold anything, NaN
    too.

    Args:
        query: [1, h, m, e], m at most 16, h a multiple of k: of the tokens at `length` .. `length + m - 1`.
        keys: [1, k, c, e], in which these tokens' own are written already.
        values: the same.
        length: int64[1], tokens in the cache before these. `length + m <= c` is checked on a CPU; on CUDA, where
            looking would wait for the device, it is the caller's to hold, and columns past c are not read.

    Returns:
        [1, h, m, e], a view of [1, m, h, e]: `.transpose(1, 2).flatten(2)` copies nothing.

    Raises:
        ValueError: shapes or dtypes that do not fit, or on a CPU a length past the cache.
    """
    _check(query, keys, values, length)
    if query.device.type != "cuda":
        return _attend_used(query, keys, values, int(length))
    if has_triton():
        from torch_bridge.few_rows_kernel import attend_splits, tiling  # CPU builds of torch bring no triton

        return attend_splits(query, keys, values, length, tiling(keys))
    return _attend_capacity(query, keys, values, length)


@attend_few.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    _check(query, keys, values, length)
    return new_output(query)


def attend_few_fixed(query: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    """As `attend_few`, and on a CPU too a token's bits depend neither on its place among m new ones nor on the length.

    There all columns are looked at, used or not, so that sums have one order. It costs more.
    """
    if query.device.type == "cuda":
        return attend_few(query, keys, values, length)
    _check(query, keys, values, length)
    return _attend_capacity(query, keys, values, length)


def new_output(query: Tensor) -> Tensor:
    """Memory for the result, [1, h, m, e] laid out as [1, m, h, e]."""
    batch, heads, tokens, size = query.shape
    return query.new_empty(batch, tokens, heads, size).transpose(1, 2)


def _check(query: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> None:
    batch, heads, tokens, size = query.shape
    if batch != 1 or not 0 < tokens <= MOST_TOKENS:
        raise ValueError(
            f"attend_few takes one text and 1 to {MOST_TOKENS} new tokens; received a query of {tuple(query.shape)} "
            "([1, h, m, e]): use scaled_dot_product_attention for more"
        )
    fits = keys.shape == values.shape and keys.shape[0] == 1 and keys.shape[3] == size and not heads % keys.shape[1]
    if not fits:
        raise ValueError(
            "keys and values must be [1, k, c, e] for a query [1, h, m, e] with h a multiple of k; received "
            f"{tuple(keys.shape)} and {tuple(values.shape)} for {tuple(query.shape)}"
        )
    if not query.dtype == keys.dtype == values.dtype or length.dtype != torch.int64 or length.shape != (1,):
        raise ValueError(
            "query, keys and values must have one dtype, and the length must be int64[1]; received "
            f"{query.dtype}, {keys.dtype}, {values.dtype} and {length.dtype}{list(length.shape)}"
        )


def _attend_used(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Over views of the used columns: for a CPU, where the length is known."""
    tokens, columns = query.shape[2], keys.shape[2]
    stop = length + tokens
    if not tokens <= stop <= columns:
        raise ValueError(
            f"new tokens must lie in the cache; received a length of {length} and {tokens} tokens for {columns} "
            "columns: take a larger cache"
        )
    seen = torch.ones(tokens, stop, dtype=torch.bool).tril(length) if tokens > 1 else None  # one token sees them all
    return _attend_masked(query, keys[:, :, :stop], values[:, :, :stop], seen)


def _attend_capacity(query: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    """Over all columns, without a look at the length: for a GPU without triton, and for `attend_few_fixed`. Slow."""
    tokens, device = query.shape[2], query.device
    column = torch.arange(keys.shape[2], device=device)
    unused = (column >= length + tokens)[:, None]
    keys, values = keys.masked_fill(unused, 0), values.masked_fill(unused, 0)  # a weight of 0 times NaN is NaN
    seen = column <= length + torch.arange(tokens, device=device)[:, None]
    return _attend_masked(query, keys, values, seen)


def _attend_masked(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """`seen` bool[m, c], None for all. The queries that share keys become tokens of one head: no key is repeated."""
    group = query.shape[1] // keys.shape[1]
    attend = functional.scaled_dot_product_attention
    if group == 1:
        return _laid_out(attend(query, keys, values, attn_mask=seen))
    folded = query.unflatten(1, (-1, group)).flatten(2, 3)
    attended = attend(folded, keys, values, attn_mask=None if seen is None else seen.repeat(group, 1))
    return _laid_out(attended.unflatten(2, (group, -1)).flatten(1, 2))


def _laid_out(result: Tensor) -> Tensor:
    """As `new_output` lays it out; on a CPU attention does so already."""
    return result.transpose(1, 2).contiguous().transpose(1, 2)


@cache
def launches_early(device: torch.device) -> bool:
    """Whether a kernel may begin while the one before it still runs (programmatic dependent launch)."""
    able = device.type == "cuda" and torch.version.cuda is not None
    return able and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def has_triton() -> bool:
    """Whether triton is installed: torch's CUDA builds bring it."""
    return find_spec("triton") is not None
