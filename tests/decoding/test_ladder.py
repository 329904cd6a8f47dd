"""The ladder: turns are fair, the median repeat is kept whole, the certificate sees every repeat."""

from dataclasses import replace

import pytest

from tests.decoding.toy import ToyVerifier, target_alone, toy_prompt
from xmsd_jax.decoding.ladder import (
    Rung,
    certificate,
    climb,
    offline,
    proposal_seconds,
    references,
    speculative,
    typical,
    whole_seconds,
)
from xmsd_jax.decoding.live import LiveConfig
from xmsd_jax.decoding.text_drafters import PromptLookup, RandomDrafter
from xmsd_jax.decoding.trace import Trace

PROMPTS = [toy_prompt(i) for i in range(4)]
COUNT = 30


def timed(decode_seconds: float, ids: tuple[int, ...] = (4, 2)) -> Trace:
    seconds = {"vision": 1.0, "prefill": 2.0, "first": 0.0, "decode": decode_seconds}
    return Trace(ids=ids, origins=("target",) * len(ids), stop="eos", seconds=seconds)


def test_every_row_answers_every_prompt_as_often_and_each_row_comes_first_as_often():
    order = []

    def rung(name):
        return Rung(name=name, answer=lambda prompt: (order.append((name, prompt)), timed(1.0))[1])

    names = ["a", "b"]
    traces = climb([rung(n) for n in names], PROMPTS, repeats=3)
    assert {n: [len(r) for r in traces[n]] for n in names} == {n: [3] * len(PROMPTS) for n in names}
    first = [name for name, _ in order[:: len(names)]]
    assert {n: first.count(n) for n in names} == {"a": 6, "b": 6}
    assert [p for _, p in order[:: len(names)]] == PROMPTS * 3


def test_a_slow_row_answers_no_more_often_than_it_may():
    rungs = [Rung(name="slow", answer=lambda _: timed(9.0), most=1), Rung(name="fast", answer=lambda _: timed(1.0))]
    traces = climb(rungs, PROMPTS, repeats=3)
    assert {name: {len(repeats) for repeats in found} for name, found in traces.items()} == {"slow": {1}, "fast": {3}}


def test_the_typical_repeat_is_the_median_one_with_its_own_parts():
    repeats = [timed(5.0), timed(1.0), timed(3.0)]
    assert typical(repeats) is repeats[2]
    assert whole_seconds(typical(repeats)) == 6.0
    assert typical([timed(2.0), timed(1.0)]).seconds["decode"] == 1.0


def test_the_certificate_fails_on_one_bad_repeat_of_many():
    expected = [replace(timed(1.0), margins=(3.0, 3.0), top_logits=(9.0, 9.0))]
    good, bad = timed(1.0), timed(1.0, ids=(5, 2))
    assert certificate(expected, [[good, good]], dtype="float32", names=["a"]).status == "passed"
    failed = certificate(expected, [[good, bad]], dtype="float32", names=["a"])
    assert (failed.status, failed.answers, len(failed.divergences)) == ("failed", 2, 1)


@pytest.mark.parametrize(("mode", "early"), [("none", 0), ("ride", 5), ("wait", 5)])
def test_the_offline_walk_of_a_row_has_the_iterations_of_its_live_run(mode, early):
    verifier = ToyVerifier(seed=3)
    config = LiveConfig(gamma=4, max_new_tokens=COUNT, prefill_mode=mode, prefill_draft_len=early)
    drafters = [PromptLookup(vocabulary=verifier.vocabulary), RandomDrafter(seed=1, vocabulary=verifier.vocabulary)]
    expected = references(verifier, PROMPTS, COUNT)
    assert [list(t.ids) for t in expected] == [target_alone(verifier, p, COUNT) for p in PROMPTS]
    for drafter in drafters:
        rung = speculative(drafter.name, verifier, drafter, config)
        for prompt, reference in zip(PROMPTS, expected, strict=True):
            walked = offline(rung, verifier, prompt, reference)
            assert walked is not None
            assert walked.iterations == len(rung.answer(prompt).iterations)


def test_the_drafter_alone_is_timed_at_every_anchor_but_the_last():
    verifier = ToyVerifier(seed=3)
    (reference,) = references(verifier, PROMPTS[:1], COUNT)
    config = LiveConfig(gamma=4, max_new_tokens=COUNT)
    rung = speculative("r", verifier, RandomDrafter(seed=1, vocabulary=verifier.vocabulary), config)
    spent = proposal_seconds(rung, verifier, PROMPTS[0], reference)
    assert len(spent) == len(reference.ids) - 1
    assert min(spent) > 0


def test_a_row_without_drafts_has_no_walk_and_no_proposals():
    verifier = ToyVerifier()
    assert proposal_seconds(Rung(name="plain", answer=lambda p: timed(1.0)), verifier, PROMPTS[0], timed(1.0)) == []
    assert offline(Rung(name="plain", answer=lambda p: timed(1.0)), verifier, PROMPTS[0], timed(1.0)) is None
