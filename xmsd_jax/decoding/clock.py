"""Wall-clock seconds of one answer, cut into named laps, and the spans of both lanes for a timeline."""

import time
from collections.abc import Sequence
from typing import Literal

from xmsd_jax.decoding.ports import Span, Verifier

LAPS: tuple[str, ...] = ("prefill_draft", "prefill", "first", "draft", "verify", "host")
SYNC = ("sync", "drafter step")
"""Parts of the drafter's lane that phase 2 waits for: reading accepted tokens, and steps of its own answer."""
_LANES: dict[str, Literal["target", "drafter", "host"]] = {
    "prefill_draft": "drafter",
    "draft": "drafter",
    "host": "host",
}


_Cut = tuple[str, float, Sequence[Span], Sequence[Span]]
"""A lap's name, when it ended, what the drafter's lane did in it and beside it."""


class Clock:
    """Contiguous laps: the verifier's work has ended at every cut, so none of one lap is charged to the next."""

    def __init__(self, verifier: Verifier) -> None:
        """Start the first lap."""
        self._verifier = verifier
        self._cuts: list[_Cut] = []
        verifier.synchronize()
        self._start = time.perf_counter()

    def lap(self, name: str, inside: Sequence[Span] = (), beside: Sequence[Span] = ()) -> None:
        """Charge the time since the last cut to `name`.

        `inside` tells what the drafter's lane did in it, `beside` what it did at the same time, this lap or before.
        """
        self._verifier.synchronize()
        self._cuts.append((name, time.perf_counter(), inside, beside))  # and nothing more: decoding waits for this

    def seconds(self) -> dict[str, float]:
        """Seconds by the names of `Trace.seconds`; how much of its prefill was vision is what the verifier says."""
        laps, sync = dict.fromkeys(LAPS, 0.0), 0.0
        for (name, now, inside, _), last in zip(self._cuts, self._starts(), strict=True):
            laps[name] += now - last
            if name == "draft":
                sync += sum(span.stop - span.start for span in inside if span.part in SYNC)
        vision = min(self._verifier.times["vision"], laps["prefill"])
        prefill = laps["prefill_draft"] + laps["prefill"] - vision
        decode = laps["draft"] + laps["verify"] + laps["host"]
        return {**laps, "sync": sync, "vision": vision, "prefill": prefill, "decode": decode}

    def spans(self) -> tuple[Span, ...]:
        """All spans, in order, in seconds from the start of the answer; the first of the prefill is its vision."""
        start, found, vision = self._start, [], self._verifier.times["vision"]
        told = [
            span
            for (name, now, inside, beside), last in zip(self._cuts, self._starts(), strict=True)
            for span in (*_between(name, last, now, inside), *inside, *beside)
        ]
        for span in sorted(told, key=lambda span: span.start):
            if span.part == "prefill" and vision > 0:
                seen = min(span.start + vision, span.stop)
                found.append(Span(lane="target", part="vision", start=span.start, stop=seen))
                span, vision = Span(lane="target", part="prefill", start=seen, stop=span.stop), 0.0
            found.append(span)
        return tuple(Span(lane=s.lane, part=s.part, start=s.start - start, stop=s.stop - start) for s in found)

    def _starts(self) -> list[float]:
        """When each lap began."""
        return [self._start, *(cut[1] for cut in self._cuts)][: len(self._cuts)]


def _between(name: str, start: float, stop: float, inside: Sequence[Span]) -> list[Span]:
    """A lap without what the lane did inside of it, which stands for itself."""
    lane, at, found = _LANES.get(name, "target"), start, []
    for begun, done in [*((s.start, s.stop) for s in inside), (stop, stop)]:
        if begun > at:
            found.append(Span(lane=lane, part=name, start=at, stop=begun))
        at = max(at, done)
    return found
