"""The losslessness certificate: what results.json says of answers compared with target-only decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xmsd_jax.report.rows import clips_of
from xmsd_jax.runs import Row

CERTIFICATE = ("answers_compared", "divergences", "ties")
"""Metrics of the certificate; lists in their settings are the tokens in question."""
NOT_RUN_HERE = ("replayed", "imposed")
"""Kinds that have no certificate: nothing was decoded."""


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


def certificate_sentence(found: Sequence[Certificate]) -> str:
    """Say what the comparison with target-only decoding found."""
    applying = [c for c in found if not c.reason]
    compared = sum(c.compared for c in applying)
    if not compared:
        return "No answer was compared with target-only decoding, so this run says nothing about losslessness."
    divergences, ties = (sum(getattr(c, name) for c in applying) for name in ("divergences", "ties"))
    if divergences:
        return (
            f"The certificate FAILS: {divergences} of {in_answers(compared)} differ from what the target alone "
            "answers; speeds of this run do not count."
        )
    if ties:
        return (
            f"Losslessness certificate: of {in_answers(compared)} compared, {compared - ties} equal the target's own, "
            f"token by token, and {ties} part{'s' if ties == 1 else ''} from it at a numerical tie."
        )
    return f"Losslessness certificate: all {in_answers(compared)} compared equal the target's own, token by token."


def certificates(rows: Sequence[Row]) -> tuple[Certificate, ...]:
    """Gather the certificate's counts by (row, clips), in order of appearance."""
    gathered: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.metric in CERTIFICATE:
            gathered.setdefault((row.row, clips_of(row)), []).append(row)
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


def in_answers(count: int | None) -> str:
    """A number of answers in words."""
    return f"{count} answer{'' if count == 1 else 's'}"
