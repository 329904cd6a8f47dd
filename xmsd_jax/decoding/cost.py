"""What an answer costs, predicted from parts that were each measured on their own (SEMANTICS, "Cost model").

    T_base = T_vision + T_prefill + (L - 1) * T_dec
    T_spec = T_vision + (T_prefill [+ k * T_extra if ride]) * (1 + kappa) + lane + T_first
             + I * (T_draft[gamma] + T_sync + T_verify[gamma + 1] + T_host)

with I from the walk that starts after the free prefix, and `lane` the part of the drafter's own lane, T_drafter_vision
+ T_drafter_prefill + k * T_drafter_step + T_adapter, that delays the target: all of it where both run one after the
other, only what is longer than the target's vision and prefill where they run side by side.

Every iteration is charged a full draft and a pass over gamma + 1 tokens, also the last one of an answer, which may
draft less live. Nothing is extrapolated: a pass or draft length outside what was measured is an error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.config import UserError
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.metrics.counted import Estimate, speed_up

Seconds = NDArray[np.floating[Any]]
"""float64[n], one an answer."""

Lanes = Literal["serial", "parallel"]
PrefillMode = Literal["none", "ride", "wait"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Measured seconds.

    vision, prefill: the target's own; decode_step: T_dec, one token of plain decoding (M = 1, the baseline's kernels).
    verify: M -> one pass over M tokens; draft: gamma -> drafting gamma tokens, per iteration. Lengths between two
    measured ones are interpolated. Empty `draft` (of a row that never drafts in phase 2) costs nothing at gamma 0.
    sync: per iteration, the drafter's pass over newly accepted tokens (drafter steps per position go into `draft`).
    host: per iteration, measured with empty parts. prefill_per_extra: per draft token appended to the prompt (`ride`).
    drafter_vision, drafter_prefill: the drafter reads its prompt; drafter_step: one phase-1 token; adapter: one phase-1
    call. kappa: relative slow-down of the target's prefill while the drafter runs beside it; 0 with serial lanes.
    """

    vision: float
    prefill: float
    decode_step: float
    verify: Mapping[int, float] = field(default_factory=dict)
    draft: Mapping[int, float] = field(default_factory=dict)
    sync: float = 0.0
    host: float = 0.0
    prefill_per_extra: float = 0.0
    drafter_vision: float = 0.0
    drafter_prefill: float = 0.0
    drafter_step: float = 0.0
    adapter: float = 0.0
    kappa: float = 0.0
    lanes: Lanes = "serial"

    def __post_init__(self) -> None:
        """Refuse what is no time, a length below 1, and contention between lanes that do not run side by side."""
        for name in (f.name for f in fields(self) if f.name != "lanes"):
            value = getattr(self, name)
            for key, seconds in value.items() if isinstance(value, Mapping) else [(None, value)]:
                _check_time(name, key, seconds)
        if self.lanes not in get_args(Lanes):
            raise UserError(f"parts: lanes must be serial or parallel, got {self.lanes!r}")
        if self.kappa and self.lanes == "serial":
            raise UserError(
                f"parts: kappa must be 0 where lanes run one after the other, got {self.kappa}; set lanes to parallel"
            )

    def verify_seconds(self, length: int) -> float:
        """One pass over `length` tokens; UserError where it was not measured."""
        return _interpolated("verify", self.verify, length)

    def draft_seconds(self, gamma: int) -> float:
        """Drafting `gamma` tokens of one iteration; UserError where it was not measured."""
        return _interpolated("draft", self.draft, gamma)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values (lengths as text, as JSON keys are)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tables = {name: {str(n): s for n, s in sorted(values[name].items())} for name in ("verify", "draft")}
        return {**values, **tables}

    @classmethod
    def from_json(cls, content: Any) -> "Parts":
        """Read what `to_json` gave; UserError that names the part which is missing, unknown or no time."""
        if not isinstance(content, Mapping):
            raise UserError(f"parts: expected an object of part names and seconds, got {type(content).__name__}")
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(content) - set(known)):
            raise UserError(f"parts: unknown part {', '.join(map(str, unknown))}; known: {', '.join(known)}")
        if missing := [name for name in ("vision", "prefill", "decode_step") if name not in content]:
            raise UserError(f"parts: {', '.join(missing)} must be given; measure it, in seconds")
        tables = {name: _lengths(name, content[name]) for name in ("verify", "draft") if name in content}
        return cls(**{**content, **tables})


