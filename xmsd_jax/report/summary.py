"""Rows of results.json put in order: lines of the table by clip set, the certificate, stage seconds, the finding.

How a row of results.json is read here:
- rows of one `row` name, one `kind` and equal scalar settings are one *line* of the table;
- `settings["clips"]` names the set of clips in words; each set is a table of its own, the first is the headline;
- metrics without a column of the main table (columns.py) stand in the list of all numbers only;
- points of the map of imposed acceptances (`rows.is_map_point`) stand in its section, not in the main table;
- metrics of `certified.CERTIFICATE` belong to the certificate, not to a table;
- metric `stage_seconds` with `row` = the stage's name is what the run itself took (`settings["reused"]`: kept).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xmsd_jax.report.certified import Certificate, certificate_sentence, certificates, in_answers
from xmsd_jax.report.columns import METRICS
from xmsd_jax.report.gallery import ReportError
from xmsd_jax.report.rows import clips_of, is_map_point
from xmsd_jax.runs import Row

STAGE_SECONDS = "stage_seconds"
FURTHER_SPEED_UPS = ("speedup_by_gamma",)
"""Speed-ups that are drawn in sections of their own, not in the main table."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the main table: metric -> its row of results.json."""

    row: str
    kind: str
    settings: Mapping[str, Any]
    cells: dict[str, Row] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The number of a metric; None where the line has none (it prints a dash)."""
        return self.cells[metric].value if metric in self.cells else None


@dataclass(frozen=True, kw_only=True)
class Group:
    """The lines that were run on one set of clips."""

    clips: str
    lines: tuple[Line, ...]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baselines that speed-ups here refer to, in order of appearance."""
        named = [cell.baseline for line in self.lines for cell in line.cells.values() if is_speed_up(cell)]
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that have one value wherever a line has them."""
        every = [(k, v) for line in self.lines for k, v in line.settings.items() if k != "clips"]
        return {k: v for k, v in every if all(other == v for name, other in every if name == k)}

    def label(self, line: Line) -> str:
        """What tells this line from others of its name: the settings that differ, in words."""
        twins = [other.settings for other in self.lines if other.row == line.row]
        differing = {k: v for k, v in line.settings.items() if any(twin.get(k, v) != v for twin in twins)}
        return in_words(differing)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Seconds of one stage of the run."""

    name: str
    seconds: float
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that tables and pages print, in order; `rows` is results.json itself.

    `originals` are the lines of kind "original": the study's own model, never in a table with ours.
    """

    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    originals: tuple[Group, ...]
    certificates: tuple[Certificate, ...]
    stages: tuple[Stage, ...]


def summarise(rows: Sequence[Row]) -> Summary:
    """Put rows in order. Raises ReportError for a speed-up whose baseline is not named or was not measured."""
    table = [row for row in rows if (row.metric in METRICS or _other_speed_up(row)) and not is_map_point(row)]
    ordered = _grouped(row for row in table if row.kind != "original")
    originals = _grouped(row for row in table if row.kind == "original")
    _check_baselines((*ordered, *originals))
    for row in rows:
        if (row.metric in FURTHER_SPEED_UPS or (is_map_point(row) and is_speed_up(row))) and not row.baseline:
            raise ReportError(_without_baseline(f"{row.metric} of {row.row!r}"))
    return Summary(
        rows=tuple(rows),
        groups=ordered,
        originals=originals,
        certificates=certificates(rows),
        stages=_stages(rows),
    )


def is_speed_up(row: Row) -> bool:
    """Whether the metric compares with a baseline, so that it must name one."""
    return "speedup" in row.metric.replace("-", "").replace("_", "").lower()


def verdict(row: Row) -> str:
    """What a measured speed-up allows to say: the interval decides, not the point; "" where nothing was measured."""
    if row.value is None or row.kind != "measured":
        return ""
    if row.row == row.baseline:
        return "baseline"
    if row.low is None or row.high is None:
        return f"{'slower' if row.value < 1 else 'faster'} here, no interval"
    if row.low > 1:
        return "faster"
    return "slower than the baseline" if row.high < 1 else "no difference shown"


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as "gamma 8, dtype float32"."""
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items())


def best(group: Group, metric: str = "speedup") -> Row | None:
    """The highest measured speed-up of a group against its baseline; None where nothing was measured."""
    cells = [line.cells[metric] for line in group.lines if metric in line.cells and line.kind == "measured"]
    cells = [cell for cell in cells if cell.value is not None and cell.row != cell.baseline]
    return max(cells, key=lambda cell: cell.value or 0.0, default=None)


