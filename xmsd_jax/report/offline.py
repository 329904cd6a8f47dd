"""The section on drafters judged from stored answers alone: the table of their metrics, S_k, speed-up over gamma."""

import re
from collections.abc import Collection, Mapping, Sequence

from xmsd_jax.report import curves
from xmsd_jax.report.columns import DASH, Column, bounds, number
from xmsd_jax.report.markup import Markup, join, tag
from xmsd_jax.report.reading import clips_title, gathered, name_of, of_metric
from xmsd_jax.report.summary import Group, Line
from xmsd_jax.runs import Row

_PERCENT = "\N{NO-BREAK SPACE}%"
OTHER, TAU = "top1, other offset", "tau_offline"
COLUMNS = (
    Column(metric="cosine", heading="Cosine", digits=3),
    Column(metric="accept@0.90", heading="Accept@.90", digits=1, scale=100, suffix=_PERCENT),
    Column(metric="top1", heading="Top-1, own offset", digits=1, scale=100, suffix=_PERCENT),
    Column(metric=OTHER, heading="Top-1, other offset", digits=1, scale=100, suffix=_PERCENT),
    Column(metric="first_top1", heading="First token right", digits=1, scale=100, suffix=_PERCENT),
    Column(metric="consecutive", heading="Consecutive tokens"),
    Column(metric="n_free_offline", heading="Free tokens"),
    Column(metric=TAU, heading="Walk τ"),
)
METRICS = (
    "cosine", "accept@0.80", "accept@0.85", "accept@0.90", "accept@0.95", "mse", "top1", "top5", "top10",
    "first_top1", "consecutive", "n_free_offline", TAU,
)  # fmt: skip
"""Metrics of the evaluation; those without a column stand in the list of all numbers."""


def offline_section(rows: Sequence[Row]) -> Markup | None:
    """All that was judged offline, by set of clips; None where nothing was."""
    figures: dict[str, list[Markup]] = {}
    for group in table_groups(rows):
        figures.setdefault(group.clips, []).append(offline_table(group, rows))
    for group in curves.share_groups(rows):
        figures.setdefault(group.clips, []).append(curves.share_figure(group))
    for group in curves.gamma_groups(rows):
        figures.setdefault(group.clips, []).append(curves.gamma_figure(group))
    if not figures:
        return None
    parts = [tag("div", tag("h3", clips_title(clips)), *made, class_="group") for clips, made in figures.items()]
    return tag("section", tag("h2", "How drafters were judged offline"), tag("p", _WHAT), *parts, id="offline")


