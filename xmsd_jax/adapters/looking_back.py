"""Attention of a continued position over the true positions that were kept and those continued since.

Two forms of the same sums. For many anchors XLA's products of matrices are quickest, over all scores at once. The one
anchor of a live proposal has one row of scores: on a GPU XLA computes them inside the kernel that lays those of the two
buffers side by side, in 50 to 109 us a step over 256 positions at width 4096 (one H200). There each buffer is looked at
alone, and the two are put together by the larger of their maxima (as split-KV attention does).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmsd_jax.adapters.attend import MASKED, scaled, softmax
from xmsd_jax.adapters.interface import Seen


class KeyValue(NamedTuple):
    """Keys and values of some positions, [..., h, e]."""

    key: Float[Array, "... h e"]
    value: Float[Array, "... h e"]


def look_at_once(query: Float[Array, "b a h e"], seen: Seen) -> Float[Array, "b a h e"]:
    """By products of matrices, one softmax over the scores of both buffers, in the dtype of the query."""
    far = jnp.einsum("bahe,bthe->baht", query, seen.kept.key)
    near = jnp.einsum("bahe,baghe->bahg", query, seen.rolled.key)
    near_mask = jnp.broadcast_to(_continued(seen), near[:, :, 0].shape)
    mask = jnp.concatenate([seen.kept_mask, near_mask], axis=-1)[:, :, None]
    scores = jnp.concatenate([far, near], axis=-1).astype(jnp.float32)
    weights = softmax(scaled(scores, query), mask).astype(query.dtype)
    past = far.shape[-1]
    attended = jnp.einsum("baht,bthe->bahe", weights[..., :past], seen.kept.value)
    return attended + jnp.einsum("bahg,baghe->bahe", weights[..., past:], seen.rolled.value)


def look_by_parts(query: Float[Array, "b a h e"], seen: Seen) -> Float[Array, "b a h e"]:
    """By sums in float32 over each buffer alone, given in the dtype of the query."""
    kept, rolled = KeyValue(seen.kept.key[:, None], seen.kept.value[:, None]), seen.rolled
    far = jnp.where(seen.kept_mask[:, :, None], _scores(query, kept.key), MASKED)
    near = jnp.where(_continued(seen), _scores(query, rolled.key), MASKED)
    top = jnp.maximum(far.max(-1), near.max(-1))[..., None]
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    attended = _valued(far, kept.value) + _valued(near, rolled.value)
    return (attended / (far.sum(-1) + near.sum(-1))[..., None]).astype(query.dtype)


def _continued(seen: Seen) -> Array:
    """Which slots of `rolled` hold a position, bool[g]."""
    return jnp.arange(seen.rolled.key.shape[2]) <= seen.newest


def _scores(query: Float[Array, "b a h e"], key: Float[Array, "b a t h e"]) -> Float[Array, "b a h t"]:
    products = query[:, :, None].astype(jnp.float32) * key.astype(jnp.float32)
    return scaled(products.sum(-1).swapaxes(-1, -2), query)


def _valued(weight: Float[Array, "b a h t"], value: Float[Array, "b a t h e"]) -> Float[Array, "b a h e"]:
    return (weight.swapaxes(-1, -2)[..., None] * value.astype(jnp.float32)).sum(2)
