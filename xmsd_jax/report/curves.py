"""How far a draft stays right (S_k), and the speed-up that a walk predicts for each draft length: a panel a drafter."""

from collections.abc import Sequence

from xmsd_jax.report import lineplot
from xmsd_jax.report.columns import DASH, TIMES
from xmsd_jax.report.lineplot import Axis, Look, Plot, Series
from xmsd_jax.report.markup import Markup, tag
from xmsd_jax.report.reading import gathered, listed, name_of, numbers, of_metric, percent
from xmsd_jax.report.summary import Group, Line
from xmsd_jax.runs import Row

FORCED, ROLLED = "teacher-forced, all anchors", "rolled out, all anchors"
VISITED, LIVE = "rolled out, visited anchors", "live, visited anchors"
LOOKS = {
    FORCED: Look(key="forced", shape="square", words=FORCED, short="forced"),
    ROLLED: Look(key="rolled", shape="triangle", words=ROLLED, short="rolled out"),
    VISITED: Look(key="visited", shape="dot", words=VISITED, short="visited"),
    LIVE: Look(key="live", shape="ring", words=LIVE, short="live"),
}
GAMMA = Look(key="visited", shape="dot", words="predicted speed-up")
SAME = 5e-4
"""Shares that differ by less print alike, and are called the same."""


def share_groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Rows of S_k by clips: a line a drafter, a cell a way of counting (`settings["how"]`)."""
    known = [row for row in of_metric(rows, "S_k") if row.settings.get("how") in LOOKS]
    return gathered(known, lambda row: str(row.settings["how"]), apart=("how",))


def gamma_groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Rows of predicted speed-ups over draft lengths by clips: a line a drafter; an imposed acceptance is none."""
    known = [row for row in of_metric(rows, "speedup_by_gamma") if row.kind != "imposed"]
    return gathered(known, lambda row: row.metric, apart=("best",))


def share_figure(group: Group) -> Markup:
    """S_k of every drafter, and what the curves say."""
    present = [look for how, look in LOOKS.items() if any(how in line.cells for line in group.lines)]
    grid = lineplot.panels(*(_share_panel(group, line) for line in group.lines))
    title = tag("h4", "How far a draft stays right: S", tag("sub", "k"))
    return tag("figure", title, lineplot.legend(present), grid, tag("figcaption", share_reading(group)), class_="wide")


def share_reading(group: Group) -> str:
    """Name the widest gap between teacher-forced and rolled out, and whether live coincides with the offline walk."""
    text = (
        "Each curve: the share of anchors at which the first k drafted tokens are right. It is a curve to look at, "
        "not a speed."
    )
    return " ".join(part for part in (text, _gap_sentence(group), _live_sentence(group)) if part)


def gamma_figure(group: Group) -> Markup:
    """Predicted speed-up over draft length for every drafter, on one scale."""
    found = [(line, line.cells["speedup_by_gamma"]) for line in group.lines]
    y = Axis.over([1.0, *(value for _, row in found for value in numbers(row, "values"))])
    grid = lineplot.panels(*(_gamma_panel(group, line, row, y) for line, row in found))
    heading = tag("h4", "Predicted speed-up over draft length (gamma)")
    return tag("figure", heading, grid, tag("figcaption", gamma_reading(group)), class_="wide")


def gamma_reading(group: Group) -> str:
    """Name the baseline, the highest prediction, and who is never predicted to gain."""
    found = {name_of(group, line): line.cells["speedup_by_gamma"] for line in group.lines}
    baselines = listed(list(dict.fromkeys(str(row.baseline) for row in found.values())))
    name, top = max(found.items(), key=lambda item: item[1].value or 0.0)
    never = [who for who, row in found.items() if max(numbers(row, "values")) <= 1.0]
    text = (
        f"Predicted by the cost model from walks and measured parts, against {baselines}; nothing here was run. The "
        f"line at 1{TIMES} is the baseline, the upright one the best gamma. Highest: {name}, {top.value:.2f}{TIMES} at "
        f"gamma {_best(top):g}."
    )
    return f"{text} No gamma is predicted to make {listed(never)} faster than the baseline." if never else text


def _share_panel(group: Group, line: Line) -> Markup:
    series = [_share_series(how, line.cells[how]) for how in LOOKS if how in line.cells]
    longest = max(len(s.ys) for s in series)
    said = "; ".join(f"{s.look.words}: {', '.join(f'{y:.3f}' for y in s.ys)}" for s in series)
    plot = Plot(
        series=tuple(series),
        x=Axis.counting(range(1, longest + 1)),
        y=Axis(low=0.0, high=1.0, ticks=(0.0, 0.5, 1.0)),
        said=f"{line.row}, share by k: {said}",
    )
    return tag("div", _panel_title(group, line), lineplot.draw(plot), _ends(series), class_="panel")


