"""What the shipped pair knows about places it never saw: the target all that is asked, the drafter motion only."""

from math import comb
from pathlib import Path

import pytest
import torch

import torch_bridge
from torch_bridge.eventgpt import load_drafter
from torch_bridge.tiny.evaluate import (
    answer_all,
    borrowed_row,
    drafter_looks,
    fact_rows,
    forced_colour_row,
    target_looks,
)
from torch_bridge.tiny.scenes import make_scenes
from torch_bridge.video_llava import load_target
from xmsd_jax.data.answers import drafter_answer, read_facts, target_answer
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.world import COLOURS, WorldConfig, world_clips

WEIGHTS = Path(torch_bridge.__file__).parent / "tiny" / "weights"
# Seed and split of configs/tiny/pair.yaml: places that no training step saw.
HELD_OUT = WorldConfig(sequences={"pair-test": 48}, clips_per_sequence=1, seed=7)
ASKED = (0, 1, 3)


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(HELD_OUT, "pair-test", workers=1)


@pytest.fixture(scope="module")
def drafter():
    return load_drafter(WEIGHTS / "drafter")


@pytest.fixture(scope="module")
def event_looks(drafter, scenes):
    return drafter_looks(drafter, scenes.events)


def asked(answer, facts) -> list[list[str]]:
    return [[answer(f, q) for f in facts] for q in ASKED]


def shares(rows) -> dict[str, tuple[float, int]]:
    return {row.metric.removeprefix("fact accuracy: "): (row.value, row.n) for row in rows}


def test_the_target_states_the_asked_facts_rightly(scenes):
    target = load_target(WEIGHTS / "target")
    looks, facts = target_looks(target, scenes.video[:16]), scenes.facts[:16]
    told = [answer_all(target, looks, QUESTIONS[q]) for q in ASKED]
    found = shares(fact_rows("target", told, asked(target_answer, facts), facts))
    assert set(found) == {"colour", "vehicles", "time", "direction"}
    for fact, (share, count) in found.items():
        assert count >= 16, fact
        assert share >= 0.85, fact
    assert len(set(told[0])) >= 14  # about what it sees, not one answer for all


def test_the_drafter_states_the_motion_rightly(drafter, event_looks, scenes):
    told = [answer_all(drafter, event_looks[:24], QUESTIONS[q]) for q in ASKED]
    found = shares(fact_rows("drafter", told, asked(drafter_answer, scenes.facts[:24]), scenes.facts[:24]))
    assert set(found) == {"direction", "moving"}
    for fact in ("direction", "moving"):
        assert found[fact][1] >= 48, fact
        assert found[fact][0] >= 0.85, fact


def test_the_drafter_is_no_better_than_chance_on_colour_when_it_is_made_to_say_one(drafter, event_looks, scenes):
    row = forced_colour_row(drafter, event_looks, scenes.facts)
    assert row.n == len(scenes.facts)
    hits = round(row.value * row.n)
    chance = 1 / len(COLOURS)
    at_least = sum(comb(row.n, k) * chance**k * (1 - chance) ** (row.n - k) for k in range(hits, row.n + 1))
    assert at_least > 1e-3


def test_the_test_of_colours_would_notice_a_model_that_sees_them(scenes):
    """The target, made to finish the same sentences, is right: the measure works."""
    target = load_target(WEIGHTS / "target")
    looks = target_looks(target, scenes.video[:12])
    assert forced_colour_row(target, looks, scenes.facts[:12]).value >= 0.9


def test_batched_greedy_text_is_what_the_model_says_alone(drafter, event_looks):
    together = answer_all(drafter, event_looks[:3], QUESTIONS[2])
    assert together == [answer_all(drafter, event_looks[i : i + 1], QUESTIONS[2])[0] for i in range(3)]


def test_a_wrong_fact_and_one_left_out_both_count_against_the_model(scenes):
    facts = scenes.facts[:2]
    true = [target_answer(f, 4) for f in facts]
    assert set(read_facts(true[0])) >= {"colour", "direction"}
    wrong = "right" if facts[0]["vehicles"][0]["direction"] == "left" else "left"
    told = [true, [f"The nearest shape shifts {wrong}.", "nothing to read"]]
    found = shares(fact_rows("target", told, [true, true], facts))
    assert found["colour"] == (0.5, 4)
    assert found["direction"] == (0.5, 4)


def test_answers_in_the_targets_style_are_counted_by_the_colour_that_they_name(scenes):
    told = [[target_answer(scenes.facts[0], 4), drafter_answer(scenes.facts[0], 4)]] * 2
    row = borrowed_row(told)
    assert (row.value, row.n) == (0.5, 4)


def test_what_was_judged_is_what_encode_sees(drafter, event_looks):
    clip = next(world_clips(HELD_OUT, "pair-test"))
    torch.testing.assert_close(drafter.encode(clip), event_looks[0], rtol=0, atol=1e-4)
