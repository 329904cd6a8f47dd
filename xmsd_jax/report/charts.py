"""Bar and interval charts: one small SVG per line, in per cent of its width.

Text stays outside of the SVGs or keeps its size in them, so that a chart reads on a phone as on a desktop.
Colours live in style.css; each series has a pattern or shape as a second cue.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xmsd_jax.report.columns import COLUMNS, KIND_WORDS, TIMES, number
from xmsd_jax.report.markup import Markup, join, tag
from xmsd_jax.report.summary import Group, Line, verdict
from xmsd_jax.runs import Row

TICKS = (0.05, 0.1, 0.2, 0.25, 0.33, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
_TICK_GAP = 9.0  # per cent of the width that a tick label needs on a phone
_SERIES = (("speedup", "whole answer", "whole"), ("decode_speedup", "decoding alone", "alone"))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a stacked bar: its key in the amounts, its words, a class of style.css (default: the key)."""

    key: str
    words: str
    style: str = ""

    @property
    def class_(self) -> str:
        """Colour and pattern in style.css."""
        return self.style or self.key


TIME_PARTS = (
    Part(key="vision", words="vision"),
    Part(key="prefill", words="prefill"),
    Part(key="decode", words="decode (drafting and checking included)"),
)
ORIGIN_PARTS = (
    Part(key="prefill-draft", words="free in the prefill"),
    Part(key="draft", words="accepted draft"),
    Part(key="target", words="the target's own token"),
)
COST_PARTS = (
    Part(key="vision", words="vision"),
    Part(key="prefill", words="prefill"),
    Part(key="lane", words="drafter's lane before phase 2"),
    Part(key="first", words="first check (wait)"),
    Part(key="drafter vision", words="drafter's vision", style="drafter-vision"),
    Part(key="drafter prefill", words="drafter's prefill", style="lane"),
    Part(key="drafter step", words="drafter's own step", style="drafter-step"),
    Part(key="prefill_draft", words="draft for phase 1", style="early"),
    Part(key="draft", words="draft"),
    Part(key="sync", words="drafter in step"),
    Part(key="verify", words="verify"),
    Part(key="decode", words="plain decoding", style="plain"),
    Part(key="host", words="host"),
)
_EXTRAS = 4  # classes of style.css for parts that have no name of their own there


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a stacked chart: `amounts` by the keys of its parts, `note` as text at its end.

    `below`: amounts of a second bar right under the first, to compare with it.
    """

    label: str
    detail: str = ""
    amounts: Mapping[str, float]
    below: Mapping[str, float] | None = None
    note: str = ""
    remark: str = field(default="")

    @property
    def tiers(self) -> tuple[Mapping[str, float], ...]:
        """Amounts of its one or two bars."""
        return (self.amounts,) if self.below is None else (self.amounts, self.below)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A logarithmic axis: halving and doubling are equally far from 1."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Place of a ratio, in per cent of the width."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return 100.0 * min(1.0, max(0.0, share))

    @property
    def ticks(self) -> list[float]:
        """Ticks that leave room for their labels; 1 is always one of them."""
        chosen = [1.0]
        for tick in (t for t in TICKS if self.low <= t <= self.high):
            if all(abs(self.at(tick) - self.at(other)) >= _TICK_GAP for other in chosen):
                chosen.append(tick)
        return sorted(chosen)

    @classmethod
    def around(cls, values: Iterable[float]) -> "Scale":
        """An axis that holds all values and 1, with a margin."""
        positive = [value for value in values if value > 0]
        return cls(low=min([0.85, *positive]) / 1.08, high=max([1.2, *positive]) * 1.08)


def speed_chart(group: Group) -> Markup | None:
    """Draw each line's speed-ups from 1 (the baseline) with their intervals; None where there is no speed-up."""
    lines = [line for line in group.lines if any(line.value(metric) for metric, _, _ in _SERIES)]
    cells = [line.cells[metric] for line in lines for metric, _, _ in _SERIES if line.value(metric)]
    if not cells:
        return None
    scale = Scale.around(v for cell in cells for v in (cell.value, cell.low, cell.high) if v is not None)
    shown = legend([Part(key=shape, words=words) for _, words, shape in _SERIES])
    rows = [_speed_line(group, line, scale) for line in lines]
    return tag("div", shown, *rows, _axis(scale, group.baselines), class_="chart speed")


