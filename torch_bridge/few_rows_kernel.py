"""`attend_few` on CUDA: two Triton kernels, which split the columns of the cache over programs and join the parts.

Split boundaries depend on the size of the cache alone, and the number of new tokens is no constant of the kernels: one
compiled program serves all of them, with 16 rows a head of which the first m are real. So a token's sums have the same
terms in the same order in a step and in a verification. Imported only where triton is: torch's CUDA builds bring it.

From capability 9.0 on a kernel may begin while the one before it still runs (programmatic dependent launch); it waits
before it reads anything.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from torch_bridge.few_rows import MOST_TOKENS, launches_early, new_output

LEAST_SPLIT = 64  # columns
MOST_PROGRAMS = 330  # five for each two of a Hopper GPU's 132 processors: fewer leave some idle, more cost more to join
BLOCK_BYTES = 1 << 14  # of keys in one block, and of values: shared memory has room for several programs a processor
MOST_JOINED = 64  # splits at a time
LOG2_E = 1.4426950408889634  # exp2 is one instruction


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Columns of a split (one program) and of a block (one pair of products); how a program of the first kernel runs.

    With three stages a block of 64 columns and 128 numbers in bfloat16 takes some 70 KB of shared memory: three
    programs fit on a processor, so all of them are loading at once, each two blocks ahead. Chosen on an H200 among 57
    (`results/live_h200/few_rows.json`).
    """

    split: int
    block: int
    warps: int = 2
    stages: int = 3


