"""Which drafted tokens the target keeps: pure functions of host arrays.

T = 0: the longest prefix equal to the target's own greedy tokens. T > 0: lossless rejection sampling (Leviathan et al.
2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1; a deterministic draft is the case where
q is one at the drafted token), so that emitted tokens follow the target's own distribution whatever the draft was.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.decoding.ports import SomeIds

Probabilities = NDArray[np.float64]


def accept_greedy(draft_ids: SomeIds, target_ids: SomeIds) -> int:
    """Length of the longest prefix of `draft_ids` equal to `target_ids`; positions past its end are misses."""
    count = 0
    for drafted, own in zip(draft_ids, target_ids, strict=False):
        if drafted != own:
            break
        count += 1
    return count


def softmax(logits: Any, temperature: float) -> Probabilities:
    """Distribution of the target at `temperature` > 0: logits [..., v] -> float64 [..., v], sums to 1.

    Raises ValueError on a temperature that is not positive and on logits that are not finite (-inf, a masked id, is
    allowed as long as one id is left).
    """
    if not temperature > 0:
        raise ValueError(f"sampling needs temperature > 0, got {temperature}; T = 0 is greedy and takes ids")
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("the largest logit of each row must be finite, got nan or inf; the target's forward is broken")
    weights = np.exp((logits - top) / temperature)
    return weights / weights.sum(axis=-1, keepdims=True)


def sample(weights: Probabilities, uniform: float) -> int:
    """Draw an id by `weights` [v] (any sum): invert their running sum at `uniform` in [0, 1); never one of weight 0."""
    steps = np.cumsum(weights)
    drawn = int(np.searchsorted(steps, uniform * steps[-1], side="right"))
    if drawn < len(steps):
        return drawn
    return int(np.flatnonzero(weights)[-1])  # uniform * sum rounded up to the sum itself


def accept_one(drafted: int, q: Probabilities | None, p: Probabilities, rng: np.random.Generator) -> tuple[bool, int]:
    """Judge one drafted id against the target's p [v]; q [v] is what it was drawn from, None if deterministic.

    Returns (accepted, token): `token` is the drafted id, or the one sampled from the residual in its place.
    Raises ValueError where q(drafted) = 0: such an id cannot have been drawn from q, and the output would not be p's.
    """
    proposed = 1.0 if q is None else float(q[drafted])
    if not proposed > 0:
        raise ValueError(
            f"a drafted id must have q > 0, got q[{drafted}] = {proposed}; return the q that ids were drawn from, "
            "or q = None for a deterministic draft"
        )
    if rng.random() * proposed < p[drafted]:
        return True, drafted
    if q is None:
        residual = p.copy()
        residual[drafted] = 0.0
    else:
        residual = np.maximum(p - q, 0.0)
    if not residual.any():  # p equals q up to rounding, so a rejection has probability 0: p itself is the limit
        residual = p
    return False, sample(residual, rng.random())


def accept_sampled(draft_ids: SomeIds, q: Any | None, p: Probabilities, rng: np.random.Generator) -> tuple[int, int]:
    """Judge a draft of g ids against the target's distributions p [g + 1, v]; q [g, v'] with v' <= v, or None.

    Returns (n, token): the first n drafted ids stand, and `token` follows them: from the residual of the first
    rejected one, or from p[g] (the bonus token) where all stand. Raises ValueError on shapes that do not fit.
    """
    if len(p) != len(draft_ids) + 1:
        raise ValueError(f"a draft of g ids needs g + 1 target distributions, got {len(p)} for g = {len(draft_ids)}")
    rows = widened(q, len(draft_ids), p.shape[-1])
    for i, drafted in enumerate(draft_ids):
        accepted, token = accept_one(int(drafted), None if rows is None else rows[i], p[i], rng)
        if not accepted:
            return i, token
    return len(draft_ids), sample(p[-1], rng.random())


def widened(q: Any | None, count: int, width: int) -> Probabilities | None:
    """Return q [count, v'] as float64 [count, width], zero on the ids it lacks (a drafter without padding rows)."""
    if q is None:
        return None
    q = np.asarray(q, np.float64)
    if q.ndim != 2 or len(q) != count or q.shape[1] > width:
        raise ValueError(f"q must be [{count}, at most {width}], one row per drafted id, got {q.shape}")
    return np.pad(q, ((0, 0), (0, width - q.shape[1])))
