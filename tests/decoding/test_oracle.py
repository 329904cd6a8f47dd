"""An oracle drafts with the acceptance it is told, pays for the drafter it is told, and walks as it runs live."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.toy import EOS, ToyVerifier, target_alone, toy_clip, toy_prompt
from xmsd_jax.decoding.imposed import expected_tokens
from xmsd_jax.decoding.live import LiveConfig, decode, lanes_of
from xmsd_jax.decoding.oracle import Oracle
from xmsd_jax.decoding.ports import Context, Draft, Prompt
from xmsd_jax.decoding.replayed import Replayed
from xmsd_jax.decoding.walk import free_prefix, walk

V = 12
PROFILE = (0.9, 0.6, 0.75)


def asked(number: int) -> Prompt:
    return Prompt(clip=toy_clip(f"clip {number}"), question="What happens?", question_index=0)


def answer_of(prompt: Prompt) -> np.ndarray:
    """200 made-up tokens, others for every clip."""
    return np.random.default_rng(int(prompt.clip.name.split()[1])).integers(3, V, 200, np.int32)


def context_at(prompt: Prompt, anchor: int) -> Context:
    return Context(prompt=prompt, ids=answer_of(prompt)[: anchor + 1])


def oracle(profile=PROFILE, seed: int = 0, **more) -> Oracle:
    return Oracle(answer_of, profile, seed, vocabulary=V, **more)


def right_at(drafter: Oracle, prompt: Prompt, anchor: int, gamma: int) -> np.ndarray:
    drafted = drafter.propose(context_at(prompt, anchor), gamma).ids
    return drafted == answer_of(prompt)[anchor + 1 : anchor + 1 + gamma]


@pytest.mark.parametrize(("profile", "rates"), [(PROFILE, (0.9, 0.6, 0.75, 0.75, 0.75)), (0.7, (0.7,) * 5)])
def test_each_drafted_token_is_right_as_often_as_the_profile_says_given_those_before_it(profile, rates):
    rng, prompts = np.random.default_rng(1), [asked(number) for number in range(25)]
    right = np.array(
        [right_at(oracle(profile), p, anchor, 5) for p in prompts for anchor in rng.choice(195, 160, False) - 1]
    )
    for j, rate in enumerate(rates):
        reached = right[right[:, :j].all(1), j]
        assert abs(reached.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(reached))  # four standard errors
    tokens = 1 + np.cumprod(right, 1).sum(1)
    assert abs(tokens.mean() - expected_tokens(profile, 5)) < 4 * tokens.std() / np.sqrt(len(tokens))


def test_draws_differ_by_seed_clip_question_and_anchor_and_by_nothing_else():
    def draws(seed=0, prompt=None, anchor=9, gamma=40):
        return right_at(oracle(0.5, seed), prompt or asked(3), anchor, gamma).tolist()

    other = Prompt(clip=toy_clip("clip 3"), question="And now?", question_index=5)
    again = Prompt(clip=toy_clip("clip 3"), question="What happens?", question_index=5)
    assert draws() == draws() == draws(prompt=again)
    assert draws(gamma=7) == draws()[:7]
    assert all(
        draws(**more) != draws() for more in ({"seed": 1}, {"prompt": asked(4)}, {"anchor": 8}, {"prompt": other})
    )


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.sampled_from([("none", 0), ("ride", 6), ("wait", 6)]),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_the_live_run_is_the_walk(profile, phase_1, gamma, seed):
    count, drafter = 60, oracle(profile, seed)
    config = LiveConfig(gamma=gamma, max_new_tokens=count, prefill_mode=phase_1[0], prefill_draft_len=phase_1[1])
    for prompt in map(asked, range(3)):
        trace = decode(Replayed(ToyVerifier(vocabulary=V, padding=0), answer_of), drafter, prompt, config)
        answer = answer_of(prompt)[:count]
        free = free_prefix(answer, drafter, prompt, phase_1[1]) if phase_1[1] else 0
        taken = walk(answer, drafter, prompt, gamma, start=free)
        assert (trace.ids, trace.n_free) == (tuple(answer.tolist()), free)
        assert tuple(i.accepted for i in trace.iterations) == taken.accepted
        assert tuple(i.anchor for i in trace.iterations) == taken.anchors


@given(st.integers(0, 20), st.integers(1, 9), st.floats(0, 1))
def test_it_is_lossless_on_a_target_that_decides_itself(seed, gamma, acceptance):
    """Also where the target emits ids that are not real, which no drafter may draft."""
    verifier = ToyVerifier(seed=seed)
    config = LiveConfig(gamma=gamma, max_new_tokens=30)
    for question in range(5):
        prompt = toy_prompt(question)
        answer = target_alone(verifier, prompt, 30)
        drafter = Oracle(lambda _, answer=answer: answer, acceptance, seed, vocabulary=V)
        trace = decode(verifier, drafter, prompt, config)
        assert list(trace.ids) == answer
        assert len(trace.iterations) == walk(answer, drafter, prompt, gamma).iterations


def test_always_right_drafts_the_whole_answer_and_never_right_none_of_it():
    answer = [5, 11, 7, 8, EOS]
    contexts = [Context(prompt=toy_prompt(), ids=np.array(answer[:known], np.int32)) for known in range(5)]
    always, never = (Oracle({"clip": answer}, a, 3, vocabulary=V) for a in (1.0, 0.0))
    for known, context in enumerate(contexts):
        assert always.propose(context, 5).ids.tolist()[: 5 - known] == answer[known:]
        drafted = never.propose(context, 5)
        assert len(drafted.ids) == 5
        assert not (drafted.ids[: 5 - known] == answer[known:]).any()
        assert ((drafted.ids >= 0) & (drafted.ids < V)).all()
        assert (drafted.ids.dtype, drafted.q) == (np.int32, None)
    walked = walk(answer, always, toy_prompt(), 2)
    assert (walked.iterations, walked.emitted) == (2, 4)
    assert walk(answer, never, toy_prompt(), 2).iterations == 4


class Counting:
    """A drafter of flesh: remembers what it was asked, drafts 3 ids at most, has a lane."""

    name = "counting"

    def __init__(self) -> None:
        self.lane, self.asked = Lane(), []

    def propose(self, context: Context, gamma: int) -> Draft:
        self.asked.append((context, gamma))
        return Draft(ids=np.zeros(min(gamma, 3), np.int32))


class Lane:
    def begin(self, prompt):
        self.begun = prompt

    def take_spans(self):
        return []


def test_the_compute_is_asked_once_with_the_same_context_and_its_ids_are_thrown_away():
    compute = Counting()
    drafter, context = oracle(1.0, compute=compute, name="imposed 1 at counting"), context_at(asked(2), 20)
    drafted = drafter.propose(context, 3)
    assert [(c is context, gamma) for c, gamma in compute.asked] == [(True, 3)]
    assert drafted.ids.tolist() == answer_of(asked(2))[21:24].tolist()
    assert drafter.name == "imposed 1 at counting"


def test_no_more_is_drafted_than_was_computed():
    drafter = oracle(1.0, compute=Counting())
    assert len(drafter.propose(context_at(asked(2), 20), 8).ids) == 3


def test_every_iteration_of_a_live_run_pays_for_the_compute_and_its_lane():
    compute, prompt = Counting(), asked(1)
    drafter = oracle(0.5, compute=compute)
    assert lanes_of(drafter, oracle()) == [compute.lane]
    config = LiveConfig(gamma=3, max_new_tokens=30, prefill_mode="ride", prefill_draft_len=2)
    trace = decode(Replayed(ToyVerifier(vocabulary=V, padding=0), answer_of), drafter, prompt, config)
    assert compute.lane.begun is prompt
    assert [(len(c.ids), gamma) for c, gamma in compute.asked] == [
        (0, 2),
        *((i.anchor + 1, 3) for i in trace.iterations),
    ]


def test_an_answer_that_the_target_does_not_give_is_refused():
    context = Context(prompt=toy_prompt(), ids=np.array([5, 6], np.int32))
    with pytest.raises(ValueError, match=r"begins \[5, 7\], got \[5, 6\]; give it this target's answers, or replay"):
        Oracle({"clip": [5, 7, 8]}, 1.0, 0, vocabulary=V).propose(context, 3)


@pytest.mark.parametrize("profile", [(), (0.5, 1.5), -0.1, float("nan"), ((0.5,),)])
def test_what_is_no_profile_is_refused(profile):
    with pytest.raises(ValueError, match=r"acceptance must be 0\.\.1"):
        oracle(profile)


def test_a_vocabulary_without_a_wrong_id_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Oracle({}, 0.5, 0, vocabulary=1)
