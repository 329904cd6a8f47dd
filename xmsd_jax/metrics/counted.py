"""Counted metrics: a sum and a total, divided only at the end, with intervals that resample whole clusters.

A mean of means depends on how the data were cut into batches; a counted sum does not. So a metric here is a
pair (sum, total) that merges exactly, and its interval comes from a bootstrap over *sequences*: neighbouring
clips of one recording share half of their content, and answers about one clip share a scene, so records are
not independent draws (SEMANTICS.md, "Masks and pairs").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

BLOCK = 50
DRAWS = 2000
LEVEL = 0.95
_MANTISSA = 53
_HALF = 26
_RECORDS_AT_ONCE = 1 << 32  # an int64 holds 2^36 halves of 27 bits: far more than a record count ever is
_INDICES_AT_ONCE = 1 << 22  # 32 MB of int64 indices per slab of bootstrap draws


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A sum and the total that it is divided by; exact, so that merging parts gives the whole, bit for bit.

    Floating-point addition depends on the order of its terms; a `Fraction` of binary floats does not.
    """

    sum: Fraction = Fraction(0)
    total: Fraction = Fraction(0)

    @classmethod
    def of(cls, values: Any, totals: Any | None = None) -> Self:
        """Count `values` (float, int or bool, any shape); each counts 1 unless `totals` (same shape) says otherwise.

        Raises ValueError on a value that is not finite or on shapes that differ.
        """
        values = np.asarray(values)
        totals = np.ones(values.shape, np.int64) if totals is None else np.asarray(totals)
        if values.shape != totals.shape:
            raise ValueError(f"values and totals must have one shape, got {values.shape} and {totals.shape}")
        return cls(sum=exact_sum(values), total=exact_sum(totals))

    def merge(self, other: Self) -> Self:
        """Return the count of both parts together."""
        return type(self)(sum=self.sum + other.sum, total=self.total + other.total)

    @property
    def value(self) -> float | None:
        """sum / total, rounded once; None where nothing was counted."""
        return float(self.sum / self.total) if self.total else None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A ratio of sums with its interval: `n` records in `clusters` clusters.

    `value` is None where the denominator is 0; `low` and `high` are None where fewer than two clusters exist,
    because one cluster says nothing about the next one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    clusters: int


def exact_sum(values: Any) -> Fraction:
    """Sum an array of any shape without rounding, in vectorised passes (one per distinct exponent).

    A binary float is an integer of 53 bits times a power of two; integers of one exponent are summed as two
    halves in int64, and the few exponents are put together in exact arithmetic.
    """
    flat = np.ravel(np.asarray(values))
    if flat.size > _RECORDS_AT_ONCE:
        raise ValueError(f"exact_sum takes at most {_RECORDS_AT_ONCE} values, got {flat.size}; merge parts instead")
    if flat.dtype == np.uint64:
        return Fraction(sum(flat.tolist()))
    if flat.dtype.kind in "bui":
        return Fraction(_sum_of_integers(flat.astype(np.int64)))
    flat = flat.astype(np.float64)
    if not np.isfinite(flat).all():
        raise ValueError("counted values must be finite, got nan or inf; mask them out before counting")
    mantissas, exponents = np.frexp(flat)
    integers = np.ldexp(mantissas, _MANTISSA).astype(np.int64)
    whole = Fraction(0)
    for exponent in np.unique(exponents).tolist():
        whole += _sum_of_integers(integers[exponents == exponent]) * Fraction(2) ** (exponent - _MANTISSA)
    return whole


def _sum_of_integers(integers: np.ndarray) -> int:
    """Sum int64 values without overflow: high and low halves apart."""
    high = integers >> _HALF
    low = integers - (high << _HALF)
    if integers.size and np.abs(high).max() > 1 << (_MANTISSA - _HALF):  # wider than a float's mantissa
        return sum(integers.tolist())
    return (int(high.sum()) << _HALF) + int(low.sum())


