"""`xmsd::nf4_matmul` and `xmsd::nf4_expand`: products with NF4 weights in tiles, as operations that torch knows.

Both work under torch.compile and inside a captured CUDA graph. On a CPU, and on a GPU without the kernel, they
dequantise and multiply: right, and slow.
"""

import torch
from torch import Tensor

from torch_bridge.nf4 import layout
from torch_bridge.nf4.kernel import MOST_NORMED, MOST_ROWS, Around, kernel_of


@torch.library.custom_op("xmsd::nf4_matmul", mutates_args=())
def nf4_matmul(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    rows: int,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """residual + bias + norm(x) W^T for up to 64 rows of x, 16 a launch; sums in float32, rounded once.

    With a norm, x times its weight is rounded to bfloat16 before the product; one number a row comes after it.

    With the kernel a row's bits do not depend on how many there are, nor on the others. NaN and infinities of a row of
    x come through to its row of y, as in dequantise-and-multiply.

    Args:
        x: bfloat16[..., columns], any strides, at most 64 rows in all.
        tiles: what `layout.pack` returns for W [rows, columns].
        bias: bfloat16[rows], or None.
        rows: of W.
        residual: bfloat16[..., rows], or None.
        norm: bfloat16[columns], or None: x is multiplied by it, and by one over the root of its mean square (RMSNorm;
            Zhang and Sennrich 2019). Of at most `MOST_NORMED` columns.
        epsilon: what the norm adds to the mean square.

    Returns:
        bfloat16[..., rows].

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _check(x, tiles, rows)
    _check_around(x, rows, Around(bias, residual, norm))
    flat, kernel = x.reshape(-1, x.shape[-1]), kernel_of(x.device)
    added = None if residual is None else residual.reshape(-1, rows).contiguous()
    around = Around(bias, added, None if norm is None else _aligned(norm), epsilon)
    if kernel is not None and len(flat):
        y = kernel.multiply(_aligned(flat), tiles, rows, around)
    else:
        y = _dequantise_and_multiply(flat, tiles, rows, around)
    return y.view(*x.shape[:-1], rows)


@nf4_matmul.register_fake
def _(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    rows: int,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    _check(x, tiles, rows)
    _check_around(x, rows, Around(bias, residual, norm))
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


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, from a multiple of 16 bytes on."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _dequantise_and_multiply(x: Tensor, tiles: Tensor, rows: int, around: Around) -> Tensor:
    shape, (bias, residual, norm, epsilon) = (rows, x.shape[-1]), around
    if norm is not None:
        x = torch.nn.functional.rms_norm(x, norm.shape, norm, epsilon)
    weight = layout.dequantise(layout.unpack(tiles, shape), layout.tile_scales(tiles, shape), shape)
    y = torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())
    return (y if residual is None else y + residual).to(x.dtype)


def _check(x: Tensor, tiles: Tensor, rows: int) -> None:
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


def _check_around(x: Tensor, rows: int, around: Around) -> None:
    columns = x.shape[-1]
    for name, given, shape in (
        ("bias", around.bias, (rows,)),
        ("residual", around.residual, (*x.shape[:-1], rows)),
        ("norm's weight", around.norm, (columns,)),
    ):
        if given is not None and (given.dtype != x.dtype or tuple(given.shape) != shape):
            raise ValueError(f"the {name} must be {x.dtype}{list(shape)}; received {given.dtype}{list(given.shape)}")
    if around.norm is not None and columns > MOST_NORMED:
        raise ValueError(
            f"the kernel normalises rows of up to {MOST_NORMED} numbers; received {columns}: normalise them before"
        )