def findings(summary: Summary) -> list[str]:
    """Say the main result: the best row against its baseline; the rows that lose; what the certificate holds.

    A certificate that fails comes first: nothing else counts then.
    """
    speed = [_speed_sentence(summary.groups[0])] if summary.groups else ["No drafter ran live in this run."]
    slower = [sentence for group in summary.groups if (sentence := _slower_sentence(group))]
    certificate = certificate_sentence(summary.certificates)
    failed = any(c.divergences for c in summary.certificates if not c.reason)
    return [certificate, *speed, *slower] if failed else [*speed, *slower, certificate]


def interval(row: Row, *, digits: int = 2) -> str:
    """An interval in words, or why there is none."""
    if row.low is None or row.high is None:
        return "no interval: too few sequences"
    return f"95\N{NO-BREAK SPACE}% interval {row.low:.{digits}f} to {row.high:.{digits}f}"


def _speed_sentence(group: Group) -> str:
    """Best measured speed-up of the headline group, said only as strongly as its interval allows."""
    top = best(group)
    if top is None:
        return "No speed-up was measured in this run."
    where = f"On {group.clips}, " if group.clips else ""
    counted = f"; {in_answers(top.n)}" if top.n else ""
    figure = f"{top.value:.2f} times as fast as {top.baseline} ({interval(top)}{counted})"
    if verdict(top).startswith("faster"):
        decode = next((line.cells.get("decode_speedup") for line in group.lines if _holds(line, top)), None)
        alone = f"; decoding alone, {decode.value:.2f} times" if decode and decode.value else ""
        return f"{where}{top.row} answers {figure}{alone}."
    return f"{where}no drafter is shown to be faster: the best, {top.row}, answers {figure}."


def _slower_sentence(group: Group) -> str:
    """Name the rows that lose: a result like any other."""
    cells = [line.cells["speedup"] for line in group.lines if "speedup" in line.cells]
    slower = dict.fromkeys(f"{c.row} ({c.value:.2f} times)" for c in cells if verdict(c).startswith("slower"))
    where = f" on {group.clips}" if group.clips else ""
    return f"Slower than the baseline{where}: {', '.join(slower)}." if slower else ""


def _holds(line: Line, cell: Row) -> bool:
    return line.cells.get(cell.metric) is cell


def _other_speed_up(row: Row) -> bool:
    return is_speed_up(row) and row.metric not in FURTHER_SPEED_UPS


def _grouped(rows: Iterable[Row]) -> tuple[Group, ...]:
    """Rows of one name, kind and equal scalar settings in one line, by clips. Raises ReportError for a row twice."""
    groups: dict[str, dict[Any, Line]] = {}
    for row in rows:
        settings = {k: v for k, v in row.settings.items() if not isinstance(v, list | tuple | dict)}
        key = (row.row, row.kind, tuple(sorted((k, str(v)) for k, v in settings.items())))
        lines = groups.setdefault(clips_of(row), {})
        line = lines.setdefault(key, Line(row=row.row, kind=row.kind, settings=settings))
        if row.metric in line.cells:
            raise ReportError(
                f"results.json gives {row.metric} of {row.row!r} twice with the same settings; "
                "name in `settings` what differs between the two"
            )
        line.cells[row.metric] = row
    return tuple(Group(clips=clips, lines=tuple(lines.values())) for clips, lines in groups.items())


def _without_baseline(what: str) -> str:
    return f"results.json: {what} names no baseline; a speed-up is printed only beside one: set `baseline`"


def _check_baselines(groups: Sequence[Group]) -> None:
    """A speed-up without its named baseline is not printed: the run is refused instead."""
    for group in groups:
        names = {line.row for line in group.lines}
        for cell in (cell for line in group.lines for cell in line.cells.values() if is_speed_up(cell)):
            what = f"{cell.metric} of {cell.row!r}" + (f" on {group.clips!r}" if group.clips else "")
            if not cell.baseline:
                raise ReportError(_without_baseline(what))
            if cell.kind == "measured" and cell.baseline not in names:
                raise ReportError(
                    f"results.json: {what} refers to the baseline {cell.baseline!r}, which was not measured there; "
                    f"measured: {', '.join(sorted(names))}"
                )


def _stages(rows: Sequence[Row]) -> tuple[Stage, ...]:
    """Seconds of each stage, in order of appearance."""
    return tuple(
        Stage(name=row.row, seconds=row.value or 0.0, reused=bool(row.settings.get("reused")))
        for row in rows
        if row.metric == STAGE_SECONDS
    )