def table_groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Rows of the evaluation by clips: a line a drafter, a cell a metric at an offset (and gamma)."""
    return gathered(of_metric(rows, *METRICS), _cell_name, apart=("offset", "gamma"))


def own_offset(row: str, known: Sequence[int]) -> int:
    """The offset at which a drafter predicts: 0 is the same position, 1 the next.

    With one offset judged, it is that; else L1-L4 and the drafter's own states are of offset 0, EAGLE types of 1.
    """
    if len(set(known)) == 1:
        return known[0]
    return 0 if re.match(r"L[1-4](?![\d+])|identity\(drafter", row) else 1


def offline_table(group: Group, rows: Sequence[Row]) -> Markup:
    """One line a drafter; the metrics at its own offset, intervals small."""
    cells = {id(line): chosen_cells(line, live_gammas(rows, line.row)) for line in group.lines}
    columns = [c for c in COLUMNS if any(c.metric in found for found in cells.values())]
    gammas = {row.settings.get("gamma") for found in cells.values() for row in found.values() if row.metric == TAU}
    shared = f", gamma {gammas.pop()}" if len(gammas) == 1 and None not in gammas else ""
    words = {c.metric: c.heading + shared * (c.metric == TAU) for c in columns}
    heads = [tag("th", text, scope="col") for text in ("Drafter", *words.values())]
    body = [
        tag("tr", _name(group, line), *(_cell(cells[id(line)].get(c.metric), c, words[c.metric]) for c in columns))
        for line in group.lines
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="main offline")
    return join(table, tag("p", _reading(group, cells), class_="note"))


def chosen_cells(line: Line, gammas: Collection[int]) -> dict[str, Row]:
    """The rows that the table shows of a drafter: metric (a column's) -> row.

    `gammas`: draft lengths of the live run; the walk at the longest of them that was judged, else at the longest.
    """
    own = _offset(line)
    found: dict[str, Row] = {}
    for row in line.cells.values():
        if row.metric == TAU:
            found[TAU] = max(found.get(TAU, row), row, key=lambda known: _rank(known, gammas))
        elif row.settings.get("offset", own) == own:
            found.setdefault(row.metric, row)
        elif row.metric == "top1":
            found[OTHER] = row
    return found


def live_gammas(rows: Sequence[Row], name: str) -> set[int]:
    """Draft lengths at which a drafter ran live; where no row of its name did, those of all rows."""
    live = [row for row in rows if row.metric == "tau" and isinstance(row.settings.get("gamma"), int)]
    return {row.settings["gamma"] for row in live if row.row == name} or {row.settings["gamma"] for row in live}


def _rank(row: Row, gammas: Collection[int]) -> tuple[bool, float]:
    gamma = row.settings.get("gamma")
    return gamma in gammas, float(gamma) if isinstance(gamma, int) else 0.0


_WHAT = (
    "From stored answers, without running the target: each draft is compared with the answer that the target gave. "
    "Of these figures only the walk says how many iterations a live run takes."
)


def _cell_name(row: Row) -> str:
    apart = (f"{name} {row.settings[name]}" for name in ("offset", "gamma") if name in row.settings)
    return ", ".join((row.metric, *apart))


def _offset(line: Line) -> int | None:
    """The line's own offset, None where no metric of it has one."""
    offsets = [row.settings["offset"] for row in line.cells.values() if row.settings.get("offset") in (0, 1)]
    return own_offset(line.row, offsets) if offsets else None


def _name(group: Group, line: Line) -> Markup:
    """Name, what tells the line from others of its name, and its own offset."""
    own = _offset(line)
    words = [word for word in (group.label(line), "" if own is None else f"offset {own}") if word]
    return tag("th", line.row, tag("small", ", ".join(words)) if words else None, scope="row")


def _cell(row: Row | None, column: Column, words: str) -> Markup:
    """A number with its interval, and with its draft length where the heading `words` does not name it."""
    if row is None:
        return tag("td", tag("span", DASH, aria_label="does not apply"), data_label=words, class_="number")
    gamma = row.settings.get("gamma") if row.metric == TAU and "gamma" not in words else None
    small = [f"gamma {gamma}" if gamma is not None else "", bounds(row, column)]
    inside = tag("span", tag("b", number(row.value, column)), *(tag("small", text) for text in small if text))
    return tag("td", inside, data_label=words, class_="number")


def _reading(group: Group, cells: Mapping[int, Mapping[str, Row]]) -> str:
    """The drafter of the longest walk, and the one that Accept@.90 would have chosen instead."""
    text = "Offset 0 compares with the target's state at the same position, offset 1 at the next."
    walk, accept = (_top(group, cells, metric) for metric in (TAU, "accept@0.90"))
    if walk:
        text += f" By the walk, {walk[0]} goes farthest: {walk[1]:.2f} tokens an iteration."
    if accept:
        text += f" The highest Accept@.90, {100 * accept[1]:.1f}{_PERCENT}, is that of {accept[0]}"
        text += ", a measure of states and not of accepted tokens."
    return text


def _top(group: Group, cells: Mapping[int, Mapping[str, Row]], metric: str) -> tuple[str, float] | None:
    found = [(name_of(group, line), cells[id(line)].get(metric)) for line in group.lines]
    known = [(name, row.value) for name, row in found if row is not None and row.value is not None]
    return max(known, key=lambda item: item[1], default=None)
