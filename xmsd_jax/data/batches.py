"""Pairs of states to train on: which drafter state goes with which target state, and which positions count.

Index pairs (the study's) put g[t] of the drafter's own answer beside h[t]; synced pairs put s[t], the drafter's state
after the target's own text. Masks are those of SEMANTICS, "Masks and pairs".
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.data.manifest import StoreError
from xmsd_jax.data.store import Store

Inputs = Literal["drafter", "target", "both"]
Pairing = Literal["index", "synced"]
DRAFTER_FIELD = {"index": "drafter_hidden", "synced": "drafter_synced"}
LEAST_PAIRS = 5
"""Index pairs: an answer with fewer common positions counts nothing."""
_CHECKED_ROWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """States and ids of n answers, padded to t positions; states past the end of an answer are zeros.

    drafter, target: [n, t, d]; drafter is None where only the target is read. drafter_len, target_len: int32[n], where
    the states of each end (for synced pairs both are the target's). target_ids: int32[n, t]. question: int32[n], index
    of the question; sequence: [n], name of the sequence. same_mask: bool[n, t], True where (t, t) is a pair;
    next_mask: where (t, t + 1) is one too.
    """

    drafter: NDArray[Any] | None
    target: NDArray[Any]
    drafter_len: NDArray[np.int32]
    target_len: NDArray[np.int32]
    target_ids: NDArray[np.int32]
    question: NDArray[np.int32]
    sequence: NDArray[np.str_]
    same_mask: NDArray[np.bool_]
    next_mask: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of answers."""
        return len(self.target)

    @property
    def width(self) -> int:
        """Width d of the states."""
        return self.target.shape[-1]

    def take(self, rows: Any) -> "Pairs":
        """The answers that `rows` selects (indices or bool[n]), in that order."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})


def read_pairs(store: Store, *, inputs: Inputs, pairing: Pairing | None, as_stored: bool = False) -> Pairs:
    """Read a split's pairs.

    Args:
        store: of one split.
        inputs: the states that an adapter reads; "target" leaves the drafter's out.
        pairing: "index" or "synced"; None exactly where inputs is "target".
        as_stored: keep the store's dtype, half the memory of float32 where it is bfloat16.

    Raises:
        StoreError: a state within an answer is nan or inf (field and row are named), or lengths are impossible.
        ValueError: a pairing without drafter states, or drafter states without one.
    """
    if (pairing is None) != (inputs == "target"):
        raise ValueError(f"pairing says which drafter states are read, got {pairing!r} for inputs {inputs!r}")
    target_len = _lengths(store, "target_len")
    drafter_len = _lengths(store, "drafter_len") if pairing == "index" else target_len
    same, following = pair_masks(target_len, drafter_len, store.manifest.max_new_tokens, index=pairing == "index")
    names = np.asarray(store.names["sequences"], np.str_)
    return Pairs(
        drafter=None if pairing is None else _states(store, DRAFTER_FIELD[pairing], drafter_len, as_stored),
        target=_states(store, "target_hidden", target_len, as_stored),
        drafter_len=drafter_len,
        target_len=target_len,
        target_ids=np.array(store.read("target_ids")),
        question=np.array(store.read("question")),
        sequence=names[store.read("sequence")],
        same_mask=same,
        next_mask=following,
    )


def pair_masks(
    target_len: NDArray[Any], drafter_len: NDArray[Any], positions: int, *, index: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`same_mask` and `next_mask` of Pairs, bool[n, positions] each, from lengths int[n]."""
    places = np.arange(positions)
    same = places < np.minimum(target_len, drafter_len)[:, None]
    if index:
        same &= same.sum(1, keepdims=True) >= LEAST_PAIRS
    return same, same & (places + 1 < np.asarray(target_len)[:, None])


def split_by_sequence(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs]:
    """Take whole sequences out for validation: neighbouring clips share content. Returns (train, validation).

    Args:
        pairs: to be split.
        share: of the sequences, more than 0 and less than 1; at least one goes to either part.
        seed: of the choice.

    Raises:
        StoreError: there is only one sequence.
        ValueError: an impossible share.
    """
    if not 0 < share < 1:
        raise ValueError(f"share of validation sequences must lie between 0 and 1, got {share}")
    names = np.unique(pairs.sequence)
    if len(names) < 2:
        raise StoreError(
            f"validation takes whole sequences out of the training store, which has only {', '.join(names) or 'none'}: "
            "give a validation store, or extract more sequences"
        )
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    chosen = np.random.default_rng(seed).choice(names, count, replace=False)
    out = np.isin(pairs.sequence, chosen)
    return pairs.take(~out), pairs.take(out)


def _lengths(store: Store, field: str) -> NDArray[np.int32]:
    lengths = np.array(store.read(field))
    longest = store.manifest.max_new_tokens
    if ((lengths < 0) | (lengths > longest)).any():
        row = int(np.flatnonzero((lengths < 0) | (lengths > longest))[0])
        raise StoreError(f"{store.path}: row {row} of {field} must be 0..{longest}, got {lengths[row]}: extract again")
    return lengths


def _states(store: Store, field: str, lengths: NDArray[np.int32], as_stored: bool) -> NDArray[Any]:
    """States with zeros past the end, where a store may hold anything."""
    states = np.array(store.read(field), dtype=None if as_stored else np.float32)
    outside = np.arange(states.shape[1]) >= lengths[:, None]
    states[outside] = 0
    for start in range(0, len(states), _CHECKED_ROWS):  # in parts: the check needs a byte a number
        finite = np.isfinite(states[start : start + _CHECKED_ROWS]).all((1, 2))
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise StoreError(
                f"{store.path}: row {row} of {field} holds nan or inf within its {lengths[row]} positions: "
                "extract again"
            )
    return states
