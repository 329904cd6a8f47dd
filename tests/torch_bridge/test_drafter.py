"""The live lane's states are those of the store, in whatever order they are asked for, and each is read once."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from torch_bridge.answers import UNKNOWN_ID, Batch
from torch_bridge.drafter import TorchLane
from torch_bridge.eventgpt import load_drafter
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.decoding.ports import DrafterLane, Prompt
from xmsd_jax.pipeline.pair import PairConfig, model_folder

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 64
CLOSE = {"rtol": 0, "atol": 1e-4}
ASKED = (0, 4)
TEXT = tuple(int(i) for i in np.random.default_rng(0).integers(3, 1000, 30))  # what a target might have said


@pytest.fixture(scope="module")
def vlm():
    return load_drafter(model_folder(PairConfig(), "drafter"))


@pytest.fixture(scope="module")
def prompts():
    return [
        Prompt(clip=clip, question=QUESTIONS[index], question_index=index)
        for clip in davis_clips()[:2]
        for index in ASKED
    ]


@pytest.fixture(scope="module")
def batch(vlm, prompts):
    return Batch(vlm, davis_clips()[:2], [QUESTIONS[index] for index in ASKED])


@pytest.fixture(scope="module")
def stored(batch):
    return batch.answer(COUNT)


def lane_of(vlm, prompt: Prompt, *, limit: int = COUNT, share: bool = False) -> TorchLane:
    lane = TorchLane(vlm, max_new_tokens=limit, share=share)
    lane.begin(prompt)
    return lane


def parts(lane: TorchLane) -> list[str]:
    return [span.part for span in lane.take_spans()]


def synced_in_the_store(batch: Batch, text) -> torch.Tensor:
    """s[0..len(text)] of each prompt after the same text."""
    ids = torch.tensor([[*text, 0]]).expand(len(ASKED) * 2, -1)
    return batch.read_answers(ids, torch.full((len(ids),), len(text) + 1))


def test_it_is_a_lane(vlm):
    assert isinstance(TorchLane(vlm, max_new_tokens=COUNT), DrafterLane)


def test_own_states_and_their_tokens_are_those_of_a_stored_answer(vlm, prompts, stored):
    for row, prompt in enumerate(prompts):
        own = lane_of(vlm, prompt).own(COUNT)
        length = int(stored.lengths[row])
        assert len(own) == length
        torch.testing.assert_close(own, stored.hidden[row, :length], **CLOSE)
        assert vlm.lm_head(own).argmax(-1).tolist() == stored.ids[row, :length].tolist()


def test_own_states_come_as_far_as_they_are_asked_for(vlm, prompts, stored):
    lane = lane_of(vlm, prompts[1])
    for count in (1, 4, 4, 2, 9):
        torch.testing.assert_close(lane.own(count), stored.hidden[1, :count], **CLOSE)
    assert parts(lane) == ["drafter vision", "drafter prefill", *["drafter step"] * 9]


def test_synced_states_are_those_that_the_store_reads(vlm, prompts, batch):
    wanted = synced_in_the_store(batch, TEXT)
    for row, prompt in enumerate(prompts):
        lane = lane_of(vlm, prompt)
        for known in (0, 1, 2, 7, 30):
            torch.testing.assert_close(lane.synced(TEXT[:known]), wanted[row, : known + 1], **CLOSE)


def test_a_shorter_or_other_text_gives_what_it_gives_alone(vlm, prompts, batch):
    other = (*TEXT[:5], *TEXT[20:])
    lane = lane_of(vlm, prompts[0])
    for text in (TEXT, TEXT[:9], other, TEXT, other[:1], ()):
        torch.testing.assert_close(lane.synced(np.array(text, np.int32)), synced_in_the_store(batch, text)[0], **CLOSE)


def test_own_and_synced_do_not_disturb_each_other(vlm, prompts):
    """The second text shares a beginning with the drafter's own answer, as a target's does."""
    alone = lane_of(vlm, prompts[1])
    own = alone.own(COUNT).clone()
    text = (*vlm.lm_head(own).argmax(-1).tolist()[:3], *TEXT[:8])
    synced = lane_of(vlm, prompts[1]).synced(text).clone()
    lane = lane_of(vlm, prompts[1])
    torch.testing.assert_close(lane.own(6), own[:6], **CLOSE)
    torch.testing.assert_close(lane.synced(text), synced, **CLOSE)
    torch.testing.assert_close(lane.own(6), own[:6], **CLOSE)  # nothing to step: what was kept
    torch.testing.assert_close(lane.own(12), own[:12], **CLOSE)
    torch.testing.assert_close(lane.synced(text[:4]), synced[:5], **CLOSE)
    torch.testing.assert_close(lane.own(COUNT), own, **CLOSE)


def test_the_own_answer_ends_at_its_eos(vlm, prompts, stored):
    length = int(stored.lengths[0])
    assert length < COUNT
    lane = lane_of(vlm, prompts[0])
    assert len(lane.own(length - 1)) == length - 1
    assert len(lane.own(length + 5)) == len(lane.own(COUNT)) == length
    assert int(vlm.lm_head(lane.own(COUNT)[-1]).argmax()) == vlm.eos_id
    assert parts(lane).count("drafter step") == length


def test_the_own_answer_ends_at_the_limit(vlm, prompts, stored):
    own = lane_of(vlm, prompts[0], limit=7).own(COUNT)
    torch.testing.assert_close(own, stored.hidden[0, :7], **CLOSE)


def test_a_text_may_be_as_long_as_the_limit_and_no_longer(vlm, prompts, batch):
    lane = lane_of(vlm, prompts[0], limit=7)
    torch.testing.assert_close(lane.synced(TEXT[:7]), synced_in_the_store(batch, TEXT[:7])[0], **CLOSE)
    with pytest.raises(ValueError, match="the lane holds 7 tokens; was asked for 8: raise max_new_tokens"):
        lane.synced(TEXT[:8])


def test_ids_that_the_drafter_has_not_are_read_as_unknown(vlm, prompts, batch):
    rows = vlm.language_model.config.vocab_size
    text = (*TEXT[:3], rows, *TEXT[3:5], rows + 50)
    known = (*TEXT[:3], UNKNOWN_ID, *TEXT[3:5], UNKNOWN_ID)
    found = lane_of(vlm, prompts[0]).synced(text)
    torch.testing.assert_close(found, synced_in_the_store(batch, text)[0], **CLOSE)
    torch.testing.assert_close(found, lane_of(vlm, prompts[0]).synced(known), **CLOSE)


def test_before_a_prompt_there_is_nothing_to_say(vlm):
    lane = TorchLane(vlm, max_new_tokens=COUNT)
    for ask in (lambda: lane.own(1), lambda: lane.synced(()), lambda: lane.synced(TEXT)):
        with pytest.raises(ValueError, match="received none yet: call begin first"):
            ask()
    assert lane.take_spans() == []


def test_spans_name_what_was_done_once_in_order(vlm, prompts):
    lane = lane_of(vlm, prompts[0])
    lane.own(2)
    lane.synced(TEXT[:3])
    lane.synced(TEXT[:3])
    spans = lane.take_spans()
    assert [s.part for s in spans] == ["drafter vision", "drafter prefill", "drafter step", "drafter step", "sync"]
    assert {s.lane for s in spans} == {"drafter"}
    assert all(s.stop > s.start for s in spans)
    assert all(before.stop <= after.start for before, after in pairwise(spans))
    assert lane.take_spans() == []


def test_a_new_prompt_forgets_the_last_answer(vlm, prompts, batch, stored):
    lane = lane_of(vlm, prompts[0])
    lane.own(5)
    lane.synced(TEXT[:4])
    lane.begin(prompts[3])
    torch.testing.assert_close(lane.synced(TEXT[:4]), synced_in_the_store(batch, TEXT[:4])[3], **CLOSE)
    torch.testing.assert_close(lane.own(5), stored.hidden[3, :5], **CLOSE)


def test_a_shared_prompt_keeps_vision_prefill_and_what_was_read(vlm, prompts, stored):
    lane = lane_of(vlm, prompts[0], share=True)
    lane.own(5)
    lane.take_spans()
    lane.begin(prompts[0])
    torch.testing.assert_close(lane.own(5), stored.hidden[0, :5], **CLOSE)
    assert parts(lane) == []
    lane.begin(prompts[1])
    torch.testing.assert_close(lane.own(2), stored.hidden[1, :2], **CLOSE)
    assert parts(lane) == ["drafter vision", "drafter prefill", "drafter step", "drafter step"]


def test_without_sharing_the_same_prompt_is_read_again(vlm, prompts, stored):
    lane = lane_of(vlm, prompts[0])
    lane.own(2)
    lane.take_spans()
    lane.begin(prompts[0])
    torch.testing.assert_close(lane.own(2), stored.hidden[0, :2], **CLOSE)
    assert parts(lane) == ["drafter vision", "drafter prefill", "drafter step", "drafter step"]
