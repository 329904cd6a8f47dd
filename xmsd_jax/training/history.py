"""What each epoch came to, which one is kept, and when to stop. Plain numbers: no arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xmsd_jax.training.recipe import Select


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, the first of which is 1. `accepted`: tau or n_free on the validation answers.

    `seconds` with validation; `answers_per_second` in training alone.
    """

    epoch: int
    learning_rate: float
    training_loss: float
    validation_loss: float
    accepted: float
    seconds: float
    answers_per_second: float = 0.0


def chosen(epochs: Sequence[Epoch], select: Select) -> Epoch:
    """The epoch to keep: the lowest validation loss, or the most accepted tokens; the earliest of equals.

    Equal `accepted` is decided by the loss: n_free and tau stand still at first, while the loss already falls.
    """
    if select == "loss":
        return min(epochs, key=lambda e: e.validation_loss)
    return max(epochs, key=lambda e: (e.accepted, -e.validation_loss))


def is_stale(epochs: Sequence[Epoch], select: Select, patience: int) -> bool:
    """Whether the last `patience` epochs brought no better one."""
    return bool(epochs) and epochs[-1].epoch - chosen(epochs, select).epoch >= patience


def columns(epochs: Sequence[Epoch], accepted: str) -> dict[str, list[Any]]:
    """The epochs as lists of equal length; the accepted tokens under their own name, "tau" or "n_free"."""
    return {name: [getattr(e, field) for e in epochs] for name, field in _fields(accepted).items()}


def rows_of(lists: Mapping[str, Sequence[Any]], accepted: str) -> list[Epoch]:
    """The epochs that `columns` made lists of. Raises KeyError, ValueError where the lists do not fit."""
    fields = _fields(accepted)
    parts = zip(*(lists[name] for name in fields), strict=True)
    return [Epoch(**dict(zip(fields.values(), values, strict=True))) for values in parts]


def _fields(accepted: str) -> dict[str, str]:
    """List -> field of Epoch."""
    return {
        "epochs": "epoch",
        "learning_rate": "learning_rate",
        "training_loss": "training_loss",
        "validation_loss": "validation_loss",
        f"validation_{accepted}": "accepted",
        "seconds": "seconds",
        "answers_per_second": "answers_per_second",
    }
