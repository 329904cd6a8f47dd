"""Products of few rows with a dense weight, at the price of reading the weight once, and a sum after them.

For up to 16 rows a product costs what its weight takes to be read. Matrix libraries come to three to four fifths of
that on a Hopper GPU, and leave a gap at each launch. With triton, one program for 1 to 16 rows: a row's bits do not
depend on how many there are, nor on the others. Elsewhere the same operation in torch's own terms.
"""

import torch
from torch import Tensor
from torch.nn import functional

from torch_bridge.few_rows import MOST_TOKENS, has_triton


@torch.library.custom_op("xmsd::linear_few", mutates_args=())
def linear_few(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """residual + x W^T; sums in float32, rounded once.

    Args:
        x: [..., k] in bfloat16 or half precision, at most 16 rows in all.
        weight: [n, k], contiguous, of the same dtype. On a GPU it must have been written before any launch that is on
            its way: its first block is read before the launch ahead has ended.
        residual: [..., n], or None.

    Returns:
        [..., n].

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _check(x, weight, residual)
    if x.device.type == "cuda" and has_triton():
        from torch_bridge.few_rows_linear_kernel import multiply  # CPU builds of torch bring no triton

        return multiply(x, weight, residual)
    y = functional.linear(x.float(), weight.float())
    return (y if residual is None else y + residual).to(x.dtype)


@linear_few.register_fake
def _(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    _check(x, weight, residual)
    return x.new_empty(*x.shape[:-1], len(weight))


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16) or not 0 < x.numel() <= MOST_TOKENS * x.shape[-1]:
        raise ValueError(
            f"linear_few takes 1 to {MOST_TOKENS} rows in 16 bits; received {x.dtype}{list(x.shape)}: use "
            "torch.nn.functional.linear for others"
        )
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or not weight.is_contiguous() or weight.dtype != x.dtype:
        raise ValueError(
            f"the weight must be {x.dtype}[n, {x.shape[-1]}], contiguous; received {weight.dtype}{list(weight.shape)} "
            f"with strides {weight.stride()}"
        )
    shape = (*x.shape[:-1], len(weight))
    if residual is not None and (residual.dtype != x.dtype or tuple(residual.shape) != shape):
        raise ValueError(
            f"the residual must be {x.dtype}{list(shape)}; received {residual.dtype}{list(residual.shape)}"
        )
