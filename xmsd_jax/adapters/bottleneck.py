"""L1, L2, L3: each position on its own, g[t] -> h[t] (offset 0), no look at other positions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.blocks import drop, gelu, kaiming_normal, layer_norm, split_key
from xmsd_jax.adapters.interface import ALPHA, Adapter, Facts, Sizes, Streams

PER_POSITION = Facts(inputs="drafter", causal=True, offset=0)


class BottleneckBlock(nnx.Module):
    """`x + alpha * Up(Drop(GELU(Down(LN(x)))))`, d -> d/16 -> d, no biases; Up starts at zero."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs) -> None:
        """Down starts Kaiming-normal with gain 1."""
        self.norm = layer_norm(width, rngs)
        self.down = nnx.Linear(width, inner, use_bias=False, kernel_init=kaiming_normal(1.0), rngs=rngs)
        self.up = nnx.Linear(inner, width, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.alpha = nnx.Param(jnp.asarray(ALPHA, jnp.float32))

    def __call__(self, x: Float[Array, "b t d"], dropout: float, key: jax.Array | None) -> Float[Array, "b t d"]:
        """The block."""
        return x + self.alpha[...] * self.up(drop(gelu(self.down(self.norm(x))), dropout, key))


class Bottleneck(Adapter):
    """L1 (one block) and L2 (three blocks), then one LayerNorm: so neither starts as the identity."""

    facts = PER_POSITION

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs, *, blocks: int) -> None:
        """Make `blocks` blocks."""
        self.blocks = nnx.List([BottleneckBlock(sizes.width, sizes.bottleneck, rngs) for _ in range(blocks)])
        self.final_norm = layer_norm(sizes.width, rngs)

    def __call__(
        self, streams: Streams, mask: Bool[Array, "b t"], *, dropout: float = 0.0, key: jax.Array | None = None
    ) -> Float[Array, "b t d"]:
        """See `Adapter`."""
        x = streams.drafter
        for block, own in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
            x = block(x, dropout, own)
        return self.final_norm(x)


class WideBlock(nnx.Module):
    """`x + alpha * [Lin d->d/4, LN, GELU, Drop, Lin d/4->d, Drop](x)`, no biases; the second Lin starts at zero."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs) -> None:
        """Down starts Kaiming-normal with gain sqrt(2)."""
        self.down = nnx.Linear(width, inner, use_bias=False, kernel_init=kaiming_normal(2**0.5), rngs=rngs)
        self.norm = layer_norm(inner, rngs)
        self.up = nnx.Linear(inner, width, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.alpha = nnx.Param(jnp.asarray(ALPHA, jnp.float32))

    def __call__(self, x: Float[Array, "b t d"], dropout: float, key: jax.Array | None) -> Float[Array, "b t d"]:
        """The block."""
        inner, outer = split_key(key, 2)
        x_wide = drop(gelu(self.norm(self.down(x))), dropout, inner)
        return x + self.alpha[...] * drop(self.up(x_wide), dropout, outer)


class WideBottleneck(Adapter):
    """L3: LayerNorm, n wide blocks, LayerNorm. The study's text says n = 2; what it trained has n = 3."""

    facts = PER_POSITION

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs, *, blocks: int) -> None:
        """Make `blocks` blocks."""
        self.input_norm = layer_norm(sizes.width, rngs)
        self.blocks = nnx.List([WideBlock(sizes.width, sizes.wide, rngs) for _ in range(blocks)])
        self.final_norm = layer_norm(sizes.width, rngs)

    def __call__(
        self, streams: Streams, mask: Bool[Array, "b t"], *, dropout: float = 0.0, key: jax.Array | None = None
    ) -> Float[Array, "b t d"]:
        """See `Adapter`."""
        x = self.input_norm(streams.drafter)
        for block, own in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
            x = block(x, dropout, own)
        return self.final_norm(x)
