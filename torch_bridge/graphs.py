"""CUDA graphs: a piece of work captured once and replayed without Python in it."""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import torch

_WARM_UPS = 2  # plain runs before a capture: libraries set themselves up in them
CAPTURING = Lock()  # a process captures one graph at a time, and gives no memory back meanwhile


def captured(
    device: torch.device, work: Callable[[], None], *, pool: Any = None, side: str = ""
) -> torch.cuda.CUDAGraph:
    """Run `work` a few times, then capture it.

    What it changes on the way is the caller's to put back. `pool`: of `torch.cuda.graph_pool_handle`, for graphs that
    are never replayed at the same time and whose outputs are read before the next one runs. `side`: names the stream of
    the capture. Graphs of one device and side share a matrix library's workspace: two of them must not be replayed at
    once.
    """
    graph = torch.cuda.CUDAGraph()
    stream, current = _side_stream(device, side), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    # Warm-ups too hold the lock: they run on the stream of captures, and would be recorded into another thread's graph.
    # The stream is left again in any case: a failed capture stays in it.
    with CAPTURING, torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            work()
        # Of this thread alone: another one may be copying, or at work for the other model.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
    current.wait_stream(stream)
    return graph


@cache
def _side_stream(device: torch.device, side: str) -> torch.cuda.Stream:
    """The stream of a device's captures: torch's own belongs to the first device that captured, and a new one each
    time would leave a matrix library's workspace behind."""
    return torch.cuda.Stream(device)
