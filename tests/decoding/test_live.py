"""The live loop: the target's own tokens whatever the drafter, and the same iterations as the offline walk."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.toy import EOS, CappedVerifier, Scripted, ToyVerifier, target_alone, toy_prompt
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.text_drafters import PromptLookup, RandomDrafter, Template
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.decoding.walk import free_prefix, walk

QUESTIONS = range(5)
V = 12


def answers_of(verifier: ToyVerifier, count: int) -> dict[int, list[list[int]]]:
    return {q: [target_alone(verifier, toy_prompt(q), count)] for q in QUESTIONS}


def past_the_end(answer: list[int], verifier: ToyVerifier) -> list[int]:
    """The answer with padding ids replaced, and more tokens than it has."""
    return [token if token < verifier.vocabulary else 0 for token in answer] + [EOS, 3, 3, 3, 3, 3, 3, 3]


def make_drafter(kind: str, seed: int, count: int):
    """Fitted on answers of a *similar* target, so that drafts are sometimes right."""
    verifier, other = ToyVerifier(seed=seed), ToyVerifier(seed=seed)
    other._table[::5] = ToyVerifier(seed=seed + 1)._table[::5]
    right = {q: past_the_end(a, verifier) for q, (a,) in answers_of(verifier, count).items()}
    return {
        "template": lambda: Template.fit(answers_of(other, count), vocabulary=V),
        "n-gram": lambda: NGram.fit(answers_of(other, count), vocabulary=V),
        "prompt-lookup": lambda: PromptLookup(vocabulary=V),
        "random": lambda: RandomDrafter(seed=seed, vocabulary=V),
        "always right": lambda: Scripted(right),
        "always wrong": lambda: Scripted({q: [(t + 1) % V for t in a] for q, a in right.items()}),
        "right but short or empty": lambda: Scripted(right, lengths=[0, 3, 1, 0, 7]),
        "wrong at every third": lambda: Scripted(
            {q: [(t + (i % 3 == 2)) % V for i, t in enumerate(a)] for q, a in right.items()}
        ),
    }[kind]()


KINDS = st.sampled_from(
    ["template", "n-gram", "prompt-lookup", "random", "always right", "always wrong", "right but short or empty",
     "wrong at every third"]
)  # fmt: skip
PHASE_1 = st.one_of(st.just(("none", 0)), st.tuples(st.sampled_from(["ride", "wait"]), st.integers(1, 30)))


@settings(max_examples=300)
@given(KINDS, PHASE_1, st.integers(1, 9), st.integers(1, 40), st.integers(0, 30), st.booleans(), st.data())
def test_greedy_text_is_the_targets_and_iterations_are_the_walks(kind, phase_1, gamma, count, seed, capped, data):
    mode, draft_len = phase_1
    verifier = ToyVerifier(seed=seed)
    if capped:
        verifier = CappedVerifier(count + data.draw(st.integers(0, 3)), seed=seed)
    config = LiveConfig(gamma=gamma, max_new_tokens=count, prefill_mode=mode, prefill_draft_len=draft_len)
    drafter = make_drafter(kind, seed, count)
    for question in QUESTIONS:
        prompt = toy_prompt(question)
        answer = target_alone(verifier, prompt, count)
        trace = decode(verifier, drafter, prompt, config)

        assert list(trace.ids) == answer
        assert trace.stop == ("eos" if answer[-1] == EOS else "length")

        about = {"prompt_ids": verifier.prompt_ids(prompt)}
        free = free_prefix(answer, drafter, prompt, draft_len, **about) if draft_len else 0
        taken = walk(answer, drafter, prompt, gamma, start=free, **about)
        assert trace.n_free == free
        assert tuple(i.anchor for i in trace.iterations) == taken.anchors
        assert tuple(i.accepted for i in trace.iterations) == taken.accepted
        assert (trace.emitted, trace.tau) == (taken.emitted, taken.tau)

        assert trace.origins[:free] == ("prefill-draft",) * free
        assert trace.origins.count("draft") == sum(taken.accepted)
        assert trace.origins.count("target") == len(answer) - free - sum(taken.accepted)
        assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@given(st.integers(0, 40), st.integers(1, 40))
def test_target_only_decoding_is_the_targets_text_without_iterations(seed, count):
    verifier = ToyVerifier(seed=seed)
    for question in QUESTIONS:
        answer = target_alone(verifier, toy_prompt(question), count)
        plain = decode_plain(verifier, toy_prompt(question), count)
        undrafted = decode(verifier, None, toy_prompt(question), LiveConfig(gamma=5, max_new_tokens=count))
        for trace in (plain, undrafted):
            assert (list(trace.ids), trace.iterations, trace.tau) == (answer, (), None)
            assert set(trace.origins) == {"target"}
            assert trace.stop == ("eos" if answer[-1] == EOS else "length")


def test_margins_are_top_minus_runner_up_at_every_token():
    verifier = ToyVerifier(seed=4)
    trace = decode_plain(verifier, toy_prompt(), 20, margins=True)
    text = verifier.prompt_ids(toy_prompt()).tolist()
    assert len(trace.ids) == len(trace.margins) == len(trace.top_logits)
    for token, margin, top in zip(trace.ids, trace.margins, trace.top_logits, strict=True):
        ranked = np.sort(verifier.logits(text))
        assert (margin, top) == pytest.approx((ranked[-1] - ranked[-2], ranked[-1]), rel=1e-5)
        text.append(token)
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


LONG = 23  # a seed whose answer to question 0 is long
N = 24


def run(mode: str = "none", draft_len: int = 0, kind: str = "always right", verifier=None, **settings):
    verifier = verifier or ToyVerifier(seed=LONG)
    drafter = make_drafter(kind, LONG, N)
    config = LiveConfig(gamma=4, max_new_tokens=N, prefill_mode=mode, prefill_draft_len=draft_len)
    return verifier, drafter, decode(verifier, drafter, toy_prompt(), config, **settings)


def test_the_long_answer_is_long_and_of_real_ids():
    answer = target_alone(ToyVerifier(seed=LONG), toy_prompt(), N)
    assert len(answer) == N
    assert max(answer) < V


def test_ride_checks_inside_the_prefill_and_costs_no_pass():
    verifier, _, trace = run("ride", 6)
    assert verifier.passes[:2] == [("prefill", 6), ("verify", 5)]
    assert (trace.n_free, trace.seconds["first"]) == (6, 0.0)


def test_wait_checks_the_whole_draft_in_one_pass_after_the_prefill():
    verifier, _, trace = run("wait", 6)
    assert verifier.passes[:3] == [("prefill", 0), ("verify", 6), ("verify", 5)]
    assert trace.n_free == 6
    assert trace.seconds["first"] > 0


def test_wait_makes_no_pass_where_the_first_drafted_token_is_wrong():
    verifier, _, trace = run("wait", 6, kind="always wrong")
    assert verifier.passes[:2] == [("prefill", 0), ("verify", 5)]
    assert (trace.n_free, trace.seconds["first"]) == (0, 0.0)


def test_wait_makes_no_pass_where_the_first_drafted_token_ends_the_answer():
    verifier = ToyVerifier(seed=LONG)
    config = LiveConfig(gamma=4, max_new_tokens=1, prefill_mode="wait", prefill_draft_len=6)
    trace = decode(verifier, make_drafter("always right", LONG, N), toy_prompt(), config)
    assert verifier.passes == [("prefill", 0)]
    assert (trace.n_free, trace.stop, trace.seconds["first"]) == (1, "length", 0.0)


def test_an_empty_draft_is_a_step_and_an_iteration():
    verifier, _, trace = run(kind="right but short or empty")
    empty = [i for i in trace.iterations if not i.drafted]
    assert empty
    assert len(empty) == verifier.passes.count(("step", 1))
    assert all((i.accepted, i.emitted) == (0, 1) for i in empty)


def test_phase_1_alone_is_followed_by_plain_decoding():
    verifier, drafter = ToyVerifier(seed=LONG), make_drafter("always right", LONG, N)
    config = LiveConfig(gamma=4, max_new_tokens=N, prefill_mode="ride", prefill_draft_len=6)
    trace = decode(verifier, None, toy_prompt(), config, prefill_drafter=drafter)
    assert (trace.n_free, trace.iterations) == (6, ())
    assert verifier.passes == [("prefill", 6)] + [("step", 1)] * (N - 7)


@pytest.mark.parametrize(("mode", "draft_len"), [("none", 0), ("ride", 5), ("wait", 5)])
@pytest.mark.parametrize("kind", ["wrong at every third", "right but short or empty", "random"])
def test_a_drafter_is_given_the_tokens_and_the_states_that_emitted_them(mode, draft_len, kind):
    verifier, drafter = ToyVerifier(seed=LONG), make_drafter(kind, LONG, N)
    seen = []

    class Spy:
        name = "spy"

        def propose(self, context, gamma):
            seen.append(context)
            return drafter.propose(context, gamma)

    config = LiveConfig(gamma=4, max_new_tokens=N, prefill_mode=mode, prefill_draft_len=draft_len)
    trace = decode(verifier, Spy(), toy_prompt(), config)
    if mode != "none":
        phase_1 = seen.pop(0)
        assert (phase_1.ids.tolist(), phase_1.hidden) == ([], ())
    assert [len(c.ids) - 1 for c in seen] == [i.anchor for i in trace.iterations]
    for context in seen:
        known = len(context.ids)
        states = np.concatenate(context.hidden)
        assert context.ids.tolist() == list(trace.ids[:known])
        assert states[:, 0].tolist() == list(range(known))  # h[t] emits position t
        assert states[1:, 1].tolist() == list(trace.ids[: known - 1])  # and has read the token before
        np.testing.assert_array_equal(context.prompt_ids, verifier.prompt_ids(toy_prompt()))


def test_the_seconds_of_an_answer_add_up():
    _, _, trace = run("wait", 6)
    s = trace.seconds
    assert s["decode"] == pytest.approx(s["draft"] + s["verify"] + s["host"])
    assert min(s.values()) >= 0


def test_slow_drafting_is_charged_in_full_in_both_phases():
    class Slow(Scripted):
        def propose(self, context, gamma):
            time.sleep(0.02)
            return super().propose(context, gamma)

    config = LiveConfig(gamma=4, max_new_tokens=3, prefill_mode="ride", prefill_draft_len=1)
    trace = decode(ToyVerifier(seed=LONG), Slow({0: [5] * 20}), toy_prompt(), config)
    assert len(trace.iterations) == 2
    assert trace.seconds["prefill"] >= trace.seconds["prefill_draft"] >= 0.02
    assert trace.seconds["decode"] >= trace.seconds["draft"] >= 0.04


def test_vision_is_taken_out_of_the_prefill():
    verifier = ToyVerifier(seed=LONG)
    verifier.times = {"vision": 1e-9, "prefill": 0.0}
    _, _, trace = run(verifier=verifier)
    assert trace.seconds["vision"] == 1e-9
    assert trace.seconds["prefill"] > 0


@pytest.mark.parametrize("strange", [V, -1])
@pytest.mark.parametrize(("mode", "draft_len"), [("none", 0), ("ride", 3), ("wait", 3)])
def test_a_drafted_id_that_is_not_real_is_refused(strange, mode, draft_len):
    config = LiveConfig(gamma=3, max_new_tokens=N, prefill_mode=mode, prefill_draft_len=draft_len)
    with pytest.raises(ValueError, match=rf"'scripted' must draft real ids, 0\.\.11, got \[{strange}\]"):
        decode(ToyVerifier(seed=LONG), Scripted({0: [4, strange, 3] * 20}), toy_prompt(), config)


def test_a_draft_longer_than_asked_is_refused():
    class TooLong(Scripted):
        def propose(self, context, gamma):
            return super().propose(context, gamma + 1)

    with pytest.raises(ValueError, match="at most 3 ids, got 4"):
        decode(ToyVerifier(seed=LONG), TooLong({0: [3] * 40}), toy_prompt(), LiveConfig(gamma=3, max_new_tokens=N))


def test_a_cache_that_cannot_hold_the_answer_is_refused():
    with pytest.raises(ConfigError, match="max_new_tokens = 24 tokens after the prompt, got capacity 23"):
        run(verifier=CappedVerifier(N - 1))


def test_phase_1_without_any_drafter_is_refused():
    config = LiveConfig(gamma=3, max_new_tokens=N, prefill_mode="ride", prefill_draft_len=2)
    with pytest.raises(ConfigError, match="needs a drafter"):
        decode(ToyVerifier(), None, toy_prompt(), config)


@pytest.mark.parametrize("decoder", [
    lambda v: decode(v, None, toy_prompt(), LiveConfig(gamma=1, max_new_tokens=3, temperature=1.0)),
    lambda v: decode_plain(v, toy_prompt(), 3, temperature=1.0),
])  # fmt: skip
def test_sampling_without_an_rng_is_refused(decoder):
    with pytest.raises(ValueError, match="needs a seeded rng"):
        decoder(ToyVerifier())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"gamma": 0}, "gamma"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"prefill_mode": "ride"}, "prefill_draft_len"),
        ({"prefill_draft_len": 3}, "prefill_draft_len"),
        ({"prefill_mode": "hurry", "prefill_draft_len": 3}, "prefill_mode"),
    ],
)
def test_contradictory_settings_are_refused(settings, field):
    with pytest.raises(ConfigError, match=field):
        LiveConfig(**{"gamma": 4, "max_new_tokens": 8, **settings})


def test_a_trace_with_a_missing_or_unknown_key_is_refused():
    values = run()[2].to_json()
    for broken in ({**values, "speed": 1}, {k: v for k, v in values.items() if k != "iterations"}):
        with pytest.raises(ValueError, match="a trace must hold"):
            Trace.from_json(broken)
