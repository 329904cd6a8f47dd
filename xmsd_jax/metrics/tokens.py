"""What predicted states say once the target's LM head has read them: the rank of the right token, and runs of hits.

`offset` as in `hidden`: 0 compares the prediction at t with y_t, 1 with y_{t+1}; no default. The rank counts how many
real ids the head puts before the right one, so that rank 0 is exactly what argmax would draft. These are
teacher-forced figures: every prediction is judged on its own, from true inputs. A speed is predicted from `acceptance`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32
from numpy.typing import NDArray

from xmsd_jax.metrics.hidden import Offset, PerAnswer, check_finite, kept_pairs

CHUNK = 256  # rows of logits at once: 33 MB of float32 at 32,064 ids
TOP = (1, 5, 10)
MISS = int(np.iinfo(np.int32).max)
"""Rank of a token that the head cannot say: past any k."""


def token_metrics(
    predicted: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    target_ids: Int32[Array, "b t"],
    mask: Any,
    *,
    vocabulary: int,
    offset: Offset,
    chunk: int = CHUNK,
) -> dict[str, PerAnswer]:
    """Count hits: "top1", "top5", "top10", "first_top1", "consecutive" (see `rank_metrics`).

    Args:
        predicted: float32 or bfloat16.
        head: LM-head weight. Where it and `predicted` share a dtype they are multiplied in it, else in float32;
            logits are float32 either way.
        target_ids: the right tokens y; an id that is not real counts as a miss.
        mask: bool[b, t], True at t keeps the pair (predicted t, y_{t + offset}): see `hidden.pair_mask`.
        vocabulary: number of real ids; later columns of the head are never ranked.
        offset: 0 or 1.
        chunk: rows of logits in memory at once.

    Returns:
        name -> (numerator[b], denominator[b]).

    Raises:
        ValueError: shapes do not fit, or logits of a kept position are nan or inf (the answer's row is named).
    """
    ranks, kept = token_ranks(predicted, head, target_ids, mask, vocabulary=vocabulary, offset=offset, chunk=chunk)
    return rank_metrics(ranks, kept)


def token_ranks(
    predicted: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    target_ids: Int32[Array, "b t"],
    mask: Any,
    *,
    vocabulary: int,
    offset: Offset,
    chunk: int = CHUNK,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Rank of the right token at each pair, and which pairs count: int32 and bool, both [b, t - offset].

    Rank 0 is the argmax: larger logits come first, equal ones in order of id. A token that is not a real id, and a
    pair that is not kept, has rank `MISS`. Arguments as in `token_metrics`.
    """
    if predicted.ndim != 3 or predicted.shape[:2] != target_ids.shape or predicted.shape[-1] != head.shape[-1]:
        raise ValueError(
            "token ranks need predicted [b, t, d], head [v, d] and target_ids [b, t], got "
            f"{predicted.shape}, {head.shape} and {target_ids.shape}"
        )
    if not 1 <= vocabulary <= head.shape[0] or chunk < 1:
        raise ValueError(f"need 1 <= vocabulary <= {head.shape[0]} and chunk >= 1, got {vocabulary} and {chunk}")
    kept = kept_pairs(mask, predicted.shape[:2], offset)
    answers, width = kept.shape
    states = jnp.where(kept[..., None], predicted[:, :width], 0).astype(predicted.dtype)
    ids = jnp.where(kept, target_ids[:, offset:], -1).astype(jnp.int32)
    ranks, finite = _ranks(states.reshape(answers * width, -1), head, ids.ravel(), vocabulary=vocabulary, chunk=chunk)
    check_finite(np.logical_and.reduce(np.asarray(finite).reshape(kept.shape), axis=1), "logits")
    return np.asarray(ranks).reshape(kept.shape), kept


@partial(jax.jit, static_argnames=("vocabulary", "chunk"))
def _ranks(
    states: Float[Array, "n d"], head: Float[Array, "v d"], ids: Int32[Array, " n"], *, vocabulary: int, chunk: int
) -> tuple[Int32[Array, " n"], Bool[Array, " n"]]:
    """Ranks chunk by chunk; every chunk is full, so that a row's logits do not depend on the batch it came in."""
    count = len(ids)
    spare = -count % chunk
    dtype = states.dtype if states.dtype == head.dtype else jnp.float32
    head = head.astype(dtype)
    states = jnp.pad(states.astype(dtype), ((0, spare), (0, 0))).reshape(-1, chunk, states.shape[-1])
    ids = jnp.pad(ids, (0, spare), constant_values=-1).reshape(-1, chunk)
    ranks, finite = jax.lax.map(lambda rows: _chunk_ranks(rows[0], rows[1], head, vocabulary), (states, ids))
    return ranks.reshape(-1)[:count], finite.reshape(-1)[:count]


def _chunk_ranks(
    states: Float[Array, "n d"], ids: Int32[Array, " n"], head: Float[Array, "v d"], vocabulary: int
) -> tuple[Int32[Array, " n"], Bool[Array, " n"]]:
    """Count the real ids before the right one: without sorting, two comparisons an id."""
    logits = jnp.einsum("nd,vd->nv", states, head, precision="highest", preferred_element_type=jnp.float32)
    columns = jnp.arange(head.shape[0], dtype=jnp.int32)
    sayable = columns < vocabulary
    finite = (jnp.isfinite(logits) | ~sayable).all(1)
    logits = jnp.where(sayable, logits, -jnp.inf)
    real = (ids >= 0) & (ids < vocabulary)
    own = jnp.take_along_axis(logits, jnp.where(real, ids, 0)[:, None], axis=1)
    before = (logits > own) | ((logits == own) & (columns < ids[:, None]))
    ranks = jnp.where(real, before.sum(1, dtype=jnp.int32), MISS)
    return ranks, finite


def rank_metrics(ranks: NDArray[np.int32], kept: NDArray[np.bool_]) -> dict[str, PerAnswer]:
    """Count hits of `ranks` int[b, t] at the kept pairs bool[b, t].

    "top1", "top5", "top10": pairs with the right token among the first k, of all kept pairs.
    "first_top1": answers whose first kept pair is right, of all answers that have one.
    "consecutive": length of the run of top-1 hits from the first kept pair, a mean over answers that have one (the
    study's "consecutive accepts").
    """
    hits = kept & (ranks == 0)
    pairs = kept.sum(1)
    counts: dict[str, PerAnswer] = {f"top{k}": ((kept & (ranks < k)).sum(1), pairs) for k in TOP}
    runs, answered = _runs(hits, kept), (pairs > 0).astype(np.int64)
    return {**counts, "first_top1": ((runs > 0).astype(np.int64), answered), "consecutive": (runs, answered)}


def free_of_k(ranks: NDArray[np.int32], kept: NDArray[np.bool_], k: int) -> PerAnswer:
    """Run of top-1 hits from the first kept pair, at most k: what k drafted tokens give before the first wrong one.

    Numerator int64[b]; denominator 1 for an answer that has a kept pair (the study's "free of 7" is k = 7).
    """
    if k < 1:
        raise ValueError(f"free_of_k needs at least 1 drafted token, got k = {k}")
    return np.minimum(_runs(kept & (ranks == 0), kept), k), (kept.sum(1) > 0).astype(np.int64)


def _runs(hits: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Length of the run of hits over the kept pairs, from the first one: int64[b]."""
    unbroken = np.logical_and.accumulate(hits | ~kept, axis=1)
    return (unbroken & kept).sum(1)
