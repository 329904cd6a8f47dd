"""The event file of a DSEC sequence: exact windows out of hundreds of millions of events, each read once.

HDF5: `events/{p,t,x,y}` (Blosc with Zstandard), `ms_to_idx`: index of the first event with t >= ms * 1000, `t_offset`:
what is added to t (us) to be on the images' clock. Needs h5py and hdf5plugin, imported when a file is opened.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.data.dsec import BACKWARDS, EMPTY, FOREIGN, HEIGHT, MISSING, UNREADABLE, WIDTH, Damage
from xmsd_jax.data.events import Events

_COLUMNS = ("p", "t", "x", "y")
_LIMITS = {"p": 2, "x": WIDTH, "y": HEIGHT}


class EventFile:
    """An open `events.h5`; `cut` gives the events of a window.

    Neighbouring windows share events: the last window's are kept, so that going forward reads every event once.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; Damage where it is missing, truncated or of another form, UserError without h5py."""
        self.path = path
        self._file = _opened(path)
        try:
            self._columns = {name: self._dataset(f"events/{name}") for name in _COLUMNS}
            self._ms_to_idx = self._read_all("ms_to_idx")
            self._offset = int(self._read_all("t_offset").reshape(-1)[0])
            self._check_lengths()
        except BaseException:
            self._file.close()
            raise
        self._held: tuple[int, dict[str, np.ndarray]] = (0, {name: self._read(name, 0, 0) for name in _COLUMNS})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def cut(self, start_us: int, stop_us: int) -> Events:
        """Return the events with start <= t < stop on the images' clock (t_offset added), in order.

        Raises Damage where there is none, time runs backwards, ms_to_idx points elsewhere, or values are out of range.
        """
        low, high = start_us - self._offset, stop_us - self._offset
        first, last = self._index(low), self._index(high)
        if first >= last:
            raise Damage(EMPTY, self.path, f"no event in [{start_us}, {stop_us}) us; the sensor was off, or it was cut")
        columns = self._range(first, last)
        self._check(columns, low, high, first, last)
        t = columns["t"].astype(np.int64)
        t += self._offset
        return Events(
            x=columns["x"].astype(np.uint16, copy=False), y=columns["y"].astype(np.uint16, copy=False),
            p=columns["p"].astype(np.uint8, copy=False), t=t, height=HEIGHT, width=WIDTH,
        )  # fmt: skip

    def _index(self, raw_us: int) -> int:
        """Index of the first event with t >= raw_us: its millisecond from the table, the rest by binary search."""
        if raw_us <= 0:
            return 0
        ms = min(raw_us // 1000, len(self._ms_to_idx) - 1)
        low = int(self._ms_to_idx[ms])
        high = int(self._ms_to_idx[ms + 1]) if ms + 1 < len(self._ms_to_idx) else len(self)
        if not 0 <= low <= high <= len(self):
            raise Damage(FOREIGN, self.path, f"ms_to_idx gives {low} and {high} at {ms} ms for {len(self)} events")
        return low + int(np.searchsorted(self._read("t", low, high), raw_us, side="left"))

    def _range(self, first: int, last: int) -> dict[str, np.ndarray]:
        start, held = self._held
        stop = start + len(held["t"])
        shared = start <= first < stop <= last
        fresh = {name: self._read(name, stop if shared else first, last) for name in _COLUMNS}
        if shared:
            fresh = {name: np.concatenate([held[name][first - start :], fresh[name]]) for name in _COLUMNS}
        self._held = first, fresh
        return fresh

    def _check(self, columns: dict[str, np.ndarray], low: int, high: int, first: int, last: int) -> None:
        t = columns["t"]
        back = t[1:] < t[:-1]
        if back.any():
            i = int(back.argmax())
            raise Damage(BACKWARDS, self.path, f"time runs backwards: t[{first + i}] = {t[i]}, then {t[i + 1]}")
        before, after = self._read("t", max(first - 1, 0), first), self._read("t", last, last + 1)
        if t[0] < low or t[-1] >= high or (before >= low).any() or (after < high).any():
            raise Damage(FOREIGN, self.path, f"ms_to_idx does not fit t around events {first} and {last}")
        for name, limit in _LIMITS.items():
            lowest, highest = int(columns[name].min()), int(columns[name].max())
            if lowest < 0 or highest >= limit:
                raise Damage(FOREIGN, self.path, f"{name} runs from {lowest} to {highest}, it must be 0 to {limit - 1}")

    def __len__(self) -> int:
        """Number of events in the file."""
        return len(self._columns["t"])

    def _dataset(self, name: str) -> Any:
        dataset = self._file.get(name)
        if dataset is None or not hasattr(dataset, "dtype") or dataset.dtype.kind not in "iub":
            raise Damage(UNREADABLE, self.path, f"has no array of whole numbers {name}; it is no DSEC event file")
        return dataset

    def _check_lengths(self) -> None:
        lengths = {name: column.shape for name, column in self._columns.items()}
        if len(set(lengths.values())) != 1 or self._columns["t"].ndim != 1 or self._ms_to_idx.ndim != 1:
            raise Damage(UNREADABLE, self.path, f"its columns need one length and one axis, got {lengths}")
        if not len(self._ms_to_idx):
            raise Damage(UNREADABLE, self.path, "its ms_to_idx is empty")

    def _read_all(self, name: str) -> np.ndarray:
        dataset = self._dataset(name)
        return self._taken(dataset, name, ())

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        return self._taken(self._columns[name], f"events/{name}", slice(first, last))

    def _taken(self, dataset: Any, name: str, part: Any) -> np.ndarray:
        try:
            return np.asarray(dataset[part])
        except (OSError, RuntimeError, ValueError) as error:  # what h5py raises for a chunk it cannot decode
            reason = " ".join(str(error).split())
            raise Damage(UNREADABLE, self.path, f"{name} cannot be read ({reason}); copy it again") from error


def _opened(path: Path) -> Any:
    try:
        import h5py
        import hdf5plugin  # noqa: F401  registers Blosc
    except ImportError as error:
        raise UserError(
            f"{path}: reading DSEC needs h5py and hdf5plugin ({error}); pip install 'xmsd[dsec]'"
        ) from error
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise Damage(MISSING, path, "no event file; unpack the sequence's events again") from error
    except OSError as error:
        reason = " ".join(str(error).split())
        raise Damage(UNREADABLE, path, f"not a readable HDF5 file ({reason}); copy it again") from error
