"""What drafting costs, timed along a reference answer with the target's states at hand.

Proposals and target passes take turns, as they do live: on a CPU each finds the caches full of the other's weights and
the other framework's threads awake, which neither sees when it is timed again and again alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from xmsd_jax.decoding.clock import SYNC
from xmsd_jax.decoding.ports import Context, Drafter, Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.live_pair import LivePair

REPEATS = 5
STRIDE = 3
"""Anchors of a reference answer at which a drafter is timed lie this far apart: about one iteration's tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A prompt with the target's answer and its states h[0..L-1], one block."""

    prompt: Prompt
    answer: Trace
    hidden: Any


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Seconds of one proposal without the drafter model, of that model, and of the pass that checked it."""

    draft: float
    sync: float
    verify: float


def drafting(pair: LivePair, name: str, samples: Sequence[Sample], compiled: Mapping[int, int]) -> dict[str, Any]:
    """T_draft, and T_verify of the passes between, at some draft lengths; and the lane's seconds per iteration.

    compiled: draft length -> the length that the drafter is compiled for.
    """
    draft, verify, sync = {}, {}, 0.0
    for gamma, most in compiled.items():
        turns = [turn for sample in samples for turn in _turns(pair, pair.drafter(name, most), gamma, sample)]
        draft[gamma] = median(turn.draft for turn in turns)
        verify[gamma + 1] = median(turn.verify for turn in turns)
        sync = median(turn.sync for turn in turns)
    return {"draft": draft, "verify": verify, "sync": 0.0 if name.endswith("(own)") else sync}


def _turns(pair: LivePair, drafter: Drafter, gamma: int, sample: Sample) -> list[Turn]:
    """Turns along the answer; the first one is warm-up."""
    lane = getattr(drafter, "lane", None)
    if lane is not None:
        lane.begin(sample.prompt)
        lane.take_spans()
    pair.shared.prefill(sample.prompt, sample.answer.ids[: len(sample.answer.ids) // 2])
    given, passed = pair.verifier.prompt_ids(sample.prompt), (list(sample.answer.ids) * (gamma + 1))[: gamma + 1]
    turns = []
    for known in range(1, len(sample.answer.ids), STRIDE):
        ids = np.array(sample.answer.ids[:known], np.int32)
        context = Context(prompt=sample.prompt, ids=ids, hidden=(sample.hidden[:known],), prompt_ids=given)
        start = perf_counter()
        drafter.propose(context, gamma)
        drafted = perf_counter()
        spans = [] if lane is None else lane.take_spans()
        sync = sum(s.stop - s.start for s in spans if s.part in SYNC)
        turns.append(Turn(draft=drafted - start - sync, sync=sync, verify=_checked(pair, passed)))
    return turns[1:] or turns


def _checked(pair: LivePair, ids: Sequence[int]) -> float:
    """Seconds of a pass in the middle of the answer, its crop included."""
    pair.shared.synchronize()
    start = perf_counter()
    pair.shared.verify(ids)
    pair.shared.crop(len(ids))
    pair.shared.synchronize()
    return perf_counter() - start


def early_seconds(pair: LivePair, name: str, samples: Sequence[Sample]) -> float:
    """Seconds of a phase-1 draft without the drafter model."""
    count = pair.lengths.prefill_draft_len
    drafter = pair.drafter(name, count)
    lane, seconds = getattr(drafter, "lane", None), []
    for sample in samples:
        given = pair.verifier.prompt_ids(sample.prompt)
        for _ in range(REPEATS):
            if lane is not None:
                lane.begin(sample.prompt)
                lane.take_spans()
            start = perf_counter()
            drafter.propose(Context(prompt=sample.prompt, ids=np.empty(0, np.int32), prompt_ids=given), count)
            waited = [] if lane is None else lane.take_spans()
            seconds.append(perf_counter() - start - sum(s.stop - s.start for s in waited))
    return median(seconds)
