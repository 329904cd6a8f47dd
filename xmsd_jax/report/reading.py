"""How the further sections read results.json: rows of a drafter side by side, lists out of settings, words for them.

The main table has its own, stricter order (summary.py). Here a line holds what is known of one drafter on one set of
clips, whichever run settings the single rows carry; where two rows claim one cell, the second opens another line.
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence

from xmsd_jax.report.gallery import ReportError
from xmsd_jax.report.rows import clips_of
from xmsd_jax.report.summary import Group, Line
from xmsd_jax.runs import Row

MINUS = "\N{MINUS SIGN}"


def of_metric(rows: Iterable[Row], *metrics: str) -> list[Row]:
    """The rows of some metrics that have a value, in their order."""
    return [row for row in rows if row.metric in metrics and row.value is not None]


def gathered(rows: Iterable[Row], cell: Callable[[Row], str], *, apart: Collection[str] = ()) -> tuple[Group, ...]:
    """Put rows into lines, one a drafter, by set of clips; nothing is sorted.

    Args:
        rows: of results.json.
        cell: names the cell that a row fills.
        apart: settings that tell cells apart, so that they do not label a line.
    """
    groups: dict[str, list[Line]] = {}
    for row in rows:
        lines = groups.setdefault(clips_of(row), [])
        name = cell(row)
        line = next((known for known in lines if known.row == row.row and name not in known.cells), None)
        if line is None:
            line = Line(row=row.row, kind=row.kind, settings=_scalars(row, apart))
            lines.append(line)
        line.cells[name] = row
    return tuple(Group(clips=clips, lines=tuple(lines)) for clips, lines in groups.items())


def numbers(row: Row, key: str, *, count: int | None = None) -> tuple[float, ...]:
    """A list of numbers out of a row's settings. Raises ReportError if it is missing, empty, or of another length."""
    found = row.settings.get(key)
    if not isinstance(found, list | tuple) or not found or not all(_is_number(value) for value in found):
        raise ReportError(
            f"{row.metric} of {row.row!r} needs numbers in settings[{key!r}], got {found!r}; run it again"
        )
    if count is not None and len(found) != count:
        raise ReportError(
            f"{row.metric} of {row.row!r} needs {count} numbers in settings[{key!r}], got {len(found)}; run it again"
        )
    return tuple(float(value) for value in found)


def clips_title(clips: str) -> str:
    """A set of clips as a heading."""
    return clips[:1].upper() + clips[1:] if clips else "All answers"


def percent(share: float, digits: int = 0) -> str:
    """Print 0.25 as "25 %"."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and with a real minus; what rounds to nothing has neither."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def median(values: Sequence[float]) -> float:
    """Middle value."""
    return statistics.median(values)


def name_of(group: Group, line: Line) -> str:
    """Name of a line in running text, with what tells it from others of its name."""
    label = group.label(line)
    return f"{line.row} ({label})" if label else line.row


def listed(words: Sequence[str], *, most: int = 4) -> str:
    """ "a, b and c"; beyond `most`, the others are counted."""
    shown = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _scalars(row: Row, apart: Collection[str]) -> dict[str, object]:
    settings = row.settings.items()
    return {k: v for k, v in settings if k not in apart and not isinstance(v, list | tuple | dict)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
