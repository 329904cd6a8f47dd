"""Walks with chosen draft lengths: live decoding takes them, answer by answer, and their time is counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_live import KINDS, QUESTIONS, make_drafter
from tests.decoding.toy import CappedVerifier, Scripted, ToyVerifier, target_alone, toy_prompt
from xmsd_jax.decoding.adaptive_walk import length_walk, walk_seconds
from xmsd_jax.decoding.cost import Parts, predict
from xmsd_jax.decoding.draft_lengths import Adaptive, Fixed
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.text_anchors import after, text_anchors, text_free
from xmsd_jax.metrics.acceptance import Anchors

TABLES = {
    "drafts pay a little": {1: 5.2, 6: 6.5, 9: 7.0},
    "only long or short ones pay": {1: 4.8, 2: 6.9, 6: 13.8, 9: 14.0},
    "drafts never pay": {1: 5.0, 2: 9.0, 9: 60.0},
    "drafts are free": {1: 5.0, 9: 5.0},
}


def parts_of(verify, draft: float = 0.0) -> Parts:
    return Parts(vision=0, prefill=0, decode_step=verify[1], verify=verify, draft={1: draft, 9: draft})


class Told:
    """Passes everything on to a rule and keeps what it was asked and told, per answer."""

    def __init__(self, rule) -> None:
        self.rule = rule

    def begin(self) -> None:
        self.rule.begin()
        self.asked, self.told = [], []

    def choose(self, most: int) -> int:
        self.asked.append(self.rule.choose(most))
        return self.asked[-1]

    def tell(self, asked: int, drafted: int, accepted: int) -> None:
        self.told.append((asked, drafted, accepted))
        self.rule.tell(asked, drafted, accepted)


def anchors_of(drafter, verifier: ToyVerifier, count: int, gamma: int, draft_len: int) -> Anchors:
    """The questions' answers by the target alone, with walks that start after the free prefix."""
    prompts = [toy_prompt(q) for q in QUESTIONS]
    answers = [target_alone(verifier, prompt, count) for prompt in prompts]
    about = {"prompt_ids": verifier.prompt_ids}
    free = text_free(drafter, answers, prompts, draft_len=draft_len, **about) if draft_len else None
    return after(text_anchors(drafter, answers, prompts, gamma=gamma, **about), free)


@settings(max_examples=150)
@given(
    KINDS, st.sampled_from([*TABLES.values()]), st.sampled_from([0, 4]), st.integers(1, 8), st.integers(1, 60),
    st.integers(0, 30), st.booleans(),
)  # fmt: skip
def test_live_asks_and_accepts_what_the_offline_walk_does(kind, verify, draft_len, gamma, count, seed, capped):
    verifier = CappedVerifier(count, seed=seed) if capped else ToyVerifier(seed=seed)
    drafter = make_drafter(kind, seed, count)
    config = LiveConfig(
        gamma=gamma, max_new_tokens=count, prefill_mode="ride" if draft_len else "none", prefill_draft_len=draft_len
    )
    rule = Adaptive(parts_of(verify), range(1, gamma + 1))
    anchors = anchors_of(drafter, verifier, count, gamma, draft_len)
    walk = length_walk(anchors, rule, gamma)
    for question in reversed(QUESTIONS):  # another order than offline: no answer depends on the last one
        lengths = Told(rule)
        trace = decode(verifier, drafter, toy_prompt(question), config, lengths=lengths)
        assert list(trace.ids) == target_alone(verifier, toy_prompt(question), count)
        visited = np.flatnonzero(walk.visited[question])
        live = [(i.anchor, asked, i.accepted) for i, asked in zip(trace.iterations, lengths.asked, strict=True)]
        assert live == [(t, walk.asked[question, t], walk.accepted[question, t]) for t in visited]
        assert [told[0] for told in lengths.told] == lengths.asked
        assert [told[1] for told in lengths.told] == [len(i.drafted) for i in trace.iterations]
        assert verifier.passes[1:] == [
            ("verify", 1 + len(i.drafted)) if i.drafted else ("step", 1) for i in trace.iterations
        ]


