"""The figures of a live run, for two answers worked out by hand."""

import numpy as np
import pytest

from xmsd_jax.metrics.live import Times, count_metrics, time_metrics

SECONDS = [
    {"vision": 0.1, "prefill": 0.2, "first": 0.0, "decode": 0.7, "draft": 0.1, "verify": 0.6},
    {"vision": 0.1, "prefill": 0.2, "first": 0.1, "decode": 0.6, "draft": 0.2, "verify": 0.4},
]
PLAIN = [{"vision": 0.1, "prefill": 0.2, "decode": 1.2}, {"vision": 0.1, "prefill": 0.2, "decode": 2.2}]


def counts(**more):
    given = {"tokens": [20, 30], "iterations": [5, 10], "emitted": [19, 26], "sequences": ["a", "b"], **more}
    return count_metrics(**given)


def timed(**more):
    return time_metrics(Times.of(SECONDS), sequences=["a", "b"], **more)


def test_the_check_of_prefill_drafts_counts_as_decoding():
    times = Times.of(SECONDS)
    np.testing.assert_allclose(times.decode, [0.7, 0.7])
    np.testing.assert_allclose(times.whole, [1.0, 1.0])


def test_tau_is_a_ratio_of_sums():
    found = counts()
    assert found["tau"].value == pytest.approx(45 / 15)
    assert found["iterations"].value == 7.5
    assert found["tokens"].value == 25


def test_times_are_means_per_answer_in_milliseconds():
    found = timed()
    assert found["decode_ms"].value == pytest.approx(700)
    assert found["vision_ms"].value == pytest.approx(100)
    assert found["vision_ms"].n == 2


def test_a_speed_up_appears_with_a_baseline_only():
    assert not {"speedup", "decode_speedup"} & set(timed())
    found = timed(baseline=Times.of(PLAIN))
    assert found["speedup"].value == pytest.approx((1.5 + 2.5) / 2.0)
    assert found["decode_speedup"].value == pytest.approx((1.2 + 2.2) / 1.4)


def test_figures_that_do_not_apply_are_absent_not_zero():
    assert "n_free" not in counts()
    assert counts(n_free=[0, 3])["n_free"].value == 1.5
    assert not {"tau", "iterations"} & set(counts(iterations=None, emitted=None))


def test_iterations_without_their_tokens_are_refused():
    with pytest.raises(ValueError, match="go together"):
        counts(emitted=None)
