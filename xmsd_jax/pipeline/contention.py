"""Both lanes at once on one device: what the drafter's phase 1 costs the target's prefill, and the other way round."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

from xmsd_jax.decoding.beside import Beside
from xmsd_jax.decoding.judge import no_draft
from xmsd_jax.decoding.ports import Draft, DrafterLane, Prompt, Verifier
from xmsd_jax.pipeline.live_pair import LivePair


@dataclass(frozen=True, kw_only=True)
class Contention:
    """Median seconds. The target's vision and prefill, and the lane's with `drafted` steps: alone, and side by side.

    both: until both are done, side by side. kappa: how much longer the target takes beside the lane, relative to it
    alone. hidden: the share of the lane's own time that does not show. window: drafter steps that fit beside the
    target's prefill after the lane's own vision and prefill, at the speed that they have alone.
    """

    target_alone: float
    target_beside: float
    lane_alone: float
    lane_beside: float
    both: float
    step: float
    drafted: int
    kappa: float
    hidden: float
    window: float


def measure_contention(pair: LivePair, prompt: Prompt, *, drafted: int, repeats: int) -> Contention:
    """Time both lanes on one prompt, turn by turn; the first turn warms up."""
    turns = [_turn(pair.verifier, pair.lane, prompt, drafted) for _ in range(repeats + 1)][1:]
    target, lane, step, beside_target, beside_lane, both = (median(column) for column in zip(*turns, strict=True))
    reading = lane - drafted * step
    return Contention(
        target_alone=target,
        target_beside=beside_target,
        lane_alone=lane,
        lane_beside=beside_lane,
        both=both,
        step=step,
        drafted=drafted,
        kappa=beside_target / target - 1,
        hidden=(target + lane - both) / lane,
        window=max(0.0, (target - reading) / step) if step else 0.0,
    )


def _turn(verifier: Verifier, lane: DrafterLane, prompt: Prompt, drafted: int) -> tuple[float, ...]:
    """Seconds: target alone, lane alone, a step of it; target and lane side by side, and both."""

    def target() -> float:
        verifier.synchronize()
        start = perf_counter()
        verifier.prefill(prompt)
        verifier.synchronize()
        return perf_counter() - start

    spent: list[float] = []

    def draft() -> Draft:
        start = perf_counter()
        lane.begin(prompt)
        lane.own(drafted)
        spent.append(perf_counter() - start)
        return no_draft()

    alone = target()
    draft()
    steps = [span.stop - span.start for span in lane.take_spans() if span.part == "drafter step"] or [0.0]
    start = perf_counter()
    with Beside(draft) as other:
        beside = target()
        other.draft()
        both = perf_counter() - start
    lane.take_spans()
    return alone, spent[0], median(steps), beside, spent[1], both
