"""Acceptance of drafts at every anchor of stored answers, and the walks that follow from it, for any draft length.

**Anchor t**: y_0..y_t are known; a draft d_1..d_gamma proposes y_{t+1}... . Once the number of right leading tokens is
known at every anchor, the walk at ANY gamma up to the drafted one is arithmetic: a deterministic drafter's first gamma
tokens are the same whatever was asked for beyond them, so at gamma it has min(right, gamma) right.

A walk is what live decoding does (`xmsd_jax.decoding.walk`, whose counts these are, answer by answer). `S_k` over all
anchors is a curve to look at, not a speed: a walk visits easy stretches less often.
"""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.config import UserError
from xmsd_jax.metrics.counted import Estimate, ratio_of_sums

NO_ANCHOR = -1
NO_DRAFT = -1
_ARRAYS = ("right", "target_len", "free")
_OPTIONAL = {"slack": np.float32, "length": np.int32}
# What numpy and zipfile raise on a file that is cut off, altered or no archive.
_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError)
_DAMAGE = (*_DAMAGE, zipfile.BadZipFile, zlib.error)


def right_lengths(drafted: Any, target_ids: Any, target_len: Any) -> NDArray[np.int32]:
    """Count the leading drafted tokens that are right at each anchor: int32[n, t].

    Args:
        drafted: int[n, t, g]; drafted[i, t] proposes y_{t+1}..y_{t+g}. Id -1 is no draft: shorter drafts end in -1.
        target_ids: int[n, t]; what lies past the end of an answer is never read.
        target_len: int[n], L of each answer; positions from L on are misses.

    Returns:
        0..g at anchors t < L - 1, and -1 from t = L - 1 on: nothing is left to draft there, so it is no anchor.
    """
    drafted, target_ids = np.asarray(drafted), np.asarray(target_ids)
    lengths = np.asarray(target_len, np.int64)
    if drafted.ndim != 3 or drafted.shape[:2] != target_ids.shape or lengths.shape != drafted.shape[:1]:
        raise ValueError(
            "acceptance needs drafted [n, t, g], target_ids [n, t] and target_len [n], got "
            f"{drafted.shape}, {target_ids.shape} and {lengths.shape}"
        )
    answers, positions, gamma = drafted.shape
    _check_lengths(lengths, positions)
    inside = np.arange(positions) < lengths[:, None]
    right = np.zeros((answers, positions), np.int32)
    unbroken = np.ones((answers, positions), bool)
    for k in range(1, min(gamma, positions - 1) + 1):
        ids = drafted[:, :-k, k - 1]
        unbroken = unbroken[:, : positions - k] & (ids == target_ids[:, k:]) & (ids != NO_DRAFT) & inside[:, k:]
        right[:, :-k] += unbroken
    right[~_is_anchor(lengths, positions)] = NO_ANCHOR
    return right


