"""Reads rows of one field into memory that is given, fast enough to feed a training step.

A row is read by tensorstore the first time, which compares it with its crc32c, and straight from the shard's file from
then on: uncompressed chunks of one row are one contiguous piece of it. Training at width 4096 on one GPU takes
5.5 GB/s. Measured with rows of [50, 4096] bfloat16, two fields in random order, from the page cache, counted in whole
rows, GB per second of CPU time of a whole stream. 2-core AMD EPYC: first pass 1.2 (0.4 s/GB are checksum, test and
copy, 0.4 the system's: page faults of tensorstore's short-lived buffers), in its memmap mode 1.7; later passes 15.
There they were 6.5 when they opened the file for each row, read it whole and tested it for nan again. So done, a
16-core cloud VM read, in all and per core, in the first pass 5.2-5.6 and 0.62 GB/s; later with 8 threads 4.0-4.65 and
1.6-1.8, with 16 threads only 2.7-3.05. Not used: mmap of the shards takes as long (14), and a file that is cut short
would kill the process; a fast crc32c for Python would be a further dependency.
"""

import os
import threading
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import tensorstore
from numpy.typing import NDArray

from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.float8 import Decoder
from xmsd_jax.data.manifest import Manifest, StoreError

MOST_OPEN = 128
"""Files that a reader keeps open, the last used ones. A process may often have 1024, and reads some four fields."""


class _OpenShard:
    """A shard's file, closed when nobody uses it any more."""

    def __init__(self, path: Path, field: str, number: int) -> None:
        self.descriptor = os.open(layout.shard_file(path, field, number), os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # not when the file could not be opened
            os.close(self.descriptor)


class RowReader:
    """Reader of one field with a row per chunk; may be used by several threads at once."""

    def __init__(self, path: Path, manifest: Manifest, field: str, array: tensorstore.TensorStore) -> None:
        """Use `Store.reader`."""
        if not layout.FIELDS[field][0]:
            raise ValueError(f"{field} has one number a row and is read whole: use Store.read")
        self.path, self.row_bytes = path / field, layout.stored_row_bytes(manifest, field)
        self.shape, self.dtype = layout.row_shape(manifest, field), layout.dtype_of(manifest, field)
        self._store, self._field, self._manifest, self._array = path, field, manifest, array
        self._trusted = np.zeros(manifest.rows, np.bool_)
        self._offsets: dict[int, NDArray[np.int64]] = {}
        # No method of this object: the cycle would keep the files open until the next garbage collection.
        self._file = lru_cache(MOST_OPEN)(partial(_OpenShard, path, field))

    def read_into(self, rows: NDArray[np.integer], lengths: NDArray[np.integer], out: NDArray) -> NDArray[np.intp]:
        """Read rows int[n] into `out` [n, ...], contiguous and of the field's dtype; rows of -1 are left as they are.

        Args:
            rows: of the store, or -1.
            lengths: int[n], of a row that is trusted only so many positions are read; the rest is left as it is.
            out: what they are read into.

        Returns:
            The places in `rows` of those that are not trusted yet: they were read whole and compared with their
            crc32c. `trust` says that nothing else is wrong with them.

        Raises:
            StoreError: damaged data (the file and the row are named), or a file that is gone or cut short.
        """
        trusted = self._trusted[rows]
        fresh = np.flatnonzero((rows >= 0) & ~trusted)
        if fresh.size:
            self._read_verified(rows[fresh], out, fresh)
        pieces = out.reshape(len(out), -1).view(np.uint8)
        sizes = lengths * (self.row_bytes // self.shape[0])
        for place in np.flatnonzero((rows >= 0) & trusted):
            self._read_direct(int(rows[place]), pieces[place, : sizes[place]])
        return fresh

    def trust(self, rows: NDArray[np.integer]) -> None:
        """Read these rows straight from their files from now on."""
        self._trusted[rows] = True

    def _read_verified(self, rows: NDArray[np.integer], out: NDArray, places: NDArray[np.intp]) -> None:
        try:
            tensorstore.array(out)[places].write(self._array[rows]).result()
        except ValueError as error:
            raise self._located(rows, error) from None

    def _read_direct(self, row: int, piece: NDArray[np.uint8]) -> None:
        number, place = divmod(row, self._manifest.shard_rows)
        try:
            if number not in self._offsets:
                self._offsets[number] = layout.row_offsets(self._store, self._manifest, self._field, number)
            file = self._file(number)  # kept by this name, it is not closed while it is read
            count = os.preadv(file.descriptor, [piece.data], int(self._offsets[number][place]))
        except OSError as error:
            raise self._damaged(row, str(error)) from None
        if count != piece.size:
            raise self._damaged(row, f"{count} of {piece.size} bytes")

    def _located(self, rows: NDArray[np.integer], error: ValueError) -> StoreError:
        """The error of the first row that cannot be read by itself."""
        for row in rows:
            try:
                self._array[int(row)].read().result()
            except ValueError as own:
                return self._damaged(int(row), layout.first_line(own))
        return StoreError(f"{self.path}: {layout.first_line(error)}: {layout.REPAIR}")

    def _damaged(self, row: int, problem: str) -> StoreError:
        file = layout.shard_file(self._store, self._field, row // self._manifest.shard_rows)
        return StoreError(f"{file}: row {row} of {self._field} cannot be read ({problem}): {layout.REPAIR}")


class Float8Reader(RowReader):
    """Reader of states in float8: codes are read as any row is, and decoded into the dtype that the manifest names."""

    def __init__(
        self, path: Path, manifest: Manifest, field: str, array: tensorstore.TensorStore, scales: NDArray[np.uint8]
    ) -> None:
        """Use `Store.reader`; `scales` are those of all rows, [rows, t]."""
        super().__init__(path, manifest, field, array)
        self._scales, self._decoder, self._own = scales, Decoder(scales, self.dtype), threading.local()

    def read_into(self, rows: NDArray[np.integer], lengths: NDArray[np.integer], out: NDArray) -> NDArray[np.intp]:
        """As `RowReader.read_into`; of every row only so many positions as its length are given."""
        codes = self._codes(len(rows))
        fresh = super().read_into(rows, lengths, codes)
        for place in np.flatnonzero(rows >= 0):
            part = slice(lengths[place])
            self._decoder.decode_into(codes[place, part], self._scales[rows[place], part], out[place, part])
        return fresh

    def _codes(self, rows: int) -> NDArray[np.uint8]:
        """Memory of this thread: fresh memory would cost more than decoding."""
        held = getattr(self._own, "codes", None)
        if held is None or len(held) < rows:
            held = self._own.codes = np.empty((rows, *self.shape), np.uint8)
        return held[:rows]
