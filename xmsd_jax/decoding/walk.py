"""The offline walk: what live decoding would do, from stored answers alone.

Live decoding IS a walk, so a drafter goes through the same `Context` here as in `live.decode`, and in fp32 with a
deterministic drafter both give the same iterations, answer by answer. All results are counts that add up over answers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.decoding.acceptance import accept_greedy
from xmsd_jax.decoding.ports import Context, Drafter, Prompt, SomeIds


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The walk of one answer: anchors visited, tokens accepted at each, tokens that the iterations emitted.

    `emitted` counts neither the free prefix nor the token of the first anchor. At the end of an answer `accepted`
    counts only tokens inside it.
    """

    anchors: tuple[int, ...]
    accepted: tuple[int, ...]
    emitted: int

    @property
    def iterations(self) -> int:
        """I: verification passes."""
        return len(self.anchors)

    @property
    def tau(self) -> float | None:
        """Tokens emitted per iteration of this answer; None without an iteration. Over answers: sum, then divide."""
        return self.emitted / self.iterations if self.anchors else None


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixCounts:
    """`right[k-1]` int64[gamma]: anchors at which the first k drafted tokens are right, out of `anchors`."""

    right: NDArray[np.int64]
    anchors: int

    def merge(self, other: "PrefixCounts") -> "PrefixCounts":
        """Counts of both parts together (same gamma)."""
        return PrefixCounts(right=self.right + other.right, anchors=self.anchors + other.anchors)

    @property
    def shares(self) -> NDArray[np.float64]:
        """S_k for k = 1..gamma. A curve to look at, not a speed: a walk visits easy stretches less often."""
        return self.right / max(self.anchors, 1)


def n_free(draft_ids: SomeIds, answer_ids: SomeIds) -> int:
    """Length of the longest right prefix of a phase-1 draft, counted from y_0; past the end is a miss."""
    return accept_greedy(draft_ids, answer_ids)


def walk(
    answer_ids: SomeIds,
    drafter: Drafter,
    prompt: Prompt,
    gamma: int,
    *,
    start: int = 0,
    prompt_ids: SomeIds = (),
    hidden: Any = None,
) -> Walk:
    """Walk one stored answer as live decoding does.

    Args:
        answer_ids: y_0..y_{L-1}, EOS included where it was emitted.
        drafter: any deterministic drafter.
        prompt: of the answer.
        gamma: tokens drafted an iteration, at least 1.
        start: first anchor; 0 without phase 1, n_free after a free prefix of n_free tokens.
        prompt_ids: text ids of the prompt, for drafters that read them.
        hidden: [L, d] stored h, for drafters that read it; the drafter at anchor t is given h[0..t] alone.
    """
    right = _RightAt(answer_ids, drafter, prompt, gamma, prompt_ids, hidden)
    anchors, accepted, anchor, last = [], [], start, len(answer_ids) - 1
    while anchor < last:
        anchors.append(anchor)
        accepted.append(right(anchor))
        anchor += accepted[-1] + 1
    return Walk(anchors=tuple(anchors), accepted=tuple(accepted), emitted=max(last - start, 0))


def prefix_counts(
    answer_ids: SomeIds,
    drafter: Drafter,
    prompt: Prompt,
    gamma: int,
    *,
    prompt_ids: SomeIds = (),
    hidden: Any = None,
) -> PrefixCounts:
    """Count right prefixes at ALL anchors 0..L-2; positions past the end are misses. Arguments as in `walk`."""
    right = _RightAt(answer_ids, drafter, prompt, gamma, prompt_ids, hidden)
    lengths = np.array([right(anchor) for anchor in range(len(answer_ids) - 1)], np.int64)
    return PrefixCounts(right=(lengths[:, None] > np.arange(gamma)).sum(0), anchors=len(lengths))


def free_prefix(
    answer_ids: SomeIds,
    drafter: Drafter,
    prompt: Prompt,
    prefill_draft_len: int,
    *,
    prompt_ids: SomeIds = (),
) -> int:
    """n_free of a drafter's phase-1 draft of `prefill_draft_len` tokens for the answer."""
    return _RightAt(answer_ids, drafter, prompt, prefill_draft_len, prompt_ids, None)(-1)


class _RightAt:
    """How many drafted tokens are right at an anchor t of one stored answer; anchor -1 is phase 1."""

    def __init__(
        self,
        answer_ids: SomeIds,
        drafter: Drafter,
        prompt: Prompt,
        gamma: int,
        prompt_ids: SomeIds,
        hidden: Any,
    ) -> None:
        if gamma < 1:
            raise ValueError(f"a walk needs at least 1 drafted token, got {gamma}")
        self._ids = np.asarray(answer_ids, np.int32)
        self._prompt_ids = np.asarray(prompt_ids, np.int32)
        self._drafter, self._prompt, self._gamma, self._hidden = drafter, prompt, gamma, hidden

    def __call__(self, anchor: int) -> int:
        known = anchor + 1
        hidden = () if self._hidden is None or not known else (self._hidden[:known],)
        context = Context(prompt=self._prompt, ids=self._ids[:known], hidden=hidden, prompt_ids=self._prompt_ids)
        drafted = self._drafter.propose(context, self._gamma).ids
        return accept_greedy(drafted[: self._gamma].tolist(), self._ids[known:].tolist())