def baseline(parts: Parts, target_len: Any) -> Seconds:
    """T_base of each answer: target_len int[n] -> float64[n] seconds."""
    lengths = np.asarray(target_len, np.int64)
    return parts.vision + parts.prefill + np.maximum(lengths - 1, 0) * parts.decode_step


def predict(
    parts: Parts,
    *,
    target_len: Any,
    iterations: Any,
    n_free: Any,
    gamma: int,
    prefill_mode: PrefillMode = "none",
    prefill_draft_len: int = 0,
    first_pass: Any | None = None,
    idle: Any | None = None,
    lane_steps: Any | None = None,
) -> dict[str, Seconds]:
    """T_spec of each answer by part: name -> float64[n] seconds; their sum is the whole answer.

    Args:
        parts: measured seconds.
        target_len: int[n], L.
        iterations: int[n], I of the walk that starts at anchor n_free. Not read with gamma 0.
        n_free: int[n], tokens that phase 1 gave (zeros without).
        gamma: tokens drafted an iteration. 0 is plain decoding after phase 1: each token left is one pass of M = 1,
            `decode_step`, in the part "verify"; no draft, sync or host.
        prefill_mode: none, ride or wait.
        prefill_draft_len: k, tokens drafted in phase 1; 0 with none.
        first_pass: bool[n], with `wait`: whether the pass over the k drafted tokens took place (d_0 was right and did
            not end the answer).
        idle: int[n], those of the iterations that have no draft: a plain step each, `decode_step` in "verify".
        lane_steps: int[n], drafter decode steps of phase 2 (a drafter that continues its OWN answer): `drafter_step`
            each, in "sync", in place of `sync` per iteration.

    Returns:
        The parts vision, prefill, lane, first, draft, sync, verify, host (module docstring).
    """
    lengths, passes, free = (np.asarray(a, np.int64) for a in (target_len, iterations, n_free))
    if not lengths.ndim == 1 or not lengths.shape == passes.shape == free.shape:
        raise ValueError(f"one value per answer each, got {lengths.shape}, {passes.shape} and {free.shape}")
    if gamma < 0:
        raise ValueError(f"gamma must be 0 (plain decoding) or more, got {gamma}")
    _check_phase_1(prefill_mode, prefill_draft_len, first_pass, lengths.shape)
    constant = _prefill(parts, prefill_mode, prefill_draft_len)
    seconds = {name: np.full(lengths.shape, value) for name, value in constant.items()}
    seconds["first"] = np.zeros(lengths.shape)
    if first_pass is not None and np.any(first_pass):
        seconds["first"] = np.where(first_pass, parts.verify_seconds(prefill_draft_len), 0.0)
    phase_2 = _iterations(
        parts, gamma, passes, np.maximum(lengths - 1 - free, 0), np.asarray(0 if idle is None else idle)
    )
    if lane_steps is not None and gamma:
        phase_2["sync"] = np.asarray(lane_steps) * parts.drafter_step
    return seconds | phase_2


def _prefill(parts: Parts, mode: PrefillMode, k: int) -> dict[str, float]:
    """Seconds until the prefill is done, which are the same for every answer."""
    lane = parts.drafter_vision + parts.drafter_prefill + (k * parts.drafter_step + parts.adapter if k else 0.0)
    reading = parts.prefill + (k * parts.prefill_per_extra if mode == "ride" else 0.0)
    beside = parts.lanes == "parallel" and lane > 0
    prefill = reading * (1 + parts.kappa) if beside else reading
    delay = max(0.0, lane - (parts.vision + prefill)) if beside else lane
    return {"vision": parts.vision, "prefill": prefill, "lane": delay}


def _iterations(
    parts: Parts, gamma: int, passes: NDArray[np.int64], left: NDArray[np.int64], idle: NDArray[np.int64]
) -> dict[str, Seconds]:
    """Seconds of phase 2. `left`: tokens that plain decoding has still to emit; `idle`: passes without a draft."""
    if gamma == 0:
        nothing = np.zeros(left.shape)
        return {"draft": nothing, "sync": nothing, "verify": left * parts.decode_step, "host": nothing}
    drafting = passes - idle
    return {
        "draft": drafting * parts.draft_seconds(gamma),
        "sync": passes * parts.sync,
        "verify": drafting * parts.verify_seconds(gamma + 1) + idle * parts.decode_step,
        "host": passes * parts.host,
    }


