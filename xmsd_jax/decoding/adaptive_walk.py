"""The offline walk of any `DraftLengths`: what live decoding asks, accepts and costs, from stored anchors alone.

At an anchor a deterministic drafter's first g tokens are the same whatever was asked for beyond them, so with g asked
it gives min(length, g) and has min(right, g) right. Live decoding tells its rule the same numbers, and so makes the
same choices. (Where the answer ends, or a static cache cuts the last draft, live counts less; nothing follows then.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmsd_jax.decoding.cost import Parts, Seconds
from xmsd_jax.decoding.draft_lengths import DraftLengths
from xmsd_jax.metrics.acceptance import Anchors

NOT_VISITED = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthWalk:
    """The walks of n answers. asked, drafted, accepted: int32[n, t], -1 at anchors that were not visited."""

    asked: NDArray[np.int32]
    drafted: NDArray[np.int32]
    accepted: NDArray[np.int32]

    @property
    def visited(self) -> NDArray[np.bool_]:
        """Anchors at which an iteration starts, bool[n, t]."""
        return self.asked != NOT_VISITED

    @property
    def iterations(self) -> NDArray[np.int64]:
        """I of each answer, int64[n]; plain steps count."""
        return self.visited.sum(1)

    @property
    def plain(self) -> NDArray[np.int64]:
        """Iterations in which nobody was asked for a draft, int64[n]."""
        return (self.asked == 0).sum(1)

    @property
    def empty(self) -> NDArray[np.int64]:
        """Iterations in which the drafter was asked and gave nothing, int64[n]."""
        return ((self.asked > 0) & (self.drafted == 0)).sum(1)

    def passes(self) -> dict[int, NDArray[np.int64]]:
        """Iterations with a draft by what was asked for: gamma -> int64[n]."""
        drafting = self.drafted > 0
        lengths = np.unique(self.asked[drafting]).tolist()
        return {gamma: (drafting & (self.asked == gamma)).sum(1) for gamma in lengths}

    def prefix_counts(self, gamma: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Iterations that accepted at least k = 1..gamma tokens, int64[n, gamma], and all of them, int64[n]."""
        return np.stack([(self.accepted >= k).sum(1) for k in range(1, gamma + 1)], axis=1), self.iterations


def length_walk(anchors: Anchors, lengths: DraftLengths, most: int, start: Any | None = None) -> LengthWalk:
    """Walk every answer as live decoding with `lengths` does.

    Args:
        anchors: of a deterministic drafter, drafted with at least `most` tokens.
        lengths: the rule; it begins anew at each answer.
        most: the longest draft (`LiveConfig.gamma`).
        start: int[n], the first anchor of each answer; None starts after the free prefix.

    Raises ValueError where the anchors hold fewer than `most` tokens.
    """
    if not 1 <= most <= anchors.gamma:
        raise ValueError(f"most must be 1..{anchors.gamma}, as many as were drafted, got {most}; draft more")
    found = np.full((3, *anchors.right.shape), NOT_VISITED, np.int32)
    starts = np.asarray(anchors.free if start is None else start, np.int64)
    for answer, (anchor, end) in enumerate(zip(starts.tolist(), anchors.target_len.tolist(), strict=True)):
        right = anchors.right[answer].tolist()
        given = [most] * len(right) if anchors.length is None else anchors.length[answer].tolist()
        lengths.begin()
        while anchor < end - 1:
            asked = lengths.choose(most)
            drafted, accepted = min(given[anchor], asked), min(right[anchor], asked)
            lengths.tell(asked, drafted, accepted)
            found[:, answer, anchor] = asked, drafted, accepted
            anchor += accepted + 1
    return LengthWalk(asked=found[0], drafted=found[1], accepted=found[2])


def walk_seconds(parts: Parts, walk: LengthWalk, lane_steps: Any | None = None) -> dict[str, Seconds]:
    """Phase 2 of each answer by part, float64[n]: draft, sync, verify, host, as `cost.predict` counts them.

    An iteration that asks for g tokens takes T_draft[g] + T_sync + T_verify[g+1] + T_host; without a draft in the end,
    T_dec for T_draft and T_verify; a plain step T_dec alone, since that was measured with its own loop around it.

    Args:
        parts: measured seconds.
        walk: of the n answers.
        lane_steps: int[n], drafter decode steps of a drafter that continues its OWN answer, in place of `sync`.

    Raises UserError where `parts` lacks a length that was asked for.
    """
    passes, asked = walk.passes(), walk.iterations - walk.plain
    nothing = np.zeros(len(asked))
    stepped = (walk.plain + walk.empty) * parts.decode_step
    return {
        "draft": sum((n * parts.draft_seconds(g) for g, n in passes.items()), nothing),
        "sync": asked * parts.sync if lane_steps is None else np.asarray(lane_steps) * parts.drafter_step,
        "verify": sum((n * parts.verify_seconds(g + 1) for g, n in passes.items()), nothing) + stepped,
        "host": asked * parts.host,
    }
