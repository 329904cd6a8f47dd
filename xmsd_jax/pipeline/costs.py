"""Every part of the cost model, measured on its own, before anything is decoded live.

Medians over a few prompts, warm. Each part finds the machine as it does live. Prompts are read between decoded tokens:
a GPU that reads one after the other runs into its power limit and takes longer. Target passes are timed in the middle
of an answer; a drafter's calls along a reference answer, in turn with passes (`draft_costs`); the loop's own time by
decoding with empty parts, between passes that it is not charged for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Context, Draft, Prompt, Verified
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.contention import measure_contention
from xmsd_jax.pipeline.draft_costs import REPEATS, Sample, drafting, early_seconds
from xmsd_jax.pipeline.live_pair import LivePair
from xmsd_jax.pipeline.rows import TEXT, DraftRow

PROMPTS = 4
PAUSE = 16
"""Tokens decoded between two prompts that are read."""


def measure_parts(
    pair: LivePair, rows: Sequence[DraftRow], prompts: Sequence[Prompt], answers: Sequence[Trace]
) -> dict[str, Parts]:
    """Parts of every row, by row name; `answers` are the target's own to the prompts."""
    picked = np.unique(np.linspace(0, len(prompts) - 1, min(PROMPTS, len(prompts))).astype(int))
    samples = [_sample(pair, prompts[at], answers[at]) for at in picked]
    read = _read_prompts(pair, samples, any(_uses_lane(pair, row) for row in rows))
    target = _target_parts(pair, samples, read, _pass_lengths(pair, rows))
    lane = {part: seconds for part, seconds in read.items() if part.startswith("drafter")}
    drafted = {
        (name, auto): drafting(pair, name, samples, _compiled(pair, rows, name, auto))
        for name, auto in dict.fromkeys((row.drafter, row.auto) for row in rows if row.drafter)
    }
    early = {name: early_seconds(pair, name, samples) for name in dict.fromkeys(r.first for r in rows if r.first)}
    return {
        row.name: replace(
            target,
            **(_lane_of(pair, row, lane, samples[0].prompt, target) if _uses_lane(pair, row) else {}),
            **(_in_turn(target, drafted[row.drafter, row.auto]) if row.drafter else {}),
            adapter=early[row.first] if row.first else 0.0,
        )
        for row in rows
    }


def _sample(pair: LivePair, prompt: Prompt, answer: Trace) -> Sample:
    states = pair.shared.prefill(prompt, list(answer.ids[:-1])).hidden
    return Sample(prompt=prompt, answer=answer, hidden=pair.kept(states))


