"""States read from the store while training runs, in a given order: for splits that fit no device's memory.

Threads suffice: reading, comparing and copying release the interpreter lock. Memory is a ring of buffers that is
allocated once. Grain was considered; it hands on single elements from Python workers. It was not measured.
"""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.data.batches import LENGTH_FIELD, answer_lengths, keep_answers
from xmsd_jax.data.row_reader import RowReader
from xmsd_jax.data.store import Store, StoreError

PART_BYTES = 8 << 20
"""What one thread reads at a time. GB/s of later passes, 2-core AMD EPYC: 1 MB 9, 2 MB 11-15, 4 MB 14-17, 8 MB 16-17,
16 MB 17-19, but then a chunk of 200 MB has only 13 parts."""
MOST_THREADS = 8
"""A 16-core cloud VM read 4.0-4.65 GB/s with 8 threads and 2.7-3.05 with 16, when a file was opened for every row."""
PADDING = -1
Chunk = dict[str, NDArray]
Chunks = Generator[Chunk, None, None]


def stream_rows(
    store: Store,
    fields: Sequence[str],
    chunks: Iterable[NDArray[np.integer]],
    *,
    ahead: int = 2,
    hold: int = 1,
    threads: int | None = None,
) -> Chunks:
    """Read the states of chunk after chunk of rows, in the order given.

    The arrays of a chunk are buffers, which cannot be written to: they hold until the consumer has asked for `hold`
    further chunks, then another chunk is read into them, so that copies must be finished by then (on a CPU
    `jax.device_put` may not copy at all).
    Memory: (ahead + hold) times the largest chunk. States past the end of an answer are zeros.

    Args:
        store: of one split.
        fields: of states: "drafter_hidden", "drafter_synced", "target_hidden".
        chunks: rows of the store, int[n], n may vary; -1 is padding and gives zeros. Taken `ahead` chunks early.
        ahead: chunks that are read while the consumer works.
        hold: chunks that stay untouched, counted from the last one given.
        threads: that read; by default one a core, at most 8.

    Returns:
        A generator of {field: [n, t, d] in the store's dtype}. `close()`, its end and its errors stop the threads.

    Raises:
        ValueError: an impossible argument.
        StoreError: at once, lengths are impossible; at `next`, a row outside the store, a row that is damaged, or nan
            or inf within an answer.
    """
    if not fields or set(fields) - set(LENGTH_FIELD):
        raise ValueError(f"fields of states are read in a stream, some of {', '.join(LENGTH_FIELD)}; got {fields}")
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS) if threads is None else threads
    if min(ahead, hold, threads) < 1:
        raise ValueError(f"ahead, hold and threads must be at least 1, got {ahead}, {hold}, {threads}")
    sources = [_Source(store.reader(field), answer_lengths(store, field)) for field in fields]
    checked = (_checked(store, rows) for rows in chunks)
    return _stream(dict(zip(fields, sources, strict=True)), checked, ahead, hold, threads)


@dataclass(frozen=True, kw_only=False)
class _Source:
    """A field's reader and the length of the answer in every row."""

    reader: RowReader
    lengths: NDArray[np.int32]

    def buffer(self, rows: int) -> NDArray:
        # Zeros that nobody has touched: the readers share the page faults. numpy asks for huge pages.
        return np.zeros((rows, *self.reader.shape), self.reader.dtype)

    def parts(self, rows: int) -> Iterator[slice]:
        step = max(1, PART_BYTES // self.reader.row_bytes)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def fill(self, rows: NDArray[np.int64], out: NDArray, ends: NDArray[np.int32]) -> None:
        """Read rows into `out`, whose states from `ends` on are zeros, and set `ends` to where they now begin."""
        lengths = np.where(rows == PADDING, 0, self.lengths[rows])
        fresh = self.reader.read_into(rows, lengths, out)
        self._test(rows, lengths, out, fresh)
        states = out.view(f"u{out.itemsize}")  # numpy fills bfloat16 slowly
        for place in np.flatnonzero(ends > lengths):
            states[place, lengths[place] : ends[place]] = 0
        ends[:] = lengths

    def _test(self, rows: NDArray[np.int64], lengths: NDArray[np.int32], out: NDArray, fresh: NDArray[np.intp]) -> None:
        """Zero and test the rows at the places `fresh`; what passes once is never tested again."""
        for run in np.split(fresh, np.flatnonzero(np.diff(fresh) != 1) + 1):
            if run.size:
                part = slice(run[0], run[-1] + 1)
                keep_answers(out[part], lengths[part], rows[part], self.reader.path)
                self.reader.trust(rows[part])


class _Buffer:
    """Rows of one field, and where the zeros of each begin: what a shorter answer leaves over must be removed."""

    def __init__(self, source: _Source, rows: int) -> None:
        self.states, self.ends = source.buffer(rows), np.zeros(rows, np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def given(self, rows: int) -> NDArray:
        view = self.states[:rows]
        view.flags.writeable = False  # what a consumer wrote past the end of an answer would never be zeroed
        return view


class _Slot:
    """Buffers of one chunk, which grow to the largest chunk that was ever read into them."""

    def __init__(self, sources: dict[str, _Source]) -> None:
        self._sources = sources
        self._buffers = {field: _Buffer(source, 0) for field, source in sources.items()}

    def begin(self, pool: ThreadPoolExecutor, rows: NDArray[np.int64]) -> "_Reading":
        """Start to read rows into the buffers."""
        if len(rows) > len(next(iter(self._buffers.values()))):
            self._buffers = {field: _Buffer(source, len(rows)) for field, source in self._sources.items()}
        parts = [
            pool.submit(source.fill, rows[part], buffer.states[part], buffer.ends[part])
            for source, buffer in zip(self._sources.values(), self._buffers.values(), strict=True)
            for part in source.parts(len(rows))
        ]
        return _Reading({field: buffer.given(len(rows)) for field, buffer in self._buffers.items()}, parts)


@dataclass(frozen=True, kw_only=False)
class _Reading:
    """A chunk that is being read."""

    arrays: Chunk
    parts: list[Future[None]]

    def result(self) -> Chunk:
        for part in self.parts:
            part.result()
        return self.arrays


def _stream(
    sources: dict[str, _Source], chunks: Iterator[NDArray[np.int64]], ahead: int, hold: int, threads: int
) -> Chunks:
    slots = cycle([_Slot(sources) for _ in range(ahead + hold)])
    pool = ThreadPoolExecutor(threads, thread_name_prefix="stream-rows")
    try:
        reading = deque(next(slots).begin(pool, rows) for rows in islice(chunks, ahead))
        while True:
            # When chunk k is asked for, the slot of chunk k - hold is free, and chunk k + ahead goes into it.
            reading.extend(next(slots).begin(pool, rows) for rows in islice(chunks, 1))
            if not reading:
                return
            yield reading.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _checked(store: Store, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    index = np.array(rows, np.int64)  # a copy: the caller may go on writing into his own
    if index.ndim != 1:
        raise StoreError(f"{store.path}: a chunk is int[n], rows of the store; received shape {index.shape}")
    if index.size and (index.min() < PADDING or index.max() >= store.rows):
        raise StoreError(f"{store.path}: rows are -1..{store.rows - 1}; received {index.min()}..{index.max()}")
    return index
