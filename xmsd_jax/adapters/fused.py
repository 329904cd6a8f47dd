"""L5F: L5's layer over both streams, mixed by a learned gate; the output starts from the target's state."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xmsd_jax.adapters.blocks import Linear, layer_norm, torch_linear
from xmsd_jax.adapters.eagle import CausalTransformer
from xmsd_jax.adapters.interface import Facts, Sizes, Streams


class FusedEagle(CausalTransformer):
    """`c = [g; h]`, `w = sigmoid(W c)`, `x = LN(w * g + (1 - w) * h + P c)`, then as `CausalTransformer`."""

    facts = Facts(inputs="both", causal=True, offset=1)

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        """P starts Xavier-uniform with bias 0, W as PyTorch's Linear."""
        super().__init__(sizes, rngs)
        self.gate = torch_linear(2 * sizes.width, sizes.width, rngs)
        self.fusion = Linear(2 * sizes.width, sizes.width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.fusion_norm = layer_norm(sizes.width, rngs)

    def stem(
        self, streams: Streams, positions: Float[Array, "t d"] | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """The fused states and h."""
        drafter, target = streams
        both = jnp.concatenate([drafter, target], axis=-1)
        gate = jax.nn.sigmoid(self.gate(both))
        return self.fusion_norm(gate * drafter + (1 - gate) * target + self.fusion(both), positions), target
