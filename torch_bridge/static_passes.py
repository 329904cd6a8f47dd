"""A pass over m tokens against a static cache: one CUDA graph from token ids to token ids, or the same code plainly.

All that changes from pass to pass is one packet of int64: the length of the cache, the row of the first state, the ids.
Packet in, forward, head, argmax, ids out are one graph between two places of pinned memory: the host writes a packet,
launches, and waits for the ids. On a CPU the same functions run without a graph.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_bridge.few_rows import launches_early
from torch_bridge.graphs import captured
from torch_bridge.static_memory import ChunkLayer, FewLayer, StaticMemory, chunk_layer, few_layer
from torch_bridge.vlm import VLM

PROGRAMS = 64  # that one compiled layer may have: one a length and size of the cache, for each model
_HEADER = 2  # numbers before the ids: length, first row


class FewPass:
    """Reads `count` tokens; fewer are followed by the last one again, which nobody looks at."""

    def __init__(self, vlm: VLM, memory: StaticMemory, count: int, *, compiled: bool, pool: Any = None) -> None:
        """Prepare; the graph is captured by the first `begin`. `pool`: of graphs, on a GPU."""
        self.count = count
        self._vlm, self._memory, self._pool = vlm, memory, pool
        self._layer, self._finish = _pieces(compiled)
        self._device = vlm.device
        on_gpu = self._device.type == "cuda"
        self._packet = torch.zeros(_HEADER + count, dtype=torch.int64, pin_memory=on_gpu)
        self._emitted = torch.zeros(count, dtype=torch.int32, pin_memory=on_gpu)
        self._told, self._found = self._packet.numpy(), self._emitted.numpy()
        self._device_packet = self._packet.to(self._device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def begin(self, ids: Sequence[int] | np.ndarray, length: int, row: int) -> None:
        """Start to read m `ids` behind `length` tokens, states into rows `row`..; `end` before the next one."""
        stop = _HEADER + len(ids)
        self._told[:_HEADER] = length, row
        self._told[_HEADER:stop] = ids
        self._told[stop:] = ids[-1]
        if self._device.type != "cuda":
            return self._work()
        if self._graph is None:
            self._graph = captured(self._device, self._work, pool=self._pool)
        self._graph.replay()

    def end(self) -> np.ndarray:
        """Wait for the device; the id that each state emits, padding's too, as a view: read it before the next pass."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return self._found

    @torch.inference_mode()
    def _work(self) -> None:
        packet = self._device_packet.copy_(self._packet, non_blocking=True)
        length, row, ids = packet[:1], packet[1:_HEADER], packet[_HEADER:]
        inputs = self._vlm.language_model.get_input_embeddings()(ids)
        summands = self._memory.read_few(inputs, length, self._layer)
        states, emitted = self._finish(self._vlm.language_model.norm, self._vlm.lm_head, *summands)
        rows = row + torch.arange(self.count, device=row.device)
        self._memory.states.index_copy_(0, rows, states)
        self._emitted.copy_(emitted, non_blocking=True)


def finish(norm: Any, head: Any, hidden: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
    """States before the norm [1, m, d], as two summands -> states [m, d], greedy ids int32[m] over the padded head."""
    states = norm(hidden if added is None else hidden + added)[0]
    return states, head(states).argmax(-1).to(torch.int32)


def chunk_pass(compiled: bool) -> ChunkLayer:
    """How a layer reads many tokens. Compiled, one program serves all layers of a model and all lengths; in 4 bits two,
    since up to 64 rows are multiplied by the kernel.
    """
    if not compiled:
        return chunk_layer
    return _compiled_chunk()


def _pieces(compiled: bool) -> tuple[FewLayer, Callable[..., tuple[Tensor, Tensor]]]:
    """A layer and the end of a pass. Compiled ones are compiled once a length: the layers of a model share them."""
    if not compiled:
        return few_layer, finish
    allow_programs()
    return _compiled_few()


def allow_programs() -> None:
    """For this thread, which may compile next: torch keeps such settings by thread."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)


@cache
def _compiled_few() -> tuple[FewLayer, Callable[..., tuple[Tensor, Tensor]]]:
    how: Any = {"dynamic": False, "options": _options()}
    return torch.compile(few_layer, **how), torch.compile(finish, **how)


@cache
def _compiled_chunk() -> ChunkLayer:
    before, after = chunk_layer
    return torch.compile(before), torch.compile(after)


def _options() -> dict[str, Any]:
    """Compiled kernels begin while the one before still runs (programmatic dependent launch), where that can be."""
    from torch._inductor import config

    able = torch.cuda.is_available() and launches_early(torch.device("cuda", torch.cuda.current_device()))
    return {"triton.enable_pdl": True} if able and hasattr(config.triton, "enable_pdl") else {}
