"""Replay: the record's tokens and the walk's iterations, while the inner target does every pass of a live run."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.toy import EOS, CappedVerifier, Scripted, ToyVerifier, target_alone, toy_clip, toy_prompt
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Prompt, Verifier
from xmsd_jax.decoding.replayed import Replayed
from xmsd_jax.decoding.text_drafters import PromptLookup, RandomDrafter, Template
from xmsd_jax.decoding.walk import free_prefix, walk

QUESTIONS = range(5)
V = 12
REAL = {"vocabulary": V, "padding": 0}  # a record holds real ids alone
PHASE_1 = st.one_of(st.just(("none", 0)), st.tuples(st.sampled_from(["ride", "wait"]), st.integers(1, 30)))


class Listening(ToyVerifier):
    """Writes down what it is told to do."""

    def __init__(self, **made) -> None:
        super().__init__(**made)
        self.calls: list[tuple] = []

    def prefill(self, prompt: Prompt, draft_ids: Sequence[int] = (), *, logits: bool = False):
        self.calls = [("prefill", prompt, list(draft_ids))]
        return super().prefill(prompt, draft_ids, logits=logits)

    def step(self, token: int, *, logits: bool = False):
        self.calls.append(("step", token))
        return super().step(token, logits=logits)

    def verify(self, ids: Sequence[int], *, logits: bool = False):
        self.calls.append(("verify", list(ids)))
        return super().verify(ids, logits=logits)

    def crop(self, count: int) -> None:
        self.calls.append(("crop", count))
        super().crop(count)

    def synchronize(self) -> None:
        self.calls.append(("synchronize",))
        super().synchronize()

    def passes_of_an_answer(self) -> list[tuple]:
        """Without the last crop: how much of a draft is right past the end of its answer, only the target knows."""
        last = max(i for i, call in enumerate(self.calls) if call[0] in ("prefill", "step", "verify"))
        return self.calls[: last + 1]


def recorded(seed: int, count: int) -> dict[int, list[int]]:
    """Answers of a target to every question, cut off at `count`."""
    return {q: target_alone(ToyVerifier(seed=seed, **REAL), toy_prompt(q), count) for q in QUESTIONS}


def drafter_of(kind: str, seed: int, count: int):
    """Fitted on answers of two targets, the recorded one among them, so that drafts are right now and then."""
    fitted = {q: [recorded(seed, count)[q], recorded(seed + 1, count)[q]] for q in QUESTIONS}
    return {
        "template": lambda: Template.fit(fitted, vocabulary=V),
        "n-gram": lambda: NGram.fit(fitted, vocabulary=V),
        "prompt-lookup": lambda: PromptLookup(vocabulary=V),
        "random": lambda: RandomDrafter(seed=seed, vocabulary=V),
    }[kind]()


def by_question(answers):
    return lambda prompt: answers[prompt.question_index]


@settings(max_examples=150)
@given(
    st.sampled_from(["template", "n-gram", "prompt-lookup", "random"]),
    PHASE_1,
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 30),
)
def test_a_replay_is_the_live_run_of_the_target_that_was_recorded(kind, phase_1, gamma, count, seed):
    config = LiveConfig(gamma=gamma, max_new_tokens=count, prefill_mode=phase_1[0], prefill_draft_len=phase_1[1])
    drafter, answers = drafter_of(kind, seed, count), recorded(seed, count)
    true, other = Listening(seed=seed, **REAL), Listening(seed=seed + 7, **REAL)
    replayed = Replayed(other, by_question(answers))
    for question, answer in answers.items():
        prompt = toy_prompt(question)
        live, trace = (decode(verifier, drafter, prompt, config) for verifier in (true, replayed))
        assert list(trace.ids) == answer
        assert trace.stop == ("eos" if answer[-1] == EOS else "length")
        assert (trace.iterations, trace.origins, trace.n_free) == (live.iterations, live.origins, live.n_free)
        assert other.passes_of_an_answer() == true.passes_of_an_answer()

        about = {"prompt_ids": other.prompt_ids(prompt)}
        free = free_prefix(answer, drafter, prompt, phase_1[1], **about) if phase_1[1] else 0
        taken = walk(answer, drafter, prompt, gamma, start=free, **about)
        assert (trace.n_free, len(trace.iterations)) == (free, taken.iterations)
        assert tuple(i.accepted for i in trace.iterations) == taken.accepted


@given(st.integers(0, 30), st.integers(1, 30))
def test_plain_decoding_of_a_replay_is_the_record_at_one_pass_a_token(seed, count):
    inner = Listening(seed=seed + 7, **REAL)
    answers = recorded(seed, count)
    for question, answer in answers.items():
        for trace in (
            decode_plain(Replayed(inner, by_question(answers)), toy_prompt(question), count),
            decode(
                Replayed(inner, by_question(answers)), None, toy_prompt(question),
                LiveConfig(gamma=1, max_new_tokens=count),
            ),
        ):  # fmt: skip
            assert list(trace.ids) == answer
            assert [call for call in inner.calls if call[0] == "step"] == [("step", token) for token in answer[:-1]]


def test_a_replay_is_a_verifier_and_has_a_capacity_only_if_the_inner_target_has_one():
    free, capped = (Replayed(inner, {}) for inner in (ToyVerifier(), CappedVerifier(9)))
    assert isinstance(free, Verifier)
    assert not hasattr(free, "capacity")
    assert (capped.capacity, capped.eos_ids, capped.vocabulary) == (9, frozenset({EOS}), V)
    capped._inner.times = {"vision": 1.0, "prefill": 2.0}
    assert capped.times == {"vision": 1.0, "prefill": 2.0}


def test_a_static_cache_cuts_drafts_in_a_replay_too():
    answer = [5, 6, 7, 8, 9, 3]
    inner = CappedVerifier(6, **REAL)
    config = LiveConfig(gamma=9, max_new_tokens=6, prefill_mode="ride", prefill_draft_len=9)
    trace = decode(Replayed(inner, {"clip": answer}), Scripted({0: [5, 6, 0] * 9}), toy_prompt(), config)
    assert (list(trace.ids), trace.n_free, len(trace.iterations)) == (answer, 2, 3)


def test_the_states_are_those_of_the_inner_target():
    seen = []

    class Spy(Scripted):
        def propose(self, context, gamma):
            seen.append(np.concatenate(context.hidden))
            return super().propose(context, gamma)

    answer = [5, 6, 7, 8, 9, 3, 4, 5]
    decode(
        Replayed(ToyVerifier(**REAL), {"clip": answer}), Spy({0: [5, 6, 1, 8, 9, 1, 4, 5]}), toy_prompt(),
        LiveConfig(gamma=3, max_new_tokens=8),
    )  # fmt: skip
    for states in seen:
        assert states[:, 0].tolist() == list(range(len(states)))
        assert states[1:, 1].tolist() == answer[: len(states) - 1]
    assert [len(states) for states in seen] == [1, 3, 6]


def test_answers_are_found_by_the_clip_of_the_prompt():
    prompts = [Prompt(clip=toy_clip(name), question="?", question_index=0) for name in ("a", "b")]
    replayed = Replayed(ToyVerifier(**REAL), {"a": (3, 4), "b": np.array([5, EOS])})
    assert [decode_plain(replayed, prompt, 2).ids for prompt in prompts] == [(3, 4), (5, EOS)]
    with pytest.raises(KeyError, match="got none for clip 'clip'"):
        replayed.prefill(toy_prompt())


def test_past_the_end_the_last_id_stands_and_no_pass_begins_there():
    replayed = Replayed(ToyVerifier(**REAL), {"clip": [5, 6, 7]})
    assert replayed.prefill(toy_prompt(), [5, 9, 9, 9]).ids.tolist() == [5, 6, 7, 7, 7]
    with pytest.raises(ValueError, match="3 tokens, asked to go on after 4; set max_new_tokens"):
        replayed.step(9)
    replayed.crop(3)
    assert replayed.verify([6, 7, 4]).ids.tolist() == [7, 7, 7]
    with pytest.raises(ValueError, match="ends with the recorded answer"):
        decode_plain(replayed, toy_prompt(), 5)


def test_ids_that_a_function_gives_later_reach_the_inner_target_as_that_function():
    def late():
        return [5, 6]

    class Late(ToyVerifier):
        def prefill(self, prompt, draft_ids=(), *, logits=False):
            assert draft_ids is late
            return super().prefill(prompt, draft_ids(), logits=logits)

    replayed = Replayed(Late(**REAL), {"clip": [5, 6, 7, 8]})
    assert replayed.prefill(toy_prompt(), late).ids.tolist() == [5, 6, 7]
    assert replayed.step(7).ids.tolist() == [8]


@pytest.mark.parametrize("answer", [[], [3, V], [-1]])
def test_a_record_of_ids_that_this_target_lacks_is_refused(answer):
    with pytest.raises(ValueError, match=r"at least one id, all real \(0\.\.11\)"):
        Replayed(ToyVerifier(), {"clip": answer}).prefill(toy_prompt())


def test_an_answer_that_goes_on_after_its_end_is_refused():
    with pytest.raises(ValueError, match="ends at its first EOS"):
        Replayed(ToyVerifier(), {"clip": [5, EOS, 6]}).prefill(toy_prompt())


def test_logits_are_not_on_record():
    replayed = Replayed(ToyVerifier(), {"clip": [5, 6, 7]})
    with pytest.raises(ValueError, match="ids and no logits"):
        replayed.prefill(toy_prompt(), logits=True)
    replayed.prefill(toy_prompt())
    with pytest.raises(ValueError, match="ids and no logits"):
        replayed.step(5, logits=True)
    with pytest.raises(ValueError, match="ids and no logits"):
        decode_plain(replayed, toy_prompt(), 3, margins=True)
