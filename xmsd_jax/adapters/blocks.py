"""The parts that adapters are made of: PyTorch's initialisations, dropout, and one pre-LN transformer layer.

Initialisations are those of the study (its code used PyTorch's), stated for kernels [in, out].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.interface import EPSILON, HEADS, Seen

MASKED = -1e30  # finite: a row that may look at nothing gives numbers, not NaN; it is never read


def kaiming_normal(gain: float) -> nnx.Initializer:
    """Normal with std gain / sqrt(fan-in) (He et al. 2015)."""
    return nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")


def torch_linear(inner: int, outer: int, rngs: nnx.Rngs, *, zero_bias: bool = False) -> nnx.Linear:
    """Linear as PyTorch starts it: kernel, and bias where it is not zero, uniform within 1 / sqrt(fan-in)."""
    bound = 1.0 / math.sqrt(inner)

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, _sharding: object = None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    bias_init = nnx.initializers.zeros if zero_bias else uniform
    return nnx.Linear(inner, outer, kernel_init=uniform, bias_init=bias_init, rngs=rngs)


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm, eps 1e-5; the exact variance, as PyTorch computes it."""
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Gaussian error linear unit with the exact erf."""
    return jax.nn.gelu(x, approximate=False)


def drop(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Inverted dropout; `x` itself where `rate` is 0 or no key is given."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` keys, all None without one."""
    return [None] * count if key is None else list(jax.random.split(key, count))


class KeyValue(NamedTuple):
    """Keys and values of some positions, [..., h, e]."""

    key: Float[Array, "... h e"]
    value: Float[Array, "... h e"]


class TransformerLayer(nnx.Module):
    """Pre-LN self-attention with 8 heads and a feed-forward part d/2 wide, as `nn.MultiheadAttention` computes it."""

    def __init__(self, width: int, ffn: int, rngs: nnx.Rngs) -> None:
        """Packed qkv starts Xavier-uniform with bias 0, the output's bias at 0; the rest as PyTorch's Linear."""
        self.attn_norm = layer_norm(width, rngs)
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.out = torch_linear(width, width, rngs, zero_bias=True)
        self.ffn_norm = layer_norm(width, rngs)
        self.ffn_in = torch_linear(width, ffn, rngs)
        self.ffn_out = torch_linear(ffn, width, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t t"], dropout: float, key: jax.Array | None
    ) -> Float[Array, "b t d"]:
        """`mask[b, i, j]`: position i may look at position j."""
        keys = split_key(key, 4)
        query, own = self.project(x)
        scores = _scaled(jnp.einsum("bihe,bjhe->bhij", query, own.key), query)
        weights = drop(_softmax(scores, mask[:, None]), dropout, keys[0])
        return self.finish(x, jnp.einsum("bhij,bjhe->bihe", weights, own.value), dropout, keys[1:])

    def project(self, x: Float[Array, "... d"]) -> tuple[Float[Array, "... h e"], KeyValue]:
        """Queries, and keys with values, of inputs before their norm."""
        query, key, value = jnp.split(self.qkv(self.attn_norm(x)), 3, axis=-1)
        return _heads(query), KeyValue(_heads(key), _heads(value))

    def advance(self, x: Float[Array, "b a d"], seen: Seen) -> tuple[Float[Array, "b a d"], KeyValue]:
        """One position for each anchor: attends what `seen` allows and itself (`CausalAdapter.advance`)."""
        query, own = self.project(x)
        rolled = jax.tree.map(lambda buffer, new: buffer.at[:, :, seen.newest].set(new), seen.rolled, own)
        far = jnp.einsum("bahe,bthe->baht", query, seen.kept.key)
        near = jnp.einsum("bahe,baghe->bahg", query, rolled.key)
        near_mask = jnp.broadcast_to(jnp.arange(near.shape[-1]) <= seen.newest, near[:, :, 0].shape)
        mask = jnp.concatenate([seen.kept_mask, near_mask], axis=-1)[:, :, None]
        weights = _softmax(_scaled(jnp.concatenate([far, near], axis=-1), query), mask)
        past = far.shape[-1]
        attended = jnp.einsum("baht,bthe->bahe", weights[..., :past], seen.kept.value)
        attended += jnp.einsum("bahg,baghe->bahe", weights[..., past:], rolled.value)
        return self.finish(x, attended, 0.0, [None] * 3), own

    def finish(
        self, x: Float[Array, "b t d"], attended: Float[Array, "b t h e"], dropout: float, keys: list[jax.Array | None]
    ) -> Float[Array, "b t d"]:
        """Output projection, residual, feed-forward part."""
        x = x + self.out(attended.reshape(x.shape))
        inner = drop(gelu(self.ffn_in(self.ffn_norm(x))), dropout, keys[0])
        return x + drop(self.ffn_out(inner), dropout, keys[1])


def _heads(x: Float[Array, "... d"]) -> Float[Array, "... h e"]:
    return x.reshape(*x.shape[:-1], HEADS, -1)


def _scaled(scores: Float[Array, "..."], query: Float[Array, "... e"]) -> Float[Array, "..."]:
    return scores / math.sqrt(query.shape[-1])


def _softmax(scores: Float[Array, "... t"], mask: Bool[Array, "... t"]) -> Float[Array, "... t"]:
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
