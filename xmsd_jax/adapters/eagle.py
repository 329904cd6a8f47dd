"""L5 and B1: one causal transformer layer over one stream that predicts the NEXT target state (offset 1).

The shape follows EAGLE (Li et al. 2024) without its token input: x = LN(h) + position, one layer,
y = h + alpha * (Lin(LN(x)) - h). L5 reads the drafter's states, B1 the target's own.
"""

from abc import abstractmethod
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.attention import OutputRule
from xmsd_jax.adapters.blocks import TransformerLayer, layer_norm
from xmsd_jax.adapters.interface import POSITIONS, CausalAdapter, Facts, Seen, Sizes, Streams
from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.tails import BlendTail


class CausalTransformer(CausalAdapter):
    """What L5, B1 and L5F share: positions, the causal layer, the output rule. A kind adds how its input is made."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        """Positions start normal with std 0.02 (the study's truncation at +-2 is 100 std away)."""
        self.pos_embed = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (POSITIONS, sizes.width)))
        self.layer = TransformerLayer(sizes.width, sizes.ffn, rngs)
        self.output = OutputRule(sizes.width, rngs)

    @abstractmethod
    def stem(
        self, streams: Streams, positions: Float[Array, "t d"] | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """The layer's input, with `positions` added if they are given, and the states that the output starts from."""

    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> BlendTail:
        """See `Adapter`. Raises ValueError for more positions than there are embeddings of."""
        length = mask.shape[1]
        if length > POSITIONS:
            raise ValueError(f"an answer has at most {POSITIONS} positions, got {length}; cut it to that")
        x, hidden = self.stem(streams, self.pos_embed[...][:length])
        return self.output(self.layer(x, mask, noise, causal=True), hidden)

    def keep(self, streams: Streams, positions: Int32[Array, "b t"]) -> Any:
        """Keys and values of true positions."""
        x = self.stem(streams, None)[0]
        return self.layer.project(x + self._embedded(positions).astype(x.dtype))[1]

    def advance(
        self, streams: Streams, positions: Int32[Array, "b a"], seen: Seen
    ) -> tuple[Float[Array, "b a d"], Any]:
        """See `CausalAdapter`."""
        x, hidden = self.stem(streams, None)
        layer, own = self.layer.advance(x + self._embedded(positions).astype(x.dtype), seen)
        return self.output(layer, hidden).predicted(), own

    def _embedded(self, positions: Int32[Array, "b t"]) -> Float[Array, "b t d"]:
        """Embeddings of positions; past the last one, where an answer has ended, the last one again."""
        return self.pos_embed[...][jnp.minimum(positions, POSITIONS - 1)]


class Eagle(CausalTransformer):
    """The one-stream kinds; a subclass says which stream."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        """Add the norm of the input."""
        super().__init__(sizes, rngs)
        self.input_norm = layer_norm(sizes.width, rngs)

    def stem(
        self, streams: Streams, positions: Float[Array, "t d"] | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """`LN(h)` and h."""
        hidden = streams.drafter if self.facts.inputs == "drafter" else streams.target
        return self.input_norm(hidden, positions), hidden


class DrafterEagle(Eagle):
    """L5: reads the drafter's states alone."""

    facts = Facts(inputs="drafter", causal=True, offset=1)


class TargetEagle(Eagle):
    """B1: reads the target's own states, the baseline without a second sensor."""

    facts = Facts(inputs="target", causal=True, offset=1)