@dataclass(frozen=True, kw_only=True)
class GammaChoice:
    """Predicted speed-up over `baseline` at each draft length, and the draft length with the highest."""

    speedups: Mapping[int, Estimate]
    best: int


def best_gamma(
    anchors: Anchors,
    parts: Parts,
    *,
    sequences: Sequence[Any] | np.ndarray | None,
    prefill_mode: PrefillMode = "none",
    prefill_draft_len: int = 0,
    first_pass: Any | None = None,
    lane_steps: Callable[[int], Any] | None = None,
    gammas: Sequence[int] | None = None,
    seed: int = 0,
) -> GammaChoice:
    """Predict every gamma from 0 (plain decoding after phase 1) to `anchors.gamma`; ties go to the smaller one.

    `gammas`: those alone, in ascending order. `lane_steps` gives the drafter steps of phase 2 (`predict`) at a gamma.
    Walks start after the free prefix of `anchors`, so `anchors.free` must be of the phase 1 that is asked for.
    Raises UserError where `parts` lacks a length that some gamma needs.
    """
    if prefill_mode == "none" and anchors.free.any():
        raise ValueError("without phase 1 nothing is free, but the anchors hold a free prefix; name its prefill_mode")
    base = baseline(parts, anchors.target_len)
    speedups = {}
    for gamma in range(anchors.gamma + 1) if gammas is None else gammas:
        passes = anchors.walk(gamma).iterations if gamma else np.zeros_like(anchors.target_len)
        idle_lane = gamma == 0 and prefill_mode == "none"  # then nobody drafts, and the drafter model is not run
        own = replace(parts, drafter_vision=0.0, drafter_prefill=0.0) if idle_lane else parts
        seconds = predict(
            own, target_len=anchors.target_len, iterations=passes, n_free=anchors.free, gamma=gamma,
            prefill_mode=prefill_mode, prefill_draft_len=prefill_draft_len, first_pass=first_pass,
            idle=anchors.idle(gamma) if gamma else None, lane_steps=None if lane_steps is None else lane_steps(gamma),
        )  # fmt: skip
        whole = np.sum(list(seconds.values()), axis=0)
        speedups[gamma] = speed_up(base, whole, sequences=sequences, seed=seed)
    return GammaChoice(speedups=speedups, best=max(speedups, key=lambda gamma: speedups[gamma].value or 0.0))


def _check_phase_1(mode: PrefillMode, k: int, first_pass: Any | None, shape: tuple[int, ...]) -> None:
    if mode not in get_args(PrefillMode) or k < 0 or (mode == "none") != (k == 0):
        raise ValueError(f"prefill_draft_len must be positive with ride or wait and 0 with none, got {k} with {mode!r}")
    if (first_pass is not None) != (mode == "wait"):
        raise ValueError(f"first_pass belongs to prefill_mode wait and is needed there, got {mode!r}")
    if first_pass is not None and (np.shape(first_pass) != shape or np.asarray(first_pass).dtype != np.bool_):
        raise ValueError(f"first_pass must be bool{list(shape)}, one per answer, got {np.shape(first_pass)}")


def _check_time(name: str, key: Any, seconds: Any) -> None:
    where = name if key is None else f"{name}[{key}]"
    if key is not None and (not isinstance(key, int) or isinstance(key, bool) or key < 1):
        raise UserError(f"parts: {where}: a length must be a whole number from 1 on")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not (number and math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"parts: {where} must be finite seconds >= 0, got {seconds!r}; measure it")


def _lengths(name: str, table: Any) -> dict[int, Any]:
    if not isinstance(table, Mapping) or not all(str(key).isdecimal() for key in table):
        raise UserError(f"parts: {name} must map lengths to seconds, such as {{'6': 0.016}}, got {table!r}")
    return {int(key): seconds for key, seconds in table.items()}


def _interpolated(name: str, table: Mapping[int, float], length: int) -> float:
    """Between the measured lengths; never outside them."""
    lengths = sorted(table)
    if not lengths or not lengths[0] <= length <= lengths[-1]:
        measured = ", ".join(map(str, lengths)) or "none"
        raise UserError(f"parts: {name} of length {length} was not measured (measured: {measured}); measure it")
    return float(np.interp(length, lengths, [table[n] for n in lengths]))
