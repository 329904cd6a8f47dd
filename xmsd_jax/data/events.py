"""Event streams: the record, its checks, splits in time or count, and the RGB frames an event VLM looks at."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from xmsd_jax.config import UserError

Rule = Literal["last-event-wins", "blue-wins"]

_BLANK = 2
# Pixel indices are made for this many events at a time: they stay in the cache, and memory stays flat.
_CHUNK = 1 << 18
# Without a known sensor size the largest coordinates make the frame: a wild one must not ask for gigabytes.
_MAX_PIXELS = 1 << 24
_DTYPES = {"x": np.uint16, "y": np.uint16, "p": np.uint8, "t": np.int64}


class EventError(UserError):
    """Events, or a file of events, that break an invariant; the text names where they came from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """A stream of events in chronological order; `checked` is what holds that for data from outside.

    x, y: uint16[e] pixel; p: uint8[e], 1 brighter, 0 darker; t: int64[e] microseconds, non-decreasing;
    height, width: the sensor's size in pixels.
    """

    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    t: np.ndarray
    height: int
    width: int

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.t)

    def __getitem__(self, part: slice) -> "Events":
        """Return the events of a slice, as views, on the same sensor."""
        return replace(self, x=self.x[part], y=self.y[part], p=self.p[part], t=self.t[part])

    def window(self, start_us: int, stop_us: int) -> "Events":
        """Return the events with start_us <= t < stop_us, as views; t keeps its clock."""
        first, last = np.searchsorted(self.t, (start_us, stop_us), side="left")
        return self[first:last]


def checked(events: Events, *, where: str) -> Events:
    """Return the events with the contract's dtypes, or raise EventError.

    Held: four 1-d integer (or bool) arrays of one length, at least one event, p in {0, 1}, t non-decreasing,
    every pixel inside (height, width). `where` opens the message: a path, a clip's name.
    """
    columns = {name: np.asarray(getattr(events, name)) for name in _DTYPES}
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iub":
            raise EventError(
                f"{where}: events need `{name}` as a 1-d integer array, got {column.dtype} of shape {column.shape};"
                " write it as integers, t in microseconds"
            )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise EventError(f"{where}: x, y, p and t need one length, got {lengths}; the file is damaged or mixed up")
    if not lengths["t"]:
        raise EventError(f"{where}: holds no event; a clip needs at least one, leave it out of the list")
    _check_values(columns, events.height, events.width, where)
    return replace(events, **{name: column.astype(_DTYPES[name], copy=False) for name, column in columns.items()})


def _check_values(columns: dict[str, np.ndarray], height: int, width: int, where: str) -> None:
    polarity = columns["p"]
    if polarity.min() < 0 or polarity.max() > 1:
        raise EventError(
            f"{where}: polarity p must be 0 or 1, got values from {polarity.min()} to {polarity.max()};"
            " map darker to 0 and brighter to 1"
        )
    for name, size in (("x", width), ("y", height)):
        low, high = int(columns[name].min()), int(columns[name].max())
        if low < 0 or high >= size or high > np.iinfo(np.uint16).max:
            raise EventError(
                f"{where}: events out of the frame: {name} runs from {low} to {high}, the frame is {width}x{height}"
                " (width x height); give the sensor's true size, or drop these events"
            )
    t = columns["t"]
    if t.max() > np.iinfo(np.int64).max:
        raise EventError(f"{where}: t does not fit int64 microseconds (largest {t.max()}); check its unit")
    backwards = np.flatnonzero(t[1:] < t[:-1])
    if len(backwards):
        i = int(backwards[0])
        raise EventError(
            f"{where}: events are not sorted in time: t[{i}] = {t[i]} us, then t[{i + 1}] = {t[i + 1]} us"
            f" ({len(backwards)} such steps); sort x, y, p and t together by t"
        )


def sized(columns: dict[str, np.ndarray], size: tuple[int, int] | None, *, where: str) -> Events:
    """Return checked events on a sensor of `size`, or of (max y + 1, max x + 1) where it is not known."""
    height, width = size or (_extent(columns["y"]), _extent(columns["x"]))
    if size is None and height * width > _MAX_PIXELS:
        raise EventError(
            f"{where}: events reach out to {width}x{height} (width x height), no sensor is so large; the file is"
            " damaged, or give the sensor's size"
        )
    return checked(Events(**{key: columns[key] for key in "xypt"}, height=height, width=width), where=where)


def _extent(column: np.ndarray) -> int:
    # What is no column of integers has no extent; `checked` then says what is wrong with it.
    return int(column.max()) + 1 if column.ndim == 1 and len(column) and column.dtype.kind in "iu" else 1


def split_by_count(events: Events, n: int) -> list[Events]:
    """Cut into n parts of len // n events, the last one taking the remainder too: EventGPT's own cut.

    Every event is in one part, in order. With fewer than n events all are in the last part.
    """
    _need_parts(n)
    size = len(events) // n
    stops = [size * (i + 1) for i in range(n - 1)] + [len(events)]
    return [events[size * i : stop] for i, stop in enumerate(stops)]


