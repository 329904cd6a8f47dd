"""The kernel for few NF4 rows, lane by lane on the CPU: its addresses and register maps, its sums in float64.

Registers of mma.m16n8k16 as the PTX manual lays them out (lane = 4 g + t, h the half of a register): A row g or g + 8,
column 2 t + h or 2 t + 8 + h; B row 2 t + h or 2 t + 8 + h, column g; C row g or g + 8, column 2 t or 2 t + 1.
"""

import numpy as np
import torch
from torch import Tensor

from torch_bridge.nf4.kernel import plan
from torch_bridge.nf4.layout import BLOCK, ROWS, SLICE, TABLE_FACTOR, table

LANES = np.arange(32)
G, T = LANES >> 2, LANES & 3
CHUNK_BYTES, LINE = 512, 256


def emulate(x: Tensor, tiles: Tensor, rows: int) -> np.ndarray:
    """y [m, rows] in float64 of bfloat16 x [m, columns], before it is rounded; numbers are those of the table."""
    count, columns = x.shape
    numbers, slices = x.double().numpy(), -(-columns // SLICE)
    chosen, groups = plan(columns), 1 if count <= 8 else 2
    memory, words = tiles.numpy(), shared_table()
    y = np.full((chosen.splits, count, rows), np.nan)
    for tile in range(len(memory)):
        for split in range(chosen.splits):
            sums = np.zeros((chosen.warps, groups, 32, 4))
            for warp in range(chosen.warps):
                slice_ = split * chosen.warps + warp
                if slice_ < slices:
                    sums[warp] = one_warp(memory[tile, slice_], numbers, slice_, groups, words)
            write_tile(y[split], sums, tile)
    return y.sum(0) / TABLE_FACTOR


def shared_table() -> np.ndarray:
    """Shared memory as the kernel's threads fill it: two bfloat16 for each byte, once a lane, lines of 256 bytes."""
    bits = table().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    memory = np.full(256 * LINE // 4, 0xFFFFFFFF, dtype=np.uint32)  # what is not written is NaN
    for i in range(256 * 8):
        byte = i >> 3
        at = (byte * LINE + (i & 7) * 16) // 4
        memory[at : at + 4] = bits[byte >> 4] | bits[byte & 15] << 16
    return memory


def one_warp(tile: np.ndarray, x: np.ndarray, slice_: int, groups: int, words: np.ndarray) -> np.ndarray:
    """Sums [groups, lane, 4] of one warp over its 256 columns."""
    total = np.zeros((groups, 32, 4))
    for chunk in range(SLICE // BLOCK):
        codes = tile[chunk * CHUNK_BYTES + 16 * LANES[:, None] + np.arange(16)].view(np.uint32)  # [lane, x y z w]
        x_words = lane_columns(x, slice_ * SLICE + chunk * BLOCK, groups)
        sums = np.zeros((groups, 32, 4))
        for step in range(4):
            top, bottom = codes[:, step >> 1], codes[:, 2 + (step >> 1)]
            byte = 2 * (step & 1)
            a = [look_up(words, word, byte + i) for i in (0, 1) for word in (top, bottom)]
            for group in range(groups):
                sums[group] += product(a, [x_words[group, :, 2 * step + i] for i in (0, 1)])
        total += sums * np.repeat(lane_scales(tile, chunk), 2, 1)
    return total


def look_up(words: np.ndarray, word: np.ndarray, which: int) -> np.ndarray:
    """The two numbers [lane, half] of one byte of each lane's word."""
    at = (word >> 8 * which & 255) * 256 + 4 * LANES
    return bfloat16(words[at // 4])


def bfloat16(registers: np.ndarray) -> np.ndarray:
    halves = np.stack([registers & 0xFFFF, registers >> 16], -1).astype(np.uint32)
    return (halves << 16).view(np.float32).astype(np.float64)


def lane_columns(x: np.ndarray, begin: int, groups: int) -> np.ndarray:
    """Registers of x [group, lane, 8, half]: 16 columns of one row of x, nothing past its rows or columns."""
    found = np.zeros((groups, 32, 8, 2))
    for group in range(groups):
        for lane in LANES:
            row, first = 8 * group + G[lane], begin + 16 * T[lane]
            if row < len(x) and begin < x.shape[1]:
                found[group, lane] = x[row, first : first + 16].reshape(8, 2)
    return found


def lane_scales(tile: np.ndarray, chunk: int) -> np.ndarray:
    """Scales [lane, rows g and g + 8] of one block of columns."""
    size = (len(tile) - 4 * CHUNK_BYTES) // (4 * ROWS)
    at = 4 * CHUNK_BYTES + chunk * ROWS * size + G * 2 * size
    dtype = {2: np.float16, 4: np.float32}[size]
    return tile[at[:, None] + np.arange(2 * size)].view(dtype).astype(np.float64)


def product(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """C [lane, 4] of one mma.m16n8k16 with A and B in registers [lane, half]."""
    left, right = np.full((16, 16), np.nan), np.full((16, 8), np.nan)
    for half in (0, 1):
        for i, register in enumerate(a):
            left[G + 8 * (i & 1), 2 * T + 8 * (i >> 1) + half] = register[:, half]
        for i, register in enumerate(b):
            right[2 * T + 8 * i + half, G] = register[:, half]
    c = left @ right
    return np.stack([c[G + 8 * (e >> 1), 2 * T + (e & 1)] for e in range(4)], -1)


def write_tile(y: np.ndarray, sums: np.ndarray, tile: int) -> None:
    """Add up the warps, and write one tile's part of y [m, rows]."""
    flat = sums.reshape(len(sums), -1).sum(0)
    for i, value in enumerate(flat):
        lane, element = i >> 2 & 31, i & 3
        row = tile * ROWS + (lane >> 2) + 8 * (element >> 1)
        column = 8 * (i >> 7) + 2 * (lane & 3) + (element & 1)
        if row < y.shape[1] and column < y.shape[0]:
            y[column, row] = value
