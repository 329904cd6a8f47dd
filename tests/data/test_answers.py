"""Answers say what is true, in two styles that do not match, 25 to 60 tokens long, with variety."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

import torch_bridge
from xmsd_jax.data.answers import drafter_answer, read_facts, target_answer, true_facts
from xmsd_jax.data.phrasing import pick, sentences
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.world import COLOURS, TIMES, sample_facts, sample_place, scene_rng

SCENES = 300


@pytest.fixture(scope="module")
def facts():
    places = [sample_place(5, "test", number) for number in range(SCENES)]
    return [sample_facts(place, scene_rng(place, 0)) for place in places]


@pytest.fixture(scope="module")
def told(facts):
    """texts[style][question][scene]."""
    questions = range(len(QUESTIONS))
    return {
        "target": [[target_answer(f, q) for f in facts] for q in questions],
        "drafter": [[drafter_answer(f, q) for f in facts] for q in questions],
    }


@pytest.fixture(scope="module")
def coded(told):
    """Token ids of each answer, with the shipped tokenizer."""
    weights = Path(torch_bridge.__file__).parent / "tiny" / "weights"
    tokenizer = Tokenizer.from_file(str(weights / "target" / "tokenizer.json"))

    def ids(texts):
        return [e.ids for e in tokenizer.encode_batch([" " + text for text in texts], add_special_tokens=False)]

    return {style: [ids(texts) for texts in questions] for style, questions in told.items()}


def test_answers_have_25_to_60_tokens(coded):
    lengths = {style: [len(ids) for q in questions for ids in q] for style, questions in coded.items()}
    for style in ("target", "drafter"):
        assert 25 <= min(lengths[style]) <= max(lengths[style]) + 1 <= 60, style  # 1: EOS


def test_what_a_text_states_is_true(facts, told):
    for style, questions in told.items():
        for texts in questions:
            for text, truth in zip(texts, map(true_facts, facts), strict=True):
                read = read_facts(text)
                assert {fact: truth[fact] for fact in read} == read, (style, text)


def test_the_target_always_states_colour_and_direction_and_often_the_rest(told):
    read = [read_facts(text) for texts in told["target"] for text in texts]
    assert all({"colour", "direction"} <= set(facts) for facts in read)
    assert all("moving" not in facts for facts in read)
    assert sum("vehicles" in facts for facts in read) > len(read) / 3
    assert sum("time" in facts for facts in read) > len(read) / 3


def test_the_drafter_always_states_the_motion_and_never_what_it_cannot_see(told):
    for text in (text for texts in told["drafter"] for text in texts):
        assert set(read_facts(text)) == {"direction", "moving"}
        words = set(text.lower().replace(",", " ").replace(".", " ").split())
        assert not words & {*COLOURS, *TIMES, "vehicle", "vehicles", "car", "truck", "bus"}


def test_answers_vary_with_the_scene(told):
    assert min(len(set(texts)) for texts in told["target"]) >= 0.8 * SCENES
    assert min(len(set(texts)) for texts in told["drafter"]) >= 0.4 * SCENES


def test_answers_vary_with_the_question(told):
    for questions in told.values():
        assert len({tuple(texts) for texts in questions}) == len(QUESTIONS)


def test_at_the_same_position_the_two_styles_share_under_5_percent_of_tokens(coded):
    same = total = 0
    for target, drafter in zip(coded["target"], coded["drafter"], strict=True):
        for pair in zip(target, drafter, strict=True):
            same += sum(a == b for a, b in zip(*pair, strict=False))
            total += min(map(len, pair))
    assert 0 < same / total < 0.05


def test_an_answer_is_a_function_of_facts_and_question(facts):
    assert target_answer(facts[0], 3) == target_answer(dict(facts[0]), 3)
    assert drafter_answer(facts[0], 3) == drafter_answer(dict(facts[0]), 3)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("The nearest vehicle, a red car, moves to the left in the near lane.",
         {"colour": "red", "direction": "left"}),
        ("There are three vehicles on the road. The closest one is a blue bus in the far lane, heading right.",
         {"vehicles": 3, "colour": "blue", "direction": "right"}),
        ("Only one vehicle can be seen at dusk.", {"vehicles": 1, "time": "dusk"}),
        ("There is a single vehicle on the road after dark.", {"vehicles": 1, "time": "night"}),
        ("Events come from a single moving object. The strongest edges travel fast to the right.",
         {"moving": 1, "direction": "right"}),
        ("Motion analysis finds five moving objects.", {"moving": 5}),
        ("Behind it a green truck and a red bus can be seen.", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_facts_are_read_back_by_hand(text, read):
    assert read_facts(text) == read


def test_plans_become_sentences():
    clauses = {"one": lambda f, q: "a first", "two": lambda f, q: f"number {q}", "none": lambda f, q: ""}
    assert sentences("one;two.one", clauses, {}, 7) == "A first, number 7. A first."
    assert sentences("one;none.two", clauses, {}, 7) == "A first. Number 7."


def test_a_wording_is_picked_by_its_keys_alone():
    assert [pick("abc", key) for key in range(12)] == [pick("abc", key) for key in range(12)]
    assert {pick("abc", key) for key in range(12)} == set("abc")
