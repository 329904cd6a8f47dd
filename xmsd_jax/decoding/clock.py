"""Wall-clock seconds of one answer, cut into named laps."""

import time

from xmsd_jax.decoding.ports import Verifier

LAPS: tuple[str, ...] = ("prefill_draft", "prefill", "first", "draft", "verify", "host")


class Clock:
    """Contiguous laps: the device is synchronised at every cut, so no work of one lap is charged to the next."""

    def __init__(self, verifier: Verifier) -> None:
        """Start the first lap."""
        self._verifier = verifier
        self._laps: dict[str, float] = dict.fromkeys(LAPS, 0.0)
        verifier.synchronize()
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charge the time since the last cut to `name`."""
        self._verifier.synchronize()
        now = time.perf_counter()
        self._laps[name] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds by the names of `Trace.seconds`; how much of its prefill was vision is what the verifier says."""
        laps = self._laps
        vision = min(self._verifier.times["vision"], laps["prefill"])
        prefill = laps["prefill_draft"] + laps["prefill"] - vision
        return {**laps, "vision": vision, "prefill": prefill, "decode": laps["draft"] + laps["verify"] + laps["host"]}
