"""Pairs of states to train on: which drafter state goes with which target state, and which positions count.

Index pairs (the study's) put g[t] of the drafter's own answer beside h[t]; synced pairs put s[t], the drafter's state
after the target's own text. Masks are those of SEMANTICS, "Masks and pairs".
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.manifest import StoreError
from xmsd_jax.data.store import Store

Inputs = Literal["drafter", "target", "both"]
Pairing = Literal["index", "synced"]
DRAFTER_FIELD = {"index": "drafter_hidden", "synced": "drafter_synced"}
LENGTH_FIELD = {"drafter_hidden": "drafter_len", "drafter_synced": "target_len", "target_hidden": "target_len"}
"""Field of states -> the field that says where its answers end."""
LEAST_PAIRS = 5
"""Index pairs: an answer with fewer common positions counts nothing."""
_BITS = {2: np.uint16, 4: np.uint32}
Answers = TypeVar("Answers", bound="_Answers")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """What Index and Pairs share."""

    row: NDArray[np.int32]
    drafter_len: NDArray[np.int32]
    target_len: NDArray[np.int32]
    target_ids: NDArray[np.int32]
    question: NDArray[np.int32]
    sequence: NDArray[np.str_]
    same_mask: NDArray[np.bool_]
    next_mask: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of answers."""
        return len(self.row)

    def take(self, rows: Any) -> Self:
        """The answers that `rows` selects (indices or bool[n]), in that order."""
        return replace(self, **{name: value[rows] for name, value in _values(self).items() if value is not None})


@dataclass(frozen=True, kw_only=True, eq=False)
class Index(_Answers):
    """Everything about n answers but their states, which `xmsd_jax.data.stream` reads when they are needed.

    row: int32[n], the row of the store that each answer came from. drafter_len, target_len: int32[n], where the states
    of each end (for synced pairs both are the target's). target_ids: int32[n, t]. question: int32[n], index of the
    question; sequence: [n], name of the sequence. same_mask: bool[n, t], True where (t, t) is a pair; next_mask: where
    (t, t + 1) is one too.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs(_Answers):
    """States of n answers, padded to t positions, with all that Index says of them; past the end of an answer zeros.

    drafter, target: [n, t, d]; drafter is None where only the target is read.
    """

    drafter: NDArray[Any] | None
    target: NDArray[Any]

    @property
    def width(self) -> int:
        """Width d of the states."""
        return self.target.shape[-1]


def read_index(store: Store, *, inputs: Inputs, pairing: Pairing | None) -> Index:
    """Read all of a split's pairs but their states.

    Args:
        store: of one split.
        inputs: the states that an adapter reads; "target" leaves the drafter's out.
        pairing: "index" or "synced"; None exactly where inputs is "target".

    Raises:
        StoreError: lengths are impossible.
        ValueError: a pairing without drafter states, or drafter states without one.
    """
    if (pairing is None) != (inputs == "target"):
        raise ValueError(f"pairing says which drafter states are read, got {pairing!r} for inputs {inputs!r}")
    target_len = answer_lengths(store, "target_hidden")
    drafter_len = answer_lengths(store, state_fields(pairing).get("drafter", "target_hidden"))
    same, following = pair_masks(target_len, drafter_len, store.manifest.max_new_tokens, index=pairing == "index")
    names = np.asarray(store.names["sequences"], np.str_)
    return Index(
        row=np.arange(store.rows, dtype=np.int32),
        drafter_len=drafter_len,
        target_len=target_len,
        target_ids=np.array(store.read("target_ids")),
        question=np.array(store.read("question")),
        sequence=names[store.read("sequence")],
        same_mask=same,
        next_mask=following,
    )


def read_pairs(store: Store, *, inputs: Inputs, pairing: Pairing | None, as_stored: bool = False) -> Pairs:
    """Read a split's pairs, states and all.

    Args:
        store: of one split.
        inputs: as `read_index` takes it.
        pairing: as `read_index` takes it.
        as_stored: keep the store's dtype, half the memory of float32 where it is bfloat16.

    Raises:
        StoreError: a state within an answer is nan or inf (field and row are named), or lengths are impossible.
        ValueError: a pairing without drafter states, or drafter states without one.
    """
    index = read_index(store, inputs=inputs, pairing=pairing)
    states = {name: _states(store, field, as_stored) for name, field in state_fields(pairing).items()}
    return Pairs(drafter=states.get("drafter"), target=states["target"], **_values(index))


def state_fields(pairing: Pairing | None) -> dict[str, str]:
    """The store's field behind "target" and, where there is a pairing, "drafter" of Pairs."""
    target = {"target": "target_hidden"}
    return target if pairing is None else {"drafter": DRAFTER_FIELD[pairing], **target}


