"""Arrays between torch and JAX by DLPack: the only module that knows both frameworks.

`lend` shares memory; `copy` gives JAX memory of its own. Both refuse what DLPack would change in silence: int64 would
come over as a copied int32, memory that is not aligned to 64 bytes as a copy.

Nothing about lent memory is read-only, and the frameworks queue work on streams of their own, so two orders are made:

- torch writes before JAX reads. An import by DLPack makes JAX wait, on the device, for what torch's current stream was
  given before it. Memory that is lent once and written again has no such import, so `hand_over` lets the host wait for
  torch's current stream before JAX is called. That costs nothing where the ids of the pass that wrote the states are on
  the host already, which is what decides the next draft; an import an iteration (61 us on an H200) would buy nothing.
  Who writes states on another stream lets the current one wait for it, or hands over while it is the current one.
- JAX reads before torch writes. Who calls fetches a result of the call that reads; its arrival means that all the
  call's reads are done. A drafter fetches its ids, and only then does the target's next pass write.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
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


def hand_over(device: torch.device) -> None:
    """Wait until torch's current stream of the device has done what it was given: JAX may then read lent memory."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def fetch(array: jax.Array, stream: torch.cuda.Stream | None = None) -> np.ndarray:
    """The array on the host, by way of torch on a GPU: `jax.device_get` comes back 0.3 ms late there (an H100).

    `stream` waits for the array, and the host for the stream; None takes torch's current one.
    """
    if next(iter(array.devices())).platform == "cpu":
        return jax.device_get(array)
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        return torch.from_dlpack(array).cpu().numpy()


class TorchWindow:
    """`xmsd_jax.decoding.ports.Window` over torch states.

    Where states lie in memory that holds a whole answer, row t at its row t (a static session, the drafter's lane),
    that memory is lent, once for as long as states come from it. Others are copied to a buffer that stays lent.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """For answers of up to `rows` states; the buffer is zero at first.

        `stream`: that the states are made on, None for the current one. A window of the drafter's lane must not wait
        for the target's prefill beside it.
        """
        self._stream = stream
        self._buffer = torch.zeros(rows, width, dtype=dtype, device=device)
        self._own = lend(self._buffer[None])
        self._address, self._theirs = 0, self._own

    def __call__(self, blocks: Sequence[Tensor], start: int, stop: int) -> jax.Array:
        """See `Window`."""
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            return self._given(blocks, start, stop)

    def _given(self, blocks: Sequence[Tensor], start: int, stop: int) -> jax.Array:
        if self._lie_still(blocks, start, stop):
            self._lend_whole(blocks[-1])
            given = self._theirs
        else:
            self._copy(blocks, start, stop)
            given = self._own
        hand_over(self._buffer.device)
        return given

    def _lie_still(self, blocks: Sequence[Tensor], start: int, stop: int) -> bool:
        """Whether the rows from `start` on lie at their own places in one memory, which has room for an answer."""
        (rows, width), place, found = self._buffer.shape, stop, None
        for block in reversed(blocks):
            if place <= start:
                break
            place -= len(block)
            memory = block.untyped_storage()
            found = memory.data_ptr() if found is None else found
            if (
                memory.data_ptr() != found
                or block.storage_offset() != place * width
                or memory.nbytes() < rows * width * block.itemsize
                or (block.dtype, block.device, block.shape[1]) != (self._buffer.dtype, self._buffer.device, width)
                or not block.is_contiguous()
            ):
                return False
        return found is not None and place <= start and not found % ALIGNMENT

    def _lend_whole(self, block: Tensor) -> None:
        """Lend the memory that a block lies in, unless it is lent: then its address cannot have become another's."""
        memory = block.untyped_storage()
        if memory.data_ptr() != self._address:
            width = block.shape[1]
            rows = memory.nbytes() // (width * block.itemsize)
            self._theirs = lend(block.as_strided((1, rows, width), (rows * width, width, 1), 0))
            self._address = memory.data_ptr()

    def _copy(self, blocks: Sequence[Tensor], start: int, stop: int) -> None:
        """Write the blocks that reach past `start` into the buffer."""
        place = sum(map(len, blocks))
        if place != stop or stop > len(self._buffer):
            raise ValueError(
                f"a window of {len(self._buffer)} rows brings a state for each of {stop} tokens, got {place} states: "
                "give all of them, or make it larger"
            )
        for block in reversed(blocks):
            if place <= start:
                break
            self._buffer[place - len(block) : place] = block
            place -= len(block)
