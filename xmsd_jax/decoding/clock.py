"""Wall-clock seconds of one answer, cut into named laps, and the spans of both lanes for a timeline."""

import time
from collections.abc import Iterable
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


class Clock:
    """Contiguous laps: the device is synchronised at every cut, so no work of one lap is charged to the next."""

    def __init__(self, verifier: Verifier) -> None:
        """Start the first lap."""
        self._verifier = verifier
        self._laps: dict[str, float] = dict.fromkeys(LAPS, 0.0)
        self._sync = 0.0
        self._spans: list[Span] = []
        verifier.synchronize()
        self._start = self._last = time.perf_counter()

    def lap(self, name: str, inside: Iterable[Span] = (), beside: Iterable[Span] = ()) -> None:
        """Charge the time since the last cut to `name`.

        `inside` tells what the drafter's lane did in it, `beside` what it did at the same time, this lap or before.
        """
        self._verifier.synchronize()
        now = time.perf_counter()
        self._laps[name] += now - self._last
        inside = list(inside)
        if name == "draft":
            self._sync += sum(span.stop - span.start for span in inside if span.part in SYNC)
        self._spans += [*self._between(name, inside, now), *inside, *beside]
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds by the names of `Trace.seconds`; how much of its prefill was vision is what the verifier says."""
        laps = self._laps
        vision = min(self._verifier.times["vision"], laps["prefill"])
        prefill = laps["prefill_draft"] + laps["prefill"] - vision
        decode = laps["draft"] + laps["verify"] + laps["host"]
        return {**laps, "sync": self._sync, "vision": vision, "prefill": prefill, "decode": decode}

    def spans(self) -> tuple[Span, ...]:
        """All spans, in order, in seconds from the start of the answer; the first of the prefill is its vision."""
        start, found, vision = self._start, [], self._verifier.times["vision"]
        for span in sorted(self._spans, key=lambda span: span.start):
            if span.part == "prefill" and vision > 0:
                seen = min(span.start + vision, span.stop)
                found.append(Span(lane="target", part="vision", start=span.start, stop=seen))
                span, vision = Span(lane="target", part="prefill", start=seen, stop=span.stop), 0.0
            found.append(span)
        return tuple(Span(lane=s.lane, part=s.part, start=s.start - start, stop=s.stop - start) for s in found)

    def _between(self, name: str, inside: list[Span], now: float) -> list[Span]:
        """The lap without what the lane did inside of it, which stands for itself."""
        lane, at, found = _LANES.get(name, "target"), self._last, []
        for start, stop in [*((s.start, s.stop) for s in inside), (now, now)]:
            if start > at:
                found.append(Span(lane=lane, part=name, start=at, stop=start))
            at = max(at, stop)
        return found
