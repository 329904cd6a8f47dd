"""Products of few rows with a dense weight, at the price of reading the weight once, the norm before and the sum after.

For up to 16 rows a product costs what its weight takes to be read. Matrix libraries come to four fifths of that on a
Hopper GPU, launch a norm before and a sum after, and leave a gap at each. With triton, one program for 1 to 16 rows:
a row's bits do not depend on how many there are, nor on the others. Elsewhere the same operation in torch's own terms.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

MOST_ROWS = 16  # of the smallest matrix product of tensor cores: fewer cost the same


@torch.library.custom_op("xmsd::linear_few", mutates_args=())
def linear_few(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, norm: Tensor | None = None, epsilon: float = 0.0
) -> Tensor:
    """residual + norm(x) W^T; sums in float32, rounded once.

    Args:
        x: [..., k] in bfloat16 or half precision, at most 16 rows in all.
        weight: [n, k], contiguous, of the same dtype.
        residual: [..., n], or None.
        norm: [k], or None: x is multiplied by it, and by one over the root of its mean square (RMSNorm; Zhang and
            Sennrich 2019).
        epsilon: what the norm adds to the mean square.

    Returns:
        [..., n].

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _check(x, weight, residual, norm)
    if x.device.type == "cuda" and has_triton():
        from torch_bridge.few_rows_linear_kernel import multiply  # CPU builds of torch bring no triton

        return multiply(x, weight, residual, norm, epsilon)
    inputs = x if norm is None else functional.rms_norm(x, norm.shape, norm, epsilon)
    y = functional.linear(inputs.float(), weight.float())
    return (y if residual is None else y + residual).to(x.dtype)


@linear_few.register_fake
def _(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, norm: Tensor | None = None, epsilon: float = 0.0
) -> Tensor:
    _check(x, weight, residual, norm)
    return x.new_empty(*x.shape[:-1], len(weight))


@cache
def has_triton() -> bool:
    """Whether triton is installed: torch's CUDA builds bring it."""
    return find_spec("triton") is not None


def _check(x: Tensor, weight: Tensor, residual: Tensor | None, norm: Tensor | None) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16) or not 0 < x.numel() <= MOST_ROWS * x.shape[-1]:
        raise ValueError(
            f"linear_few takes 1 to {MOST_ROWS} rows in 16 bits; received {x.dtype}{list(x.shape)}: use "
            "torch.nn.functional.linear for others"
        )
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or not weight.is_contiguous() or weight.dtype != x.dtype:
        raise ValueError(
            f"the weight must be {x.dtype}[n, {x.shape[-1]}], contiguous; received {weight.dtype}{list(weight.shape)} "
            f"with strides {weight.stride()}"
        )
    for name, given, shape in (
        ("residual", residual, (*x.shape[:-1], len(weight))),
        ("norm's weight", norm, (x.shape[-1],)),
    ):
        if given is not None and (given.dtype != x.dtype or tuple(given.shape) != shape):
            raise ValueError(f"the {name} must be {x.dtype}{list(shape)}; received {given.dtype}{list(given.shape)}")