@given(KINDS, st.integers(1, 8), st.integers(1, 40), st.integers(0, 30))
def test_a_fixed_length_takes_the_walk_and_the_time_that_it_has_without_the_protocol(kind, gamma, count, seed):
    anchors = anchors_of(make_drafter(kind, seed, count), ToyVerifier(seed=seed), count, 8, 0)
    walk = length_walk(anchors, Fixed(gamma=gamma), 8)
    np.testing.assert_array_equal(walk.visited, anchors.visited(gamma))
    np.testing.assert_array_equal(walk.iterations, anchors.walk(gamma).iterations)
    for ours, theirs in zip(walk.prefix_counts(gamma), anchors.prefix_counts(gamma, walk.visited), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    parts = Parts(
        vision=1, prefill=2, decode_step=3, verify={1: 3, 9: 5}, draft={1: 0.1, 8: 0.8}, sync=0.7, host=0.05,
        drafter_step=0.3,
    )  # fmt: skip
    for steps in (None, np.arange(len(walk.asked))):
        whole = predict(
            parts, target_len=anchors.target_len, iterations=walk.iterations, n_free=anchors.free, gamma=gamma,
            idle=anchors.idle(gamma), lane_steps=steps,
        )  # fmt: skip
        for part, seconds in walk_seconds(parts, walk, steps).items():
            np.testing.assert_allclose(seconds, whole[part], rtol=1e-12)


def toy(kind: str, verify, seed: int = 23, count: int = 60):
    verifier, drafter = ToyVerifier(seed=seed), make_drafter(kind, seed, count)
    rule = Adaptive(parts_of(verify), range(1, 9))
    return anchors_of(drafter, verifier, count, 8, 0), rule


def test_where_drafts_never_pay_decoding_is_plain_to_the_step():
    anchors, rule = toy("n-gram", TABLES["drafts never pay"])
    walk = length_walk(anchors, rule, 8)
    np.testing.assert_array_equal(walk.plain, anchors.target_len - 1)
    assert set(np.unique(walk.asked)) <= {-1, 0}


def test_where_drafts_are_never_right_decoding_is_plain_but_for_a_few_trials():
    anchors, rule = toy("always wrong", TABLES["only long or short ones pay"])
    walk = length_walk(anchors, rule, 8)
    tried = (walk.asked > 0).sum(1)
    assert tried.max() >= 2
    assert (tried <= 2 + anchors.target_len // 15).all()


def test_where_drafts_are_free_each_iteration_drafts_the_most():
    for kind in ("always wrong", "always right"):
        anchors, rule = toy(kind, TABLES["drafts are free"])
        assert set(np.unique(length_walk(anchors, rule, 8).asked)) == {-1, 8}


def test_the_time_of_a_walk_is_counted_by_hand():
    """One answer: asked 4 (2 stood), asked 2 of which nothing came, plain, asked 4 (all stood)."""

    class Listed:
        def begin(self) -> None:
            self.left = [4, 2, 0, 4]

        def choose(self, most: int) -> int:
            return self.left.pop(0)

        def tell(self, asked: int, drafted: int, accepted: int) -> None:
            pass

    right = np.array([[2, 0, 0, 0, 3, 4, 0, 0, 0, 0, -1]], np.int32)
    length = np.array([[4, 4, 4, 0, 4, 4, 4, 4, 4, 4, 4]], np.int32)
    one = np.array([11], np.int32)
    anchors = Anchors(right=right, gamma=4, target_len=one, free=one * 0, length=length)
    walk = length_walk(anchors, Listed(), 4)
    assert np.flatnonzero(walk.visited[0]).tolist() == [0, 3, 4, 5]
    assert walk.accepted[0][walk.visited[0]].tolist() == [2, 0, 0, 4]
    assert (walk.iterations.tolist(), walk.plain.tolist(), walk.empty.tolist()) == ([4], [1], [1])
    assert {g: n.tolist() for g, n in walk.passes().items()} == {4: [2]}
    parts = Parts(
        vision=0, prefill=0, decode_step=10, verify={5: 17}, draft={4: 2}, sync=0.5, host=0.25, drafter_step=3
    )
    assert {k: v.tolist() for k, v in walk_seconds(parts, walk).items()} == {
        "draft": [4], "sync": [1.5], "verify": [54], "host": [0.75],
    }  # fmt: skip
    assert walk_seconds(parts, walk, np.array([7]))["sync"].tolist() == [21]


def test_a_length_of_zero_is_a_plain_step_without_asking_the_drafter():
    verifier, drafter = ToyVerifier(seed=23), Scripted({0: [3] * 40})
    config = LiveConfig(gamma=4, max_new_tokens=12)
    trace = decode(verifier, drafter, toy_prompt(), config, lengths=Fixed(gamma=0))
    assert list(trace.ids) == target_alone(verifier, toy_prompt(), 12)
    assert verifier.passes == [("prefill", 0), *[("step", 1)] * (len(trace.ids) - 1)]
    assert [(i.drafted, i.accepted, i.emitted) for i in trace.iterations] == [((), 0, 1)] * (len(trace.ids) - 1)
    assert (drafter.seen, trace.seconds["draft"]) == ([], 0.0)


def test_more_than_was_drafted_cannot_be_walked():
    anchors, rule = toy("n-gram", TABLES["drafts are free"])
    for most in (0, 9):
        with pytest.raises(ValueError, match=r"most must be 1\.\.8"):
            length_walk(anchors, rule, most)
