"""What a row must do live, from stored answers alone: free prefix, walk, and whether a difference is a rounding tie."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from xmsd_jax.decoding.adaptive_walk import LengthWalk, length_walk
from xmsd_jax.decoding.certificate import Dtype, tie_margin
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.draft_lengths import Adaptive, DraftLengths, Fixed, measured_gammas
from xmsd_jax.decoding.text_anchors import FreePrefix, after
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.pipeline.judged import Judged
from xmsd_jax.pipeline.rows import TEXT, DraftRow

TOP_LOGIT = 16.0
"""Of the order of a top logit: what the bfloat16 margin of a drafter's tie is measured at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """One row on n answers. `anchors` walk after the free prefix; None decodes plainly. `prefix` is phase 1, or None.

    `gamma` is the longest draft, `lengths` chooses how much of it each iteration drafts.
    `known` bool[n]: whether the stored answer is the live reference (a tie between batch sizes can make another).
    `drafter_len` int[n]: length of the drafter's own answer. `own`: phase 2 goes along the drafter's own answer.
    """

    row: DraftRow
    gamma: int
    lengths: DraftLengths
    anchors: Anchors | None
    prefix: FreePrefix | None
    target_len: np.ndarray
    drafter_len: np.ndarray
    known: np.ndarray
    own: bool

    @property
    def free(self) -> np.ndarray:
        """n_free of each answer, int[n]."""
        return np.zeros(len(self.target_len), np.int64) if self.prefix is None else self.prefix.free

    @cached_property
    def walk(self) -> LengthWalk | None:
        """What each iteration asks for and accepts; None without drafts in phase 2."""
        return None if self.anchors is None else length_walk(self.anchors, self.lengths, self.gamma)

    @property
    def iterations(self) -> np.ndarray:
        """I of each answer, int[n]; zeros without drafts in phase 2."""
        return self.free * 0 if self.walk is None else self.walk.iterations

    @property
    def walked_lane_steps(self) -> np.ndarray | None:
        """`lane_steps` of the row's own walk: each draft steps as far as the longest one would."""
        return None if not self.own or self.walk is None else self._reached(self.walk.asked > 0, self.gamma)

    def lane_steps(self, gamma: int) -> np.ndarray | None:
        """Steps that the drafter's own answer takes in phase 2, int[n]; None where no draft goes along it."""
        if not self.own or self.anchors is None or gamma == 0:
            return None
        return self._reached(self.anchors.visited(gamma), gamma)

    def _reached(self, drafting: np.ndarray, gamma: int) -> np.ndarray:
        """Lane steps up to the last anchor of bool[n, t] that drafts `gamma` tokens."""
        last = np.where(drafting.any(1), drafting.shape[1] - 1 - np.argmax(drafting[:, ::-1], axis=1), -1)
        reach = np.where(last < 0, 0, np.minimum(last + gamma, self.drafter_len))
        # what an adapter of phase 1 has stepped through already, in the same lane
        before = 0 if self.prefix is None or self.row.first in TEXT else self.prefix.drafted
        return np.maximum(reach - np.minimum(before, self.drafter_len), 0)

    def take(self, rows: Any) -> "Expected":
        """The answers that `rows` selects."""
        return replace(
            self,
            anchors=None if self.anchors is None else taken(self.anchors, rows),
            prefix=None if self.prefix is None else taken_prefix(self.prefix, rows),
            target_len=self.target_len[rows],
            drafter_len=self.drafter_len[rows],
            known=self.known[rows],
        )


def expect(
    row: DraftRow,
    gamma: int,
    judged: Mapping[str, Judged],
    *,
    target_len: Any,
    drafter_len: Any,
    known: Any,
    parts: Parts | None = None,
) -> Expected:
    """Put together what phase 1 and phase 2 of a row do on the n answers that `judged` was taken at.

    `target_len`, `drafter_len` int[n], `known` bool[n]: as in `Expected`. `parts`: the measured seconds of the row, by
    which one with gamma auto chooses its draft lengths; ValueError where such a row comes without them.
    """
    prefix = judged[row.first].prefix if row.first else None
    anchors = judged[row.drafter].anchors if row.drafter else None
    return Expected(
        row=row,
        gamma=gamma,
        lengths=_lengths(row, gamma, parts),
        anchors=None if anchors is None else after(anchors, prefix),
        prefix=prefix,
        target_len=np.asarray(target_len, np.int64),
        drafter_len=np.asarray(drafter_len, np.int64),
        known=np.asarray(known, bool),
        own=_own(row),
    )


def _own(row: DraftRow) -> bool:
    return (row.drafter or "").endswith("(own)")


def _lengths(row: DraftRow, gamma: int, parts: Parts | None) -> DraftLengths:
    if not row.auto:
        return Fixed(gamma=gamma)
    if parts is None:
        raise ValueError(f"{row.name} chooses draft lengths by its measured times, got none; measure its parts first")
    return Adaptive(parts, measured_gammas(parts, gamma), own=_own(row))


def agreement(expected: Expected, at: int, trace: Trace, *, dtype: Dtype) -> Literal["equal", "tie", "differs"]:
    """Whether a live answer took the walk: the same free prefix, and at each anchor the same accepted count.

    A first difference where the drafter's head was within a tie of another token is a tie; what follows it is another
    walk, and not compared.
    """
    margin = tie_margin(dtype, TOP_LOGIT)
    if expected.prefix is not None and trace.n_free != expected.prefix.free[at]:
        return _tie(expected.prefix.slack, at, margin)
    if expected.anchors is None or expected.walk is None:
        return "differs" if trace.iterations else "equal"
    accepted = expected.walk.accepted[at]
    walk = [(int(t), int(accepted[t])) for t in np.flatnonzero(expected.walk.visited[at])]
    live = [(i.anchor, i.accepted) for i in trace.iterations]
    for (anchor, wanted), (reached, got) in zip(walk, live, strict=False):
        if anchor != reached or wanted != got:
            slack = expected.anchors.slack
            return _tie(None if slack is None else slack[at], anchor, margin)
    return "equal" if len(walk) == len(live) else "differs"


def taken(anchors: Anchors, rows: Any) -> Anchors:
    """The anchors of some answers."""
    arrays = {n: getattr(anchors, n) for n in ("right", "target_len", "free", "slack", "length")}
    return replace(anchors, **{n: None if a is None else a[rows] for n, a in arrays.items()})


def taken_prefix(prefix: FreePrefix, rows: Any) -> FreePrefix:
    """The free prefixes of some answers."""
    return replace(prefix, free=prefix.free[rows], slack=None if prefix.slack is None else prefix.slack[rows])


def _tie(slack: np.ndarray | None, at: int, margin: float) -> Literal["tie", "differs"]:
    return "tie" if slack is not None and slack[at] <= margin else "differs"
