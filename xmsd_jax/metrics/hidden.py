"""How close predicted states are to the target's: cosine, share above a cosine, mean squared error.

Index convention: state `h[t]` EMITS token y_t. `offset` says which state a prediction is compared with and has no
default: 0 compares predicted[:, t] with target[:, t], 1 compares predicted[:, t] with target[:, t+1].

Each metric is a numerator and a denominator per answer, so that batches are put together by `joined` and a value with
its interval comes from `counted.ratio_of_sums(numerator, denominator, sequences=...)`.

A high cosine is not acceptance: what a draft is worth is decided by `tokens` and `acceptance`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import NDArray

Offset = Literal[0, 1]
PerAnswer = tuple[NDArray[Any], NDArray[np.int64]]
"""Numerator [b] (float64 or int64) and denominator int64[b] of one metric."""

THRESHOLDS = (0.80, 0.85, 0.90, 0.95)
LEAST_PAIRS = 5
_NORM_FLOOR = 1e-8  # of each norm, as torch.nn.functional.cosine_similarity: a zero state has cosine 0


def pair_mask(*, target_len: Any, positions: int, offset: int, drafter_len: Any | None = None) -> NDArray[np.bool_]:
    """Which pairs (predicted t, target t + offset) count (SEMANTICS, "Masks and pairs"): bool[b, positions].

    Args:
        target_len: int[b], length of the target's answer.
        positions: t, the stored positions.
        offset: 0 or 1; 1 needs t + 1 < target_len as well.
        drafter_len: int[b] for INDEX pairs, t < min(drafter_len, target_len), where an answer with fewer than 5 such
            positions counts nothing; None for SYNCED and target-only pairs, t < target_len.
    """
    check_offset(offset)
    target_len = np.asarray(target_len, np.int64)
    shorter = target_len if drafter_len is None else np.asarray(drafter_len, np.int64)
    if target_len.ndim != 1 or shorter.shape != target_len.shape:
        raise ValueError(
            f"lengths must be one vector each, got {target_len.shape} (target) and {shorter.shape} (drafter)"
        )
    t = np.arange(positions)
    kept = t < np.minimum(target_len, shorter)[:, None]
    if drafter_len is not None:
        kept &= kept.sum(1, keepdims=True) >= LEAST_PAIRS
    return kept & (t + offset < np.minimum(target_len, positions)[:, None])


def hidden_metrics(
    predicted: Float[Array, "b t d"], target: Float[Array, "b t d"], mask: Any, *, offset: Offset
) -> dict[str, PerAnswer]:
    """Compare states, in float32: "cosine", "accept@0.80" to "accept@0.95" (cosine strictly above), "mse".

    Args:
        predicted: float32 or bfloat16; what the adapter gave at t.
        target: float32 or bfloat16; the target's own states.
        mask: bool[b, t], True at t keeps the pair (predicted t, target t + offset): see `pair_mask`.
        offset: 0 or 1 (module docstring).

    Returns:
        name -> (numerator[b], denominator[b]); every denominator is the number of kept pairs of the answer. "mse" is
        the mean over d of squared differences.

    Raises:
        ValueError: shapes differ, the mask keeps a pair without a partner, or a state of a kept pair is nan or inf
            (the answer's row is named). States outside the mask may hold anything.
    """
    if predicted.shape != target.shape or predicted.ndim != 3:
        raise ValueError(f"states must be [b, t, d] twice with one shape, got {predicted.shape} and {target.shape}")
    kept = kept_pairs(mask, predicted.shape[:2], offset)
    cosine, squared, finite = (np.asarray(x) for x in _pairs(predicted, target, kept, offset=offset))
    check_finite(finite, "states")
    pairs = kept.sum(1)
    counts: dict[str, PerAnswer] = {"cosine": (cosine.sum(1, dtype=np.float64), pairs)}
    for threshold in THRESHOLDS:
        above = kept & (cosine > np.float32(threshold))
        counts[f"accept@{threshold:.2f}"] = (above.sum(1), pairs)
    return {**counts, "mse": (squared.sum(1, dtype=np.float64), pairs)}


@partial(jax.jit, static_argnames="offset")
def _pairs(
    predicted: Float[Array, "b t d"], target: Float[Array, "b t d"], kept: Bool[Array, "b p"], *, offset: int
) -> tuple[Float[Array, "b p"], Float[Array, "b p"], Bool[Array, " b"]]:
    """Cosine and mean squared difference per pair, 0 where not kept; whether all kept states of an answer are finite.

    What is not kept is replaced before any arithmetic, so that padding of any value cannot reach a sum.
    """
    own = jnp.where(kept[..., None], predicted[:, : kept.shape[1]].astype(jnp.float32), 0.0)
    true = jnp.where(kept[..., None], target[:, offset:].astype(jnp.float32), 0.0)
    finite = (jnp.isfinite(own) & jnp.isfinite(true)).all((1, 2))
    norms = [jnp.maximum(jnp.sqrt((x * x).sum(-1)), _NORM_FLOOR) for x in (own, true)]
    cosine = (own * true).sum(-1) / (norms[0] * norms[1])
    return cosine, ((own - true) ** 2).mean(-1), finite


def joined(batches: Sequence[Mapping[str, PerAnswer]]) -> dict[str, PerAnswer]:
    """Put the answers of several batches one after the other; all batches must hold the same metrics."""
    names = list(batches[0]) if batches else []
    strange = next((set(names) ^ set(batch) for batch in batches if set(batch) != set(names)), None)
    if strange is not None:
        raise ValueError(f"batches to join must hold the same metrics; in some only: {', '.join(sorted(strange))}")
    whole = {}
    for name in names:
        tops, bottoms = zip(*(batch[name] for batch in batches), strict=True)
        whole[name] = (np.concatenate(tops), np.concatenate(bottoms))
    return whole


def check_offset(offset: int) -> None:
    """Raise ValueError unless `offset` is 0 or 1."""
    if offset not in (0, 1):
        raise ValueError(f"offset must be 0 (same position) or 1 (next position), got {offset!r}")


def kept_pairs(mask: Any, shape: tuple[int, ...], offset: int) -> NDArray[np.bool_]:
    """The mask without the last `offset` columns, bool[b, t - offset]; ValueError if it does not fit."""
    check_offset(offset)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != tuple(shape):
        raise ValueError(f"mask must be bool{list(shape)}, one a position, got {mask.dtype}{list(mask.shape)}")
    width = shape[1] - offset
    if mask[:, width:].any():
        row = int(np.flatnonzero(mask[:, width:].any(1))[0])
        raise ValueError(f"offset 1 pairs t with t + 1: answer {row} keeps the last position; make it by `pair_mask`")
    return mask[:, :width]


def check_finite(finite: NDArray[np.bool_], what: str) -> None:
    """Raise ValueError that names the first answer of `finite` bool[b] that is False."""
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{what} of kept positions must be finite, got nan or inf in answer {row} of the batch")
