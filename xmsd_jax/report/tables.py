"""The main table as text: markdown for READMEs and terminals, CSV of every row."""

import csv
import io
import json
from collections.abc import Collection, Sequence

from xmsd_jax.report.columns import COLUMNS, DASH, KIND_WORDS, Column, bounds, number
from xmsd_jax.report.summary import Group, Line, Summary, findings, in_words, is_speed_up, verdict
from xmsd_jax.runs import Row

CSV_FIELDS = ("row", "metric", "value", "low", "high", "n", "unit", "baseline", "kind", "settings")


def remarks(cell: Row) -> tuple[str, ...]:
    """Words that must stand beside a number: that it was not measured, what a speed-up shows."""
    words = [] if cell.kind == "measured" else [KIND_WORDS.get(cell.kind, cell.kind)]
    if is_speed_up(cell) and cell.value is not None:
        words.append(verdict(cell))
    return tuple(word for word in words if word)


def shown_columns(group: Group) -> tuple[Column, ...]:
    """The columns that any line of the group fills."""
    return tuple(c for c in COLUMNS if any(c.metric in line.cells for line in group.lines))


def group_title(group: Group) -> str:
    """The set of clips, and the settings that all its lines share."""
    clips = group.clips or "all answers"
    return " · ".join(part for part in (clips[0].upper() + clips[1:], in_words(group.shared)) if part)


def baseline_note(group: Group) -> str:
    """Name the baseline of the group's speed-ups; "" where it prints none."""
    if not group.baselines:
        return ""
    return f"Speed-ups are against {' and '.join(group.baselines)}, on the same answers and the same machine."


def original_title(group: Group) -> str:
    """Say that what follows is not ours."""
    return "The study's own model" + (f" · {group.clips}" if group.clips else "")


def original_note(group: Group) -> str:
    """What the study's model is, and the baseline that it assumes."""
    note = (
        "Arithmetic of the original study with the study's own inputs, repeated exactly. It charges no drafter "
        "decoding, no head, and one plain step for a verification. Nothing of it was run here; it does not compare "
        "with our tables."
    )
    return f"{note} Its baseline: {' and '.join(group.baselines)}." if group.baselines else note


def markdown(summary: Summary) -> str:
    """Render finding and tables as GitHub markdown, aligned for a terminal too."""
    parts = [escaped(" ".join(findings(summary)))]
    for group in summary.groups:
        parts += [f"**{escaped(group_title(group))}**", _markdown_table(group), escaped(baseline_note(group))]
    for group in summary.originals:
        parts += [f"**{escaped(original_title(group))}**", _markdown_table(group), escaped(original_note(group))]
    return "\n\n".join(part for part in parts if part) + "\n"


def aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> str:
    """A markdown table of cells, heads first, aligned for a terminal too: columns `left` to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def escaped(text: str) -> str:
    """Keep names from breaking a table or turning into HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def csv_text(rows: Sequence[Row]) -> str:
    """Render every row of results.json as CSV; settings as JSON."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for row in rows:
        values = [getattr(row, name) for name in CSV_FIELDS[:-1]]
        writer.writerow([*values, json.dumps(dict(row.settings), sort_keys=True, ensure_ascii=False)])
    return buffer.getvalue()


def _markdown_table(group: Group) -> str:
    columns = shown_columns(group)
    lines = [["Drafter", *(column.heading for column in columns), "Kind"]]
    lines += [_markdown_line(group, line, columns) for line in group.lines]
    return aligned(lines, (0, len(columns) + 1))


def _markdown_line(group: Group, line: Line, columns: Sequence[Column]) -> list[str]:
    label = group.label(line)
    name = f"{line.row} ({label})" if label else line.row
    cells = [_markdown_cell(line.cells[c.metric], c) if c.metric in line.cells else DASH for c in columns]
    return [escaped(name), *cells, KIND_WORDS.get(line.kind, line.kind)]


def _markdown_cell(cell: Row, column: Column) -> str:
    spread = "" if cell.row == cell.baseline else bounds(cell, column)
    return " ".join(
        [number(cell.value, column), *([f"({spread})"] if spread else []), "; ".join(remarks(cell))]
    ).strip()