def tiling(keys: Tensor) -> Tiling:
    """The tiling for a cache [1, k, c, e]: the shortest splits that make no more than `MOST_PROGRAMS` programs."""
    _, heads, columns, size = keys.shape
    block = min(LEAST_SPLIT, max(16, BLOCK_BYTES // (_padded(size) * keys.element_size())))
    split = LEAST_SPLIT
    while heads * triton.cdiv(columns, split) > MOST_PROGRAMS and split < columns:
        split *= 2
    return Tiling(split=split, block=block)


def attend_splits(query: Tensor, keys: Tensor, values: Tensor, length: Tensor, tiling: Tiling) -> Tensor:
    """What `attend_few` returns, for arguments that it has checked."""
    query, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, keys, values))
    heads, tokens, size = query.shape[1:]
    held, columns = keys.shape[1:3]
    group, splits = heads // held, triton.cdiv(columns, tiling.split)
    out = new_output(query)
    # The least and the number of columns decide each split's weight in the join.
    partial = query.new_empty(heads, tokens, splits, size, dtype=torch.float32)
    top, total = query.new_empty(2, heads, tokens, splits, dtype=torch.float32)
    width = {"SIZE": size, "PADDED": _padded(size)} | early(query.device)
    with torch.cuda.device_of(query):
        _attend_split[held, splits](  # pyright: ignore[reportIndexIssue]
            *(query, keys, values, length, partial, top, total),
            *(tokens, columns, size**-0.5 * LOG2_E),
            *(*query.stride()[1:3], *keys.stride()[1:3], *values.stride()[1:3]),
            **{"MOST": MOST_TOKENS, "GROUP": group, "ROWS": triton.next_power_of_2(group) * MOST_TOKENS},
            **{"SPLIT": tiling.split, "BLOCK": tiling.block, **width},
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
        _join_splits[heads, tokens](  # pyright: ignore[reportIndexIssue]
            *(partial, top, total, length, out),
            *(tokens, columns, splits, *out.stride()[1:3]),
            **{"SPLIT": tiling.split, "JOINED": min(MOST_JOINED, triton.next_power_of_2(splits)), **width},
            num_warps=4,
        )
    return out


def early(device: torch.device) -> dict[str, Any]:
    """Options of a launch that may begin early, where the device can."""
    return {"EARLY": True, "launch_pdl": True} if launches_early(device) else {"EARLY": False}


def _padded(size: int) -> int:
    """The width of a tile that holds `size` numbers a row: products take powers of two from 16 on."""
    return max(16, triton.next_power_of_2(size))


# `tokens` is not specialised: 1 and 16 would otherwise get programs of their own.
@triton.jit(do_not_specialize=["tokens"])
def _attend_split(
    query, keys, values, length, partial, top, total,
    tokens, columns, scale,
    query_head, query_token, key_head, key_column, value_head, value_column,
    MOST: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of the cache, one split: sums of weighted values, largest score and sum of weights, a row of the query.

    A row is a token of one of the `GROUP` query heads. Rows that see nothing of the split get NaN, which nobody reads.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    before = tl.load(length).to(tl.int32)
    stop = tl.minimum(before + tokens, columns)
    first = split * SPLIT
    if first >= stop:
        return
    row, element = tl.arange(0, ROWS), tl.arange(0, PADDED)
    token, query_head_of_row = row % MOST, head * GROUP + row // MOST
    real_row, real_element = (token < tokens) & (row < GROUP * MOST), (element < SIZE)[None, :]
    start_of_row = query_head_of_row.to(tl.int64) * query_head + token * query_token
    asked = tl.load(query + start_of_row[:, None] + element, mask=real_row[:, None] & real_element, other=0.0)
    keys += head.to(tl.int64) * key_head
    values += head.to(tl.int64) * value_head
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    weights = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(first, tl.minimum(first + SPLIT, stop), BLOCK):
        column = start + tl.arange(0, BLOCK)
        used = (column < stop)[:, None] & real_element  # what lies behind is not read: 0 times NaN is NaN
        key = tl.load(keys + (column * key_column)[:, None] + element, mask=used, other=0.0)
        value = tl.load(values + (column * value_column)[:, None] + element, mask=used, other=0.0)
        score = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(column[None, :] <= before + token[:, None], score, float("-inf"))
        # Finite from the first block on, for a row that sees a column of the split: it sees the first one.
        now = tl.maximum(largest, tl.max(score, 1))
        kept, weight = tl.exp2(largest - now), tl.exp2(score - now[:, None])
        weights = weights * kept + tl.sum(weight, 1)
        summed = tl.dot(weight.to(value.dtype), value, summed * kept[:, None], input_precision="ieee")
        largest = now
    slot = (query_head_of_row * tokens + token) * tl.num_programs(1) + split
    tl.store(top + slot, largest, mask=real_row)
    tl.store(total + slot, weights, mask=real_row)
    tl.store(partial + (slot * SIZE)[:, None] + element, summed, mask=real_row[:, None] & real_element)


@triton.jit(do_not_specialize=["tokens"])
def _join_splits(
    partial, top, total, length, out,
    tokens, columns, splits, out_head, out_token,
    SPLIT: tl.constexpr, JOINED: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token of one query head: the splits of which it sees a column, in their order."""
    head, token = tl.program_id(0), tl.program_id(1)
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    seen = tl.cdiv(tl.minimum(tl.load(length).to(tl.int32) + token + 1, columns), SPLIT)
    element = tl.arange(0, PADDED)
    first = (head * tokens + token) * splits
    largest = tl.full([1], float("-inf"), tl.float32)
    weights = tl.zeros([1], tl.float32)
    summed = tl.zeros([PADDED], tl.float32)
    for start in range(0, seen, JOINED):
        split = start + tl.arange(0, JOINED)
        real = split < seen
        high = tl.load(top + first + split, mask=real, other=float("-inf"))
        part = tl.load(total + first + split, mask=real, other=0.0)
        mask = real[:, None] & (element < SIZE)[None, :]
        values = tl.load(partial + ((first + split) * SIZE)[:, None] + element, mask=mask, other=0.0)
        now = tl.maximum(largest, tl.max(high, 0))
        kept, weight = tl.exp2(largest - now), tl.exp2(high - now)
        weights = weights * kept + tl.sum(weight * part, 0)
        summed = summed * kept + tl.sum(weight[:, None] * values, 0)
        largest = now
    place = out + head * out_head + token * out_token + element
    tl.store(place, (summed / weights).to(out.dtype.element_ty), mask=element < SIZE)