def _share_series(how: str, row: Row) -> Series:
    ys = numbers(row, "shares")
    band = None
    if row.settings.get("lows") and row.settings.get("highs"):
        band = (numbers(row, "lows", count=len(ys)), numbers(row, "highs", count=len(ys)))
    return Series(look=LOOKS[how], xs=tuple(range(1, len(ys) + 1)), ys=ys, band=band)


def _ends(series: Sequence[Series]) -> Markup:
    """First and last value of each curve, in figures."""
    lengths = {len(s.ys) for s in series}
    last = f"k = {max(lengths)}" if len(lengths) == 1 else "last k"
    head = tag("tr", tag("th"), tag("th", "k = 1", scope="col"), tag("th", last, scope="col"))
    body = [
        tag("tr", tag("th", lineplot.swatch(s.look), s.look.short, scope="row"), *(_share_cell(y) for y in _two(s)))
        for s in series
    ]
    return tag("table", tag("thead", head), tag("tbody", *body), class_="ends")


def _two(series: Series) -> tuple[float, float]:
    return series.ys[0], series.ys[-1]


def _share_cell(share: float) -> Markup:
    return tag("td", f"{share:.3f}")


def _gap_sentence(group: Group) -> str:
    gaps = {
        name_of(group, line): (numbers(line.cells[FORCED], "shares")[-1], numbers(line.cells[ROLLED], "shares")[-1])
        for line in group.lines
        if FORCED in line.cells and ROLLED in line.cells
    }
    if not gaps:
        return ""
    name, (forced, rolled) = max(gaps.items(), key=lambda item: item[1][0] - item[1][1])
    count = next(len(numbers(line.cells[FORCED], "shares")) for line in group.lines if name_of(group, line) == name)
    if forced - rolled < SAME:
        return "No drafter loses between teacher-forced and rolled out."
    return (
        f"The widest gap is that of {name}: all {count} tokens are right at {percent(forced, 1)} of the anchors "
        f"teacher-forced, which is given true states that do not exist yet, and at {percent(rolled, 1)} rolled out on "
        f"its own predictions."
    )


def _live_sentence(group: Group) -> str:
    both = [line for line in group.lines if LIVE in line.cells and VISITED in line.cells]
    if not both:
        return ""
    far = {name_of(group, line): _distance(line) for line in both}
    apart = {name: distance for name, distance in far.items() if distance >= SAME}
    if not apart:
        whom = "the one drafter" if len(both) == 1 else f"all {len(both)} drafters"
        return f"Live coincides with the offline walk over visited anchors for {whom} that ran live."
    name, distance = max(apart.items(), key=lambda item: item[1])
    return (
        f"Live coincides with the offline walk over visited anchors for {len(both) - len(apart)} of {len(both)} "
        f"drafters that ran live; the farthest apart is {name}, by {100 * distance:.1f} percentage points."
    )


def _distance(line: Line) -> float:
    """Largest difference between live and the offline walk, over the k that both have."""
    live, offline = numbers(line.cells[LIVE], "shares"), numbers(line.cells[VISITED], "shares")
    return max(abs(a - b) for a, b in zip(live, offline, strict=False))


def _gamma_panel(group: Group, line: Line, row: Row, y: Axis) -> Markup:
    values = numbers(row, "values")
    gammas = numbers(row, "gammas", count=len(values))
    said = ", ".join(f"gamma {gamma:g}: {value:.2f}" for gamma, value in zip(gammas, values, strict=True))
    plot = Plot(
        series=(Series(look=GAMMA, xs=gammas, ys=values),),
        x=Axis.counting(gammas),
        y=y,
        said=f"{line.row}, predicted speed-up: {said}",
        level=1.0,
        chosen=_best(row),
        height=100,
    )
    best = tag(
        "p", tag("b", f"{row.value:.2f}{TIMES}" if row.value else DASH), f" at gamma {_best(row):g}", class_="figure"
    )
    return tag("div", _panel_title(group, line), lineplot.draw(plot), best, class_="panel")


def _best(row: Row) -> float:
    """The draft length of the highest prediction: as the row says, else where its values are highest."""
    best = row.settings.get("best")
    if isinstance(best, int | float) and not isinstance(best, bool):
        return float(best)
    return max(zip(numbers(row, "values"), numbers(row, "gammas"), strict=False))[1]


def _panel_title(group: Group, line: Line) -> Markup:
    label = group.label(line)
    return tag("h5", line.row, tag("small", label) if label else None)