def stacked_chart(bars: Sequence[Bar], parts: Sequence[Part], *, full: float | None = None) -> Markup | None:
    """Draw stacked bars; `full` is the amount that fills the width (default: the longest bar)."""
    tiers = [amounts for bar in bars for amounts in bar.tiers]
    longest = max((sum(amounts.values()) for amounts in tiers), default=0.0) if full is None else full
    if not bars or longest <= 0:
        return None
    shown = [part for part in parts if any(amounts.get(part.key) for amounts in tiers)]
    return tag("div", legend(shown), *(_stacked_line(bar, shown, longest) for bar in bars), class_="chart stacked")


def parts_of(names: Iterable[str]) -> tuple[Part, ...]:
    """The parts of an answer's time by name: known ones in their order, then others as they come."""
    found = list(dict.fromkeys(names))
    known = [part for part in COST_PARTS if part.key in found]
    others = [name for name in found if all(name != part.key for part in COST_PARTS)]
    return (*known, *(Part(key=n, words=n, style=f"extra{i % _EXTRAS + 1}") for i, n in enumerate(others)))


def patterns() -> Markup:
    """Define the patterns of the second cue, once a page."""
    made = {
        "hatch": tag("path", d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2", class_="stroke"),
        "back": tag("path", d="M-1,5 l2,2 M0,0 l6,6 M5,-1 l2,2", class_="stroke"),
        "bars": tag("path", d="M3,0 v6", class_="stroke"),
        "rows": tag("path", d="M0,3 h6", class_="stroke"),
        "cross": tag("path", d="M0,0 l6,6 M0,6 l6,-6", class_="stroke"),
        "dots": tag("circle", cx=3, cy=3, r=1.3, class_="dot"),
    }
    shapes = [
        tag("pattern", shape, id=name, width=6, height=6, patternUnits="userSpaceOnUse") for name, shape in made.items()
    ]
    return tag("svg", tag("defs", *shapes), class_="patterns", width=0, height=0, aria_hidden="true")


def _speed_line(group: Group, line: Line, scale: Scale) -> Markup:
    """Label, one SVG with a track for each series, and the numbers in words."""
    present = [(line.cells[m], words, shape) for m, words, shape in _SERIES if line.value(m)]
    tracks = [_track(cell, shape, y, scale) for (cell, _, shape), y in zip(present, (10, 26), strict=False)]
    grid = [tag("line", x1=f"{scale.at(t):.2f}%", x2=f"{scale.at(t):.2f}%", y1=0, y2="100%", class_="grid")
            for t in scale.ticks if t != 1.0]  # fmt: skip
    one = tag("line", x1=f"{scale.at(1):.2f}%", x2=f"{scale.at(1):.2f}%", y1=0, y2="100%", class_="one")
    column = {c.metric: c for c in COLUMNS}
    said = "; ".join(f"{words} {number(cell.value, column[cell.metric])}" for cell, words, _ in present)
    picture = tag("svg", *grid, *tracks, one, role="img", aria_label=f"{line.row}: {said}", width="100%", height=36)
    numbers = [tag("b", number(cell.value, column[cell.metric]), class_=shape) for cell, _, shape in present]
    text = verdict(present[0][0])
    words = tag("div", *numbers, tag("small", text, class_=f"verdict {verdict_class(text)}"), class_="amount")
    return _chart_line(line.row, _detail(group, line), picture, words)


def _track(cell: Row, shape: str, y: int, scale: Scale) -> Markup:
    """A bar from 1 to the value and a whisker over the interval."""
    value = cell.value or 1.0
    start, stop = sorted((scale.at(1.0), scale.at(value)))
    height = 12 if shape == "whole" else 8
    side = "assumed" if cell.kind != "measured" else "gain" if value >= 1 else "loss"
    size = {"x": f"{start:.2f}%", "y": y - height // 2, "width": f"{stop - start:.2f}%", "height": height}
    drawn = [tag("rect", **size, class_=f"{shape} {side}")]
    if shape == "alone" and side != "assumed":
        drawn.append(tag("rect", **size, fill="url(#hatch)"))
    if cell.low is not None and cell.high is not None and cell.low > 0:
        ends = [f"{scale.at(end):.2f}%" for end in (cell.low, cell.high)]
        drawn.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="whisker"))
        drawn += [tag("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_="whisker") for x in ends]
    return join(*drawn)


def _axis(scale: Scale, baselines: Sequence[str]) -> Markup:
    """Tick labels below the bars, and what 1 is."""
    labels = [
        tag("text", f"{tick:g}{TIMES}", x=f"{scale.at(tick):.2f}%", y=12, text_anchor=_anchor(scale.at(tick)))
        for tick in scale.ticks
    ]
    picture = tag("svg", *labels, width="100%", height=18, aria_hidden="true", class_="axis")
    return _chart_line(
        f"1{TIMES} is {' and '.join(baselines)}", "", picture, tag("div", class_="amount"), class_="foot"
    )


def _anchor(place: float) -> str:
    return "start" if place < 4 else "end" if place > 96 else "middle"


def _stacked_line(bar: Bar, parts: Sequence[Part], full: float) -> Markup:
    """One bar, or two under each other, with its words."""
    tiers = bar.tiers
    thick = 20 if len(tiers) == 1 else 15
    drawn = [_segments(amounts, parts, full, 4 + i * (thick + 3), thick) for i, amounts in enumerate(tiers)]
    said = " | ".join(
        "; ".join(f"{part.words} {amounts.get(part.key, 0.0):.3g}" for part in parts) for amounts in tiers
    )
    height = 8 + len(tiers) * thick + 3 * (len(tiers) - 1)
    picture = tag("svg", *drawn, role="img", aria_label=f"{bar.label}: {said}", width="100%", height=height)
    note = tag("div", tag("b", bar.note), tag("small", bar.remark) if bar.remark else None, class_="amount")
    return _chart_line(bar.label, bar.detail, picture, note)


def _segments(amounts: Mapping[str, float], parts: Sequence[Part], full: float, y: int, height: int) -> Markup:
    """Segments from the left, each under its pattern."""
    drawn, start = [], 0.0
    for part in parts:
        width = 100.0 * amounts.get(part.key, 0.0) / full
        if width > 0:
            size = {"x": f"{start:.2f}%", "y": y, "width": f"{width:.2f}%", "height": height}
            drawn.append(tag("rect", **size, class_=f"part {part.class_}"))
            drawn.append(tag("rect", **size, class_=f"over {part.class_}"))
        start += width
    return join(*drawn)


def _chart_line(label: str, detail: str, picture: Markup, amount: Markup, *, class_: str = "") -> Markup:
    name = tag("div", tag("span", label), tag("small", detail) if detail else None, class_="label")
    return tag("div", name, tag("div", picture, class_="picture"), amount, class_=f"line {class_}".strip())


def legend(parts: Sequence[Part]) -> Markup:
    """One swatch a part, drawn as the bars are."""
    entries = []
    for part in parts:
        over = tag("rect", width=18, height=12, fill="url(#hatch)") if part.key == "alone" else None
        over = over or tag("rect", width=18, height=12, class_=f"over {part.class_}")
        swatch = tag("rect", width=18, height=12, class_=f"part gain {part.class_}")
        picture = tag("svg", swatch, over, width=18, height=12, aria_hidden="true")
        entries.append(tag("li", picture, part.words))
    return tag("ul", *entries, class_="legend")


def verdict_class(text: str) -> str:
    """Class of style.css for the words of a verdict."""
    return "faster" if text == "faster" else "slower" if text.startswith("slower") else "even"


def _detail(group: Group, line: Line) -> str:
    kind = "" if line.kind == "measured" else KIND_WORDS.get(line.kind, line.kind)
    return ", ".join(part for part in (group.label(line), kind) if part)
