"""Packed questions are a cheaper way to compute the states of separate rows, and nothing else."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from torch_bridge.tiny.learner import Learner, Material, drafter_visual, normalised
from torch_bridge.tiny.models import PairShape, new_drafter, new_target
from torch_bridge.tiny.packing import IGNORE, layout, pack
from torch_bridge.video_llava import video_tokens

SHAPE = PairShape(
    width=64, vocabulary=64, target_layers=2, target_ffn=64, drafter_layers=2, drafter_ffn=64, vision_width=64,
    vision_ffn=64, vision_layers=2, positions=512,
)  # fmt: skip
PROMPTS = [np.array([5, 6], np.int32), np.array([7, 8, 9], np.int32)]
ANSWERS = [["w10 w11 w12", "w13"], ["w14", "w15 w16"]]


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, 64))]
    found = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


@pytest.fixture(scope="module")
def blocks(tokenizer):
    return pack(PROMPTS, ANSWERS, tokenizer)


def test_lines_and_labels_by_hand(blocks):
    """The label at a position is the token that follows; the prompt's last position is taught the first one."""
    assert blocks.ids.tolist() == [
        [[5, 6, 10, 11, 12, 2], [7, 8, 9, 13, 2, 0]],
        [[5, 6, 14, 2, 0, 0], [7, 8, 9, 15, 16, 2]],
    ]
    none = IGNORE
    assert blocks.labels.tolist() == [
        [[none, 10, 11, 12, 2, none], [none, none, 13, 2, none, none]],
        [[none, 14, 2, none, none, none], [none, none, 15, 16, 2, none]],
    ]
    assert blocks.ask.tolist() == [1, 2]


def test_the_mask_by_hand():
    """Prefix of 2, two blocks of 2, padded to 16: a block sees the prefix and itself up to the diagonal."""
    mask, positions = layout(2, 2, 2)
    assert mask.shape == (1, 1, 16, 16)
    assert mask[0, 0, :6, :6].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert not mask[0, 0, :6, 6:].any()
    assert mask[0, 0].any(-1).all()  # no padding row without anything to look at: its softmax would be NaN
    assert positions[0].tolist() == [0, 1, 2, 3, 2, 3, *[0] * 10]


@pytest.mark.parametrize("which", ["target", "drafter"])
def test_packed_states_equal_those_of_a_row_for_each_question(which, blocks):
    torch.manual_seed(1)
    new, visual = (new_target, video_tokens) if which == "target" else (new_drafter, drafter_visual)
    learner = Learner(new(SHAPE), visual, (2,), SHAPE.vocabulary).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 96, 96, 3), dtype=np.uint8)
    data = Material.on(
        torch.device("cpu"), frames=frames, blocks=blocks, facts=np.zeros((2, 1), np.int64), before=np.array([1, 4])
    )
    clips, questions = torch.tensor([1, 0]), torch.tensor([1, 0])
    with torch.no_grad():
        look = visual(learner.model, normalised(data.frames[clips]))
        states, labels, ask = learner._states(data, look, clips, questions)
        table = learner.language.get_input_embeddings()
        for row, clip in enumerate(clips.tolist()):
            for column, question in enumerate(questions.tolist()):
                line = torch.from_numpy(blocks.ids[clip, question].astype(np.int64))
                alone = torch.cat([table(data.before), look[row], table(line)])
                expected = learner.language(inputs_embeds=alone[None]).last_hidden_state[0, -len(line) :]
                torch.testing.assert_close(states[row, column], expected, rtol=0, atol=2e-6)
                assert labels[row, column].tolist() == blocks.labels[clip, question].tolist()
                end = int(blocks.ask[question])
                torch.testing.assert_close(ask[2 * row + column], expected[end], rtol=0, atol=2e-6)


def test_the_loss_is_the_cross_entropy_of_the_answers_tokens_over_text_rows(blocks):
    torch.manual_seed(2)
    learner = Learner(new_target(SHAPE), video_tokens, (2,), SHAPE.vocabulary)
    frames = np.zeros((2, 2, 96, 96, 3), np.uint8)
    data = Material.on(
        torch.device("cpu"), frames=frames, blocks=blocks, facts=np.zeros((2, 1), np.int64), before=np.array([1, 4])
    )
    clips = questions = torch.tensor([0, 1])
    loss, log = learner(data, clips, questions, fact_weight=0.5)
    assert 0.8 * np.log(64) < log["loss"].item() < 1.2 * np.log(64)
    assert loss.item() == pytest.approx(log["loss"].item() + 0.5 * 2 * np.log(2), abs=0.2)
    loss.backward()
    rows = learner.model.lm_head.weight.grad.abs().sum(1)
    assert rows[:64].min() > 0
    assert not rows[64:].any()  # placeholders and padding keep their random start


def test_batched_event_tokens_equal_the_aggregator():
    from torch_bridge.eventgpt import aggregate

    model = new_drafter(SHAPE).eval()
    pixels = torch.randn(2, 5, 3, 96, 96)
    with torch.no_grad():
        batched = drafter_visual(model, pixels)
        for row in range(2):
            torch.testing.assert_close(batched[row], aggregate(model.event_features(pixels[row])), rtol=0, atol=2e-6)