@dataclass(frozen=True, kw_only=True, eq=False)
class WalkCounts:
    """Per answer: `iterations` int64[n], and `emitted` int64[n], tokens that the iterations emitted.

    `emitted` counts neither the free prefix nor the token of the first anchor.
    """

    iterations: NDArray[np.int64]
    emitted: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchors:
    """How many drafted tokens are right at every anchor of n answers.

    right: int32[n, t] of `right_lengths`, drafted with `gamma` tokens; target_len: int32[n]; free: int32[n], n_free of
    phase 1 (zeros without). slack: float32[n, t] or None, the smallest top-2 margin of the drafter's logits among the
    drafted positions up to and including the first wrong one (how far the count is from another one). length:
    int32[n, t] or None, how many tokens were drafted at all, where a drafter may draft fewer than `gamma`.
    """

    right: NDArray[np.int32]
    gamma: int
    target_len: NDArray[np.int32]
    free: NDArray[np.int32]
    slack: NDArray[np.float32] | None = None
    length: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where shapes or counts contradict each other."""
        answers, positions = self.right.shape if self.right.ndim == 2 else (-1, -1)
        slack, length = (self.right.shape if a is None else a.shape for a in (self.slack, self.length))
        if (
            self.target_len.shape != (answers,)
            or self.free.shape != (answers,)
            or {slack, length} != {self.right.shape}
        ):
            raise ValueError(
                "anchors need right [n, t], target_len [n], free [n], slack [n, t] or None, length [n, t] or None, got "
                f"{self.right.shape}, {self.target_len.shape}, {self.free.shape}, {slack} and {length}"
            )
        _check_lengths(self.target_len, positions)
        left = np.where(_is_anchor(self.target_len, positions), self._left(positions), NO_ANCHOR)
        if self.gamma < 1 or (self.right > np.minimum(left, self.gamma)).any() or (self.right < left.clip(max=0)).any():
            raise ValueError(
                f"right must be 0..min(gamma, tokens left) at anchors t < L - 1 and {NO_ANCHOR} elsewhere (gamma = "
                f"{self.gamma}, at least 1); make it by `right_lengths`"
            )
        if ((self.free < 0) | (self.free > self.target_len)).any():
            raise ValueError("free must be 0..L of its answer; count the right prefix from y_0")

    def walk(self, gamma: int, start: Any | None = None) -> WalkCounts:
        """Walk every answer with `gamma` drafted tokens, 1 <= gamma <= self.gamma.

        start: int[n], the first anchor; None starts after the free prefix, at anchor n_free.
        """
        starts = self._starts(start)
        return WalkCounts(
            iterations=self.visited(gamma, starts).sum(1), emitted=np.maximum(self.target_len - 1 - starts, 0)
        )

    def visited(self, gamma: int, start: Any | None = None) -> NDArray[np.bool_]:
        """Which anchors the walk visits: bool[n, t]. Arguments as in `walk`."""
        right = np.minimum(self.right, self._checked(gamma))
        visited = np.zeros(right.shape, bool)
        following = self._starts(start)
        for anchor in range(right.shape[1]):
            visited[:, anchor] = (following == anchor) & (right[:, anchor] != NO_ANCHOR)
            following = np.where(visited[:, anchor], anchor + right[:, anchor] + 1, following)
        return visited

    def idle(self, gamma: int, start: Any | None = None) -> NDArray[np.int64]:
        """How many iterations of each walk have no draft at all, int64[n]: a plain step of the target."""
        if self.length is None:
            return np.zeros(len(self.right), np.int64)
        return (self.visited(gamma, start) & (self.length == 0)).sum(1)

    def prefix_counts(
        self, gamma: int, at: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count anchors at which the first k = 1..gamma drafted tokens are right, int64[n, gamma], and all, int64[n].

        at: bool[n, t], the anchors that count, such as `visited(gamma)`; None counts all. S_k is the sum of column k
        over answers divided by the sum of anchors.
        """
        counted = self.right != NO_ANCHOR if at is None else at & (self.right != NO_ANCHOR)
        counts = [(counted & (self.right >= k)).sum(1) for k in range(1, self._checked(gamma) + 1)]
        return np.stack(counts, axis=1), counted.sum(1)

    def prefix_shares(self, gamma: int, at: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """S_k for k = 1..gamma, float64[gamma]; zeros without an anchor. Arguments as in `prefix_counts`."""
        counts, anchors = self.prefix_counts(gamma, at)
        return counts.sum(0) / max(int(anchors.sum()), 1)

    def tau(
        self, gamma: int, *, sequences: Sequence[Any] | np.ndarray | None, start: Any | None = None, seed: int = 0
    ) -> Estimate:
        """Tokens emitted per iteration, sum over sum, with its bootstrap interval (`ratio_of_sums`)."""
        counts = self.walk(gamma, start)
        return ratio_of_sums(counts.emitted, counts.iterations, sequences=sequences, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an npz without objects; the file appears whole or not at all. Returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS} | {"gamma": np.int64(self.gamma)}
        arrays |= {name: array for name in _OPTIONAL if (array := getattr(self, name)) is not None}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Anchors":
        """Read what `save` wrote; UserError if it is missing, damaged or something else."""
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name].astype(np.int32) for name in _ARRAYS}
                optional = {n: archive[n].astype(dtype) for n, dtype in _OPTIONAL.items() if n in archive}
                return cls(**arrays, **optional, gamma=int(archive["gamma"]))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file of anchors; make it by the stage that drafts") from None
        except _DAMAGE as error:
            told = " ".join(str(error).split())
            raise UserError(f"{path}: is not a whole file of anchors ({told}); make it again") from None

    def _left(self, positions: int) -> NDArray[np.int64]:
        """Tokens after each position: int64[n, t]."""
        return self.target_len.astype(np.int64)[:, None] - 1 - np.arange(positions)

    def _checked(self, gamma: int) -> int:
        if not 1 <= gamma <= self.gamma:
            raise ValueError(f"gamma must be 1..{self.gamma}, as many as were drafted, got {gamma}; draft more")
        return gamma

    def _starts(self, start: Any | None) -> NDArray[np.int64]:
        starts = np.asarray(self.free if start is None else start, np.int64)
        if starts.shape != self.target_len.shape or (starts < 0).any():
            raise ValueError(f"start must be one anchor >= 0 per answer {self.target_len.shape}, got {starts.shape}")
        return starts


def _is_anchor(lengths: NDArray[Any], positions: int) -> NDArray[np.bool_]:
    return np.arange(positions) < lengths[:, None] - 1


def _check_lengths(lengths: NDArray[Any], positions: int) -> None:
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= positions:
        raise ValueError(
            f"target_len must be 0..{positions}, the stored positions, got {lengths.min()}..{lengths.max()}"
        )