def split_by_time(events: Events, n: int, *, start_us: int, stop_us: int) -> list[Events]:
    """Cut [start_us, stop_us) into n windows with edges start + (stop - start) * i // n; others are left out."""
    _need_parts(n)
    if stop_us <= start_us:
        raise ValueError(f"a window needs start < stop, got [{start_us}, {stop_us}) us; swap or widen them")
    edges = [start_us + (stop_us - start_us) * i // n for i in range(n + 1)]
    return [events.window(low, high) for low, high in pairwise(edges)]


def _need_parts(n: int) -> None:
    if n < 1:
        raise ValueError(f"events are cut into at least one part, got n = {n}; give n >= 1")


def render(events: Events, *, rule: Rule = "last-event-wins", size: tuple[int, int] | None = None) -> np.ndarray:
    """Draw events as an image, uint8[y, x, 3]: white, p = 0 blue (0, 0, 255), p = 1 red (255, 0, 0).

    rule: a pixel with several events shows its last one, or ("blue-wins", what the study's fast renderer did)
    blue whenever it had a p = 0 event. size: (height, width), by default the sensor's.
    Raises EventError for an event outside size.
    """
    height, width = size or (events.height, events.width)
    # A wrong column would land on a neighbouring row, and a wrong row raise numpy's own IndexError.
    if len(events) and (int(events.x.max()) >= width or int(events.y.max()) >= height):
        raise EventError(
            f"render: events out of the frame: largest (y, x) is ({events.y.max()}, {events.x.max()}),"
            f" the image is {height}x{width} (height x width); give a size that holds them"
        )
    polarity = np.full(height * width, _BLANK, np.uint8)
    if rule == "last-event-wins":
        _paint(polarity, width, events.x, events.y, events.p)
    elif rule == "blue-wins":
        dark = np.flatnonzero(events.p == 0)
        _paint(polarity, width, events.x, events.y, np.ones_like(events.p))
        _paint(polarity, width, events.x[dark], events.y[dark], events.p[dark])
    else:
        raise ValueError(f"rule must be 'last-event-wins' or 'blue-wins', got {rule!r}")
    return _colours(polarity).reshape(height, width, 3)


def _colours(polarity: np.ndarray) -> np.ndarray:
    """Return EventGPT's colours, uint8[pixel, 3]: 0 blue, 1 red, blank white (a table lookup takes 10x as long)."""
    image = np.empty((len(polarity), 3), np.uint8)
    for channel, lit in enumerate((polarity != 0, polarity == _BLANK, polarity != 1)):
        np.negative(lit.view(np.uint8), out=image[:, channel])  # -1 is 255
    return image


def _paint(polarity: np.ndarray, width: int, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> None:
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        pixel = y[part].astype(np.intp)
        pixel *= width
        pixel += x[part]
        # Fancy assignment goes through repeated indices in order, so the last event stays (numpy documents it:
        # "the assignment is done several times, leaving behind the last value"; a test compares with a loop).
        polarity[pixel] = p[part]


@dataclass(frozen=True, kw_only=True)
class EventFrames:
    """How a stream becomes the frames of an event VLM; the study's: by count, n = 5, `use` = "first".

    split: equal numbers of events, or equal times; n: parts; use: all parts or only the first; rule: see `render`.
    """

    split: Literal["count", "time"] = "count"
    n: int = 5
    use: Literal["first", "all"] = "all"
    rule: Rule = "last-event-wins"

    def frames(self, events: Events, *, start_us: int | None = None, stop_us: int | None = None) -> np.ndarray:
        """Return uint8[f, y, x, 3], f = 1 or n, on the sensor's size.

        start_us, stop_us: the clip's window when split by time; by default from the first event to the last.
        """
        parts = self._parts(events, start_us, stop_us)
        chosen = parts[:1] if self.use == "first" else parts
        return np.stack([render(part, rule=self.rule) for part in chosen])

    def _parts(self, events: Events, start_us: int | None, stop_us: int | None) -> list[Events]:
        if self.split == "count":
            return split_by_count(events, self.n)
        if not len(events) and (start_us is None or stop_us is None):
            raise EventError("cannot split no events by time without start_us and stop_us; give the clip's window")
        start = int(events.t[0]) if start_us is None else start_us
        stop = int(events.t[-1]) + 1 if stop_us is None else stop_us
        return split_by_time(events, self.n, start_us=start, stop_us=stop)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rendered:
    """Event frames drawn before: `frames`, uint8[f, y, x, 3], made as `how` says."""

    how: EventFrames
    frames: np.ndarray


def serves(drawn: EventFrames, asked: EventFrames) -> bool:
    """Whether frames drawn as the one says are those that the other asks for, or begin with them."""
    return replace(asked, use="all") == replace(drawn, use="all") and (asked.use == "first" or drawn.use == "all")
