"""Arrays from torch to JAX by DLPack: the only module that knows both frameworks.

`lend` shares memory: neither side may write it until the other is done. torch orders its pending writes before the
export, on a GPU by streams; that JAX has finished reading is the caller's to ensure, by fetching a result. `copy` gives
JAX memory of its own. Both refuse what DLPack would change in silence: int64 would come over as a copied int32, memory
that is not aligned to 64 bytes as a copy.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

ALIGNMENT = 64
LENT = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.bool, torch.uint8)


def lend(tensor: Tensor) -> jax.Array:
    """The tensor's own memory as a JAX array on the same device.

    Raises:
        ValueError: a dtype that does not cross unchanged (int64), a tensor that requires grad, that is not contiguous,
            or whose memory is not aligned.
    """
    _check(tensor)
    if tensor.data_ptr() % ALIGNMENT:
        raise ValueError(
            f"lent memory must be aligned to {ALIGNMENT} bytes, else JAX copies it in silence; received an address "
            f"that is off by {tensor.data_ptr() % ALIGNMENT}: lend the whole buffer, or use copy"
        )
    return jnp.from_dlpack(tensor.detach(), copy=False)


def copy(tensor: Tensor) -> jax.Array:
    """A JAX array of its own with the tensor's values. Raises ValueError as `lend`, alignment aside."""
    _check(tensor)
    return lend(tensor.detach().clone())


def share(tensor: Tensor) -> jax.Array:
    """`lend` where the memory is aligned, else `copy`: for what is never written again, such as a head's weight."""
    return copy(tensor) if tensor.data_ptr() % ALIGNMENT else lend(tensor)


def _check(tensor: Tensor) -> None:
    if tensor.dtype not in LENT:
        raise ValueError(
            f"{tensor.dtype} does not cross unchanged; received a tensor of it: convert it first (ids to torch.int32)"
        )
    if tensor.requires_grad:
        raise ValueError("states cross without their graph; received a tensor that requires grad: detach it first")
    if not tensor.is_contiguous():
        raise ValueError(
            f"lent memory must be contiguous; received strides {tensor.stride()} for shape {tuple(tensor.shape)}: "
            "call .contiguous() first"
        )


class TorchWindow:
    """`xmsd_jax.decoding.ports.Window` over torch states: a fixed buffer, written by torch and lent to JAX."""

    def __init__(self, rows: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        """Room for `rows` states, zero at first."""
        self._buffer = torch.zeros(1, rows, width, dtype=dtype, device=device)

    def __call__(self, blocks: Sequence[Tensor], start: int) -> jax.Array:
        """Copy rows `start`.. of the joined blocks into the buffer and lend it."""
        place = sum(map(len, blocks)) - start
        if not 0 <= place <= self._buffer.shape[1]:
            raise ValueError(
                f"a window of {self._buffer.shape[1]} rows was asked for {place}: read the states in portions"
            )
        for block in reversed(blocks):
            if place <= 0:
                break
            taken = block[-place:] if place < len(block) else block
            self._buffer[0, place - len(taken) : place] = taken
            place -= len(taken)
        return lend(self._buffer)
