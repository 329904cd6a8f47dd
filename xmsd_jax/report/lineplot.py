"""Small line plots, many of one kind side by side: lines over a number, with markers as a second cue beside colour.

Lines are drawn in an inner SVG that stretches with the page; text and markers keep their size. Colours and dashes are
classes of style.css.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xmsd_jax.report.markup import Markup, join, tag

SHAPES = {
    "dot": "M-3,0 a3,3 0 1,0 6,0 a3,3 0 1,0 -6,0 Z",
    "ring": "M-5,0 a5,5 0 1,0 10,0 a5,5 0 1,0 -10,0 Z",
    "square": "M-3,-3 h6 v6 h-6 Z",
    "triangle": "M0,-4 l4,7 h-8 Z",
    "none": "",
}
_WIDEST = 9  # tick labels that a small plot has room for
_MARKED = 16  # points up to which each gets a marker; beyond, dashes tell the lines apart
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a series is told from others: a class of style.css for colour and dash, a marker, words in the legend."""

    key: str
    shape: str
    words: str
    short: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. `band`: lower and upper ends of its intervals, or nothing. `end`: words above its last point."""

    look: Look
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    band: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    end: str = ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear axis from `low` to `high`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Place of a value, in per cent of the length."""
        return 100.0 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    @classmethod
    def counting(cls, values: Iterable[float]) -> "Axis":
        """An axis of whole numbers (positions, epochs): both ends are ticks, and no two labels meet."""
        known = sorted(values)
        low, high = known[0], max(known[-1], known[0] + 1)
        step = next(s * 10**p for p in range(9) for s in (1, 2, 5) if high - low < _WIDEST * s * 10**p)
        room = 0.6 * step if step > 2 else 0.4 * step  # from two figures on, labels are wide
        inner = [tick for i in range(math.ceil(high / step)) if room < (tick := i * step) - low and high - tick > room]
        return cls(low=low, high=high, ticks=(low, *map(float, inner), high))

    @classmethod
    def over(cls, values: Iterable[float], *, ticks: int = 3) -> "Axis":
        """An axis that holds all values, between round ticks."""
        known = list(values)
        low, high = min(known), max(known)
        span = high - low or abs(high) or 1.0
        size = 10.0 ** math.floor(math.log10(span / ticks))
        step = next(s * size for s in _ROUND if s * size * ticks >= span * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        return cls(low=first * step, high=last * step, ticks=tuple(i * step for i in range(first, last + 1)))


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One panel. `level`: a horizontal line to compare with; `chosen`: a vertical one; `said`: all of it in words."""

    series: tuple[Series, ...]
    x: Axis
    y: Axis
    said: str
    level: float | None = None
    chosen: float | None = None
    height: int = 130


def draw(plot: Plot) -> Markup:
    """Draw one panel with its ticks."""
    grid = [_across(plot.y, tick, "grid") for tick in plot.y.ticks]
    level = [] if plot.level is None else [_across(plot.y, plot.level, "one")]
    chosen = [] if plot.chosen is None else [_upright(plot.x, plot.chosen)]
    stretched = tag(
        "svg",
        *(_line(plot, series) for series in plot.series),
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
    )
    marked = [series for series in plot.series if len(series.xs) <= _MARKED]
    marks = [_mark(series.look, plot.x.at(x), plot.y.at(y)) for series in marked for x, y in _points(series)]
    ends = [_end_label(plot, series) for series in plot.series if series.end]
    labels = [*_x_labels(plot), *_y_labels(plot.y), *ends]
    picture = tag(
        "svg", *grid, *level, *chosen, stretched, *marks, *labels,
        width="100%", height=plot.height, role="img", aria_label=plot.said,
    )  # fmt: skip
    return tag("div", picture, class_="picture plot")


def swatch(look: Look) -> Markup:
    """A piece of a series' line with its marker, for legends and tables."""
    line = tag("line", x1=1, x2=31, y1=7, y2=7, class_=f"curve {look.key}")
    mark = tag("svg", _shape(look), x=16, y=7, class_="open")
    return tag("svg", line, mark, width=32, height=14, aria_hidden="true", class_="swatch")


def legend(looks: Sequence[Look]) -> Markup:
    """The series of a figure, each as it is drawn."""
    return tag("ul", *(tag("li", swatch(look), look.words) for look in looks), class_="legend")


def panels(*made: Markup) -> Markup:
    """Panels side by side, as many as the page is wide."""
    return tag("div", *made, class_="panels")


def _points(series: Series) -> zip:
    return zip(series.xs, series.ys, strict=True)


def _line(plot: Plot, series: Series) -> Markup:
    """The line and, where there are intervals, the band behind it."""

    def path(ys: Sequence[float]) -> list[str]:
        return [f"{plot.x.at(x):.2f},{100 - plot.y.at(y):.2f}" for x, y in zip(series.xs, ys, strict=True)]

    band = None
    if series.band is not None:
        outline = [*path(series.band[0]), *reversed(path(series.band[1]))]
        band = tag("polygon", points=" ".join(outline), class_=f"band {series.look.key}")
    return join(band, tag("polyline", points=" ".join(path(series.ys)), class_=f"curve {series.look.key}"))


def _mark(look: Look, x: float, y: float) -> Markup | None:
    if not SHAPES[look.shape]:
        return None
    return tag("svg", _shape(look), x=f"{x:.2f}%", y=f"{100 - y:.2f}%", class_="open")


def _shape(look: Look) -> Markup:
    return tag("path", d=SHAPES[look.shape], class_=f"mark {look.key}")


def _end_label(plot: Plot, series: Series) -> Markup:
    x, y = f"{plot.x.at(series.xs[-1]):.2f}%", f"{100 - plot.y.at(series.ys[-1]):.2f}%"
    return tag("text", series.end, x=x, y=y, dx=-5, dy=-4, text_anchor="end")


def _across(axis: Axis, value: float, class_: str) -> Markup:
    place = f"{100 - axis.at(value):.2f}%"
    return tag("line", x1=0, x2="100%", y1=place, y2=place, class_=class_)


def _upright(axis: Axis, value: float) -> Markup:
    place = f"{axis.at(value):.2f}%"
    return tag("line", x1=place, x2=place, y1=0, y2="100%", class_="chosen")


def _x_labels(plot: Plot) -> list[Markup]:
    return [
        tag("text", f"{tick:g}", x=f"{plot.x.at(tick):.2f}%", y=plot.height, dy=15, text_anchor="middle")
        for tick in plot.x.ticks
    ]


def _y_labels(axis: Axis) -> list[Markup]:
    """Labels left of the plot, all with the decimals that the finest of them needs."""
    digits = max(len(f"{tick:.6g}".partition(".")[2]) for tick in axis.ticks)
    return [
        tag("text", f"{tick:.{digits}f}", x=0, dx=-7, y=f"{100 - axis.at(tick):.2f}%", dy=4, text_anchor="end")
        for tick in axis.ticks
    ]
