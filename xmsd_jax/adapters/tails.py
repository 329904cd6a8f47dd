"""The last piece of an adapter, after its last matrix product: kept apart, so that training fuses it with the loss."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmsd_jax.adapters.blocks import unit_rows
from xmsd_jax.adapters.noise import Noise, drop


class Plain(NamedTuple):
    """The prediction itself."""

    states: Float[Array, "b t d"]

    def predicted(self) -> Float[Array, "b t d"]:
        """The states."""
        return self.states


class NormTail(NamedTuple):
    """`LN(x + alpha * drop(y)) * gain + shift`; without alpha the plain sum."""

    x: Float[Array, "b t d"]
    y: Float[Array, "b t d"]
    alpha: Float[Array, ""] | None
    gain: Float[Array, " d"]
    shift: Float[Array, " d"]
    noise: Noise | None

    def predicted(self) -> Float[Array, "b t d"]:
        """The predicted states, summed in float32."""
        added = drop(self.y, self.noise).astype(jnp.float32)
        total = self.x.astype(jnp.float32) + (added if self.alpha is None else self.alpha * added)
        return (unit_rows(total) * self.gain + self.shift).astype(self.x.dtype)


class BlendTail(NamedTuple):
    """`hidden + alpha * (y + bias - hidden)`."""

    hidden: Float[Array, "b t d"]
    y: Float[Array, "b t d"]
    bias: Float[Array, " d"]
    alpha: Float[Array, ""]

    def predicted(self) -> Float[Array, "b t d"]:
        """The predicted states, summed in float32."""
        hidden = self.hidden.astype(jnp.float32)
        return (hidden + self.alpha * (self.y.astype(jnp.float32) + self.bias - hidden)).astype(self.hidden.dtype)


Tail = Plain | NormTail | BlendTail
