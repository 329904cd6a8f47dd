"""`xmsd::nf4_matmul` and `xmsd::nf4_expand`: products with NF4 weights in tiles, as operations that torch knows.

Both work under torch.compile and inside a captured CUDA graph. On a CPU, and on a GPU without the kernel, they
dequantise and multiply: right, and slow.
"""

import torch
from torch import Tensor

from torch_bridge.nf4 import layout
from torch_bridge.nf4.kernel import MOST_ROWS, kernel_of


@torch.library.custom_op("xmsd::nf4_matmul", mutates_args=())
def nf4_matmul(x: Tensor, tiles: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """x W^T + bias for up to 16 rows of x; sums in float32, rounded once.

    With the kernel a row's bits do not depend on how many there are, nor on the others. NaN and infinities of a row of
    x come through to its row of y, as in dequantise-and-multiply.

    Args:
        x: bfloat16[..., columns], any strides, at most 16 rows in all.
        tiles: what `layout.pack` returns for W [rows, columns].
        bias: bfloat16[rows], or None.
        rows: of W.

    Returns:
        bfloat16[..., rows].

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _check(x, tiles, bias, rows)
    columns = x.shape[-1]
    flat = x.reshape(-1, columns)
    kernel = kernel_of(x.device)
    if kernel is not None and len(flat):
        aligned = flat.contiguous()
        y = kernel.multiply(aligned if aligned.data_ptr() % 16 == 0 else aligned.clone(), tiles, bias, rows)
    else:
        y = _dequantise_and_multiply(flat, tiles, bias, rows)
    return y.view(*x.shape[:-1], rows)


@nf4_matmul.register_fake
def _(x: Tensor, tiles: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    _check(x, tiles, bias, rows)
    return x.new_empty(*x.shape[:-1], rows)


@torch.library.custom_op("xmsd::nf4_expand", mutates_args=())
def nf4_expand(tiles: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    """The full weight, bfloat16[rows, columns]: the numbers that bitsandbytes dequantises to, bit by bit.

    Args:
        tiles: what `layout.pack` returns.
        scales: float32[rows * columns / 64], not rounded as those in the tiles may be.
        rows: of the weight.
        columns: of the weight.
    """
    kernel = kernel_of(tiles.device)
    if kernel is not None:
        return kernel.expand(tiles, scales.contiguous(), rows, columns)
    shape = rows, columns
    return layout.dequantise(layout.unpack(tiles, shape), scales, shape).to(torch.bfloat16)


@nf4_expand.register_fake
def _(tiles: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    return tiles.new_empty(rows, columns, dtype=torch.bfloat16)


def _dequantise_and_multiply(x: Tensor, tiles: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    shape = rows, x.shape[-1]
    weight = layout.dequantise(layout.unpack(tiles, shape), layout.tile_scales(tiles, shape), shape)
    return torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


def _check(x: Tensor, tiles: Tensor, bias: Tensor | None, rows: int) -> None:
    columns = x.shape[-1]
    if x.dtype != torch.bfloat16 or x.numel() > MOST_ROWS * columns:
        raise ValueError(
            f"nf4_matmul takes up to {MOST_ROWS} rows of bfloat16; received {x.dtype}{list(x.shape)}: expand the weight"
            " for more rows (nf4_expand)"
        )
    count = -(-rows // layout.ROWS), -(-columns // layout.SLICE)
    if tuple(tiles.shape[:2]) != count or columns % layout.BLOCK or tiles.dtype != torch.uint8:
        raise ValueError(
            f"tiles of a weight [{rows}, {columns}] are uint8[{count[0]}, {count[1]}, bytes], its columns a multiple of"
            f" {layout.BLOCK}; received {tiles.dtype}{list(tiles.shape)}: pack the weight with layout.pack"
        )
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (rows,)):
        raise ValueError(f"the bias must be {x.dtype}[{rows}]; received {bias.dtype}{list(bias.shape)}")
