"""L1, L2, L3: each position on its own, g[t] -> h[t] (offset 0), no look at other positions."""

from typing import Any, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.blocks import Linear, blended, gelu_drop, kaiming_normal, layer_norm, unit
from xmsd_jax.adapters.interface import ALPHA, Adapter, Facts, Sizes, Streams
from xmsd_jax.adapters.noise import Noise, drop
from xmsd_jax.adapters.tails import NormTail

PER_POSITION = Facts(inputs="drafter", causal=True, offset=0)


class BottleneckBlock(nnx.Module):
    """`x + alpha * Up(Drop(GELU(Down(LN(x)))))`, d -> d/16 -> d, no biases; Up starts at zero."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs) -> None:
        """Down starts Kaiming-normal with gain 1."""
        self.norm = layer_norm(width, rngs)
        self.down = Linear(width, inner, use_bias=False, kernel_init=kaiming_normal(1.0), rngs=rngs)
        self.up = Linear(inner, width, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.alpha = nnx.Param(jnp.asarray(ALPHA, jnp.float32))

    def inner(self, unit: Float[Array, "b t d"], noise: Noise | None) -> Float[Array, "b t d"]:
        """What is added to x, from `(x - mean) / std`.

        The norm's scale and shift are moved into Down, and alpha to the narrow side: there they cost next to nothing.
        """
        down, gain, shift = self.down.kernel[...], self.norm.scale[...], self.norm.bias[...]
        y = unit @ (gain[:, None] * down.astype(jnp.float32)).astype(unit.dtype)
        narrow = gelu_drop(y, shift @ down.astype(jnp.float32), noise)
        return self.up((self.alpha[...] * narrow.astype(jnp.float32)).astype(narrow.dtype))


class Bottleneck(Adapter):
    """L1 (one block) and L2 (three blocks), then one LayerNorm: so neither starts as the identity."""

    facts = PER_POSITION
    reads_stored = True

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs, *, blocks: int) -> None:
        """Make `blocks` blocks."""
        self.blocks = nnx.List([BottleneckBlock(sizes.width, sizes.bottleneck, rngs) for _ in range(blocks)])
        self.final_norm = layer_norm(sizes.width, rngs)

    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> NormTail:
        """See `Adapter`."""
        x, y = streams.drafter, cast(Any, None)
        for number, block in enumerate(self.blocks):
            x, before = unit(x, y)
            y = block.inner(before, None if noise is None else noise.at(number))
        return NormTail(x, y, None, self.final_norm.scale[...], self.final_norm.bias[...], None)


class WideBlock(nnx.Module):
    """`x + alpha * [Lin d->d/4, LN, GELU, Drop, Lin d/4->d, Drop](x)`, no biases; the second Lin starts at zero."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs) -> None:
        """Down starts Kaiming-normal with gain sqrt(2)."""
        self.down = Linear(width, inner, use_bias=False, kernel_init=kaiming_normal(2**0.5), rngs=rngs)
        self.norm = layer_norm(inner, rngs)
        self.up = Linear(inner, width, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.alpha = nnx.Param(jnp.asarray(ALPHA, jnp.float32))

    def inner(self, x: Float[Array, "b t d"], noise: Noise | None) -> Float[Array, "b t d"]:
        """What is added to x, before alpha and the outer dropout."""
        return self.up(gelu_drop(self.norm(self.down(x)), None, noise))


class WideBottleneck(Adapter):
    """L3: LayerNorm, n wide blocks, LayerNorm. The study's text says n = 2; what it trained has n = 3."""

    facts = PER_POSITION
    reads_stored = True

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs, *, blocks: int) -> None:
        """Make `blocks` blocks."""
        self.input_norm = layer_norm(sizes.width, rngs)
        self.blocks = nnx.List([WideBlock(sizes.width, sizes.wide, rngs) for _ in range(blocks)])
        self.final_norm = layer_norm(sizes.width, rngs)

    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> NormTail:
        """See `Adapter`."""
        x, y, alpha, outer = self.input_norm(streams.drafter), cast(Any, None), cast(Any, None), None
        for number, block in enumerate(self.blocks):
            x = x if y is None else blended(x, alpha, drop(y, outer))
            inner, outer = (None, None) if noise is None else (noise.at(2 * number), noise.at(2 * number + 1))
            y, alpha = block.inner(x, inner), block.alpha[...]
        return NormTail(x, y, alpha, self.final_norm.scale[...], self.final_norm.bias[...], outer)
