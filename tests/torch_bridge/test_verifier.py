"""`TorchVerifier`: the port's promises, held over a random target."""

import numpy as np
import pytest
import torch

from tests.torch_bridge.fake_pair import EOS, PADDED, REAL, WIDTH, fake_clip, fake_target
from torch_bridge.static_passes import FewPass
from torch_bridge.static_session import StaticSession
from torch_bridge.verifier import SharedVerifier, TorchVerifier
from torch_bridge.vlm import Session, prompt_ids
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.decoding.ports import Prompt, Verifier

PROMPT = Prompt(clip=fake_clip(0), question=QUESTIONS[1], question_index=1)


@pytest.fixture
def verifier():
    torch.set_num_threads(1)
    return TorchVerifier(fake_target())


def answer(verifier: Verifier, prompt: Prompt, count: int) -> list[int]:
    ids = [int(verifier.prefill(prompt).ids[0])]
    while len(ids) < count:
        ids.append(int(verifier.step(ids[-1]).ids[0]))
    return ids


def test_it_names_what_the_loop_needs_to_know(verifier):
    port: Verifier = verifier
    assert port.eos_ids == frozenset({EOS})
    assert port.vocabulary == REAL
    np.testing.assert_array_equal(port.prompt_ids(PROMPT), prompt_ids(verifier.vlm, PROMPT.question))


def test_a_shared_verifier_looks_once_at_each_clip(monkeypatch):
    torch.set_num_threads(1)
    vlm = fake_target()
    shared, whole, seen = SharedVerifier(vlm), TorchVerifier(vlm), []
    encode = Session.encode
    monkeypatch.setattr(Session, "encode", lambda self, clip: seen.append(clip.name) or encode(self, clip))
    other = Prompt(clip=PROMPT.clip, question=QUESTIONS[2], question_index=2)
    third = Prompt(clip=fake_clip(1), question=QUESTIONS[2], question_index=2)
    found = [answer(shared, prompt, 5) for prompt in (PROMPT, other, PROMPT, third)]
    assert seen == [PROMPT.clip.name, third.clip.name]
    assert found == [answer(whole, prompt, 5) for prompt in (PROMPT, other, PROMPT, third)]


def test_a_prompt_that_failed_is_not_taken_for_the_one_before(monkeypatch):
    torch.set_num_threads(1)
    vlm = fake_target()
    shared, other = SharedVerifier(vlm), Prompt(clip=PROMPT.clip, question=QUESTIONS[2], question_index=2)
    expected = answer(shared, PROMPT, 5)
    read = Session.prefill

    def full(*given):
        read(*given)
        raise MemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "prefill", full)
        with pytest.raises(MemoryError, match="full"):
            shared.prefill(other)
    assert answer(shared, PROMPT, 5) == expected


def test_ids_are_int32_on_the_host_and_one_per_token_read(verifier):
    for verified, count in [(verifier.prefill(PROMPT, [4, 5]), 3), (verifier.step(4), 1), (verifier.verify([4, 5]), 2)]:
        assert isinstance(verified.ids, np.ndarray)
        assert (verified.ids.dtype, verified.ids.shape) == (np.int32, (count,))
        assert verified.hidden.shape == (count, WIDTH)
        assert verified.logits is None


def test_logits_come_on_request_as_host_float32_over_the_padded_vocabulary(verifier):
    for verified, count in [
        (verifier.prefill(PROMPT, [4], logits=True), 2),
        (verifier.step(4, logits=True), 1),
        (verifier.verify([4, 5, 6], logits=True), 3),
    ]:
        logits = np.asarray(verified.logits, np.float32)
        assert logits.shape == (count, PADDED)
        np.testing.assert_array_equal(logits.argmax(-1), verified.ids)


def test_emitted_ids_are_the_argmax_over_the_whole_padded_head():
    """A target that prefers a padded id says so: hiding it would not be the target's own output."""
    vlm = fake_target()
    vlm.lm_head.weight[REAL:] *= 50
    verified = TorchVerifier(vlm).prefill(PROMPT, [4, 5, 6, 7])
    assert (verified.ids >= REAL).any()
    np.testing.assert_array_equal(verified.ids, vlm.lm_head(verified.hidden).argmax(-1).numpy())


def test_accept_and_crop_walks_to_the_answer_of_single_steps(verifier):
    """The loop's own moves: drafts that are right, half right and wrong, then crop what was rejected."""
    own = answer(verifier, PROMPT, 20)
    ids = [int(verifier.prefill(PROMPT).ids[0])]
    for right in (0, 3, 1, 2, 3, 0, 3):
        start = len(ids)
        draft = own[start : start + right] + [5, 5, 5][: 3 - right]
        verified = verifier.verify([ids[-1], *draft]).ids
        accepted = next((n for n in range(3) if draft[n] != verified[n]), 3)
        verifier.crop(3 - accepted)
        ids += [*draft[:accepted], int(verified[accepted])]
    assert ids[:15] == own[:15]


def test_a_given_encoding_is_used_and_takes_no_vision_time(verifier):
    visual = verifier.encode(PROMPT)
    first = verifier.prefill(PROMPT)
    assert verifier.times["vision"] > 0
    encoded = verifier.vlm.encoded
    again = verifier.prefill(PROMPT, visual=visual)
    assert verifier.vlm.encoded == encoded
    assert verifier.times["vision"] == 0
    assert torch.equal(first.hidden, again.hidden)


def test_times_are_of_the_last_prefill_and_cannot_be_changed_from_outside(verifier):
    verifier.prefill(PROMPT)
    times = verifier.times
    assert set(times) == {"vision", "prefill"}
    assert all(seconds > 0 for seconds in times.values())
    times["prefill"] = -1.0
    assert verifier.times["prefill"] > 0


def test_states_carry_no_gradient(verifier):
    assert not verifier.prefill(PROMPT).hidden.requires_grad


def test_misuse_is_an_error_that_changes_nothing(verifier):
    verifier.prefill(PROMPT, [4, 5])
    with pytest.raises(ValueError, match="at least one token"):
        verifier.verify([])
    with pytest.raises(ValueError, match="the 2 tokens read since the prompt; received 3"):
        verifier.crop(3)
    with pytest.raises(ValueError, match="received 64"):
        verifier.step(PADDED)
    verifier.crop(2)
    verifier.synchronize()


def test_a_session_knows_whether_the_host_has_waited_for_its_work(monkeypatch):
    """`synchronize` relies on it: what was begun and not ended must not count as waited for."""
    torch.set_num_threads(1)
    session = StaticSession(fake_target(), room=20, compiled=False)
    verifier, known = TorchVerifier(session.vlm, session), [session.waited]
    visual = session.encode(PROMPT.clip)
    session.prefill(PROMPT.question, visual)
    known.append(session.waited)
    states = session.verify([4, 5])
    known.append(session.waited)
    session.emitted(states, logits=True)
    known.append(session.waited)
    verifier.step(4)
    known.append(session.waited)
    session.encode(PROMPT.clip)
    known.append(session.waited)
    assert known == [False, True, True, False, True, False]

    def failing(*_):
        raise MemoryError("full")

    monkeypatch.setattr(FewPass, "begin", failing)
    verifier.prefill(PROMPT)
    with pytest.raises(MemoryError, match="full"):
        verifier.step(4)
    assert not session.waited
