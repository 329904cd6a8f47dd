"""The engine: one pass over M tokens says what M steps say, and a crop forgets exactly what it is told to."""

import numpy as np
import pytest
import torch

from tests.torch_bridge.fake_pair import EOS, PADDED, WIDTH, fake_clip, fake_drafter, fake_target
from torch_bridge.vlm import VLM, Session, prompt_ids
from xmsd_jax.data.questions import QUESTIONS

pytestmark = pytest.mark.usefixtures("one_thread")

# float32 states of width 32 are of size 1; one pass and many steps add in another order.
CLOSE = {"rtol": 0, "atol": 2e-5}
QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def target():
    return fake_target()


def prefilled(vlm, question=QUESTION, ids=(), number=0):
    session = Session(vlm)
    return session, session.prefill(question, session.encode(fake_clip(number)), ids)


def by_steps(session: Session, state: torch.Tensor, count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy ids y_0.. and states h[0..count], token by token."""
    ids, states = [], [state]
    for _ in range(count):
        ids.append(int(session.head(states[-1]).argmax()))
        states.append(session.step(ids[-1]))
    return ids, torch.cat(states)


@pytest.mark.parametrize("make", [fake_target, fake_drafter])
def test_the_fake_models_satisfy_the_protocol(make):
    assert isinstance(make(), VLM)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_verifying_m_tokens_equals_m_steps(target, number, size):
    session, first = prefilled(target, QUESTIONS[number], number=number)
    ids, states = by_steps(session, first, 32)
    session.crop(32)
    assert session.read == 0
    verified = torch.cat([first, *(session.verify(ids[at : at + size]) for at in range(0, 32, size))])
    torch.testing.assert_close(verified, states, **CLOSE)
    assert session.head(verified).argmax(-1).tolist() == session.head(states).argmax(-1).tolist()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_ids_that_ride_on_the_prompt_give_the_states_of_steps(target, count):
    session, first = prefilled(target)
    ids, states = by_steps(session, first, count)
    riding, ridden = prefilled(target, ids=ids)
    assert ridden.shape == (count + 1, WIDTH)
    torch.testing.assert_close(ridden, states, **CLOSE)
    assert riding.read == session.read == count
    torch.testing.assert_close(riding.step(7), session.step(7), **CLOSE)


def test_wrong_tokens_leave_no_trace_once_they_are_cropped(target):
    session, first = prefilled(target)
    ids, states = by_steps(session, first, 6)
    session.crop(3)
    session.verify([5, 9, 11, 4])
    session.crop(4)
    torch.testing.assert_close(session.verify(ids[3:]), states[4:], **CLOSE)
    assert session.read == 6


def test_the_engine_equals_transformers_generate(target):
    for number, question in enumerate(QUESTIONS):
        session, first = prefilled(target, question, number=number)
        ids = by_steps(session, first, 24)[0]
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        before, after = target.prompt_pieces(question)
        table = target.language_model.embed_tokens
        inputs = torch.cat([table(torch.tensor(before)), target.encode(fake_clip(number)), table(torch.tensor(after))])
        mask = torch.ones(1, len(inputs), dtype=torch.long)
        own = target.model.generate(
            inputs_embeds=inputs[None], attention_mask=mask, do_sample=False, max_new_tokens=24, pad_token_id=0
        )
        assert ids == own[0].tolist()


def test_states_are_post_norm_and_go_straight_into_the_head(target):
    session, first = prefilled(target)
    before, after = target.prompt_pieces(QUESTION)
    table = target.language_model.embed_tokens
    inputs = torch.cat([table(torch.tensor(before)), target.encode(fake_clip(0)), table(torch.tensor(after))])
    out = target.model(inputs_embeds=inputs[None], output_hidden_states=True)
    torch.testing.assert_close(first[0], out.hidden_states[-1][0, -1], **CLOSE)
    torch.testing.assert_close(session.head(first)[0], out.logits[0, -1], rtol=0, atol=1e-4)


def test_bfloat16_states_stay_bfloat16():
    session, first = prefilled(fake_target(dtype=torch.bfloat16))
    assert first.dtype == session.verify([4, 5]).dtype == torch.bfloat16


def test_a_new_prefill_forgets_the_last_answer(target):
    session, first = prefilled(target)
    session.verify([4, 5, 6])
    again = session.prefill(QUESTION, session.encode(fake_clip(0)))
    assert torch.equal(first, again)
    assert session.read == 0


@pytest.mark.parametrize("count", [-1, 3])
def test_a_crop_reaches_no_further_than_the_prompt(target, count):
    session, _ = prefilled(target)
    session.verify([4, 5])
    with pytest.raises(ValueError, match=f"between 0 and the 2 tokens.*received {count}"):
        session.crop(count)
    assert session.read == 2


def test_ids_are_checked_before_they_are_read(target):
    session, _ = prefilled(target)
    with pytest.raises(ValueError, match="at least one token"):
        session.verify([])
    for wrong in (-1, PADDED):
        with pytest.raises(ValueError, match=rf"0\.\.{PADDED - 1}; received {wrong}"):
            session.verify([4, wrong])
    with pytest.raises(ValueError, match="prefill first"):
        Session(target).verify([4])
    assert session.read == 0


def test_prompt_ids_are_the_text_with_one_leading_bos(target):
    ids = prompt_ids(target, QUESTION)
    assert ids.dtype == np.int32
    assert ids[0] == 1
    assert (ids == 1).sum() == 1
