"""What a drafter of a given acceptance would be worth: each drafted token is right with probability a, independently.

    tokens per iteration   E = (1 - a^(gamma + 1)) / (1 - a)        (Leviathan et al. 2023, equation 1)
                             = 1 + a_1 + a_1 a_2 + .. + a_1..a_gamma  for a profile: a_j where d_1..d_{j-1} are right
    iterations             I = (L - 1) / E
    seconds                T = T_vision + T_prefill + T_drafter_vision + T_drafter_prefill + (L - 1) * T_drafter_step
                               + I * (T_draft[gamma] + T_sync + T_verify[gamma + 1] + T_host)

Real drafters are right in runs (easy stretches), so that a walk at the same mean acceptance has other iterations; and
an answer ends inside its last draft, which E does not see. A line to compare with, not a prediction of any drafter.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.decoding.cost import Parts, Seconds, baseline


def conditional(profile: float | Sequence[float], gamma: int) -> NDArray[np.float64]:
    """a_1..a_gamma, float64[gamma]: a number is that of every drafted token, the last one of a sequence is repeated."""
    given = np.atleast_1d(np.asarray(profile, np.float64))
    if given.ndim != 1 or not given.size or not ((given >= 0) & (given <= 1)).all() or gamma < 0:
        raise ValueError(f"acceptance must be 0..1 and gamma 0 or more, got {profile} and {gamma}")
    return given[np.minimum(np.arange(gamma), len(given) - 1)]


def expected_tokens(profile: float | Sequence[float], gamma: int) -> float:
    """E of the module docstring: 1 (nothing is right, or nothing is drafted) to gamma + 1 (acceptance 1)."""
    return 1.0 + float(np.cumprod(conditional(profile, gamma)).sum())


def imposed_speedups(parts: Parts, target_len: Any, *, acceptance: float, gammas: Sequence[int]) -> list[float]:
    """Speed-up over plain decoding, all answers together, at each draft length; gamma 0 is plain decoding: 1.0.

    Args:
        parts: measured seconds of whoever would draft so; an empty `draft` drafts for nothing.
        target_len: int[n], L of each answer.
        acceptance: a, 0..1.
        gammas: draft lengths. UserError where `parts` lacks one.
    """
    base = baseline(parts, target_len)
    left = np.maximum(np.asarray(target_len, np.int64) - 1, 0)
    return [float(base.sum() / (_drafted(parts, left, acceptance, g) if g else base).sum()) for g in gammas]


def _drafted(parts: Parts, left: Any, acceptance: float, gamma: int) -> Seconds:
    """T of each answer: float64[n], from the tokens that come after the first."""
    draft = parts.draft_seconds(gamma) if parts.draft else 0.0
    iteration = draft + parts.sync + parts.verify_seconds(gamma + 1) + parts.host
    lane = parts.drafter_vision + parts.drafter_prefill + left * parts.drafter_step
    return parts.vision + parts.prefill + lane + left / expected_tokens(acceptance, gamma) * iteration
