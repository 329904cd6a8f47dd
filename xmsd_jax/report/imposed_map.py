"""The map of imposed acceptances: speed-up over acceptance at the true compute of a drafter, and where it breaks even.

Rows: kind "imposed", metric `speedup` or `decode_speedup`, in `settings` the `acceptance` (of each drafted token, where
all before it are right), the `compute` that was paid, `gamma`, `dtype`, `max_new_tokens`. Rows that differ in the
acceptance alone are one line; those of one dtype, quantisation and N share a panel.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from xmsd_jax.report import lineplot
from xmsd_jax.report.columns import DASH, TIMES
from xmsd_jax.report.gallery import ReportError
from xmsd_jax.report.lineplot import Axis, Look, Plot, Series
from xmsd_jax.report.markup import Markup, tag
from xmsd_jax.report.reading import clips_title, listed, of_metric
from xmsd_jax.report.rows import clips_of, is_map_point
from xmsd_jax.report.summary import Group, Line
from xmsd_jax.report.tables import aligned, escaped
from xmsd_jax.runs import Row

METRICS = {"speedup": "Whole answer", "decode_speedup": "Decoding alone"}
_PANEL = ("dtype", "quantisation", "max_new_tokens")
_COLOURS, _MARKS = 8, ("dot", "square", "triangle")  # classes c1.. and dashes v1.. of style.css
_EVEN = Look(key="even", shape="ring", words=f"breaks even: the line crosses 1{TIMES}")
_TITLE = "Imposed acceptance: what a drafter must reach"
_ABOUT = (
    "Acceptance: the chance that a drafted token is right where all before it are, imposed on every one of them; the "
    "time is that of runs which pay the true compute of the drafter named. What acceptance a drafter has is not said "
    "here."
)
_NOTE = (
    f"Break-even: the acceptance from which on a drafter stays at 1{TIMES} or above, interpolated linearly between "
    "neighbouring points; in brackets, where the ends of the intervals do."
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one compute gives: metric -> points by acceptance. `name` tells it from the others of its panel."""

    name: str
    points: Mapping[str, tuple[Row, ...]]

    def ends(self, metric: str) -> tuple[tuple[float, ...], ...]:
        """Acceptances, values, lows and highs; without an interval both of these are the value."""
        found = [
            (_acceptance(r), v, v if r.low is None else r.low, v if r.high is None else r.high)
            for r in self.points.get(metric, ())
            if (v := r.value) is not None
        ]
        return tuple(zip(*found, strict=True)) if found else ((), (), (), ())


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The curves of one dtype and N, against one baseline."""

    title: str
    baseline: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True)
class Map:
    """All panels of one set of clips."""

    clips: str
    panels: tuple[Panel, ...]

    @property
    def metrics(self) -> list[str]:
        """The speed-ups that any curve has."""
        return [metric for metric in METRICS if any(metric in c.points for p in self.panels for c in p.curves)]

    @property
    def looks(self) -> dict[str, Look]:
        """How each curve is drawn, the same in every panel."""
        names = dict.fromkeys(curve.name for panel in self.panels for curve in panel.curves)
        return {
            name: Look(key=f"c{i % _COLOURS + 1} v{i % len(_MARKS) + 1}", shape=_MARKS[i % len(_MARKS)], words=name)
            for i, name in enumerate(names)
        }


def crossing(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The x from which on y stays at 1 or above: inf where it ends below, -inf where it begins above and stays there.

    xs: increasing, at least one. Between points y is a straight line.
    """
    if ys[-1] < 1:
        return math.inf
    for (x, y), (after, above) in reversed(list(pairwise(zip(xs, ys, strict=True)))):
        if y < 1:
            return x + (1 - y) / (above - y) * (after - x)
    return xs[0] if ys[0] == 1 else -math.inf


def maps(rows: Iterable[Row]) -> list[Map]:
    """Put the points in order, by set of clips. Raises ReportError for a point that is there twice."""
    points: dict[str, list[Row]] = {}
    for row in of_metric(rows, *METRICS):
        if is_map_point(row):
            points.setdefault(clips_of(row), []).append(row)
    return [Map(clips=clips, panels=_panels(found)) for clips, found in points.items()]


