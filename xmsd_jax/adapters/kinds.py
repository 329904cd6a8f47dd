"""The table of adapters: name -> architecture. A new one is a class and a line here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from flax import nnx

from xmsd_jax.adapters.attention import Attention
from xmsd_jax.adapters.bottleneck import Bottleneck, WideBottleneck
from xmsd_jax.adapters.eagle import DrafterEagle, TargetEagle
from xmsd_jax.adapters.fused import FusedEagle
from xmsd_jax.adapters.identity import DrafterIdentity, TargetIdentity
from xmsd_jax.adapters.interface import Adapter, Facts, Sizes
from xmsd_jax.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One architecture: its facts, how it is made, and a sentence about it. `blocks` is what a user may change."""

    facts: Facts
    build: Callable[[Sizes, nnx.Rngs, int], Adapter]
    purpose: str
    blocks: int | None = None


KINDS: Mapping[str, Kind] = {
    "L1": Kind(
        facts=Bottleneck.facts,
        build=lambda sizes, rngs, n: Bottleneck(sizes, rngs, blocks=n),
        purpose="one bottleneck block",
        blocks=1,
    ),
    "L2": Kind(
        facts=Bottleneck.facts,
        build=lambda sizes, rngs, n: Bottleneck(sizes, rngs, blocks=n),
        purpose="three bottleneck blocks",
        blocks=3,
    ),
    "L3": Kind(
        facts=WideBottleneck.facts,
        build=lambda sizes, rngs, n: WideBottleneck(sizes, rngs, blocks=n),
        purpose="wide bottleneck blocks (2; the study trained 3)",
        blocks=2,
    ),
    "L4": Kind(
        facts=Attention.facts,
        build=lambda sizes, rngs, n: Attention(sizes, rngs),
        purpose="one bidirectional transformer layer",
    ),
    "L5": Kind(
        facts=DrafterEagle.facts,
        build=lambda sizes, rngs, n: DrafterEagle(sizes, rngs),
        purpose="causal layer over the drafter's states",
    ),
    "B1": Kind(
        facts=TargetEagle.facts,
        build=lambda sizes, rngs, n: TargetEagle(sizes, rngs),
        purpose="the same layer over the target's own states",
    ),
    "L5F": Kind(
        facts=FusedEagle.facts,
        build=lambda sizes, rngs, n: FusedEagle(sizes, rngs),
        purpose="the same layer over both, mixed by a gate",
    ),
}
CONTROLS: Mapping[str, type[Adapter]] = {
    "identity(drafter, 0)": DrafterIdentity,
    "identity(target, 1)": TargetIdentity,
}


def kind_of(name: str) -> Kind:
    """The kind of that name. Raises ConfigError naming all of them."""
    if name not in KINDS:
        raise ConfigError(f"adapter kind: {name!r}: no such kind; known: {', '.join(KINDS)}")
    return KINDS[name]


def make(name: str, width: int, *, seed: int = 0, blocks: int | None = None) -> Adapter:
    """A freshly initialised adapter of a kind at a width.

    Args:
        name: L1, L2, L3, L4, L5, B1, L5F.
        width: d of the states.
        seed: of the initialisation.
        blocks: of L1, L2, L3; None takes the kind's own number.

    Raises:
        ConfigError: an unknown kind, a width that does not fit, or blocks where the kind has none.
    """
    kind = kind_of(name)
    if blocks is not None and (kind.blocks is None or blocks < 1):
        raise ConfigError(f"blocks: {name} takes {'at least 1' if kind.blocks else 'none'}, got {blocks}")
    return kind.build(Sizes(width=width), nnx.Rngs(params=seed), blocks or kind.blocks or 0)


def outline(name: str, width: int, *, blocks: int | None = None) -> Adapter:
    """What `make` makes, with shapes in place of values: for counting, and to be filled from a file."""
    return nnx.eval_shape(lambda: make(name, width, blocks=blocks))


def parameters(name: str, width: int, *, blocks: int | None = None) -> int:
    """Number of parameters, without allocating any."""
    leaves = jax.tree.leaves(nnx.state(outline(name, width, blocks=blocks), nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in leaves)
