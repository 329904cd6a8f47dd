"""The parts that adapters are made of: PyTorch's initialisations, and one pre-LN transformer layer.

Each computes in the dtype of its input and sums in float32. Initialisations are those of the study (its code used
PyTorch's), stated for kernels [in, out].
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.attend import attend, has_kernels, heads, rows_are_fused
from xmsd_jax.adapters.interface import EPSILON, Seen
from xmsd_jax.adapters.looking_back import KeyValue, look_at_once, look_by_parts
from xmsd_jax.adapters.noise import Noise, drop

FEW_ROWS, TILE_ROWS = 4, 16
"""Rows up to which a product is computed among rows of zeros, and with how many in all."""


def kaiming_normal(gain: float) -> nnx.Initializer:
    """Normal with std gain / sqrt(fan-in) (He et al. 2015)."""
    return nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")


class Linear(nnx.Linear):
    """Linear that computes in the dtype of what it is given, whatever its parameters are kept in."""

    bias: Any

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        """`x @ kernel + bias`."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def product(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        """`x @ kernel`, for what adds the bias itself."""
        kernel, rows = self.kernel[...].astype(x.dtype), math.prod(x.shape[:-1])
        if 0 < rows <= FEW_ROWS and has_kernels(x.dtype):
            return _among_zeros(x.reshape(rows, -1), kernel).reshape(*x.shape[:-1], kernel.shape[-1])
        return x @ kernel


def _among_zeros(x: Float[Array, "m d"], kernel: Float[Array, "d e"]) -> Float[Array, "m e"]:
    """`x @ kernel` as a product of matrices: a vector's XLA makes of sums, some by way of memory, at half the speed."""
    return (jnp.pad(x, ((0, TILE_ROWS - len(x)), (0, 0))) @ kernel)[: len(x)]


