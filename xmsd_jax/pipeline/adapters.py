"""`xmsd adapters`: what there is to train, with its size at a width. It reads and writes no files."""

import json

from xmsd_jax.adapters.interface import Facts
from xmsd_jax.adapters.kinds import CONTROLS, KINDS, parameters

HEADINGS = ("kind", "parameters", "inputs", "causal", "offset", "purpose")
TRAINED_BLOCKS = 3
"""Blocks of L3 as the study trained it; its text says 2, which is what a new L3 has here."""


def listing(width: int, as_json: bool) -> str:
    """The table of adapters and controls, as text for a terminal or as JSON.

    Args:
        width: d of the states; the study's is 4096.
        as_json: give `{"width", "adapters": [...], "notes": [...]}`; an adapter's keys are the table's headings.

    Raises:
        ConfigError: the width is no positive multiple of 16.
    """
    rows, note = _rows(width), _note(width)
    if as_json:
        return json.dumps({"width": width, "adapters": rows, "notes": [note]}, indent=1)
    lines = [HEADINGS, *(tuple(_words(row[name]) for name in HEADINGS) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    table = [_padded(line, widths) for line in (lines[0], tuple("-" * w for w in widths), *lines[1:])]
    return "\n".join([*table, "", f"States of width {width}. {note}", _OFFSETS])


_OFFSETS = "Offset 0 predicts the target's state at its own position (phase 1), offset 1 that of the next (phase 2)."


def _rows(width: int) -> list[dict[str, str | int | bool]]:
    rows = [_row(name, parameters(name, width), kind.facts, kind.purpose) for name, kind in KINDS.items()]
    return rows + [_row(name, 0, kind.facts, "control: the state as it is") for name, kind in CONTROLS.items()]


def _row(name: str, count: int, facts: Facts, purpose: str) -> dict[str, str | int | bool]:
    values = (name, count, facts.inputs, facts.causal, facts.offset, purpose)
    return dict(zip(HEADINGS, values, strict=True))


def _note(width: int) -> str:
    count = parameters("L3", width, blocks=TRAINED_BLOCKS)
    own = KINDS["L3"].blocks
    return f"L3 has {own} blocks here; with {TRAINED_BLOCKS}, as the study trained it, {count:,} parameters."


def _words(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value


def _padded(cells: tuple[str, ...], widths: list[int]) -> str:
    """Numbers to the right, the rest to the left."""
    right = {HEADINGS.index("parameters"), HEADINGS.index("offset")}
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in pairs).rstrip()
