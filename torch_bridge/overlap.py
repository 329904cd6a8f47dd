"""What runs beside the models: clips are read before their batch, states copied and written after it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
READERS = 4


def ahead(items: Iterable[Sequence[T]], read: Callable[[T], R], threads: int = READERS) -> Generator[list[R]]:
    """Read groups of items in threads, the next group while the last one is worked on.

    What reading an item raises is raised where its group is due. Closed early, it leaves no thread behind.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clips")
    waiting: deque[list[Future[R]]] = deque()
    try:
        for group in items:
            waiting.append([pool.submit(read, item) for item in group])
            if len(waiting) > 1:
                yield [one.result() for one in waiting.popleft()]
        while waiting:
            yield [one.result() for one in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


class Behind:
    """Runs one call after the other in a thread; what one raised is raised by `check`, the next, or the end."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._last: Future[None] | None = None

    def __call__(self, call: Callable[[], None]) -> None:
        """Do it when the call before is done, for which this waits: at most one is under way."""
        self.wait()
        self._last = self._pool.submit(call)

    def check(self) -> None:
        """Raise what the last call raised, if it is done; waits for nothing."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Until the last call is done."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "Behind":
        """As a context it ends with its last call done."""
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()


class Leaving:
    """Tensors on their way to the host: the copy is asked for at once, and waited for where the numbers are needed."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Ask for the copies, on the current stream of each tensor's device."""
        self._copies: dict[str, Tensor] = {}
        self._done: list[torch.cuda.Event] = []
        for name, tensor in tensors.items():
            if tensor.device.type != "cuda":
                self._copies[name] = tensor.detach()
                continue
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copies[name] = host.copy_(tensor.detach(), non_blocking=True)
        for device in {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self._done.append(event)

    def arrays(self) -> dict[str, np.ndarray]:
        """The copies, when they are there; bfloat16 becomes ml_dtypes.bfloat16."""
        for event in self._done:
            event.synchronize()
        return {name: to_numpy(tensor) for name, tensor in self._copies.items()}


class Span:
    """The time of a piece of work on a device: between two events on its stream, or by the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Begin."""
        self._device = device
        self._marks = [self._mark()]

    def stop(self) -> None:
        """End."""
        self._marks.append(self._mark())

    @property
    def seconds(self) -> float:
        """From begin to end."""
        return _between(*self._marks)

    def gap(self, before: "Span") -> float:
        """Seconds from the end of `before` to this begin: nothing was asked of the device."""
        return _between(before._marks[1], self._marks[0])

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the host; bfloat16 becomes ml_dtypes.bfloat16, int64 stays."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return host.numpy()


def _between(first: Any, second: Any) -> float:
    if isinstance(first, float):
        return second - first
    second.synchronize()
    return first.elapsed_time(second) / 1e3
