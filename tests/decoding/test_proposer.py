"""A live adapter drafts what the offline rollout drafts at the same anchor, in whatever order it is asked."""

import numpy as np
import pytest
from flax import nnx

from tests.adapters.small import (
    MODES,
    VOCABULARY,
    WIDTH,
    head,
)
from tests.decoding.stored_drafters import (
    ANCHORS,
    EVERY,
    GAMMA,
    IDS,
    LENGTH,
    OWN_LEN,
    PROMPTS,
    ROWS,
    StoredLane,
    offline,
    propose,
    rollout_drafter,
    stored,
    usual,
    wanted,
    windows,
)
from xmsd_jax.adapters.eagle import TargetEagle
from xmsd_jax.adapters.interface import Sizes
from xmsd_jax.decoding.ports import Context, Drafter, DrafterLane
from xmsd_jax.decoding.proposer import RolloutDrafter

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_it_is_a_drafter_and_its_source_a_lane():
    assert isinstance(rollout_drafter("L5F", "own"), Drafter)
    assert isinstance(StoredLane(), DrafterLane)


def test_the_stored_answers_are_worth_testing_on():
    """Drafts differ between prompts, between modes, and from anchor to anchor."""
    for name, mode in MODES:
        ids = offline(name, mode)[:, :-1]
        assert len(np.unique(ids[0], axis=0)) > LENGTH // 2
        assert (ids[0] != ids[1]).mean() > 0.5
    assert (offline("L5F", "own")[0] != offline("L5F", "synced")[0]).any()


@EVERY
def test_a_growing_answer_is_drafted_as_offline_at_every_anchor(name, mode):
    drafter = usual(name, mode)
    for row in range(ROWS):
        assert [propose(drafter, row, t) for t in ANCHORS] == [wanted(name, mode, row, t) for t in ANCHORS]


@EVERY
def test_a_draft_depends_on_nothing_but_its_context(name, mode):
    """Steps of a walk, the same anchor again, back to earlier ones, another prompt with the same ids in between."""
    drafter, draws = usual(name, mode), np.random.default_rng(1)
    order = [(0, t) for t in (0, 3, 8, 9, 9, 4, 5, 12, 0)] + [(1, 1), (0, 2), (1, 2), (2, 3), (1, 4)]
    order += [(int(draws.integers(ROWS)), int(draws.integers(LENGTH - 1))) for _ in range(20)]
    for row, anchor in order:
        assert propose(drafter, row, anchor) == wanted(name, mode, row, anchor), (row, anchor)


def test_another_text_about_the_same_prompt_starts_anew():
    drafter, other = usual("B1", "own"), (IDS + 1) % VOCABULARY
    assert propose(drafter, 0, 5) == wanted("B1", "own", 0, 5)
    context = Context(prompt=PROMPTS[0], ids=other[:9], hidden=(stored()[1][1, :9],))
    assert drafter.propose(context, GAMMA).ids.tolist() == wanted("B1", "own", 1, 8)


@EVERY
@pytest.mark.parametrize("first_rows", [1, 8, LENGTH])
def test_a_first_context_of_many_tokens_is_read_in_portions(name, mode, first_rows):
    drafter = rollout_drafter(name, mode, first_rows=first_rows)
    for anchor in (12, 7, GAMMA + 1, GAMMA, GAMMA - 1, 12):  # a shorter context starts anew, the last one goes on
        assert propose(drafter, 0, anchor) == wanted(name, mode, 0, anchor)


@EVERY
def test_fewer_ids_are_the_first_of_more(name, mode):
    drafter = usual(name, mode)
    for anchor, gamma in [(0, 1), (2, 3), (5, 2)]:
        assert propose(drafter, 0, anchor, gamma) == wanted(name, mode, 0, anchor)[:gamma]


@EVERY
def test_a_drafter_may_be_compiled_for_a_single_id(name, mode):
    drafter = rollout_drafter(name, mode, gamma=1)
    assert [propose(drafter, 0, t, 1) for t in ANCHORS] == [wanted(name, mode, 0, t)[:1] for t in ANCHORS]


@EVERY
def test_in_phase_1_there_is_no_draft_and_nothing_is_read(name, mode):
    drafter = rollout_drafter(name, mode)
    assert not len(drafter.propose(Context(prompt=PROMPTS[0], ids=IDS[:0]), GAMMA).ids)
    assert drafter.lane is None or not drafter.lane.asked


@pytest.mark.parametrize("name", ["L5", "L5F"])
def test_in_mode_own_drafts_end_with_the_drafters_answer(name):
    drafter = usual(name, "own")
    for row in range(ROWS):
        lengths = [len(propose(drafter, row, t)) for t in ANCHORS]
        assert lengths == [min(max(OWN_LEN[row] - t, 0), GAMMA) for t in ANCHORS]


@pytest.mark.parametrize(("mode", "reach"), [("own", GAMMA), ("synced", 1)])
def test_the_lane_is_asked_for_what_the_mode_may_see_and_no_more(mode, reach):
    """own(t + gamma) gives g[0..t+gamma-1]; synced(y_0..y_t) gives s[0..t+1]."""
    drafter = rollout_drafter("L5F", mode)
    for anchor in (0, 2, 7):
        propose(drafter, 0, anchor)
    assert drafter.lane.asked == [t + reach for t in (0, 2, 7)]


def test_a_kind_that_does_not_read_the_drafter_has_no_lane():
    assert rollout_drafter("B1", "synced").lane is None


def test_one_program_serves_a_whole_answer():
    traced = []

    class Counted(TargetEagle):
        def keep(self, given, positions):
            traced.append(positions.shape)
            return super().keep(given, positions)

    adapter = Counted(Sizes(width=WIDTH), nnx.Rngs(0))
    drafter = RolloutDrafter(adapter, head(), name="counted", gamma=GAMMA, max_new_tokens=LENGTH, windows=windows)
    traced.clear()  # shapes are asked for once, at the beginning
    for row, anchor in [(0, 0), (0, 2), (0, 7), (0, 8), (0, 12), (1, 11), (2, 1)]:
        propose(drafter, row, anchor)
    assert traced == [(1, GAMMA + 1)]
