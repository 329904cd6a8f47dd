"""The section that holds predictions against clocks: milliseconds part by part, and the study's own model apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xmsd_jax.report import charts, sections
from xmsd_jax.report.columns import COLUMNS, number
from xmsd_jax.report.markup import Markup, tag
from xmsd_jax.report.reading import clips_title, gathered, median, name_of, of_metric, percent, signed
from xmsd_jax.report.summary import Group, Line, Summary
from xmsd_jax.report.tables import original_note, original_title
from xmsd_jax.runs import Row

_MS = next(column for column in COLUMNS if column.metric == "decode_ms")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Milliseconds by part of one row, predicted and measured; either may be empty."""

    name: str
    label: str
    predicted: Mapping[str, float]
    measured: Mapping[str, float]

    @property
    def totals(self) -> tuple[float, float]:
        """Predicted and measured, all parts together."""
        return sum(self.predicted.values()), sum(self.measured.values())

    @property
    def deviation(self) -> float | None:
        """Predicted minus measured, over measured; None unless both are there."""
        predicted, measured = self.totals
        return predicted / measured - 1 if self.predicted and measured > 0 else None

    @property
    def widest(self) -> tuple[str, float]:
        """The part that differs most, and predicted minus measured milliseconds of it."""
        parts = dict.fromkeys((*self.predicted, *self.measured))
        apart = {part: self.predicted.get(part, 0.0) - self.measured.get(part, 0.0) for part in parts}
        return max(apart.items(), key=lambda item: abs(item[1]))


def part_groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Rows of `part_ms` by clips: a line a drafter, a cell a kind and part."""
    known = [row for row in of_metric(rows, "part_ms") if row.kind in ("predicted", "measured")]
    return gathered(known, lambda row: f"{row.kind} {row.settings.get('part')}", apart=("part",))


def pairs(group: Group) -> list[Pair]:
    """Each line's parts by kind."""
    return [
        Pair(
            name=line.row,
            label=group.label(line),
            predicted=_parts(line, "predicted"),
            measured=_parts(line, "measured"),
        )
        for line in group.lines
    ]


def predicted_section(summary: Summary) -> Markup | None:
    """Predicted against measured, then the study's own model; None where the run has neither."""
    figures = [figure for group in part_groups(summary.rows) if (figure := _figure(group))]
    if not figures and not summary.originals:
        return None
    original = [_original(group) for group in summary.originals]
    return tag("section", tag("h2", "Predicted and measured"), *figures, *original, id="predicted")


def reading(group: Group) -> str:
    """How far the totals are apart, and how to read the bars."""
    text = "Upper bar predicted, lower bar measured; beside them, predicted against measured."
    known = {
        name_of(group, line): pair.deviation for line, pair in zip(group.lines, pairs(group), strict=True)
        if pair.deviation is not None
    }  # fmt: skip
    if not known:
        return f"{text} No row has both, so nothing is compared."
    name, worst = max(known.items(), key=lambda item: abs(item[1]))
    middle = median([abs(value) for value in known.values()])
    rows = "the one row that has both" if len(known) == 1 else f"{len(known)} rows"
    return (
        f"{text} Over {rows}, the predicted total of an answer deviates by {percent(middle, 1)} in the median and by "
        f"at most {percent(abs(worst), 1)} ({name}, predicted too {'high' if worst > 0 else 'low'})."
    )


def _figure(group: Group) -> Markup | None:
    made = pairs(group)
    parts = charts.parts_of(part for pair in made for part in (*pair.predicted, *pair.measured))
    chart = charts.stacked_chart([_bar(pair) for pair in made], parts)
    if chart is None:
        return None
    heading = tag("h3", clips_title(group.clips))
    title = tag("h4", "Milliseconds of an answer, part by part")
    figure = tag("figure", title, chart, tag("figcaption", reading(group)), class_="wide")
    return tag("div", heading, figure, class_="group")


def _bar(pair: Pair) -> charts.Bar:
    """Both bars of a row; totals, difference and the part that holds most of it in words."""
    predicted, measured = (f"{number(total, _MS)}\N{NO-BREAK SPACE}ms" for total in pair.totals)
    if pair.deviation is None:
        only = "predicted, not run" if pair.predicted else "measured, not predicted"
        amounts = pair.predicted or pair.measured
        note = predicted if pair.predicted else measured
        return charts.Bar(label=pair.name, detail=pair.label, amounts=amounts, note=note, remark=only)
    part, apart = pair.widest
    words = next(known.words for known in charts.parts_of([part]))
    return charts.Bar(
        label=pair.name,
        detail=pair.label,
        amounts=pair.predicted,
        below=pair.measured,
        note=f"{signed(100 * pair.deviation)}\N{NO-BREAK SPACE}%",
        remark=f"{predicted} against {measured}; mostly {words}, {signed(apart, 2)} ms",
    )


def _parts(line: Line, kind: str) -> dict[str, float]:
    return {
        str(row.settings.get("part")): row.value or 0.0
        for name, row in line.cells.items()
        if name.startswith(f"{kind} ")
    }


def _original(group: Group) -> Markup:
    """What the study's model gives, with the baseline of that model."""
    note = tag("p", original_note(group), class_="note")
    return tag("div", tag("h3", original_title(group)), sections.main_table(group), note, class_="group original")
