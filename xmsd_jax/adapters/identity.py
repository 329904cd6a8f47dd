"""The control rows: a state taken as it is. What an adapter adds is what it does better than these."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.interface import Adapter, CausalAdapter, Facts, Seen, Streams
from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.tails import Plain


class DrafterIdentity(Adapter):
    """`identity(drafter, 0)`: g[t] taken as h[t]."""

    facts = Facts(inputs="drafter", causal=True, offset=0)

    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> Plain:
        """The drafter's states."""
        return Plain(streams.drafter)


class TargetIdentity(CausalAdapter):
    """`identity(target, 1)`: h[t] taken as h[t+1]; rolled out, it repeats the last token."""

    facts = Facts(inputs="target", causal=True, offset=1)

    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> Plain:
        """The target's states."""
        return Plain(streams.target)

    def keep(self, streams: Streams, positions: Int32[Array, "b t"]) -> Any:
        """Nothing."""
        return ()

    def advance(
        self, streams: Streams, positions: Int32[Array, "b a"], seen: Seen
    ) -> tuple[Float[Array, "b a d"], Any]:
        """The state itself."""
        return streams.target, ()
