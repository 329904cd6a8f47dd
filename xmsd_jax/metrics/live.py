"""The figures of a live run, from per-answer arrays: one name, one definition, for tables and for predictions.

All arrays run over the answers of one row, in one order; times are seconds per answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmsd_jax.metrics.counted import Estimate, ratio_of_sums, speed_up


@dataclass(frozen=True, kw_only=True, eq=False)
class Times:
    """Seconds per answer, float[n] each; `decode` is all after the prefill: the check of prefill drafts included."""

    vision: np.ndarray
    prefill: np.ndarray
    decode: np.ndarray

    @classmethod
    def of(cls, seconds: Sequence[Mapping[str, float]]) -> "Times":
        """Collect the `seconds` of traces: keys vision, prefill, first (0 where absent), decode."""
        column = {k: np.array([s[k] for s in seconds], np.float64) for k in ("vision", "prefill", "decode")}
        first = np.array([s.get("first", 0.0) for s in seconds], np.float64)
        return cls(vision=column["vision"], prefill=column["prefill"], decode=column["decode"] + first)

    @property
    def whole(self) -> np.ndarray:
        """Seconds per answer, float[n]."""
        return self.vision + self.prefill + self.decode


def count_metrics(
    *,
    tokens: Any,
    sequences: Sequence[Any] | np.ndarray | None,
    iterations: Any | None = None,
    emitted: Any | None = None,
    n_free: Any | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return what is counted of one row, by its metric name.

    Args:
        tokens: int[n], length L of each answer.
        sequences: the sequence of each answer; None clusters by blocks of 50.
        iterations: int[n], I of each answer; None for a row without a drafter in phase 2 (no figure then).
        emitted: int[n], tokens emitted BY the iterations: neither y_0 nor the free prefix. Given with `iterations`.
        n_free: int[n], tokens that phase 1 gave; None for a row without phase 1 (no figure then).
        seed: of the bootstrap.
    """
    if (iterations is None) != (emitted is None):
        raise ValueError("iterations and emitted go together: tau is their ratio; give both or neither")
    named: dict[str, tuple[Any, Any | None]] = {"tokens": (tokens, None)}
    if iterations is not None:
        named |= {"iterations": (iterations, None), "tau": (emitted, iterations)}
    if n_free is not None:
        named["n_free"] = (n_free, None)
    return {k: ratio_of_sums(top, bottom, sequences=sequences, seed=seed) for k, (top, bottom) in named.items()}


def time_metrics(
    times: Times, *, sequences: Sequence[Any] | np.ndarray | None, baseline: Times | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """Return what is timed of one row, by its metric name.

    Args:
        times: of this row.
        sequences: the sequence of each answer; None clusters by blocks of 50.
        baseline: times of the named baseline on the same answers, same order; None gives no speed-up.
        seed: of the bootstrap.
    """
    parts = {"vision_ms": times.vision, "prefill_ms": times.prefill, "decode_ms": times.decode}
    figures = {k: ratio_of_sums(part * 1e3, sequences=sequences, seed=seed) for k, part in parts.items()}
    if baseline is not None:
        figures["speedup"] = speed_up(baseline.whole, times.whole, sequences=sequences, seed=seed)
        figures["decode_speedup"] = speed_up(baseline.decode, times.decode, sequences=sequences, seed=seed)
    return figures
