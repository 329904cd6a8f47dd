"""NF4 weights as the kernel reads them: tiles of 16 rows by 256 columns, each one run of memory for one warp.

A tile holds its codes, 2,048 bytes, then the scales of its blocks of 64 columns:

    codes   [4 blocks of columns][8 lines g][4 lanes t][rows g, g + 8][8 bytes: columns 16 t .. 16 t + 15 of the block]
    scales  [4 blocks of columns][8 lines g][rows g, g + 8]

so lane 4 g + t of a warp reads 16 bytes a block, and its neighbours the bytes beside. The 16 columns of a lane are
contiguous in x as well: a product's 16 columns are four of each lane t, in the same order on both sides. Bytes are
bitsandbytes' own, even column in the high half. Rows and columns are filled up with the code of zero and scale zero.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 16
SLICE = 256
BLOCK = 64
_BLOCKS = SLICE // BLOCK
_CODE_BYTES = ROWS * SLICE // 2
_ZEROS = 0x77  # two codes of 0.0

# bitsandbytes' table, and what the kernel's products are made with: times a factor, rounded to bfloat16. The factor is
# taken out of the sums; kernel.cu says why it is this one.
CODES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
TABLE_FACTOR = 1.436715 / 128


def table() -> Tensor:
    """The 16 numbers of the kernel's table, bfloat16[16]: codes times `TABLE_FACTOR`."""
    return (torch.tensor(CODES, dtype=torch.float64) * TABLE_FACTOR).to(torch.bfloat16)


def scale_dtype(scales: Tensor) -> torch.dtype:
    """The smaller dtype in which scales are kept to 11 bits: float16, or float32 if one is too large or too small."""
    size = scales.abs()
    least, most = torch.finfo(torch.float16).tiny, torch.finfo(torch.float16).max
    return torch.float16 if bool(((size == 0) | ((size >= least) & (size <= most))).all()) else torch.float32


def absmax(state: Any) -> Tensor:
    """The scale of every block of 64 as bitsandbytes computes it, float32[rows * columns / 64].

    Args:
        state: bitsandbytes' `QuantState`, with or without double quantisation.
    """
    if not state.nested:
        return state.absmax.float()
    inner = state.state2
    operation = torch.ops.bitsandbytes.dequantize_blockwise
    return operation(state.absmax, inner.absmax, inner.code, inner.blocksize, torch.float32) + state.offset


def pack(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Arrange a quantised weight in tiles, uint8[ceil(rows / 16), ceil(columns / 256), bytes of a tile].

    Args:
        codes: uint8, any shape: rows * columns / 2 bytes in bitsandbytes' order.
        scales: [rows * columns / 64], one for each block along a row.
        shape: rows and columns of the weight; columns a multiple of 64.
        dtype: of the scales in the tiles, float16 or float32.

    Raises:
        ValueError: blocks that run over the end of a row, or sizes that do not fit.
    """
    rows, columns = shape
    if columns % BLOCK or codes.numel() * 2 != rows * columns or scales.numel() * BLOCK != rows * columns:
        raise ValueError(
            f"tiles hold whole blocks of {BLOCK} columns, two codes a byte, a scale a block; received {codes.numel()} "
            f"bytes and {scales.numel()} scales for a weight {tuple(shape)}: leave such a layer to bitsandbytes"
        )
    more_rows, more_columns = -rows % ROWS, -columns % SLICE
    lines = functional.pad(codes.reshape(rows, columns // 2), (0, more_columns // 2, 0, more_rows), value=_ZEROS)
    words = lines.contiguous().view(torch.int64).view(-1, 2, 8, lines.shape[1] * 2 // SLICE, _BLOCKS, 4)
    tiled = words.permute(0, 3, 4, 2, 5, 1).contiguous().view(torch.uint8)
    wide = functional.pad(scales.reshape(rows, columns // BLOCK).to(dtype), (0, more_columns // BLOCK, 0, more_rows))
    tiled_scales = wide.view(-1, 2, 8, words.shape[3], _BLOCKS).permute(0, 3, 4, 2, 1).contiguous().view(torch.uint8)
    count = words.shape[0], words.shape[3]
    return torch.cat([tiled.reshape(*count, -1), tiled_scales.reshape(*count, -1)], -1)


def unpack(tiles: Tensor, shape: tuple[int, int]) -> Tensor:
    """The exact inverse of `pack` for codes: bitsandbytes' bytes, uint8[rows * columns / 2, 1]."""
    rows, columns = shape
    words = tiles[..., :_CODE_BYTES].contiguous().view(torch.int64)
    lines = words.view(*tiles.shape[:2], _BLOCKS, 8, 4, 2).permute(0, 5, 3, 1, 2, 4).contiguous().view(torch.uint8)
    return lines.reshape(-1, tiles.shape[1] * SLICE // 2)[:rows, : columns // 2].reshape(-1, 1)


def tile_scales(tiles: Tensor, shape: tuple[int, int]) -> Tensor:
    """The scales that the tiles hold, float32[rows * columns / 64]: rounded if they are float16 there."""
    rows, columns = shape
    held = tiles[..., _CODE_BYTES:].contiguous().view(tile_dtype(tiles))
    lines = held.view(*tiles.shape[:2], _BLOCKS, 8, 2).permute(0, 4, 3, 1, 2)
    return lines.reshape(-1, tiles.shape[1] * _BLOCKS)[:rows, : columns // BLOCK].reshape(-1).float()


def tile_dtype(tiles: Tensor) -> torch.dtype:
    """The dtype of the scales in the tiles, by the size of a tile."""
    size = (tiles.shape[-1] - _CODE_BYTES) // (ROWS * _BLOCKS)
    return {2: torch.float16, 4: torch.float32}[size]


def dequantise(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight that codes and scales stand for, float32[rows, columns]."""
    flat = codes.reshape(-1).to(torch.int64)
    numbers = torch.tensor(CODES, dtype=torch.float32, device=codes.device)[torch.stack([flat >> 4, flat & 15], -1)]
    return (numbers.view(-1, BLOCK) * scales.float().view(-1, 1)).view(shape)
