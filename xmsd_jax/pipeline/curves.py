"""S_k curves as rows of results.json: one row a curve, its points in the settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.metrics.counted import ratio_of_sums
from xmsd_jax.runs import Row


def curve_row(
    name: str, counts: np.ndarray, total: np.ndarray, sequences: Sequence[str], settings: Mapping[str, Any]
) -> Row:
    """A curve S_1..S_g as one row, from counts int[n, g] and anchors int[n]."""
    curve = [ratio_of_sums(column, total, sequences=sequences) for column in counts.T]
    lists = {
        "shares": [e.value or 0.0 for e in curve],
        "lows": [e.low if e.low is not None else e.value or 0.0 for e in curve],
        "highs": [e.high if e.high is not None else e.value or 0.0 for e in curve],
    }
    return Row(row=name, metric="S_k", value=curve[0].value, n=int(total.sum()), settings={**settings, **lists})


def share_row(name: str, anchors: Anchors, sequences: Sequence[str], settings: Mapping[str, Any]) -> Row:
    """S_k over all anchors."""
    return curve_row(name, *anchors.prefix_counts(anchors.gamma), sequences, settings)
