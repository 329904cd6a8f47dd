"""Parts of the cost model that are not simply a clock around a call."""

from time import sleep
from types import SimpleNamespace

import pytest

from xmsd_jax.decoding.clock import Clock
from xmsd_jax.pipeline import costs


class Slow:
    """A target whose passes take long; what the loop does around them does not."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passes = seconds, 0

    def prefill(self, prompt) -> None:
        self.prompt = prompt

    def verify(self, ids) -> None:
        self.passes += 1
        sleep(self.seconds)

    def crop(self, count) -> None:
        assert count == 3

    def synchronize(self) -> None:
        pass


@pytest.mark.parametrize("seconds", [0.0, 0.004])
def test_the_loops_own_time_leaves_the_passes_between_out(seconds):
    """Each iteration waits for a pass of the target, as live; it is not charged for it."""
    shared = Slow(seconds)
    pair = SimpleNamespace(shared=shared, lengths=SimpleNamespace(gamma=2, max_new_tokens=9))
    sample = SimpleNamespace(prompt="p", answer=SimpleNamespace(ids=(4, 5)))
    host = costs._host(pair, sample)  # pyright: ignore[reportArgumentType]
    assert shared.passes == 8 * (costs.REPEATS + 1)
    assert 1e-6 < host < 0.002


def test_what_is_told_after_an_answer_is_no_time_of_its_iterations(monkeypatch):
    """A clock makes spans of its cuts when decoding is over; live laps do not contain that."""
    spans = Clock.spans
    monkeypatch.setattr(Clock, "spans", lambda clock: sleep(0.1) or spans(clock))
    pair = SimpleNamespace(shared=Slow(0.0), lengths=SimpleNamespace(gamma=2, max_new_tokens=9))
    sample = SimpleNamespace(prompt="p", answer=SimpleNamespace(ids=(4, 5)))
    assert costs._host(pair, sample) < 0.1 / 8  # pyright: ignore[reportArgumentType]
