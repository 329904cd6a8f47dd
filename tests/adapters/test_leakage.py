"""The leakage guard: a draft at anchor t is the same whatever happens to all that it may not see there.

The controls perturb what it may see, one thing at a time, and ask for another draft: a guard that could not fail would
hold nothing.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import (
    CONTROL_1,
    FACTS,
    FIRST,
    GAMMA,
    LENGTH,
    MODES,
    ROWS,
    WIDTH,
    drafts,
    head,
    lively,
    normal,
    streams,
)
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import CONTROLS, KINDS
from xmsd_jax.adapters.rollout import NO_DRAFT, Drafted, first_drafts

ANCHORS = range(LENGTH - 1)
OWN_LEN = np.array([LENGTH, 6, 8])
ROW = 1
TIME = np.arange(LENGTH)
CARRIED = [(name, mode) for name, mode in MODES if name != CONTROL_1]  # they read earlier states too
READ_DRAFTER = [name for name, mode in MODES if mode == "synced"]
READ_TARGET = [(name, mode) for name, mode in MODES if FACTS[name].inputs != "drafter"]
PREFILL = 5
COUNT = np.array([5, 3, 4])


def only(row: int, where: np.ndarray) -> np.ndarray:
    """bool[b, t], True at `where` of one answer."""
    return (np.arange(ROWS) == row)[:, None] & where


def replaced(given: Streams, drafter: np.ndarray, target: np.ndarray) -> Streams:
    """Other states, and larger ones, where the masks are True."""
    noise = 30 * normal(ROWS, LENGTH, WIDTH, seed=11)
    masks = (jnp.asarray(mask)[..., None] for mask in (drafter, target))
    return Streams(*(jnp.where(mask, noise, stream) for mask, stream in zip(masks, given, strict=True)))


def may_see(mode: str, t: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    """SEMANTICS, "what a drafter may see at anchor t": masks of drafter and target states."""
    own = min(t + GAMMA, OWN_LEN[row])
    return only(row, own > TIME if mode == "own" else t + 2 > TIME), only(row, t >= TIME)


def at(found: Drafted, t: int, row: int = ROW) -> tuple[np.ndarray, np.ndarray]:
    """Ids and margins of the drafts at one anchor; margins of those that are none are not looked at."""
    ids, margins = found.ids[row, t], found.margins[row, t]
    return ids, np.where(ids == NO_DRAFT, 0, margins)


@pytest.mark.parametrize(("name", "mode"), MODES)
@pytest.mark.parametrize("row", range(ROWS))
def test_a_draft_depends_on_nothing_that_its_anchor_may_not_see(name, mode, row):
    before = drafts(name, mode, streams(), own_len=OWN_LEN)
    for t in ANCHORS:
        drafter, target = may_see(mode, t, row)
        after = drafts(name, mode, replaced(streams(), ~drafter, ~target), own_len=OWN_LEN)
        for one, other in zip(at(before, t, row), at(after, t, row), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_guard_has_drafts_to_guard():
    for name, mode in MODES:
        ids = drafts(name, mode, streams(), own_len=OWN_LEN).ids
        assert (ids[ROW, 0] != NO_DRAFT).all()
        assert len(np.unique(ids)) > 8


def differs(name: str, mode: str, t: int, *, drafter: np.ndarray | None = None, target: np.ndarray | None = None):
    """Which of the drafts d_1..d_gamma at anchor t change, in margin at least, with these states replaced."""
    none = np.zeros((ROWS, LENGTH), bool)
    moved = replaced(streams(), none if drafter is None else drafter, none if target is None else target)
    return at(drafts(name, mode, streams()), t)[1] != at(drafts(name, mode, moved), t)[1]


@pytest.mark.parametrize(("name", "mode"), READ_TARGET)
def test_control_the_targets_state_at_the_anchor_is_read(name, mode):
    assert differs(name, mode, 4, target=only(ROW, TIME == 4)).all()


@pytest.mark.parametrize(("name", "mode"), CARRIED)
def test_control_earlier_states_are_read(name, mode):
    where = only(ROW, TIME == 2)
    stream = {"target": where} if FACTS[name].inputs == "target" else {"drafter": where}
    assert differs(name, mode, 4, **stream).all()


@pytest.mark.parametrize("name", READ_DRAFTER)
@pytest.mark.parametrize("ahead", range(GAMMA))
def test_control_in_mode_own_draft_j_reads_the_drafter_up_to_j_minus_1_ahead(name, ahead):
    moved = differs(name, "own", 4, drafter=only(ROW, 4 + ahead == TIME))
    np.testing.assert_array_equal(moved, np.arange(GAMMA) >= ahead)


@pytest.mark.parametrize("name", READ_DRAFTER)
def test_control_in_mode_synced_the_state_after_the_anchors_token_is_read_from_the_second_draft_on(name):
    moved = differs(name, "synced", 4, drafter=only(ROW, TIME == 5))
    np.testing.assert_array_equal(moved, np.arange(GAMMA) >= 1)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_control_ids_change_too(name, mode):
    moved = replaced(streams(), only(ROW, TIME <= 5), only(ROW, TIME <= 5))
    assert (drafts(name, mode, streams()).ids[ROW] != drafts(name, mode, moved).ids[ROW]).any()


def phase_1(name: str, drafter) -> Drafted:
    """As a caller drafts: the first states of the drafter's answers, and how many of them are real."""
    found = first_drafts(lively(name), head(), drafter[:, :PREFILL], jnp.asarray(COUNT, jnp.int32))
    return Drafted(np.asarray(found.ids), np.where(found.ids == NO_DRAFT, 0, found.margins))


def moved_in_phase_1(name: str, where: np.ndarray) -> np.ndarray:
    """Which of the first drafts [b, g] change, in margin at least, with drafter states replaced."""
    before = phase_1(name, streams().drafter)
    after = phase_1(name, replaced(streams(), where, np.zeros_like(where)).drafter)
    return (before.ids != after.ids) | (before.margins != after.margins)


@pytest.mark.parametrize("name", FIRST)
def test_first_drafts_depend_on_the_first_real_states_of_their_own_answer(name):
    for row in range(ROWS):
        allowed = only(row, min(PREFILL, COUNT[row]) > TIME)
        assert not moved_in_phase_1(name, ~allowed)[row].any()


@pytest.mark.parametrize("name", FIRST)
def test_control_first_drafts_read_each_state_that_they_may(name):
    for place in range(COUNT[ROW]):
        moved = moved_in_phase_1(name, only(ROW, place == TIME))[ROW]
        everywhere = np.arange(PREFILL) < COUNT[ROW]  # L4 looks at all of its input
        np.testing.assert_array_equal(moved, everywhere if not FACTS[name].causal else np.arange(PREFILL) == place)


def test_every_kind_and_control_is_guarded():
    assert {name for name, _ in MODES} | set(FIRST) == {*KINDS, *CONTROLS}
    assert {"L5", "L5F"} <= set(READ_DRAFTER)
