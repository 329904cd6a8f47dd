"""Chosen draft lengths: the rule by hand, drift back to drafting, bounded waste, and near the best fixed length."""

from dataclasses import replace
from itertools import product
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmsd_jax.config import UserError
from xmsd_jax.decoding.adaptive_walk import length_walk, walk_seconds
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.draft_lengths import MEMORY, Adaptive, Fixed, Prior, measured_gammas
from xmsd_jax.metrics.acceptance import Anchors

LONGEST = 8
# Milliseconds at 7B shapes (DESIGN, "Numbers measured"), a pass over 9 tokens and the NF4 pass over 2 as in the brief.
BF16 = {1: 5.2, 6: 6.5, 9: 7.0}
NF4 = {1: 4.8, 2: 6.9, 6: 13.8, 9: 14.0}
NGRAM, ADAPTER = 0.05, 1.06
HOST = 0.05


def parts_of(verify, draft: float = NGRAM, host: float = HOST, **more) -> Parts:
    seconds = {length: ms / 1e3 for length, ms in verify.items()}
    return Parts(
        vision=0.0, prefill=0.0, decode_step=seconds[1], verify=seconds, host=host / 1e3,
        draft={1: draft / 1e3, LONGEST: draft / 1e3}, **more,
    )  # fmt: skip


def adaptive(verify, draft: float = NGRAM, **more) -> Adaptive:
    return Adaptive(parts_of(verify, draft), range(1, LONGEST + 1), **more)


def iid_anchors(acceptance: float, *, tokens: int, answers: int, seed: int = 0) -> Anchors:
    """Anchors at which each drafted token is right with one probability."""
    rng = np.random.default_rng(seed)
    hits = rng.random((answers, tokens, LONGEST)) < acceptance
    left = np.maximum(tokens - 1 - np.arange(tokens), 0)
    right = np.minimum(np.cumprod(hits, axis=2).sum(2), left).astype(np.int32)
    right[:, -1] = -1
    lengths = np.full(answers, tokens, np.int32)
    return Anchors(right=right, gamma=LONGEST, target_len=lengths, free=np.zeros(answers, np.int32))


def phase_2(parts: Parts, anchors: Anchors, lengths) -> float:
    return sum(float(part.sum()) for part in walk_seconds(parts, length_walk(anchors, lengths, LONGEST)).values())


def test_the_choice_has_the_most_expected_tokens_a_second():
    rule = Adaptive(parts_of(NF4), [1, 5, 8])  # a = 0.75: 1 / 4.8 = 0.208, 1.75 / 7.0, 3.29 / 13.9, 3.70 / 14.1 = 0.262
    assert rule.acceptance == pytest.approx(0.75)
    assert rule.choose(LONGEST) == 8
    assert rule.choose(7) == 1
    rule.tell(8, 8, 0)  # a = 0.43: 1.43 / 7.0 = 0.204
    assert rule.acceptance == pytest.approx(1 / (4 / 3 + 1))
    assert rule.choose(LONGEST) == 0


def test_only_allowed_lengths_are_chosen():
    parts = parts_of(BF16)
    found = set()
    for gammas in ([2], [3, 1], [5, 8]):
        rule = Adaptive(parts, gammas)
        for accepted in (0, 0, 0, 1, 1, 1, 1, 1):
            asked = rule.choose(LONGEST)
            assert asked in (0, *gammas)
            found.add(asked)
            rule.tell(asked, asked, min(accepted, asked))
    assert found >= {2, 5, 8}


def test_what_follows_a_wrong_token_is_not_counted_against_the_drafter():
    rule = adaptive(BF16, memory=1.0)
    rule.tell(8, 8, 2)  # right, right, wrong; five were never judged
    assert rule.acceptance == pytest.approx(3 / (4 / 3 + 3))
    rule.tell(8, 8, 8)
    assert rule.acceptance == pytest.approx(11 / (4 / 3 + 11))
    rule.tell(8, 3, 3)  # a short draft that stood
    assert rule.acceptance == pytest.approx(14 / (4 / 3 + 14))


def test_plain_steps_and_empty_drafts_let_the_estimate_drift_back_by_the_memory():
    rule = adaptive(NF4)
    rule.tell(1, 1, 0)
    for _ in range(10):
        rule.tell(0, 0, 0)
        rule.tell(4, 0, 0)
    assert rule.acceptance == pytest.approx(1 / (4 / 3 + MEMORY**20))


def test_a_draft_is_tried_again_after_plain_steps_and_right_ones_bring_drafting_back():
    rule, asked = adaptive(NF4), []
    for right in [0] * 30 + [LONGEST] * 12:
        asked.append(rule.choose(LONGEST))
        rule.tell(asked[-1], asked[-1], min(right, asked[-1]))
    wrong, right = asked[:30], asked[30:]
    tried = [at for at, gamma in enumerate(wrong) if gamma]
    assert tried == [0, 5, 21]  # wrong tokens weigh 1, then 1.8, and 0.85 is where a draft pays again
    assert right[-3:] == [LONGEST] * 3


def test_an_answer_begins_anew_whatever_came_before():
    rule = adaptive(BF16)
    fresh = rule.choose(LONGEST)
    for _ in range(30):
        rule.tell(LONGEST, LONGEST, 0)
    assert rule.choose(LONGEST) != fresh
    rule.begin()
    assert rule.choose(LONGEST) == fresh