def _in_turn(target: Parts, drafted: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of phase 2; passes that were timed between this drafter's own proposals stand for it alone."""
    return {**drafted, "verify": {**target.verify, **drafted["verify"]}}


def _lane_of(pair: LivePair, row: DraftRow, lane: Mapping[str, float], prompt: Prompt, target: Parts) -> dict[str, Any]:
    """The lane's seconds for a row, steps only where it takes any.

    Side by side with the target they are stretched by how much longer the lane takes there.
    """
    own = {**lane, "drafter_step": lane["drafter_step"] if steps(row) else 0.0}
    if pair.lengths.lanes == "serial":
        return own
    drafted = pair.lengths.prefill_draft_len if row.first and row.first not in TEXT else 0
    found = measure_contention(pair, prompt, drafted=drafted, repeats=REPEATS)
    stretched = ("drafter_vision", "drafter_prefill", *(("drafter_step",) if drafted else ()))
    longer = {part: found.lane_beside / found.lane_alone if part in stretched else 1.0 for part in own}
    kappa = max(0.0, (found.target_beside - found.target_alone) / target.prefill)
    return {**{part: own[part] * longer[part] for part in own}, "lanes": "parallel", "kappa": kappa}


def _pass_lengths(pair: LivePair, rows: Sequence[DraftRow]) -> list[int]:
    """Pass lengths M to time: enough for every draft length from 1 to the longest, and for the check of `wait`."""
    gammas = {row.longest(pair.lengths.gamma) for row in rows}
    longest = max(*gammas, pair.lengths.gamma) + 1
    return sorted({2, 3, 5, longest, *(gamma + 1 for gamma in gammas), max(longest, pair.lengths.prefill_draft_len)})


def _compiled(pair: LivePair, rows: Sequence[DraftRow], name: str, auto: bool) -> dict[int, int]:
    """Draft lengths to time a drafter at, each with the length that the drafter is compiled for.

    One token, and as many as its rows ask for: between them T_draft is interpolated. A row that chooses its lengths has
    one drafter for all of them, compiled for the longest, which is timed at every length whose pass is timed too.
    """
    longest = pair.lengths.gamma
    if auto:
        return {m - 1: longest for m in _pass_lengths(pair, rows) if m - 1 <= longest}
    asked = {row.longest(longest) for row in rows if row.drafter == name and not row.auto}
    return {gamma: gamma for gamma in sorted({1, *asked})}


def _uses_lane(pair: LivePair, row: DraftRow) -> bool:
    return any(getattr(drafter, "lane", None) for drafter in (pair.early_drafter(row), pair.late_drafter(row)))


def steps(row: DraftRow) -> bool:
    """Whether the row walks along the drafter's own answer, token by token."""
    return (row.drafter or "").endswith("(own)") or (row.first is not None and row.first not in TEXT)


def _target_parts(
    pair: LivePair, samples: Sequence[Sample], read: Mapping[str, float], lengths: Iterable[int]
) -> Parts:
    plain = [_decoded(pair, sample, pair.lengths.max_new_tokens) for sample in samples for _ in range(2)]
    return Parts(
        vision=read["vision"],
        prefill=read["prefill"],
        prefill_per_extra=max(0.0, (read["ridden"] - read["prefill"]) / pair.lengths.prefill_draft_len),
        decode_step=median(t.seconds["decode"] / (len(t.ids) - 1) for t in plain if len(t.ids) > 1),
        verify={m: median(s for sample in samples for s in _pass(pair, sample, m)) for m in lengths},
        host=_host(pair, samples[0]),
    )


def _decoded(pair: LivePair, sample: Sample, tokens: int) -> Trace:
    return decode_plain(pair.verifier, sample.prompt, min(tokens, pair.lengths.max_new_tokens))


def _read_prompts(pair: LivePair, samples: Sequence[Sample], lane: bool) -> dict[str, float]:
    """Seconds of both models' prompts, of a step of the drafter's own answer, and of a prefill with a draft riding."""
    pair.share(False)
    turns = [_read_turn(pair, sample, lane) for sample in samples for _ in range(REPEATS)]
    return {part: median(turn[part] for turn in turns) for part in turns[0]}


def _read_turn(pair: LivePair, sample: Sample, lane: bool) -> dict[str, float]:
    """One turn: the lane, as it comes before the target in an answer; the target; the target with a draft riding."""
    found = _read_by_lane(pair, sample) if lane else {}
    _decoded(pair, sample, PAUSE)
    found |= {part: pair.verifier.times[part] for part in ("vision", "prefill")}
    draft = (list(sample.answer.ids) * pair.lengths.prefill_draft_len)[: pair.lengths.prefill_draft_len]
    pair.verifier.prefill(sample.prompt, draft)
    found["ridden"] = pair.verifier.times["prefill"]
    _decoded(pair, sample, PAUSE)
    return found


def _read_by_lane(pair: LivePair, sample: Sample) -> dict[str, float]:
    """Seconds of the drafter's vision, prefill, and a step of its own answer."""
    pair.lane.begin(sample.prompt)
    pair.lane.own(pair.lengths.prefill_draft_len)
    spans = pair.lane.take_spans()
    parts = ("drafter vision", "drafter prefill", "drafter step")
    return {part.replace(" ", "_"): median(s.stop - s.start for s in spans if s.part == part) for part in parts}


def _pass(pair: LivePair, sample: Sample, length: int) -> list[float]:
    """Seconds of a pass over `length` tokens in the middle of the answer, the crop of rejected ones included."""
    middle = list(sample.answer.ids[: len(sample.answer.ids) // 2])
    ids = (list(sample.answer.ids) * length)[:length]
    pair.shared.prefill(sample.prompt, middle)

    def once() -> None:
        pair.shared.verify(ids)
        pair.shared.crop(length)

    return _timed(once, pair.shared.synchronize)


class _Nothing:
    """A target and a drafter that do no work of their own: what is left of an iteration is the loop itself.

    A verification waits for one of the real target, and notes how long that was in `away`.
    """

    eos_ids: frozenset[int] = frozenset()
    vocabulary = 2
    name = "nothing"
    times: Mapping[str, float] = {"vision": 0.0, "prefill": 0.0}

    def __init__(self, gamma: int, work: Callable[[], None]) -> None:
        self.away, self._work = 0.0, work
        self._one = Verified(ids=np.zeros(1, np.int32))
        self._many = Verified(ids=np.zeros(gamma + 1, np.int32))
        self._draft = Draft(ids=np.ones(gamma, np.int32))  # always wrong: one token an iteration

    def prompt_ids(self, prompt: Prompt) -> Any:
        return np.empty(0, np.int32)

    def prefill(self, prompt: Prompt, draft_ids: Any = (), *, logits: bool = False) -> Verified:
        return self._one

    def step(self, token: int, *, logits: bool = False) -> Verified:
        return self._one

    def verify(self, ids: Any, *, logits: bool = False) -> Verified:
        start = perf_counter()
        self._work()
        self.away += perf_counter() - start
        return self._many

    def crop(self, count: int) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def propose(self, context: Context, gamma: int) -> Draft:
        return self._draft


def _host(pair: LivePair, sample: Sample) -> float:
    """Seconds of an iteration with empty parts, beside a pass of the target."""
    gamma, count = pair.lengths.gamma, pair.lengths.max_new_tokens
    ids = (list(sample.answer.ids) * (gamma + 1))[: gamma + 1]
    pair.shared.prefill(sample.prompt)

    def pass_over() -> None:
        pair.shared.verify(ids)
        pair.shared.crop(len(ids))
        pair.shared.synchronize()

    nothing: Any = _Nothing(gamma, pass_over)
    prompt: Any = None
    config = LiveConfig(gamma=gamma, max_new_tokens=count)
    seconds = []
    for _ in range(REPEATS + 1):
        nothing.away = 0.0
        seconds.append(decode(nothing, nothing, prompt, config).seconds["decode"] - nothing.away)
    return median(seconds[1:]) / (count - 1)


def _timed(work: Callable[[], None], synchronize: Callable[[], None]) -> list[float]:
    """Seconds of REPEATS runs after a warm one."""
    seconds = []
    for _ in range(REPEATS + 1):
        synchronize()
        start = perf_counter()
        work()
        synchronize()
        seconds.append(perf_counter() - start)
    return seconds[1:]
