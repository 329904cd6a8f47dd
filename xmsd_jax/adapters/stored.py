"""States of a batch that are left where they lie: in a split on the device. Row kernels read them there.

A batch of 64 answers of 50 positions of 4,096 numbers in bfloat16 takes 19 us to copy out on an H100, a stream: more
than one of L1's matrix products.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int32


class Stored(NamedTuple):
    """States [b, t, d] of some answers of a split [n, t, d], by their rows; they need no gradient."""

    split: Any
    rows: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """(b, t, d)."""
        return (self.rows.shape[0], *self.split.shape[1:])

    @property
    def dtype(self) -> Any:
        """Of the split."""
        return self.split.dtype


States = Float[Array, "b t d"] | Stored


def take(split: Float[Array, "n t d"], rows: Int32[Array, " b"]) -> Float[Array, "b t d"]:
    """Copies of these rows."""
    return split[rows]


def taken(states: Any) -> Any:
    """The states as an array; None stays."""
    return take(*states) if isinstance(states, Stored) else states