def clusters_of(sequences: Sequence[Any] | np.ndarray | None, n: int, *, block: int = BLOCK) -> np.ndarray:
    """Number the cluster of each of n records: int64[n], 0..c-1.

    Records of one sequence are one cluster. Without sequences (None), contiguous blocks of `block` records.
    """
    if sequences is None:
        return np.arange(n, dtype=np.int64) // block
    if len(sequences) != n:
        raise ValueError(f"each record needs its sequence: got {len(sequences)} sequences for {n} records")
    return np.unique(np.asarray(sequences), return_inverse=True)[1].reshape(n).astype(np.int64)


def ratio_of_sums(
    numerators: Any,
    denominators: Any | None = None,
    *,
    sequences: Sequence[Any] | np.ndarray | None,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Estimate:
    """Estimate sum(numerators) / sum(denominators) with a cluster-bootstrap percentile interval.

    Args:
        numerators: float[n], one a record.
        denominators: float[n]; None counts each record once, which makes the ratio a mean.
        sequences: n names or ids, or None for contiguous blocks of 50 (the record has no sequence).
        seed: of the resampling; the same seed gives the same interval.
        draws: bootstrap resamples. Resamples whose denominator is 0 are left out.
        level: of the percentile interval (Efron 1979; whole clusters are drawn, Davison & Hinkley 1997, 3.8).
    """
    tops = np.asarray(numerators, np.float64)
    bottoms = np.ones_like(tops) if denominators is None else np.asarray(denominators, np.float64)
    if tops.ndim != 1 or tops.shape != bottoms.shape:
        raise ValueError(f"both sides must be one vector each, got {tops.shape} and {bottoms.shape}")
    whole = Counted.of(tops, bottoms)
    ids = clusters_of(sequences, len(tops))
    count = int(ids.max()) + 1 if len(ids) else 0
    low = high = None
    if count >= 2 and whole.value is not None:
        sums = np.bincount(ids, tops, count), np.bincount(ids, bottoms, count)
        low, high = _percentiles(*sums, seed=seed, draws=draws, level=level)
    return Estimate(value=whole.value, low=low, high=high, n=len(tops), clusters=count)


def speed_up(
    baseline_seconds: Any,
    seconds: Any,
    *,
    sequences: Sequence[Any] | np.ndarray | None,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Estimate:
    """Estimate sum(baseline seconds) / sum(seconds) over the SAME answers: above 1 is faster than the baseline.

    Paired: record i is one answer, timed both ways; a resample takes both times of a sequence together, so that
    the difficulty of an answer cancels. A single time may be 0 (an answer that phase 1 gave whole needs no decoding).
    Raises ValueError if the pairs do not match, a time is negative or not finite, or a side sums to 0.
    """
    baseline_seconds = np.asarray(baseline_seconds, np.float64)
    seconds = np.asarray(seconds, np.float64)
    if baseline_seconds.shape != seconds.shape:
        raise ValueError(
            f"a speed-up is paired, answer by answer: got {baseline_seconds.shape} baseline times for "
            f"{seconds.shape} times; time both on the same answers"
        )
    for side, times in (("baseline", baseline_seconds), ("row", seconds)):
        if not (np.isfinite(times).all() and (times >= 0).all() and times.sum() > 0):
            raise ValueError(f"times must be seconds >= 0 with a sum above 0; those of the {side} are not: time them")
    return ratio_of_sums(baseline_seconds, seconds, sequences=sequences, seed=seed, draws=draws, level=level)


def _percentiles(
    tops: np.ndarray, bottoms: np.ndarray, *, seed: int, draws: int, level: float
) -> tuple[float | None, float | None]:
    """Resample clusters with replacement; return the central `level` interval of the ratio of sums."""
    rng = np.random.default_rng(seed)
    count = len(tops)
    slab = max(1, _INDICES_AT_ONCE // count)
    ratios = []
    for start in range(0, draws, slab):
        drawn = rng.integers(count, size=(min(slab, draws - start), count))
        top, bottom = tops[drawn].sum(1), bottoms[drawn].sum(1)
        ratios.append(top[bottom != 0] / bottom[bottom != 0])
    kept = np.concatenate(ratios)
    if not kept.size:
        return None, None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
