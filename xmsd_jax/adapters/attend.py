"""Self-attention of an adapter over the positions of an answer: which form computes it, and the plain form.

8 heads of d/8 (512 at width 4096) over some 50 positions: library kernels stop at heads of 256. On a GPU in bfloat16 a
fused kernel reads queries, keys and values where the projection left them; everywhere else XLA computes the plain form.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.interface import HEADS
from xmsd_jax.adapters.noise import Noise, drop

MASKED = -1e30  # finite: a row that may look at nothing gives numbers, not NaN; it is never read
BACKENDS = ("gpu",)
"""Where kernels run; on another backend, if a test names it, they are interpreted."""
MOST_FUSED = 128
"""Positions that one block of the fused kernel holds."""


def attend(
    qkv: Float[Array, "b t dq"],
    bias: Float[Array, " dq"],
    real: Bool[Array, "b t"],
    *,
    causal: bool,
    noise: Noise | None,
) -> Float[Array, "b t d"]:
    """Attention of each position over the real ones (up to itself, if causal), heads side by side.

    Args:
        qkv: queries, keys and values, one after the other, d wide each, without their bias.
        bias: to be added to them.
        real: which positions may be looked at.
        causal: whether none looks ahead.
        noise: dropout of the attention weights.
    """
    if is_fused(qkv):
        from xmsd_jax.adapters.fused_attention import attend_fused  # Pallas takes 0.3 s to import

        return attend_fused(qkv, bias, real, causal, noise)
    return attend_plain(qkv + bias.astype(qkv.dtype), real, causal, noise)


def is_fused(qkv: Array) -> bool:
    """Whether the fused kernel takes such an array: bfloat16 on a GPU, up to 128 positions, heads a power of two."""
    width = qkv.shape[-1] // 3 // HEADS
    return qkv.shape[1] <= MOST_FUSED and width >= 16 and rows_are_fused(width, qkv.dtype)


def rows_are_fused(width: int, dtype: Any) -> bool:
    """Whether row kernels take states of such a width: bfloat16 on a GPU, a power of two."""
    return width & (width - 1) == 0 and has_kernels(dtype)


def has_kernels(dtype: Any) -> bool:
    """Whether this backend computes in such a dtype by forms of our own: bfloat16 on a GPU."""
    return dtype == jnp.bfloat16 and jax.default_backend() in BACKENDS


def attend_plain(qkv: Array, real: Array, causal: bool, noise: Noise | None) -> Array:
    """The same by einsum."""
    query, key, value = (heads(x) for x in jnp.split(qkv, 3, axis=-1))
    mask = real[:, None, None, :]
    if causal:
        length = qkv.shape[1]
        mask = mask & jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.einsum("bihe,bjhe->bhij", query, key, preferred_element_type=jnp.float32)
    weights = drop(softmax(scaled(scores, query), mask), noise).astype(qkv.dtype)
    return jnp.einsum("bhij,bjhe->bihe", weights, value).reshape(*qkv.shape[:-1], -1)


def heads(x: Float[Array, "... d"]) -> Float[Array, "... h e"]:
    """Cut the width into heads."""
    return x.reshape(*x.shape[:-1], HEADS, -1)


def scaled(scores: Float[Array, "..."], query: Float[Array, "... e"]) -> Float[Array, "..."]:
    """Scores over the square root of a head's width."""
    return scores / math.sqrt(query.shape[-1])


def softmax(scores: Float[Array, "... t"], mask: Bool[Array, "... t"]) -> Float[Array, "... t"]:
    """Softmax over what the mask keeps."""
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
