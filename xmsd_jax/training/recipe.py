"""What a training run may choose: the study's recipe by default (FACTS of the original: AdamW, cosine per epoch)."""

import math
from dataclasses import dataclass
from typing import Literal

from xmsd_jax.config import ConfigError
from xmsd_jax.training.losses import LossName

Select = Literal["loss", "accepted"]
_AT_LEAST_ONE = ("epochs", "batch", "cosine_epochs", "patience", "gamma", "prefill_draft_len", "checkpoint_every")
_POSITIVE = ("learning_rate", "final_learning_rate", "clip")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an adapter is trained and which epoch of it is kept.

    epochs: at most; batch: answers a step. The learning rate falls from learning_rate to final_learning_rate along a
    cosine over cosine_epochs, epoch by epoch. weight_decay acts on all parameters; clip bounds the global norm of the
    gradient. patience: epochs without a better one after which training stops.
    loss: "study", or "next" (kinds that predict the next state), which adds token_weight times a cross-entropy.
    select: what the kept epoch is best at, on validation answers. "accepted" is tau, tokens per iteration of a walk
    with gamma drafted tokens, for a kind of phase 2, and n_free, right leading tokens of prefill_draft_len drafted
    ones, for a kind of phase 1 (equal values: the lower loss); "loss" is the lowest loss.
    seed: of initial values and dropout; order_seed: of the order of answers and the choice of validation sequences.
    checkpoint_every: epochs.
    """

    epochs: int = 50
    batch: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    cosine_epochs: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.1
    patience: int = 10
    loss: LossName = "study"
    token_weight: float = 0.1
    select: Select = "accepted"
    gamma: int = 5
    prefill_draft_len: int = 12
    seed: int = 0
    order_seed: int = 0
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that no training can have."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: must be more than 0, got {getattr(self, name)}")
        if self.final_learning_rate > self.learning_rate:
            raise ConfigError(
                f"final_learning_rate: must be at most learning_rate = {self.learning_rate}, "
                f"got {self.final_learning_rate}"
            )
        if self.weight_decay < 0 or self.token_weight < 0 or min(self.seed, self.order_seed) < 0:
            raise ConfigError(
                "weight_decay, token_weight, seed and order_seed: must be 0 or more, got "
                f"{self.weight_decay}, {self.token_weight}, {self.seed} and {self.order_seed}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: must be at least 0 and less than 1, got {self.dropout}")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, the first of which is 0; after cosine_epochs it stays at its last value."""
        turn = math.cos(math.pi * min(epoch / self.cosine_epochs, 1.0))
        return self.final_learning_rate + 0.5 * (self.learning_rate - self.final_learning_rate) * (1.0 + turn)
