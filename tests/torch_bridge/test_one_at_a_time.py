"""transformers' `generate()` one answer at a time, as the baseline of the engine: the same answers, the same states."""

import pytest
import torch

from tests.torch_bridge.fake_pair import fake_clip
from tests.torch_bridge.test_made_pair import small_pair
from torch_bridge.answers import Batch
from torch_bridge.one_at_a_time import Alone, agreement, as_causal_lm, drafter_alone, target_alone
from xmsd_jax.data.questions import QUESTIONS

ASKED = QUESTIONS[:3]


@pytest.fixture(scope="module")
def pair():
    return small_pair()


@pytest.mark.parametrize("which", [0, 1])
def test_it_gives_the_batch_s_ids_and_states(pair, which):
    vlm, answer = pair[which], (target_alone, drafter_alone)[which]
    clips = [fake_clip(0), fake_clip(1)]
    batch = Batch(vlm, clips, ASKED).answer(5)
    alone = [answer(vlm, clips[number], ASKED[number], 5) for number in (0, 1)]
    for one, row in zip(alone, (0, 4), strict=True):
        assert list(one.ids) == batch.ids[row].tolist()
        assert torch.allclose(one.hidden, batch.hidden[row], atol=1e-4)
        assert one.seconds > 0
    found = agreement(vlm, clips, ASKED, [0, 1], alone, per_batch=1)
    assert (found["same_ids"], found["same_rows"], found["margins_ulp"]) == (1.0, 1.0, [])
    assert (found["rows"], found["batch_rows"]) == (2, 3)


def test_answers_that_part_are_counted_to_their_first_difference(pair):
    target, clips = pair[0], [fake_clip(0), fake_clip(1)]
    right = [target_alone(target, clip, ASKED[0], 4) for clip in clips]
    ids = list(right[1].ids)
    wrong = Alone(ids=(*ids[:1], ids[1] + 1, *ids[2:]), hidden=right[1].hidden, seconds=1.0)
    found = agreement(target, clips, ASKED, [0, 0], [right[0], wrong], per_batch=2)
    assert found["same_ids"] == (4 + 1) / 8
    assert found["same_rows"] == 0.5
    assert found["same_choices"] == 5 / 6
    logits = target.lm_head(right[1].hidden[1])
    (margin,) = found["margins_ulp"]
    gap = float(logits[ids[1]] - logits[ids[1] + 1])
    assert gap > 0
    top = torch.tensor(float(logits[ids[1]]))
    ulp = float(torch.nextafter(top, torch.tensor(torch.inf)) - top)
    assert margin == pytest.approx(gap / ulp, rel=1e-2)


def test_the_drafters_own_modules_are_used(pair):
    model = as_causal_lm(pair[1])
    assert model.model is pair[1].language_model
    assert model.lm_head is pair[1].lm_head


def test_an_answer_that_ends_early_differs_from_its_end_on(pair):
    target, clip = pair[0], fake_clip(0)
    whole = target_alone(target, clip, ASKED[0], 4)
    shorter = Alone(ids=whole.ids[:2], hidden=whole.hidden[:2], seconds=1.0)
    found = agreement(target, [clip, clip], ASKED, [0, 0], [whole, shorter], per_batch=2)
    assert (found["same_ids"], found["same_rows"], found["margins_ulp"]) == ((4 + 2) / 8, 0.5, [])