class LayerNorm(nnx.LayerNorm):
    """LayerNorm computed in float32, in and out in the dtype of its input."""

    scale: Any
    bias: Any

    def __call__(self, x: Float[Array, "b t d"], table: Float[Array, "t d"] | None = None) -> Float[Array, "b t d"]:
        """`LN(x)`, plus what a table says for each position."""
        shift = self.bias[...] if table is None else self.bias[...] + table.astype(jnp.float32)
        if len(x.shape) == 3 and rows_are_fused(x.shape[-1], x.dtype):
            from xmsd_jax.adapters.fused_norms import norm_fused

            return norm_fused(x, self.scale[...], shift)
        return (unit_rows(x) * self.scale[...] + shift).astype(x.dtype)

    def after(
        self, x: Float[Array, "b t d"], y: Float[Array, "b t d"], bias: Float[Array, " d"], noise: Noise | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """`s = x + drop(y + bias)`, and `LN(s)`."""
        if rows_are_fused(x.shape[-1], x.dtype):
            from xmsd_jax.adapters.fused_norms import add_norm_fused

            return add_norm_fused(x, y, bias, self.scale[...], self.bias[...], noise)
        total = x + drop(y + bias.astype(y.dtype), noise)
        return total, self(total)


def unit(x: Float[Array, "b t d"], y: Float[Array, "b t d"] | None = None) -> tuple[Array, Array]:
    """`s = x + y` (x without y), and `(s - mean) / std`."""
    if rows_are_fused(x.shape[-1], x.dtype):
        from xmsd_jax.adapters.fused_norms import add_unit_fused, unit_fused

        return (x, unit_fused(x)) if y is None else add_unit_fused(x, y)
    total = x if y is None else x + y
    return total, unit_rows(total).astype(x.dtype)


def unit_rows(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`(x - mean) / std` over the last axis, in float32; the exact variance, as PyTorch computes it."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)


def torch_linear(inner: int, outer: int, rngs: nnx.Rngs, *, zero_bias: bool = False) -> Linear:
    """Linear as PyTorch starts it: kernel, and bias where it is not zero, uniform within 1 / sqrt(fan-in)."""
    bound = 1.0 / math.sqrt(inner)

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, _sharding: object = None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    bias_init = nnx.initializers.zeros if zero_bias else uniform
    return Linear(inner, outer, kernel_init=uniform, bias_init=bias_init, rngs=rngs)


def layer_norm(width: int, rngs: nnx.Rngs) -> LayerNorm:
    """LayerNorm with eps 1e-5."""
    return LayerNorm(width, epsilon=EPSILON, rngs=rngs)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Gaussian error linear unit with the exact erf, computed in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def gelu_drop(y: Float[Array, "b t d"], bias: Float[Array, " d"] | None, noise: Noise | None) -> Float[Array, "b t d"]:
    """`drop(GELU(y + bias))`."""
    if y.ndim == 3 and rows_are_fused(y.shape[-1], y.dtype):
        from xmsd_jax.adapters.fused_gelu import gelu_drop_fused

        return gelu_drop_fused(y, jnp.zeros(y.shape[-1]) if bias is None else bias, noise)
    return drop(gelu(y if bias is None else y + bias.astype(y.dtype)), noise)


def blended(x: Float[Array, "..."], weight: Float[Array, ""], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x + weight * y`, summed in float32."""
    return (x.astype(jnp.float32) + weight * y.astype(jnp.float32)).astype(x.dtype)


class Residual(NamedTuple):
    """`x + drop(y + bias)`, not yet summed: the norm that comes next sums it in the same pass."""

    x: Float[Array, "b t d"]
    y: Float[Array, "b t d"]
    bias: Float[Array, " d"]
    noise: Noise | None


class TransformerLayer(nnx.Module):
    """Pre-LN self-attention with 8 heads and a feed-forward part d/2 wide, as `nn.MultiheadAttention` computes it."""

    def __init__(self, width: int, ffn: int, rngs: nnx.Rngs) -> None:
        """Packed qkv starts Xavier-uniform with bias 0, the output's bias at 0; the rest as PyTorch's Linear."""
        self.attn_norm = layer_norm(width, rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.out = torch_linear(width, width, rngs, zero_bias=True)
        self.ffn_norm = layer_norm(width, rngs)
        self.ffn_in = torch_linear(width, ffn, rngs)
        self.ffn_out = torch_linear(ffn, width, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], real: Bool[Array, "b t"], noise: Noise | None, *, causal: bool
    ) -> Residual:
        """`real`: the positions that may be looked at; `causal`: only those up to one's own."""
        sites = [None] * 3 if noise is None else [noise.at(site) for site in range(3)]
        qkv = self.qkv.product(self.attn_norm(x))
        attended = attend(qkv, self.qkv.bias[...], real, causal=causal, noise=sites[0])
        return self.finish(x, attended, sites[1:])

    def project(self, x: Float[Array, "... d"]) -> tuple[Float[Array, "... h e"], KeyValue]:
        """Queries, and keys with values, of inputs before their norm."""
        query, key, value = jnp.split(self.qkv(self.attn_norm(x)), 3, axis=-1)
        return heads(query), KeyValue(heads(key), heads(value))

    def advance(self, x: Float[Array, "b a d"], seen: Seen) -> tuple[Residual, KeyValue]:
        """One position for each anchor: attends what `seen` allows and itself (`CausalAdapter.advance`)."""
        query, own = self.project(x)
        rolled = jax.tree.map(lambda buffer, new: buffer.at[:, :, seen.newest].set(new), seen.rolled, own)
        look = look_by_parts if x.shape[1] == 1 and has_kernels(x.dtype) else look_at_once
        attended = look(query, seen._replace(rolled=rolled))
        return self.finish(x, attended.reshape(x.shape), [None] * 2), own

    def finish(
        self, x: Float[Array, "b t d"], attended: Float[Array, "b t d"], sites: Sequence[Noise | None]
    ) -> Residual:
        """Output projection, residual, feed-forward part; its sum is left to what comes next."""
        x, normed = self.ffn_norm.after(x, self.out.product(attended), self.out.bias[...], None)
        inner = gelu_drop(self.ffn_in.product(normed), self.ffn_in.bias[...], sites[0])
        return Residual(x, self.ffn_out.product(inner), self.ffn_out.bias[...], sites[1])
