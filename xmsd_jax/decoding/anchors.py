"""Adapters at every anchor of stored answers: what the walk, S_k and each prediction are counted from.

They draft for all anchors of a batch of answers in one compiled call, by the code that drafts live. `slack` says how
close the head was to another choice, so that a live run which rounds otherwise can be told from one that is wrong.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmsd_jax.adapters.interface import Adapter, Streams
from xmsd_jax.adapters.rollout import NO_DRAFT, Drafted, Mode, first_drafts, rollout_everywhere
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.data.batches import Pairs
from xmsd_jax.decoding.text_anchors import FreePrefix
from xmsd_jax.metrics.acceptance import Anchors, right_lengths

BATCH = 32


def in_batches(answers: int, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Row numbers in batches of one size (one compiled program); the last one is filled up by its first row."""
    for start in range(0, answers, batch):
        rows = np.arange(start, min(start + batch, answers))
        yield np.concatenate([rows, np.full(batch - len(rows), rows[0])])


def adapter_anchors(
    adapter: Any,
    head: TokenHead,
    pairs: Pairs,
    *,
    mode: Mode,
    gamma: int,
    compute: Any = jnp.float32,
    batch: int = BATCH,
) -> Anchors:
    """Roll an adapter of offset 1 out at every anchor.

    Args:
        adapter: a `CausalAdapter`.
        head: of the target.
        pairs: stored states and answers, in the pairing that the mode reads; states may lie on the device already.
        mode: own or synced.
        gamma: ids to draft; any shorter draft is a prefix of it.
        compute: dtype of states and head.
        batch: answers at once.
    """
    graph, parameters = nnx.split(adapter)

    def draft(parameters: Any, head: TokenHead, streams: Streams, drafter_len: jax.Array) -> Drafted:
        return rollout_everywhere(nnx.merge(graph, parameters), head, streams, drafter_len, gamma=gamma, mode=mode)

    ids, margins = _drafts(jax.jit(draft), parameters, head, pairs, compute, batch)
    return _anchors(ids, margins, pairs)


def teacher_forced(
    adapter: Adapter, head: TokenHead, pairs: Pairs, *, gamma: int, compute: Any = jnp.float32
) -> Anchors:
    """The same anchors with TRUE states at every step: no drafter can have them. A curve to compare, not a speed."""
    graph, parameters = nnx.split(adapter)

    def read(parameters: Any, head: TokenHead, streams: Streams, drafter_len: jax.Array) -> Drafted:
        states = next(s for s in streams if s is not None)
        predicted = nnx.merge(graph, parameters)(streams, jnp.ones(states.shape[:2], bool))
        ids, margins = head.ids_and_margins(predicted)
        return Drafted(ids[..., None], margins[..., None])

    ids = _drafts(jax.jit(read), parameters, head, pairs, compute)[0][..., 0]
    length = ids.shape[1]
    places = np.arange(length)[:, None] + np.arange(gamma)
    drafted = np.where(places < length, ids[:, np.minimum(places, length - 1)], NO_DRAFT)
    return _anchors(drafted, None, pairs)


def adapter_free(
    adapter: Adapter, head: TokenHead, pairs: Pairs, *, draft_len: int, compute: Any = jnp.float32
) -> FreePrefix:
    """n_free of an adapter of offset 0: it is given exactly g[0..draft_len-1]."""
    graph, parameters = nnx.split(adapter)

    def draft(parameters: Any, head: TokenHead, streams: Streams, drafter_len: jax.Array) -> Drafted:
        return first_drafts(nnx.merge(graph, parameters), head, streams.drafter[:, :draft_len], drafter_len)

    ids, margins = _drafts(jax.jit(draft), parameters, head, pairs, compute)
    free = (np.cumprod(_hits(ids, pairs), axis=1)).sum(1).astype(np.int32)
    return FreePrefix(free=free, drafted=draft_len, slack=_slack(margins[:, None], free[:, None])[:, 0])


def _drafts(
    draft: Callable[..., Drafted], parameters: Any, head: TokenHead, pairs: Pairs, compute: Any, batch: int = BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Run a compiled drafting function over all answers, batch by batch."""
    found = []
    count = len(pairs.target_len)
    head = TokenHead(head.weight.astype(compute), head.vocabulary)
    for rows in in_batches(count, batch):
        both = Streams(*(None if x is None else jnp.asarray(x[rows], compute) for x in (pairs.drafter, pairs.target)))
        drafter_len = jnp.asarray(pairs.drafter_len[rows], jnp.int32)
        found.append(draft(parameters, head, both, drafter_len))
        if len(found) > 1:  # one call behind, so that the device does not wait for the host
            found[-2] = jax.device_get(found[-2])
    ids, margins = (np.concatenate(parts)[:count] for parts in zip(*jax.device_get(found), strict=True))
    return ids, margins


def _anchors(ids: np.ndarray, margins: np.ndarray | None, pairs: Pairs) -> Anchors:
    right = right_lengths(ids, pairs.target_ids, pairs.target_len)
    return Anchors(
        right=right,
        gamma=ids.shape[-1],
        target_len=np.asarray(pairs.target_len, np.int32),
        free=np.zeros(len(right), np.int32),
        slack=None if margins is None else _slack(margins, right),
        length=(ids != NO_DRAFT).sum(-1).astype(np.int32),
    )


def _hits(ids: np.ndarray, pairs: Pairs) -> np.ndarray:
    """bool[n, g]: which of the first drafted ids are those of the answer."""
    count = ids.shape[1]
    inside = np.arange(count) < np.asarray(pairs.target_len)[:, None]
    return (ids == pairs.target_ids[:, :count]) & inside & (ids != NO_DRAFT)


def _slack(margins: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Smallest margin up to and including the first wrong id: float32 of `right`'s shape; inf at what is no anchor."""
    judged = np.arange(margins.shape[-1]) <= right[..., None]
    return np.where(judged, margins, np.inf).min(-1).astype(np.float32)
