"""Imposed acceptance by hand: tokens an iteration, and the speed-up that follows from the parts."""

import pytest

from xmsd_jax.config import UserError
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.imposed import expected_tokens, imposed_speedups

PARTS = Parts(vision=1.0, prefill=9.0, decode_step=2.0, verify={2: 2.5, 4: 3.5}, host=0.5)


@pytest.mark.parametrize(
    ("acceptance", "gamma", "tokens"),
    [(0.5, 3, 1.875), (0.0, 3, 1.0), (1.0, 3, 4.0), (0.9, 0, 1.0), ((1.0, 0.5), 3, 2.75), ((0.5, 0.25, 1.0), 1, 1.5)],
)
def test_tokens_of_an_iteration_are_the_sum_of_the_products(acceptance, gamma, tokens):
    assert expected_tokens(acceptance, gamma) == tokens


@pytest.mark.parametrize(
    ("acceptance", "gamma"), [(1.1, 1), (-0.1, 1), (0.5, -1), ((), 1), ((0.5, 2.0), 1), (float("nan"), 1)]
)
def test_what_is_no_probability_or_length_is_refused(acceptance, gamma):
    with pytest.raises(ValueError, match=r"acceptance must be 0\.\.1 and gamma 0 or more"):
        expected_tokens(acceptance, gamma)


def test_the_speed_up_is_that_of_the_whole_answers():
    """10 and 4 more tokens, 20 + 28 plainly; with a = 0.5, 1.5 tokens for 3.0 or, at gamma 3, 1.875 for 4.0."""
    plain, drafted = 2 * 10 + 28, [2 * 10 + 14 / 1.5 * 3.0, 2 * 10 + 14 / 1.875 * 4.0]
    found = imposed_speedups(PARTS, [11, 5], acceptance=0.5, gammas=[0, 1, 3])
    assert found == pytest.approx([1.0, plain / drafted[0], plain / drafted[1]])


def test_draft_sync_and_the_lane_of_a_drafter_are_paid_where_they_are_given():
    costly = Parts(
        vision=1.0, prefill=9.0, decode_step=2.0, verify={2: 2.5}, host=0.5, draft={1: 1.0}, sync=0.25,
        drafter_vision=1.0, drafter_prefill=2.0, drafter_step=0.5,
    )  # fmt: skip
    (found,) = imposed_speedups(costly, [11], acceptance=1.0, gammas=[1])
    assert found == pytest.approx(30 / (10 + 3 + 10 * 0.5 + 5 * (1.0 + 0.25 + 2.5 + 0.5)))


def test_a_pass_that_was_not_measured_is_not_guessed():
    with pytest.raises(UserError, match="verify of length 5 was not measured"):
        imposed_speedups(PARTS, [11], acceptance=0.5, gammas=[4])
