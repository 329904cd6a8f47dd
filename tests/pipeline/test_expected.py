"""Expected walks: where they start, how many lane steps they take, and when a live run may differ from them."""

import numpy as np
import pytest

from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.text_anchors import FreePrefix
from xmsd_jax.decoding.trace import Iteration, Trace
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.pipeline.expected import agreement, expect
from xmsd_jax.pipeline.judged import Judged
from xmsd_jax.pipeline.predicted import predicted_parts
from xmsd_jax.pipeline.rows import DraftRow

LENGTH, GAMMA = 6, 3
RIGHT = [2, 0, 1, 2, 0, -1]  # walks: 0, 3 from anchor 0; 1, 2, 4 from anchor 1
WALK = [(0, 2), (3, 2)]


def anchors(slack=None, *, right=RIGHT, length=LENGTH) -> Anchors:
    return Anchors(
        right=np.array([right], np.int32),
        gamma=GAMMA,
        target_len=np.array([length], np.int32),
        free=np.zeros(1, np.int32),
        slack=None if slack is None else np.array([slack], np.float32),
    )


def prefix(free: int, slack: float | None = None, drafted: int = 2) -> FreePrefix:
    held = None if slack is None else np.array([slack], np.float32)
    return FreePrefix(free=np.array([free], np.int32), drafted=drafted, slack=held)


def expected(row: DraftRow, *, late=None, early=None, drafter_len: int = 10, parts=None):
    judged = {}
    if row.drafter:
        judged[row.drafter] = Judged(anchors=anchors() if late is None else late)
    if row.first:
        judged[row.first] = Judged(anchors=judged.get(row.first, Judged()).anchors, prefix=early)
    lengths = judged[row.drafter].anchors.target_len if row.drafter else [LENGTH]
    return expect(row, GAMMA, judged, target_len=lengths, drafter_len=[drafter_len], known=[True], parts=parts)


def live(walk, n_free: int = 0) -> Trace:
    iterations = tuple(Iteration(anchor=t, drafted=(), accepted=n, emitted=n + 1) for t, n in walk)
    ids = tuple(range(LENGTH))
    return Trace(ids=ids, origins=("target",) * LENGTH, stop="length", iterations=iterations, n_free=n_free)


B1 = DraftRow(drafter="B1")
L1 = DraftRow(prefill="L1", prefill_mode="ride")
L1_B1 = DraftRow(prefill="L1", drafter="B1", prefill_mode="ride")
OWN = DraftRow(drafter="L5 (own)")


def test_the_walk_starts_after_the_free_prefix():
    whole, late = expected(B1), expected(L1_B1, early=prefix(1))
    assert (whole.iterations.tolist(), whole.free.tolist()) == ([2], [0])
    assert (late.iterations.tolist(), late.free.tolist()) == ([3], [1])
    assert np.flatnonzero(late.anchors.visited(GAMMA)[0]).tolist() == [1, 2, 4]
    assert agreement(late, 0, live([(1, 0), (2, 1), (4, 0)], n_free=1), dtype="float32") == "equal"


def test_a_row_without_phase_2_has_no_iterations():
    row = expected(L1, early=prefix(2))
    assert row.iterations.tolist() == [0]
    assert agreement(row, 0, live([], n_free=2), dtype="float32") == "equal"
    assert agreement(row, 0, live(WALK, n_free=2), dtype="float32") == "differs"


@pytest.mark.parametrize(
    ("slack", "dtype", "verdict"),
    [
        ([9, 9, 9, 5e-5, 9, 9], "float32", "tie"),
        ([9, 9, 9, 2e-4, 9, 9], "float32", "differs"),
        ([5e-5, 5e-5, 5e-5, 9, 5e-5, 5e-5], "float32", "differs"),
        ([9, 9, 9, 0.2, 9, 9], "bfloat16", "tie"),
        ([9, 9, 9, 0.3, 9, 9], "bfloat16", "differs"),
        (None, "float32", "differs"),
    ],
)
def test_another_count_is_a_tie_only_where_the_drafters_head_was_near_one_at_that_anchor(slack, dtype, verdict):
    row = expected(B1, late=anchors(slack))
    assert agreement(row, 0, live(WALK), dtype=dtype) == "equal"
    assert agreement(row, 0, live([(0, 2), (3, 1), (5, 0)]), dtype=dtype) == verdict


def test_what_follows_a_tie_is_not_compared():
    row = expected(B1, late=anchors([5e-5, 9, 9, 9, 9, 9]))
    assert agreement(row, 0, live([(0, 0), (1, 3)]), dtype="float32") == "tie"