def test_the_drafters_own_answer_pays_a_step_for_each_emitted_token():
    cheap, dear = (parts_of(BF16, drafter_step=s) for s in (0.0, 0.006))
    assert Adaptive(cheap, [8], own=True).choose(8) == 8
    assert Adaptive(dear, [8], own=True).choose(8) == 0  # a token costs more than the target's own
    assert Adaptive(dear, [8]).choose(8) == 8  # the steps of phase 1 are no cost of phase 2


def test_a_fixed_length_is_that_length_where_it_is_allowed():
    rule = Fixed(gamma=5)
    rule.tell(5, 5, 0)
    assert (rule.choose(8), rule.choose(3)) == (5, 3)


def test_times_and_a_prior_that_allow_no_choice_are_refused():
    parts = parts_of(BF16)
    for gammas in ([], [0, 1]):
        with pytest.raises(ValueError, match="draft lengths of 1 or more"):
            Adaptive(parts, gammas)
    for memory in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"memory in \(0, 1\]"):
            Adaptive(parts, [1], memory=memory)
    with pytest.raises(ValueError, match="right and wrong counts above 0"):
        Prior(right=1.0, wrong=0.0)
    with pytest.raises(UserError, match="verify of length 10 was not measured"):
        Adaptive(replace(parts, draft={9: 0.1}), [9])


def test_lengths_of_which_draft_and_pass_were_measured_are_allowed():
    parts = Parts(vision=0, prefill=0, decode_step=1, verify={2: 1, 3: 1, 9: 1, 12: 1}, draft={1: 1, 2: 1, 4: 1, 8: 1})
    assert measured_gammas(parts, 8) == [1, 2, 8]
    assert measured_gammas(parts, 7) == [1, 2]


@given(
    st.integers(1, 300),
    st.dictionaries(st.integers(1, 8), st.floats(0.2, 20), min_size=1),
    st.sampled_from([(1.0, 1 / 3, 0.95), (1.0, 1.0, 0.9), (3.0, 1.0, 0.98)]),
)
def test_drafts_that_are_never_right_waste_no_more_than_the_bound_whatever_the_times(tokens, times, settings):
    """The bound of the module docstring, in plain steps of 1 s."""
    right, wrong, memory = settings
    parts = Parts(
        vision=0,
        prefill=0,
        decode_step=1.0,
        verify={g + 1: s for g, s in times.items()},
        draft=dict.fromkeys(times, 0.0),
    )
    rule = Adaptive(parts, sorted(times), prior=Prior(right=right, wrong=wrong), memory=memory)
    waste = 0.0
    for _ in range(tokens):
        asked = rule.choose(LONGEST)
        waste += times[asked] - 1.0 if asked else 0.0
        rule.tell(asked, asked, 0)
    most = tokens * -log(memory) + log(1 + 1 / (1 - memory) / wrong)
    assert waste <= right / (wrong * log(1 + 1 / wrong)) * most + 1e-9


def test_the_worst_times_waste_a_tenth_of_an_answer_of_fifty_tokens_at_most():
    wasted = []
    for gamma, likely in product((1, 2, 4, 8), np.linspace(0.01, 0.749, 80)):
        time = sum(likely**k for k in range(gamma + 1)) * 0.999  # pays while the estimate is at least `likely`
        parts = Parts(vision=0, prefill=0, decode_step=1.0, verify={gamma + 1: time}, draft={gamma: 0.0})
        rule = Adaptive(parts, [gamma])
        asked = 0
        for _ in range(49):
            chosen = rule.choose(LONGEST)
            asked += chosen > 0
            rule.tell(chosen, chosen, 0)
        wasted.append(asked * (time - 1) / 49)
    assert 0.05 < max(wasted) < 0.10


def test_drafts_that_cannot_pay_are_never_tried_and_those_that_cost_nothing_always():
    anchors = iid_anchors(0.6, tokens=50, answers=20)
    never = length_walk(anchors, adaptive({1: 5.0, 9: 40.0}), LONGEST)
    assert never.plain.tolist() == never.iterations.tolist() == [49] * 20
    always = length_walk(anchors, Adaptive(parts_of({1: 5.0, 9: 5.0}, 0.0, 0.0), [4, 8]), LONGEST)
    assert always.plain.tolist() == [0] * 20


@pytest.mark.parametrize("tokens", [50, 256])
@pytest.mark.parametrize("draft", [NGRAM, ADAPTER], ids=["n-gram", "adapter"])
@pytest.mark.parametrize("verify", [BF16, NF4], ids=["bf16", "NF4"])
def test_chosen_lengths_come_within_a_tenth_of_the_best_fixed_one(verify, draft, tokens):
    parts = parts_of(verify, draft)
    for acceptance in (0.0, 0.3, 0.6, 0.9):
        anchors = iid_anchors(acceptance, tokens=tokens, answers=4000 // tokens)
        fixed = {g: phase_2(parts, anchors, Fixed(gamma=g)) for g in range(LONGEST + 1)}
        best = min(fixed, key=lambda g: fixed[g])
        chosen = phase_2(parts, anchors, adaptive(verify, draft))
        assert fixed[best] / chosen > 0.9, (acceptance, best)
