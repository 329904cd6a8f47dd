"""The kernel as loaded on one device: plans, checks and launches. `op.py` is what the rest of the code calls."""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_bridge.nf4.build import NotBuilt, build
from torch_bridge.nf4.layout import SLICE, tile_dtype

ROWS_A_LAUNCH = 16  # of x: two products of the kernel's matrix instruction
MOST_ROWS = 64  # that some launches multiply in less time than a full weight takes to be made and read
MOST_WARPS = 16
MOST_NORMED = MOST_WARPS * SLICE  # columns: a block of threads that has all of them knows their mean square
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the columns of a weight are shared out: `splits` blocks of threads, each with `warps` slices of 256."""

    warps: int
    splits: int


def plan(columns: int) -> Plan:
    """The plan for a weight with so many columns, whatever is multiplied with it: so a row's bits do not change."""
    slices = -(-columns // SLICE)
    splits = -(-slices // MOST_WARPS)
    return Plan(warps=-(-slices // splits), splits=splits)


class Around(NamedTuple):
    """What is done to x before a product and to y after it; see `nf4_matmul`."""

    bias: Tensor | None = None
    residual: Tensor | None = None
    norm: Tensor | None = None
    epsilon: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The library and what a launch must know of the device.

    With `overlap` a launch begins while the one before it still runs (programmatic dependent launch, from 9.0 on).
    """

    library: Any
    processors: int
    overlap: bool

    def multiply(self, x: Tensor, tiles: Tensor, rows: int, around: Around) -> Tensor:
        """What `nf4_matmul` says, for x [m, columns]; on the current stream.

        Everything is contiguous; x and the norm's weight begin at multiples of 16 bytes.
        """
        splits, most = plan(x.shape[1]).splits, min(len(x), ROWS_A_LAUNCH)
        y = x.new_empty(len(x), rows)
        # With no sum to join there is nothing to hold: an empty tensor's address is null.
        partial = x.new_empty((splits, most, rows) if splits > 1 else (0,), dtype=torch.float32)
        for first in range(0, len(x), ROWS_A_LAUNCH):
            some = slice(first, first + ROWS_A_LAUNCH)
            residual = None if around.residual is None else around.residual[some]
            self._launch(x[some], tiles, around._replace(residual=residual), y[some], partial)
        return y

    def _launch(self, x: Tensor, tiles: Tensor, around: Around, y: Tensor, partial: Tensor) -> None:
        """At most `ROWS_A_LAUNCH` rows."""
        (count, columns), rows = x.shape, y.shape[1]
        chosen, *added = plan(columns), around.bias, around.residual, around.norm
        with torch.cuda.device_of(x):
            code = self.library.nf4_multiply(
                *(x.data_ptr(), tiles.data_ptr(), *(None if one is None else one.data_ptr() for one in added)),
                *(y.data_ptr(), partial.data_ptr() or None, around.epsilon),
                *(count, rows, columns, tile_dtype(tiles).itemsize),
                *(chosen.warps, chosen.splits, self.processors, int(self.overlap)),
                torch.cuda.current_stream(x.device).cuda_stream,
            )
        self._check(code)

    def expand(self, tiles: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
        """The full weight, bfloat16[rows, columns], with scales of its own; on the current stream."""
        weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=tiles.device)
        with torch.cuda.device_of(tiles):
            code = self.library.nf4_expand_weight(
                *(tiles.data_ptr(), scales.data_ptr(), weight.data_ptr(), rows, columns, tiles.shape[-1]),
                torch.cuda.current_stream(tiles.device).cuda_stream,
            )
        self._check(code)
        return weight

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"the NF4 kernel could not be launched: {self.library.nf4_error(code).decode()}")


def kernel_of(device: torch.device) -> Kernel | None:
    """The kernel on a CUDA device, built when first asked for; None where there is none, which is logged once."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    return _loaded(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _loaded(index: int) -> Kernel | None:
    capability = torch.cuda.get_device_capability(index)
    try:
        path = build(capability)
        library = declared(ctypes.CDLL(str(path)))
        with torch.cuda.device(index):
            code = library.nf4_prepare()
        if code:
            raise NotBuilt(library.nf4_error(code).decode())
    except (NotBuilt, OSError) as error:
        _LOG.warning("4-bit layers stay with bitsandbytes on cuda:%d: %s", index, error)
        return None
    _LOG.info("4-bit layers of few rows use %s on cuda:%d", path, index)
    processors = torch.cuda.get_device_properties(index).multi_processor_count
    return Kernel(library=library, processors=processors, overlap=capability >= (9, 0))


def declared(library: Any) -> Any:
    """Say the types of the library's functions: pointers would be cut to 32 bits otherwise."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.nf4_multiply.argtypes = [*[pointer] * 7, ctypes.c_float, *[number] * 8, pointer]
    library.nf4_expand_weight.argtypes = [*[pointer] * 3, *[number] * 3, pointer]
    library.nf4_prepare.argtypes = []
    library.nf4_error.argtypes = [number]
    library.nf4_error.restype = ctypes.c_char_p
    return library
