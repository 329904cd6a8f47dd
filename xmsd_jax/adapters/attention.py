"""L4: one transformer layer over the drafter's states, bidirectional, without positions (offset 0)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.blocks import Linear, Residual, TransformerLayer, layer_norm
from xmsd_jax.adapters.interface import ALPHA, Adapter, Facts, Sizes, Streams
from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.tails import BlendTail


def identity_kernel(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, _sharding: object = None) -> jax.Array:
    """A kernel [d, d] that starts as the identity."""
    return jnp.eye(*shape, dtype=dtype)


class OutputRule(nnx.Module):
    """`y = h + alpha * (Lin(LN(x)) - h)`: Lin starts as the identity, alpha at 0.1."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Make norm, projection and scale."""
        self.norm = layer_norm(width, rngs)
        self.proj = Linear(width, width, kernel_init=identity_kernel, rngs=rngs)
        self.alpha = nnx.Param(jnp.asarray(ALPHA, jnp.float32))

    def __call__(self, layer: Residual, hidden: Float[Array, "b t d"]) -> BlendTail:
        """`layer`: what the layer gives; `hidden`: the states that the output starts from."""
        y = self.proj.product(self.norm.after(*layer)[1])
        return BlendTail(hidden, y, self.proj.bias[...], self.alpha[...])


class Attention(Adapter):
    """L4. It sees all of its input, so in phase 1 it is given exactly the states it may know, offline too."""

    facts = Facts(inputs="drafter", causal=False, offset=0)

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        """Make the layer and the output rule."""
        self.layer = TransformerLayer(sizes.width, sizes.ffn, rngs)
        self.output = OutputRule(sizes.width, rngs)

    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> BlendTail:
        """See `Adapter`; positions outside `mask` are not looked at."""
        x = streams.drafter
        return self.output(self.layer(x, mask, noise, causal=False), x)
