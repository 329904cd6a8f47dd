"""The rows of results.json that the report reads as more than numbers: figures of a run, certificates, stages.

A benchmark writes its rows with these, so that names and settings are the ones that tables and pages look for.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from xmsd_jax.report.gallery import ReportError
from xmsd_jax.runs import Kind, Row

UNITS = {
    "iterations": "passes per answer",
    "tau": "tokens per iteration",
    "n_free": "tokens",
    "tokens": "per answer",
    "vision_ms": "ms",
    "prefill_ms": "ms",
    "decode_ms": "ms",
    "speedup": "x",
    "decode_speedup": "x",
}


class Figure(Protocol):
    """What `xmsd_jax.metrics.counted.Estimate` holds."""

    @property
    def value(self) -> float | None:
        """The number; None where it does not apply."""
        ...

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        ...

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        ...

    @property
    def n(self) -> int:
        """Records that were counted."""
        ...


def live_rows(
    row: str,
    figures: Mapping[str, Figure],
    *,
    clips: str,
    baseline: str | None,
    settings: Mapping[str, Any],
    kind: Kind = "measured",
) -> list[Row]:
    """Make the rows of one table line from the figures of `xmsd_jax.metrics.live`.

    Args:
        row: name of the drafter row, as in SEMANTICS ("target eager", "n-gram", ...).
        figures: metric -> estimate.
        clips: the set of clips in words ("held-out street scenes"); one table each.
        baseline: row name that `speedup` and `decode_speedup` are against; the baseline names itself.
        settings: scalars that the line depends on: gamma, max_new_tokens, dtype, prefill_mode, machine, ...
        kind: how the figures were obtained.

    Raises:
        ReportError: a speed-up without a baseline.
    """
    if baseline is None and any("speedup" in metric for metric in figures):
        raise ReportError(f"the figures of {row!r} hold a speed-up but no baseline is named; name it or leave them out")
    return [
        Row(
            row=row,
            metric=metric,
            value=figure.value,
            low=figure.low,
            high=figure.high,
            n=figure.n,
            unit=UNITS.get(metric, ""),
            baseline=baseline if "speedup" in metric else None,
            kind=kind,
            settings={**settings, "clips": clips},
        )
        for metric, figure in figures.items()
    ]


def certificate_rows(row: str, certificate: Mapping[str, Any], *, clips: str, kind: Kind = "measured") -> list[Row]:
    """Make the three counts of one row from `Certificate.to_json()` of decoding; ties and divergences are listed."""
    counts = {
        "answers_compared": (certificate["answers"], {"reason": certificate["reason"]}),
        "divergences": (certificate["divergence_count"], {"divergences": certificate["divergences"]}),
        "ties": (certificate["tie_count"], {"ties": certificate["ties"]}),
    }
    return [
        Row(row=row, metric=metric, value=value, unit="answers", kind=kind, settings={"clips": clips, **more})
        for metric, (value, more) in counts.items()
    ]


def stage_row(name: str, seconds: float, *, reused: bool = False) -> Row:
    """Make the row of one stage of a run; a reused stage gives the seconds that it took when it was made."""
    return Row(row=name, metric="stage_seconds", value=seconds, unit="s", settings={"reused": reused})


def clips_of(row: Row) -> str:
    """The set of clips that a row is about, in words; "" where it names none."""
    return str(row.settings.get("clips", ""))


def is_map_point(row: Row) -> bool:
    """Whether a row is a point of the map of imposed acceptances (imposed_map.py), and so no line of the main table."""
    acceptance = row.settings.get("acceptance")
    return row.kind == "imposed" and "compute" in row.settings and isinstance(acceptance, int | float)