def imposed_section(rows: Sequence[Row]) -> Markup | None:
    """Plots and break-even points; None where no acceptance was imposed."""
    found = maps(rows)
    if not found:
        return None
    groups = [_group(one) for one in found]
    return tag("section", tag("h2", _TITLE), tag("p", _ABOUT), *groups, id="imposed")


def imposed_markdown(rows: Sequence[Row]) -> str:
    """The break-even points as text, "" where no acceptance was imposed."""
    found = maps(rows)
    parts = [f"**{_TITLE}**", _ABOUT] if found else []
    for one in found:
        parts += [
            escaped(clips_title(one.clips)),
            aligned([[escaped(c) for c in line] for line in _table(one)], (0, 1)),
        ]
    return "\n\n".join([*parts, _NOTE]) + "\n" if found else ""


def _acceptance(row: Row) -> float:
    return float(row.settings["acceptance"])


def _panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Rows that differ in the acceptance alone are one line; what else differs is named."""
    lines: dict[Any, tuple[Line, list[Row]]] = {}
    for row in rows:
        compute, settings = str(row.settings["compute"]), _further(row)
        place = tuple((key, row.settings[key]) for key in _PANEL if key in row.settings)
        key = (place, row.baseline, compute, tuple(sorted(settings.items(), key=str)))
        lines.setdefault(key, (Line(row=compute, kind=row.kind, settings=settings), []))[1].append(row)
    group = Group(clips="", lines=tuple(line for line, _ in lines.values()))
    panels: dict[Any, list[Curve]] = {}
    for (place, baseline, *_), (line, found) in lines.items():
        label = group.label(line)
        curve = Curve(name=f"{line.row} ({label})" if label else line.row, points=_by_metric(found))
        panels.setdefault((place, baseline or ""), []).append(curve)
    return tuple(
        Panel(title=_title(dict(place)), baseline=baseline, curves=tuple(curves))
        for (place, baseline), curves in panels.items()
    )


def _further(row: Row) -> dict[str, Any]:
    known = ("acceptance", "compute", "clips", *_PANEL)
    return {k: v for k, v in row.settings.items() if k not in known and not isinstance(v, list | tuple | dict)}


def _by_metric(rows: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    points: dict[str, dict[float, Row]] = {}
    for row in sorted(rows, key=_acceptance):
        known = points.setdefault(row.metric, {})
        if _acceptance(row) in known:
            raise ReportError(
                f"results.json gives {row.metric} at the imposed acceptance {_acceptance(row):g} of "
                f"{row.settings['compute']} twice with the same settings; name in `settings` what differs"
            )
        known[_acceptance(row)] = row
    return {metric: tuple(known.values()) for metric, known in points.items()}


def _title(place: Mapping[str, Any]) -> str:
    """Dtype, format of the quantisation (its first word; "none" is left out) and N, as far as they are known."""
    quantised = str(place.get("quantisation", "none")).partition(",")[0]
    words = [str(place.get("dtype", "")), "" if quantised == "none" else quantised]
    tokens = f"N = {place['max_new_tokens']}" if "max_new_tokens" in place else ""
    return ", ".join(word for word in (*words, tokens) if word) or "all settings"


def _group(one: Map) -> Markup:
    legend = lineplot.legend([*one.looks.values(), _EVEN])
    figures = [tag("h3", clips_title(one.clips)), legend, *(_figure(one, metric) for metric in one.metrics)]
    head, *lines = _table(one)
    top = tag("thead", tag("tr", *(tag("th", words, scope="col") for words in head)))
    body = [
        tag("tr", tag("td", place), tag("th", lineplot.swatch(one.looks[name]), name, scope="row"), *map(_cell, cells))
        for place, name, *cells in lines
    ]
    table = tag("div", tag("table", top, tag("tbody", *body), class_="gammas breaks"), class_="scroll")
    return tag("div", *figures, table, tag("p", _NOTE, class_="note"), class_="group")


def _cell(text: str) -> Markup:
    return tag("td", text)


def _figure(one: Map, metric: str) -> Markup:
    ends = [curve.ends(metric) for panel in one.panels for curve in panel.curves if metric in curve.points]
    x = Axis.over([a for xs, *_ in ends for a in xs], ticks=5)
    y = Axis.over([1.0, *(value for _, *values in ends for value in sum(values, ()))], ticks=5)
    drawn = [_panel(panel, metric, one.looks, x, y) for panel in one.panels]
    title = tag("h4", f"Speed-up over imposed acceptance, {METRICS[metric].lower()}")
    return tag("figure", title, lineplot.panels(*drawn), tag("figcaption", _reading(one, metric)), class_="wide")


def _panel(panel: Panel, metric: str, looks: Mapping[str, Look], x: Axis, y: Axis) -> Markup:
    """One panel: whiskers first, then the lines, then the rings where they cross 1."""
    curves = [curve for curve in panel.curves if metric in curve.points]
    lines = [_series(curve, metric, looks[curve.name]) for curve in curves]
    even = [at for curve in curves if math.isfinite(at := crossing(*curve.ends(metric)[:2]))]
    rings = [Series(look=_EVEN, xs=(at,), ys=(1.0,)) for at in even]
    said = "; ".join(f"{curve.name} breaks even at {_even(curve, metric)}" for curve in curves)
    plot = Plot(
        series=(*(piece for pieces in lines for piece in pieces[1:]), *(pieces[0] for pieces in lines), *rings),
        x=x,
        y=y,
        said=f"Speed-up over imposed acceptance, {METRICS[metric].lower()}, {panel.title}: {said}",
        level=1.0,
        height=240,
    )
    title = tag("h5", panel.title, tag("small", f"1{TIMES} is {panel.baseline}"))
    return tag("div", title, lineplot.draw(plot), class_="panel")


def _series(curve: Curve, metric: str, look: Look) -> list[Series]:
    """The line of a curve, then a whisker for each point that has an interval."""
    xs, ys, lows, highs = curve.ends(metric)
    thin = Look(key=f"{look.key.split()[0]} imposed", shape="none", words="")
    whiskers = [
        Series(look=thin, xs=(x, x), ys=(low, high)) for x, low, high in zip(xs, lows, highs, strict=True) if low < high
    ]
    return [Series(look=look, xs=xs, ys=ys), *whiskers]


def _even(curve: Curve, metric: str) -> str:
    """Where a curve breaks even, in words, with where the ends of its intervals do."""
    xs, ys, lows, highs = curve.ends(metric)
    if not xs:
        return DASH

    def words(at: float) -> str:
        return f"{at:.2f}" if math.isfinite(at) else f"above {xs[-1]:g}" if at > 0 else f"below {xs[0]:g}"

    at, low, high = (words(crossing(xs, values)) for values in (ys, highs, lows))
    return at if low == high else f"{at} ({low} to {high})"


def _table(one: Map) -> list[list[str]]:
    """Heads and a line for each curve of each panel, as text."""
    top = one.metrics[0]
    words = [f"Break-even, {METRICS[metric].lower()}" for metric in one.metrics]
    lines = [["Target", "Compute", *words, f"Highest, {METRICS[top].lower()}"]]
    for panel in one.panels:
        for curve in panel.curves:
            even = [_even(curve, metric) for metric in one.metrics]
            lines.append([f"{panel.title}, against {panel.baseline}", curve.name, *even, _highest(curve, top)])
    return lines


def _highest(curve: Curve, metric: str) -> str:
    xs, ys, *_ = curve.ends(metric)
    return f"{max(ys):.2f}{TIMES} at {xs[ys.index(max(ys))]:g}" if xs else DASH


def _reading(one: Map, metric: str) -> str:
    """The lowest and highest acceptance that breaks even, and who does not."""
    found = [(crossing(*c.ends(metric)[:2]), f"{c.name} ({p.title})", _even(c, metric))
             for p in one.panels for c in p.curves if metric in c.points]  # fmt: skip
    reached, never = [f for f in found if f[0] < math.inf], [name for at, name, _ in found if at == math.inf]
    text = []
    if reached:
        (_, first, least), (_, last, most) = min(reached), max(reached)
        text = [f"The least is asked of {first}: {least}."]
        text += [f"The most, of those that break even, of {last}: {most}."] if len(reached) > 1 else []
    text += [f"No measured acceptance makes {listed(never)} as fast as the baseline."] if never else []
    return " ".join(text)
