"""Losses of predicted target states, as sums over pairs that are divided last.

Every loss is a weighted sum of two means, over the pairs (t, t) and the pairs (t, t + 1). Sums and counts are kept
apart, so that padded rows and batches of different sizes weigh what their positions weigh.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.attend import rows_are_fused
from xmsd_jax.adapters.stored import taken
from xmsd_jax.adapters.tails import BlendTail, NormTail, Plain, Tail
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError

LossName = Literal["study", "next"]
COSINE_WEIGHT = 0.5
_NORM_FLOOR = 1e-8  # of each norm, as torch.nn.functional.cosine_similarity


class Sums(NamedTuple):
    """`tops` and `counts` float32[2]: summed loss and number of pairs, of the pairs (t, t) and (t, t + 1)."""

    tops: Float[Array, "2"]
    counts: Float[Array, "2"]


class Truth(NamedTuple):
    """What a prediction [b, t, d] is compared with; states and ids past the masks may be anything finite.

    Only `Objective.of_tail` takes stored states.
    """

    target: Any
    target_ids: Int32[Array, "b t"]
    same_mask: Bool[Array, "b t"]
    next_mask: Bool[Array, "b t"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Which loss, for a kind of which offset.

    "study", offset 0: `MSE + 0.5 (1 - cos)` over pairs (t, t).
    "study", offset 1: `0.5 (MSE + 0.5 (1 - cos))` over (t, t), plus `0.5 MSE` over (t, t + 1): one output is asked to
        be two states.
    "next", offset 1: `MSE + 0.5 (1 - cos) + token_weight * cross-entropy` over (t, t + 1), the token through the frozen
        head: EAGLE's recipe (Li et al. 2024, section 3.2), which regresses the next state and weighs tokens by 0.1.
    MSE is the sum of squares over positions times d.
    """

    name: LossName
    offset: Literal[0, 1]
    token_weight: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigError for "next" with a kind that predicts no next state."""
        if self.name == "next" and self.offset == 0:
            raise ConfigError("loss: next is for kinds that predict the next state (L5, B1, L5F); set it to study")

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the two means."""
        if self.name == "next":
            return 0.0, 1.0
        return (0.5, 0.5) if self.offset else (1.0, 0.0)

    def sums(self, predicted: Float[Array, "b t d"], truth: Truth, head: TokenHead) -> Sums:
        """Summed loss of a batch; a pair that neither mask keeps has no part in it, nor in its gradient."""
        return jax.tree.map(lambda x: x.sum(0), self.row_sums(predicted, truth, head))

    def row_sums(self, predicted: Float[Array, "b t d"], truth: Truth, head: TokenHead) -> Sums:
        """The same, answer by answer: [b, 2]."""
        same = following = jnp.zeros(len(predicted))
        if self.weights[0]:
            same = state_loss(predicted, truth.target, truth.same_mask, COSINE_WEIGHT)
        if self.weights[1]:
            weight = COSINE_WEIGHT if self.name == "next" else 0.0
            following = state_loss(predicted, shifted(truth.target), truth.next_mask, weight)
        if self.name == "next":
            tokens = token_loss(predicted, shifted(truth.target_ids), truth.next_mask, head)
            following = following + self.token_weight * tokens
        return Sums(jnp.stack([same, following], -1), counts(truth))

    def of_tail(
        self, tail: Tail, truth: Truth, head: TokenHead, total: Float[Array, "2"]
    ) -> tuple[Float[Array, ""], Float[Array, "2"]]:
        """The loss of a prediction that is still in its last piece, and the summed losses.

        Args:
            tail: of the adapter.
            truth: to compare with.
            head: of the target.
            total: pairs of the whole batch, of which this may be a part.
        """
        if self.name == "study" and not isinstance(tail, Plain) and rows_are_fused(tail.y.shape[-1], tail.y.dtype):
            return self._fused(tail, truth, total)
        truth = truth._replace(target=taken(truth.target))
        tops = self.sums(tail.predicted(), truth, head).tops
        return self.value(Sums(tops, total)), tops

    def _fused(
        self, tail: NormTail | BlendTail, truth: Truth, total: Float[Array, "2"]
    ) -> tuple[Float[Array, ""], Float[Array, "2"]]:
        from xmsd_jax.adapters import fused_loss  # Pallas takes 0.3 s to import

        scales = jnp.asarray(self.weights) / jnp.maximum(total, 1.0)
        masks = jnp.stack([truth.same_mask, truth.next_mask]).astype(jnp.float32)
        compared = fused_loss.Compared(truth.target, masks, scales)
        if isinstance(tail, NormTail):
            value, same = fused_loss.norm_loss_fused(*tail, compared, cosine=COSINE_WEIGHT)
            return value, jnp.stack([same.sum(), jnp.zeros(())])
        value, tops = fused_loss.blend_loss_fused(*tail, compared, cosines=(COSINE_WEIGHT, 0.0))
        return value, jnp.where(jnp.asarray(self.weights) > 0, tops.sum(0), 0.0)  # what has no weight is not summed

    def value(self, sums: Sums) -> Float[Array, ""]:
        """The loss of sums; a mean over no pair is 0."""
        means = sums.tops / jnp.maximum(sums.counts, 1.0)
        return means[..., 0] * self.weights[0] + means[..., 1] * self.weights[1]


def counts(truth: Truth) -> Float[Array, "b 2"]:
    """Pairs (t, t) and (t, t + 1) of each answer."""
    return jnp.stack([mask.sum(-1, dtype=jnp.float32) for mask in (truth.same_mask, truth.next_mask)], -1)


def state_loss(
    predicted: Float[Array, "b t d"], target: Float[Array, "b t d"], mask: Bool[Array, "b t"], cosine_weight: float
) -> Float[Array, " b"]:
    """Sum over an answer's kept positions of `|y - h|^2 / d + cosine_weight * (1 - cos(y, h))`, in float32."""
    kept = mask[..., None]
    own, true = (jnp.where(kept, x.astype(jnp.float32), 0.0) for x in (predicted, target))
    loss = jnp.square(own - true).mean(-1)
    if cosine_weight:
        norms = [jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), _NORM_FLOOR**2)) for x in (own, true)]
        loss = loss + cosine_weight * (1.0 - (own * true).sum(-1) / (norms[0] * norms[1]))
    return jnp.where(mask, loss, 0.0).sum(-1)


def token_loss(
    predicted: Float[Array, "b t d"], ids: Int32[Array, "b t"], mask: Bool[Array, "b t"], head: TokenHead
) -> Float[Array, " b"]:
    """Sum over an answer's kept positions of the cross-entropy of `ids` by the head; ids that are not real count 0."""
    kept = mask & (ids >= 0) & (ids < head.vocabulary)
    logits = head.logits(jnp.where(kept[..., None], predicted, jnp.zeros((), predicted.dtype)))
    right = jnp.take_along_axis(logits, jnp.where(kept, ids, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(kept, jax.nn.logsumexp(logits, axis=-1) - right, 0.0).sum(-1)


def shifted(x: Array) -> Array:
    """At each position what is at the next one, [b, t, ...]; the last position gets the first one's, and no mask."""
    return jnp.roll(x, -1, axis=1)
