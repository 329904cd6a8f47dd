"""Dropout whose masks are computed where they are used, by a hash of the place, and never stored.

A mask depends on the answer's seed, the place in the network and the place in the answer alone. So it is the same on
one device and on many, in a fused kernel and outside, forward and backward; and it costs about a dozen integer
operations an element instead of memory traffic.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

_GOLDEN = 0x9E3779B9


class Noise(NamedTuple):
    """Dropout of one batch: the share that is dropped, and a seed for each answer."""

    rate: Float[Array, ""]
    seeds: UInt32[Array, " b"]

    @classmethod
    def of(cls, rate: Float[Array, ""], seed: Int32[Array, ""], step: Int32[Array, ""], slots: Int32[Array, " b"]):
        """That of a step of a run: `slots` are the answers' places in the whole batch, on whatever device they are."""
        run = mixed(mixed(seed.astype(jnp.uint32)) ^ step.astype(jnp.uint32) * jnp.uint32(_GOLDEN))
        return cls(rate, mixed(run ^ slots.astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)))

    def at(self, site: int) -> "Noise":
        """Other seeds for another place in the network."""
        return self._replace(seeds=mixed(self.seeds + jnp.uint32((site + 1) * _GOLDEN & 0xFFFFFFFF)))


def drop(x: Float[Array, "b ..."], noise: Noise | None) -> Float[Array, "b ..."]:
    """Inverted dropout; `x` itself without noise."""
    if noise is None:
        return x
    inner = jnp.zeros(x.shape[1:], jnp.uint32)
    stride = 1
    for axis in reversed(range(inner.ndim)):
        inner += jax.lax.broadcasted_iota(jnp.uint32, inner.shape, axis) * jnp.uint32(stride)
        stride *= inner.shape[axis]
    seeds = noise.seeds.reshape(-1, *[1] * inner.ndim)
    return jnp.where(
        kept(inner[None], seeds, noise.rate), x * scale(noise.rate).astype(x.dtype), jnp.zeros((), x.dtype)
    )


def kept(place: UInt32[Array, "..."], seed: UInt32[Array, "..."], rate: Float[Array, ""]) -> Bool[Array, "..."]:
    """Which places of an answer stay; also inside kernels."""
    bits = mixed(place * jnp.uint32(_GOLDEN) ^ seed)
    return bits >= (rate * 4294967296.0).astype(jnp.uint32)


def scale(rate: Float[Array, ""]) -> Float[Array, ""]:
    """What the kept ones are multiplied by."""
    return 1.0 / (1.0 - rate)


def mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32 bits of which each output bit depends on each input bit.

    Multiply-xorshift with the constants that C. Wellons' search found least biased ("lowbias32", 2018, public domain).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
