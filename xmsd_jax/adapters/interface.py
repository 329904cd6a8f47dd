"""What an adapter is: facts that it declares, arrays that it reads, and how a causal one is continued.

Index convention: `drafter[t]` and `target[t]` are the states at generated position t, and `h[t]` EMITS token t. The
output of an adapter at position t is a predicted target state: that of position t + `offset`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.noise import Noise
from xmsd_jax.config import ConfigError

Inputs = Literal["drafter", "target", "both"]
Pairing = Literal["index", "synced"]
"""Whose drafter states go with target position t: g[t] of the drafter's own answer, or s[t] after the target's text."""

HEADS = 8
POSITIONS = 512
ALPHA = 0.1
EPSILON = 1e-5


class Streams(NamedTuple):
    """States by generated position, [b, t, d] each; None for a stream that the adapter does not read."""

    drafter: Any = None
    target: Any = None


class Seen(NamedTuple):
    """What a continued position may look back at.

    `kept`: what `CausalAdapter.keep` made of true positions, [b, t, ...]; `kept_mask` bool[b, a, t] says which of them
    anchor a may see. `rolled`: the same of positions that were continued since, [b, a, g, ...], slots `0..newest`.
    """

    kept: Any
    kept_mask: Bool[Array, "b a t"]
    rolled: Any
    newest: Int32[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an adapter reads, whether position t depends on positions <= t alone, and which state it predicts at t."""

    inputs: Inputs
    causal: bool
    offset: Literal[0, 1]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Inner sizes at width d: bottleneck d/16, wide d/4, FFN d/2; at 4096 those of the study."""

    width: int

    def __post_init__(self) -> None:
        """Raise ConfigError for a width that cannot be cut into 16 parts."""
        if self.width < 16 or self.width % 16:
            raise ConfigError(f"width: must be a positive multiple of 16 (bottleneck d/16, 8 heads), got {self.width}")

    @property
    def bottleneck(self) -> int:
        """Inner width of L1 and L2."""
        return self.width // 16

    @property
    def wide(self) -> int:
        """Inner width of L3."""
        return self.width // 4

    @property
    def ffn(self) -> int:
        """Inner width of the attention adapters' feed-forward part."""
        return self.width // 2


class Adapter(nnx.Module, ABC):
    """Predicts target states. Modules hold Params only; dropout comes in with the call."""

    facts: ClassVar[Facts]
    reads_stored: ClassVar[bool] = False
    """Whether `tail` takes stored states (`xmsd_jax.adapters.stored`), not arrays alone."""

    @abstractmethod
    def tail(self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None) -> Any:
        """All up to the last piece, `xmsd_jax.adapters.tails.Tail`; arguments as of a call."""

    def __call__(
        self, streams: Streams, mask: Bool[Array, "b t"], *, noise: Noise | None = None
    ) -> Float[Array, "b t d"]:
        """Predicted states: at position t that of target position t + `facts.offset`.

        Args:
            streams: the states that `facts.inputs` names.
            mask: True where a position is real; the others must not change the real ones.
            noise: dropout, in training.

        Computed in the streams' dtype, whatever the parameters are kept in.
        """
        return self.tail(streams, mask, noise=noise).predicted()


class CausalAdapter(Adapter):
    """An adapter of offset 1 that can go on from its own predictions, one position after the other."""

    @abstractmethod
    def keep(self, streams: Streams, positions: Int32[Array, "b t"]) -> Any:
        """What later positions read of these ones (keys and values): a pytree of [b, t, ...]."""

    @abstractmethod
    def advance(
        self, streams: Streams, positions: Int32[Array, "b a"], seen: Seen
    ) -> tuple[Float[Array, "b a d"], Any]:
        """Predict the state after each of `positions`; `streams` [b, a, d] hold the states at them.

        Slot `seen.newest` of `seen.rolled` is the position's own: it is filled by the pytree [b, a, ...] that is
        returned beside the prediction.
        """
