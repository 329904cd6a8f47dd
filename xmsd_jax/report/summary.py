"""Rows of results.json put in order: lines of the table by clip set, the certificate, stage seconds, the finding.

How a row of results.json is read here:
- rows of one `row` name, one `kind` and equal scalar settings are one *line* of the table;
- `settings["clips"]` names the set of clips in words; each set is a table of its own, the first is the headline;
- metrics without a column of the main table (columns.py) stand in the list of all numbers only;
- metrics of `CERTIFICATE` belong to the certificate; lists in their settings are the tokens in question;
- metric `stage_seconds` with `row` = the stage's name is what the run itself took (`settings["reused"]`: kept).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xmsd_jax.report.columns import METRICS
from xmsd_jax.report.gallery import ReportError
from xmsd_jax.runs import Row

CERTIFICATE = ("answers_compared", "divergences", "ties")
STAGE_SECONDS = "stage_seconds"
NOT_RUN_HERE = ("replayed", "imposed")
"""Kinds that have no certificate: nothing was decoded."""


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
class Certificate:
    """What was compared for one row on one set of clips.

    `listed`: the first differing token of each tie and divergence. `reason`: why there is no certificate, else "".
    """

    row: str
    clips: str
    compared: int
    divergences: int
    ties: int
    reason: str
    listed: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Seconds of one stage of the run."""

    name: str
    seconds: float
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that tables and pages print, in order; `rows` is results.json itself."""

    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    certificates: tuple[Certificate, ...]
    stages: tuple[Stage, ...]


def summarise(rows: Sequence[Row]) -> Summary:
    """Put rows in order. Raises ReportError for a speed-up whose baseline is not named or was not measured."""
    groups: dict[str, dict[Any, Line]] = {}
    for row in rows:
        if row.metric not in METRICS and not is_speed_up(row):
            continue
        settings = {k: v for k, v in row.settings.items() if not isinstance(v, list | tuple | dict)}
        key = (row.row, row.kind, tuple(sorted((k, str(v)) for k, v in settings.items())))
        lines = groups.setdefault(_clips(row), {})
        line = lines.setdefault(key, Line(row=row.row, kind=row.kind, settings=settings))
        if row.metric in line.cells:
            raise ReportError(
                f"results.json gives {row.metric} of {row.row!r} twice with the same settings; "
                "name in `settings` what differs between the two"
            )
        line.cells[row.metric] = row
    ordered = tuple(Group(clips=clips, lines=tuple(lines.values())) for clips, lines in groups.items())
    _check_baselines(ordered)
    return Summary(rows=tuple(rows), groups=ordered, certificates=_certificates(rows), stages=_stages(rows))


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
    speed = [_speed_sentence(summary.groups[0])] if summary.groups else ["This run has no figures of drafters."]
    slower = [sentence for group in summary.groups if (sentence := _slower_sentence(group))]
    certificate = certificate_sentence(summary.certificates)
    failed = any(c.divergences for c in summary.certificates if not c.reason)
    return [certificate, *speed, *slower] if failed else [*speed, *slower, certificate]


def certificate_sentence(certificates: Sequence[Certificate]) -> str:
    """Say what the comparison with target-only decoding found."""
    applying = [c for c in certificates if not c.reason]
    compared = sum(c.compared for c in applying)
    if not compared:
        return "No answer was compared with target-only decoding, so this run says nothing about losslessness."
    divergences, ties = (sum(getattr(c, name) for c in applying) for name in ("divergences", "ties"))
    if divergences:
        return (
            f"The certificate FAILS: {divergences} of {_answers(compared)} differ from what the target alone answers; "
            "speeds of this run do not count."
        )
    if ties:
        return (
            f"Losslessness certificate: of {_answers(compared)} compared, {compared - ties} equal the target's own, "
            f"token by token, and {ties} part{'s' if ties == 1 else ''} from it at a numerical tie."
        )
    return f"Losslessness certificate: all {_answers(compared)} compared equal the target's own, token by token."


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
    counted = f"; {_answers(top.n)}" if top.n else ""
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


def _answers(count: int | None) -> str:
    return f"{count} answer{'' if count == 1 else 's'}"


def _clips(row: Row) -> str:
    return str(row.settings.get("clips", ""))


def _check_baselines(groups: Sequence[Group]) -> None:
    """A speed-up without its named baseline is not printed: the run is refused instead."""
    for group in groups:
        names = {line.row for line in group.lines}
        for cell in (cell for line in group.lines for cell in line.cells.values() if is_speed_up(cell)):
            what = f"results.json: {cell.metric} of {cell.row!r}" + (f" on {group.clips!r}" if group.clips else "")
            if not cell.baseline:
                raise ReportError(f"{what} names no baseline; a speed-up is printed only beside one: set `baseline`")
            if cell.kind == "measured" and cell.baseline not in names:
                raise ReportError(
                    f"{what} refers to the baseline {cell.baseline!r}, which was not measured there; "
                    f"measured: {', '.join(sorted(names))}"
                )


def _certificates(rows: Sequence[Row]) -> tuple[Certificate, ...]:
    """Gather the certificate's counts by (row, clips), in order of appearance."""
    gathered: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.metric in CERTIFICATE:
            gathered.setdefault((row.row, _clips(row)), []).append(row)
    return tuple(_certificate(name, clips, cells) for (name, clips), cells in gathered.items())


def _certificate(name: str, clips: str, cells: Sequence[Row]) -> Certificate:
    """Add up the counts of one row and collect the tokens that its settings list."""
    counts = {metric: sum(int(c.value or 0) for c in cells if c.metric == metric) for metric in CERTIFICATE}
    listed = [
        {"verdict": {"ties": "tie", "divergences": "divergence"}[cell.metric], **entry}
        for cell in cells
        if cell.metric != "answers_compared"
        for entry in cell.settings.get(cell.metric, ())
    ]
    reasons = [str(c.settings.get("reason", "")) or (c.kind if c.kind in NOT_RUN_HERE else "") for c in cells]
    return Certificate(
        row=name,
        clips=clips,
        compared=counts["answers_compared"],
        divergences=counts["divergences"],
        ties=counts["ties"],
        reason=next(filter(None, reasons), ""),
        listed=tuple(listed),
    )


def _stages(rows: Sequence[Row]) -> tuple[Stage, ...]:
    """Seconds of each stage, in order of appearance."""
    return tuple(
        Stage(name=row.row, seconds=row.value or 0.0, reused=bool(row.settings.get("reused")))
        for row in rows
        if row.metric == STAGE_SECONDS
    )
