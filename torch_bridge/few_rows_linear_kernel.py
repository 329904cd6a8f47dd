"""`linear_few` on CUDA: a Triton program for some rows of the weight, which reads whole rows of x and of the weight.

The number of rows of x is no constant of the kernel, and no sum is split over programs: a row's sums have the same
terms in the same order for 1 to 16 rows. Imported only where triton is.

From capability 9.0 on a kernel may begin while the one before it still runs (programmatic dependent launch). Its first
block of the weight, which nobody writes, is read before it waits.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from torch_bridge.few_rows import MOST_TOKENS
from torch_bridge.few_rows_kernel import early

PROCESSORS = 132  # of a Hopper GPU: others may choose worse, not wrong


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Rows of the weight for a program, columns of a block, blocks on their way; `ahead`: one precedes the wait."""

    rows: int = 32
    columns: int = 256
    warps: int = 2
    stages: int
    ahead: bool = True


def tiling(rows: int, shared: int) -> Tiling:
    """The tiling for a weight of so many rows, on a device with so many bytes of shared memory for a program.

    Of 40 to 101 that were tried on an H200 at the shapes of a 7B Llama. A sum's order is that of columns in all of
    them.
    """
    programs = rows / 32 / PROCESSORS
    if programs <= 1:
        chosen = Tiling(stages=6)
    else:
        chosen = Tiling(stages=4) if programs <= 4 else Tiling(rows=16, stages=3, ahead=False)
    most = (shared - 1024) // (2 * (chosen.rows + MOST_TOKENS) * chosen.columns)
    return replace(chosen, stages=max(1, min(chosen.stages, most)))


def multiply(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """What `linear_few` returns, for arguments that it has checked."""
    rows, columns = weight.shape
    flat = x.reshape(-1, columns).contiguous()
    added = None if residual is None else residual.reshape(-1, rows).contiguous()
    out = x.new_empty(len(flat), rows)
    chosen = tiling(rows, _shared(x.device))
    with torch.cuda.device_of(x):
        _multiply[(triton.cdiv(rows, chosen.rows),)](  # pyright: ignore[reportIndexIssue]
            *(flat, weight, flat if added is None else added, out, len(flat), rows, columns),
            **{"MOST": MOST_TOKENS, "ROWS": chosen.rows, "COLUMNS": chosen.columns},
            **{"EVEN": not columns % chosen.columns, "ADDED": added is not None, "AHEAD": chosen.ahead},
            **early(x.device),
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
    return out.view(*x.shape[:-1], rows)


@cache
def _shared(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


# `tokens` is not specialised: 1 and 16 would otherwise get programs of their own.
@triton.jit(do_not_specialize=["tokens"])
def _multiply(
    x, weight, residual, out,
    tokens, rows, columns,
    MOST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr,
    ADDED: tl.constexpr, AHEAD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`ROWS` numbers of every row of the result."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, place = tl.arange(0, MOST), tl.arange(0, COLUMNS)
    is_row, is_token = (row < rows)[:, None], (token < tokens)[:, None]
    weights = weight + row.to(tl.int64)[:, None] * columns + place
    inputs = x + token[:, None] * columns + place
    total = tl.zeros([MOST, ROWS], tl.float32)
    begin = 0
    if AHEAD:
        read = tl.load(weights, mask=is_row & (place < columns)[None, :], other=0.0, eviction_policy="evict_first")
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if AHEAD:
        some = tl.load(inputs, mask=is_token & (place < columns)[None, :], other=0.0)
        total = tl.dot(some, tl.trans(read), total)
        begin = COLUMNS
    for start in range(begin, columns, COLUMNS):
        if EVEN:
            read = tl.load(weights + start, mask=is_row, other=0.0, eviction_policy="evict_first")
            some = tl.load(inputs + start, mask=is_token, other=0.0)
        else:
            real = (start + place < columns)[None, :]
            read = tl.load(weights + start, mask=is_row & real, other=0.0, eviction_policy="evict_first")
            some = tl.load(inputs + start, mask=is_token & real, other=0.0)
        total = tl.dot(some, tl.trans(read), total)
    at = token[:, None] * rows + row[None, :]
    mask = is_token & (row < rows)[None, :]
    if ADDED:
        total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
