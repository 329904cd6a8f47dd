"""Predicted milliseconds: measured parts times expected walks. Written to disk before anything is decoded live.

costs.json    {"sets": {<clip set>: {<row>: Parts}}, "baseline": name of the plain row, "settings": {...}}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.decoding.adaptive_walk import walk_seconds
from xmsd_jax.decoding.cost import GammaChoice, Parts, baseline, best_gamma, predict
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.metrics.counted import Estimate, speed_up
from xmsd_jax.pipeline.expected import Expected
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.report.rows import UNITS
from xmsd_jax.runs import Kind, Row, write_text

COSTS = "costs.json"
PLAIN = "target eager"
"""The row that decodes plainly, where a file of costs does not name it."""
PARTS = ("vision", "prefill", "lane", "first", "draft", "sync", "verify", "host")


def write_costs(path: Path, sets: Mapping[str, Mapping[str, Parts]], about: Mapping[str, Any]) -> None:
    """Write the measured parts of every clip set and row."""
    content = {clips: {row: parts.to_json() for row, parts in rows.items()} for clips, rows in sets.items()}
    write_text(path, json.dumps({"sets": content, **about}, indent=1) + "\n")


def read_costs(path: Path) -> dict[str, dict[str, Parts]]:
    """Read what `write_costs` wrote; UserError if it is missing or damaged."""
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        return {c: {row: Parts.from_json(parts) for row, parts in rows.items()} for c, rows in sets.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is not a file of measured costs ({error}); `xmsd benchmark` writes it") from None


def read_baseline(path: Path) -> str:
    """The plain row that measured costs are of; `read_costs` has found the file whole."""
    return str(json.loads(path.read_text(encoding="utf-8")).get("baseline", PLAIN))


def predicted_parts(parts: Parts, expected: Expected) -> dict[str, np.ndarray]:
    """Seconds of each part, float64[n], of a row's answers: phase 1, and the walk of phase 2 or plain decoding."""
    plain = predict(
        parts,
        target_len=expected.target_len,
        iterations=expected.iterations,
        n_free=expected.free,
        gamma=0,
        **phase_1(expected),
    )
    if expected.walk is None:
        return plain
    return plain | walk_seconds(parts, expected.walk, expected.walked_lane_steps)


def phase_1(expected: Expected) -> dict[str, Any]:
    """The arguments of `predict` that say how phase 1 drafts."""
    row, prefix = expected.row, expected.prefix
    if prefix is None:
        return {}
    first = {"first_pass": prefix.free > 0} if row.prefill_mode == "wait" else {}
    return {"prefill_mode": row.prefill_mode, "prefill_draft_len": prefix.drafted, **first}


def predicted_baseline(parts: Parts, target_len: Any) -> dict[str, np.ndarray]:
    """The same for plain decoding: all after the prefill is in "verify"."""
    whole = baseline(parts, target_len)
    fixed = {"vision": parts.vision, "prefill": parts.prefill}
    return {**{k: np.full(whole.shape, v) for k, v in fixed.items()}, "verify": whole - parts.vision - parts.prefill}


def measured_parts(answers: Sequence[Trace]) -> dict[str, np.ndarray]:
    """The parts of decoded answers, float64[n]; `lane` is the drafter's work before the target's prefill."""
    seconds = {k: np.array([t.seconds.get(k, 0.0) for t in answers]) for k in ("prefill_draft", *PARTS)}
    lane = seconds.pop("prefill_draft")
    return {
        **seconds,
        "lane": lane,
        "prefill": seconds["prefill"] - lane,
        "draft": seconds["draft"] - seconds["sync"],
    }


def part_rows(row: str, parts: Mapping[str, np.ndarray], *, kind: Kind, settings: Mapping[str, Any]) -> list[Row]:
    """Mean milliseconds per answer of each part that the row has."""
    return [
        Row(
            row=row,
            metric="part_ms",
            value=float(parts[part].mean() * 1e3),
            n=len(parts[part]),
            unit=UNITS["decode_ms"],
            kind=kind,
            settings={**settings, "part": part},
        )
        for part in PARTS
        if part in parts and parts[part].any()
    ]


def by_gamma(
    parts: Parts, expected: Expected, sequences: Sequence[str], gammas: Sequence[int] | None = None
) -> GammaChoice | None:
    """Predicted speed-up over plain decoding at each draft length up to the longest measured one, or at `gammas`.

    None for a row without phase 2, and for one that chooses the length itself.
    """
    if expected.anchors is None or expected.row.auto:
        return None
    return best_gamma(
        shortened(expected.anchors, max(parts.draft)),
        parts,
        sequences=sequences,
        lane_steps=expected.lane_steps if expected.own else None,
        gammas=gammas,
        **phase_1(expected),
    )


def shortened(anchors: Anchors, gamma: int) -> Anchors:
    """The same anchors with drafts of at most `gamma` tokens."""
    if gamma >= anchors.gamma:
        return anchors
    length = None if anchors.length is None else np.minimum(anchors.length, gamma)
    return replace(anchors, right=np.minimum(anchors.right, gamma), gamma=gamma, length=length)


def gamma_row(row: DraftRow, choice: GammaChoice, settings: Mapping[str, Any], plain: str = PLAIN) -> Row:
    """The curve over gamma as one row: its value is that of the best gamma."""
    curve = [choice.speedups[gamma].value for gamma in sorted(choice.speedups)]
    lists = {"gammas": sorted(choice.speedups), "values": curve, "best": choice.best}
    return _speedup_row(row, "speedup_by_gamma", choice.speedups[choice.best], plain, {**settings, **lists})


def auto_row(
    parts: Parts, expected: Expected, sequences: Sequence[str], settings: Mapping[str, Any], plain: str = PLAIN
) -> Row:
    """The predicted speed-up of a row that chooses its draft lengths."""
    whole = np.sum(list(predicted_parts(parts, expected).values()), axis=0)
    top = speed_up(baseline(parts, expected.target_len), whole, sequences=sequences)
    return _speedup_row(expected.row, "speedup", top, plain, {**settings, "gamma": "auto"})


def _speedup_row(row: DraftRow, metric: str, top: Estimate, plain: str, settings: Mapping[str, Any]) -> Row:
    return Row(
        row=row.name,
        metric=metric,
        value=top.value,
        low=top.low,
        high=top.high,
        n=top.n,
        unit="x",
        baseline=plain,
        kind="predicted",
        settings=settings,
    )