@pytest.mark.parametrize("walk", [WALK[:1], [*WALK, (5, 0)], []])
def test_iterations_too_few_or_too_many_differ(walk):
    assert agreement(expected(B1), 0, live(walk), dtype="float32") == "differs"


@pytest.mark.parametrize(("slack", "verdict"), [(5e-5, "tie"), (1.0, "differs"), (None, "differs")])
def test_another_free_prefix_is_judged_by_the_slack_of_phase_1(slack, verdict):
    row = expected(L1, early=prefix(2, slack))
    assert agreement(row, 0, live([], n_free=1), dtype="float32") == verdict


@pytest.mark.parametrize(("drafter_len", "steps"), [(10, 6), (4, 4)])
def test_the_drafters_own_answer_is_stepped_up_to_the_last_draft_or_its_end(drafter_len, steps):
    """The last anchor visited is 3: a draft of 3 reads the drafter's states 0..5."""
    assert expected(OWN, drafter_len=drafter_len).lane_steps(GAMMA).tolist() == [steps]


@pytest.mark.parametrize(
    ("first", "drafter_len", "steps"),
    [("L1", 10, 5), ("L1", 1, 0), ("template", 10, 7), ("n-gram", 10, 7), ("prompt-lookup", 10, 7)],
)
def test_phase_1_has_taken_its_steps_only_where_it_reads_the_drafter(first, drafter_len, steps):
    """From anchor 1 the last one visited is 4: states 0..6, of which an adapter of phase 1 has made 2."""
    row = DraftRow(prefill=first, drafter="L5 (own)", prefill_mode="ride")
    assert expected(row, early=prefix(1), drafter_len=drafter_len).lane_steps(GAMMA).tolist() == [steps]


def test_no_draft_takes_no_lane_step():
    assert expected(OWN, late=anchors(right=[-1] * LENGTH, length=1)).lane_steps(GAMMA).tolist() == [0]
    assert expected(OWN).lane_steps(0) is None
    assert expected(DraftRow(drafter="L5 (synced)")).lane_steps(GAMMA) is None
    assert expected(L1, early=prefix(1)).lane_steps(GAMMA) is None


def seconds(pays: int, **more) -> Parts:
    """Parts of drafts of 1 or 3 tokens, of which those of `pays` take as long as a plain step, others far longer."""
    verify = {gamma + 1: 1.0 if gamma == pays else 9.0 for gamma in (1, 3)}
    return Parts(vision=0, prefill=0, decode_step=1.0, verify=verify, draft={1: 0.0, 3: 0.0}, **more)


@pytest.mark.parametrize(("pays", "walk"), [(3, WALK), (1, [(0, 1), (2, 1), (4, 0)]), (0, [(t, 0) for t in range(5)])])
def test_a_row_that_chooses_its_lengths_takes_the_walk_that_its_own_parts_make_pay(pays, walk):
    row = expected(DraftRow(drafter="B1", gamma="auto"), parts=seconds(pays))
    assert row.iterations.tolist() == [len(walk)]
    assert agreement(row, 0, live(walk), dtype="float32") == "equal"
    assert agreement(row, 0, live(walk[:-1]), dtype="float32") == "differs"
    phase_2 = predicted_parts(seconds(pays), row)["verify"]
    assert phase_2.tolist() == [len(walk)]  # a second each: the draft of 3, that of 1, or a plain step


def test_a_row_that_chooses_its_lengths_needs_the_times_to_choose_by():
    with pytest.raises(ValueError, match=r"B1 \(auto\) chooses draft lengths by its measured times, got none"):
        expected(DraftRow(drafter="B1", gamma="auto"))


@pytest.mark.parametrize(("pays", "steps"), [(3, 6), (1, 7), (0, 0)])
def test_chosen_drafts_step_the_drafters_own_answer_as_far_as_the_longest_one(pays, steps):
    row = expected(DraftRow(drafter="L5 (own)", gamma="auto"), parts=seconds(pays, drafter_step=0.01))
    assert row.walked_lane_steps.tolist() == [steps]
    assert predicted_parts(seconds(pays, drafter_step=0.01), row)["sync"].tolist() == [pytest.approx(steps * 0.01)]


def test_some_answers_can_be_taken():
    row = expected(L1_B1, late=anchors([1, 2, 3, 4, 5, 6]), early=prefix(1, 0.5))
    twice = row.take(np.array([0, 0]))
    assert (twice.iterations.tolist(), twice.free.tolist(), twice.known.tolist()) == ([3, 3], [1, 1], [True, True])
    assert twice.anchors.slack.shape == (2, LENGTH)
    assert twice.prefix.slack.tolist() == [0.5, 0.5]
