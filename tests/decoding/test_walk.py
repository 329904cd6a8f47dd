"""The offline walk, by hand."""

import numpy as np
import pytest

from tests.decoding.toy import Scripted, toy_prompt
from xmsd_jax.decoding.walk import free_prefix, n_free, prefix_counts, walk

ANSWER = [10, 11, 12, 13, 14, 15, 16, 2]
WRONG_AT_0_AND_4 = [9, 11, 12, 13, 9, 15, 16, 2, 5, 5, 5]


def scripted(tokens=WRONG_AT_0_AND_4, lengths=()) -> Scripted:
    return Scripted({0: tokens}, lengths)


def test_a_walk_jumps_over_accepted_tokens_and_the_targets_own():
    # anchor 0: 11, 12 right of two; anchor 3: 14 wrong; anchor 4: 15, 16 right; the bonus is the last token
    taken = walk(ANSWER, scripted(), toy_prompt(), 2)
    assert taken.anchors == (0, 3, 4)
    assert taken.accepted == (2, 0, 2)
    assert taken.emitted == 7
    assert taken.tau == pytest.approx(7 / 3)


def test_positions_past_the_end_are_misses():
    assert walk(ANSWER, scripted(), toy_prompt(), 6, start=4).accepted == (3,)
    assert walk(ANSWER, scripted(), toy_prompt(), 6, start=6).accepted == (1,)


@pytest.mark.parametrize("start", [7, 8])
def test_an_answer_that_was_free_to_its_end_has_no_iterations(start):
    taken = walk(ANSWER, scripted(), toy_prompt(), 6, start=start)
    assert (taken.iterations, taken.emitted, taken.tau) == (0, 0, None)


def test_empty_drafts_walk_one_token_at_a_time():
    taken = walk(ANSWER, scripted(lengths=[0]), toy_prompt(), 4)
    assert taken.anchors == (0, 1, 2, 3, 4, 5, 6)
    assert taken.tau == 1


def test_prefix_counts_are_over_all_anchors():
    # right at anchors 0..6 with two drafted: 2, 2, 1, 0, 2, 2, 1 (the last has one position left)
    counts = prefix_counts(ANSWER, scripted(), toy_prompt(), 2)
    assert (counts.right.tolist(), counts.anchors) == ([6, 4], 7)
    merged = counts.merge(counts)
    assert merged.anchors == 14
    assert merged.shares == pytest.approx([6 / 7, 4 / 7])


def test_prefix_counts_of_an_answer_of_one_token_are_empty():
    counts = prefix_counts([2], scripted(), toy_prompt(), 3)
    assert (counts.right.tolist(), counts.anchors, counts.shares.tolist()) == ([0, 0, 0], 0, [0, 0, 0])


def test_free_tokens_count_from_the_first_and_end_with_the_answer():
    assert n_free([10, 11, 9], ANSWER) == 2
    assert n_free([9, 11], ANSWER) == 0
    assert n_free([*ANSWER, 5], ANSWER) == 8
    assert free_prefix(ANSWER, scripted(), toy_prompt(), 4) == 0
    assert free_prefix(ANSWER, scripted([10, 11, 12]), toy_prompt(), 2) == 2


def test_a_drafter_is_given_what_is_known_at_its_anchor_and_no_more():
    drafter = scripted()
    states = np.arange(16).reshape(8, 2)
    walk(ANSWER, drafter, toy_prompt(), 2, prompt_ids=[1, 2, 3], hidden=states)
    for context, anchor in zip(drafter.seen, (0, 3, 4), strict=True):
        assert context.ids.tolist() == ANSWER[: anchor + 1]
        np.testing.assert_array_equal(np.concatenate(context.hidden), states[: anchor + 1])
        assert context.prompt_ids.tolist() == [1, 2, 3]
    free_prefix(ANSWER, drafter, toy_prompt(), 2)
    assert (drafter.seen[-1].ids.tolist(), drafter.seen[-1].hidden) == ([], ())


def test_a_walk_without_drafted_tokens_is_refused():
    with pytest.raises(ValueError, match="at least 1 drafted token, got 0"):
        walk(ANSWER, scripted(), toy_prompt(), 0)