def state_bytes(store: Store, pairing: Pairing | None, rows: int | None = None) -> int:
    """Bytes that the states of Pairs take in the store's dtype: rows * t * d * itemsize, once or twice.

    Args:
        store: of one split.
        pairing: as `read_index` takes it; None leaves the drafter's states out.
        rows: of a part of the split; all of it by default.
    """
    fields_read = state_fields(pairing).values()
    return (store.rows if rows is None else rows) * sum(layout.row_bytes(store.manifest, name) for name in fields_read)


def pair_masks(
    target_len: NDArray[Any], drafter_len: NDArray[Any], positions: int, *, index: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`same_mask` and `next_mask` of Pairs, bool[n, positions] each, from lengths int[n]."""
    places = np.arange(positions)
    same = places < np.minimum(target_len, drafter_len)[:, None]
    if index:
        same &= same.sum(1, keepdims=True) >= LEAST_PAIRS
    return same, same & (places + 1 < np.asarray(target_len)[:, None])


def split_by_sequence(pairs: Answers, share: float, seed: int) -> tuple[Answers, Answers]:
    """Take whole sequences out for validation: neighbouring clips share content. Returns (train, validation).

    Args:
        pairs: to be split, Pairs or an Index.
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


def answer_lengths(store: Store, field: str) -> NDArray[np.int32]:
    """Where the answer ends in every row of a field of states, int32[rows].

    Raises:
        StoreError: a length that no answer can have.
    """
    name = LENGTH_FIELD[field]
    lengths = np.array(store.read(name))
    longest = store.manifest.max_new_tokens
    if ((lengths < 0) | (lengths > longest)).any():
        row = int(np.flatnonzero((lengths < 0) | (lengths > longest))[0])
        raise StoreError(f"{store.path}: row {row} of {name} must be 0..{longest}, got {lengths[row]}: extract again")
    return lengths


def keep_answers(states: NDArray[Any], lengths: NDArray[np.int32], rows: NDArray[Any], source: Path) -> None:
    """Set the states past the end of each answer to zero, in place: a store may hold anything there.

    Args:
        states: [n, t, d], float32 or bfloat16, contiguous.
        lengths: int[n], positions of each answer.
        rows: int[n], the store's row of each, for the error.
        source: path of the field, for the error.

    Raises:
        StoreError: a state within an answer is nan or inf.
    """
    bits = states.view(_BITS[states.itemsize])
    for one, length in zip(bits, lengths, strict=True):
        one[length:] = 0
    finite = _finite(bits.reshape(len(bits), -1))
    if not finite.all():
        place = int(np.flatnonzero(~finite)[0])
        raise StoreError(
            f"{source.parent}: row {rows[place]} of {source.name} holds nan or inf within its {lengths[place]} "
            "positions: extract again"
        )


def _finite(bits: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of [n, m] numbers, given as unsigned bits, hold neither nan nor inf.

    Two maxima need no memory and do 23 GB/s on a core; np.isfinite of bfloat16 does 2.5.
    """
    infinity = {2: 0x7F80, 4: 0x7F800000}[bits.itemsize]
    minus_infinity = infinity | 1 << (8 * bits.itemsize - 1)
    signed = bits.view(bits.dtype.name.removeprefix("u"))  # as signed numbers the negative ones are the small ones
    return (bits.max(1) < minus_infinity) & (signed.max(1) < infinity)


def _states(store: Store, field: str, as_stored: bool) -> NDArray[Any]:
    states = np.array(store.read(field), dtype=None if as_stored else np.float32)
    keep_answers(states, answer_lengths(store, field), np.arange(len(states)), store.path / field)
    return states


def _values(answers: Any) -> dict[str, Any]:
    return {field.name: getattr(answers, field.name) for field in fields(answers)}
