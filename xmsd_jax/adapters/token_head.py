"""The target's frozen output head as an adapter's last step: states in, token ids out."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


class TokenHead(NamedTuple):
    """`weight` [v, d] over the padded vocabulary; ids from `vocabulary` on are padding or placeholders, never drafted.

    A pytree: `vocabulary` is a traced scalar, so that one compiled program serves every head of a shape.
    """

    weight: Float[Array, "v d"]
    vocabulary: Int32[Array, ""]

    @classmethod
    def of(cls, weight: Float[Array, "v d"], vocabulary: int) -> "TokenHead":
        """Raise ValueError unless 0 < vocabulary <= v."""
        if not 0 < vocabulary <= weight.shape[0]:
            raise ValueError(f"the real vocabulary lies within the head's {weight.shape[0]} rows, got {vocabulary}")
        return cls(weight, jnp.asarray(vocabulary, jnp.int32))

    def logits(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Logits with -inf at ids that are not real."""
        weight = self.weight.astype(hidden.dtype)
        scores = jnp.einsum("...d,vd->...v", hidden, weight, preferred_element_type=jnp.float32)
        real = jnp.arange(self.weight.shape[0], dtype=jnp.int32) < self.vocabulary
        return jnp.where(real, scores, -jnp.inf)

    def ids(self, hidden: Float[Array, "... d"]) -> Int32[Array, "..."]:
        """Most likely real id of each state."""
        return jnp.argmax(self.logits(hidden), axis=-1).astype(jnp.int32)

    def ids_and_margins(self, hidden: Float[Array, "... d"]) -> tuple[Int32[Array, "..."], Float[Array, "..."]]:
        """Ids, and by how much each leads its runner-up: near 0, another rounding may choose otherwise."""
        scores = self.logits(hidden)
        ids = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        chosen = jnp.arange(scores.shape[-1], dtype=jnp.int32) == ids[..., None]
        runner_up = jnp.where(chosen, -jnp.inf, scores).max(axis=-1)
        return ids, scores.max(axis=-1) - runner_up
