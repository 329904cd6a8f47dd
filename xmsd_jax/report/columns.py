"""The columns of the main table: which metric, its heading, how its numbers are printed."""

from dataclasses import dataclass

from xmsd_jax.runs import Row

DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
KIND_WORDS = {
    "measured": "measured",
    "predicted": "predicted, not run",
    "replayed": "replayed from stored answers",
    "imposed": "acceptance imposed",
    "extrapolated": "extrapolated",
    "original": "original study",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; `digits` None prints three figures or so, by size; `scale` multiplies (100 for per cent)."""

    metric: str
    heading: str
    digits: int | None = 2
    suffix: str = ""
    scale: float = 1.0


COLUMNS = (
    Column(metric="iterations", heading="Iterations", digits=1),
    Column(metric="tau", heading="Tokens per iteration τ"),
    Column(metric="n_free", heading="Free tokens", digits=1),
    Column(metric="tokens", heading="Answer tokens", digits=1),
    Column(metric="vision_ms", heading="Vision ms", digits=None),
    Column(metric="prefill_ms", heading="Prefill ms", digits=None),
    Column(metric="decode_ms", heading="Decode ms", digits=None),
    Column(metric="speedup", heading="Whole-answer speed-up", suffix=TIMES),
    Column(metric="decode_speedup", heading="Decode-only speed-up", suffix=TIMES),
)
METRICS = frozenset(column.metric for column in COLUMNS)


def number(value: float | None, column: Column) -> str:
    """Print a number as its column wants it; a dash where there is none."""
    if value is None:
        return DASH
    value, digits = value * column.scale, column.digits
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{column.suffix}"


def bounds(cell: Row, column: Column) -> str:
    """Print an interval as "low to high"; "" where there is none."""
    if cell.value is None or cell.low is None or cell.high is None:
        return ""
    return f"{number(cell.low, column).removesuffix(column.suffix)} to {number(cell.high, column)}"
