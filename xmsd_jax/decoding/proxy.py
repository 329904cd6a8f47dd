"""The original study's cost model, kept apart: it reproduces the study's six rows and predicts nothing here.

    T_base = T_prefill + N * T_decode
    iterations = (N - free) / (alpha + 1)
    T = T_prefill + iterations * (T_decode + T_adapter)

(the study's "Speedup Formula (Offline Proxy)"). It charges one target step for a verification, no drafter decoding, no
LM head, no contention, and takes alpha from true future states, so its figures are kind "original". `cost` is the
model that measured parts go into.
"""

from dataclasses import dataclass

from xmsd_jax.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class TwoPhaseRow:
    """One row: `free` tokens of phase 1 (0 without), `alpha` tokens accepted per iteration of phase 2."""

    name: str
    free: float = 0.0
    alpha: float

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        if self.free < 0 or self.alpha < 0:
            raise ConfigError(f"{self.name}: free and alpha must be 0 or more, got {self.free} and {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class TwoPhase:
    """The study's constants, milliseconds, and its rows. `tokens`: N of every answer."""

    prefill_ms: float
    decode_ms: float
    adapter_ms: float
    tokens: int
    rows: tuple[TwoPhaseRow, ...]

    def __post_init__(self) -> None:
        """Refuse times that are not positive, no rows, and a free prefix longer than the answer."""
        times = (self.prefill_ms, self.decode_ms, self.adapter_ms)
        if min(times) <= 0 or self.tokens < 1 or not self.rows:
            raise ConfigError(f"times must be positive with tokens and rows, got {times}, {self.tokens}, {self.rows}")
        long = next((row for row in self.rows if row.free > self.tokens), None)
        if long is not None:
            raise ConfigError(f"{long.name}: free must be at most tokens = {self.tokens}, got {long.free}")

    @property
    def baseline_ms(self) -> float:
        """Target-only decoding of N tokens."""
        return self.prefill_ms + self.tokens * self.decode_ms

    def iterations(self, row: TwoPhaseRow) -> float:
        """Verification passes of phase 2; not a whole number in this model."""
        return (self.tokens - row.free) / (row.alpha + 1)

    def total_ms(self, row: TwoPhaseRow) -> float:
        """The study's time of a whole answer."""
        return self.prefill_ms + self.iterations(row) * (self.decode_ms + self.adapter_ms)

    def speedup(self, row: TwoPhaseRow) -> float:
        """Baseline over total: the number in the study's table."""
        return self.baseline_ms / self.total_ms(row)
