"""What a proposer refuses, and drafts of phase 1."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import (
    FACTS,
    FIRST,
    MODES,
    WIDTH,
    head,
    lively,
)
from tests.decoding.stored_drafters import (
    GAMMA,
    IDS,
    OWN_LEN,
    PROMPTS,
    StoredLane,
    context,
    propose,
    rollout_drafter,
    stored,
    usual,
    wanted,
    windows,
)
from xmsd_jax.adapters.interface import POSITIONS
from xmsd_jax.adapters.rollout import first_drafts
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.ports import Context, Drafter
from xmsd_jax.decoding.proposer import HostWindow, PrefillDrafter

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_an_adapter_of_offset_0_is_not_rolled_out():
    with pytest.raises(ConfigError, match="L2: is no adapter of offset 1"):
        rollout_drafter("L2", "own")


@pytest.mark.parametrize("name", ["L5", "L5F"])
def test_a_kind_that_reads_the_drafter_needs_a_lane(name):
    with pytest.raises(ConfigError, match=f"{name}: reads the drafter's states, but no lane"):
        rollout_drafter(name, "synced", lane=None)


def test_more_positions_than_the_adapter_has_are_refused():
    rollout_drafter("B1", "synced", max_new_tokens=POSITIONS - GAMMA)
    with pytest.raises(ConfigError, match=f"max_new_tokens: {POSITIONS - GAMMA + 1} and gamma {GAMMA}"):
        rollout_drafter("B1", "synced", max_new_tokens=POSITIONS - GAMMA + 1)


def test_more_ids_than_compiled_are_refused():
    with pytest.raises(ValueError, match="drafter 'B1' was compiled for 4 ids, was asked for 5"):
        propose(rollout_drafter("B1", "synced"), 0, 0, 5)


def test_a_longer_answer_than_it_was_made_for_is_refused():
    """Its keys and values would be written over those of earlier tokens."""
    drafter = rollout_drafter("B1", "synced", max_new_tokens=6)
    assert propose(drafter, 0, 5) == wanted("B1", "synced", 0, 5)
    with pytest.raises(ValueError, match="drafter 'B1' keeps 6 tokens of an answer, was given 7"):
        propose(drafter, 0, 6)


@pytest.mark.parametrize(("name", "mode"), [(n, m) for n, m in MODES if FACTS[n].inputs != "drafter"])
def test_missing_states_are_refused_and_leave_no_trace(name, mode):
    drafter = usual(name, mode)
    assert propose(drafter, 0, 5) == wanted(name, mode, 0, 5)
    with pytest.raises(ValueError, match="brings a state for each of 12 tokens, got 7 states"):
        drafter.propose(context(1, 11, states=7), GAMMA)
    assert propose(drafter, 0, 6) == wanted(name, mode, 0, 6)


def prefill_drafter(name: str, count: int = 5) -> PrefillDrafter:
    return PrefillDrafter(lively(name), head(), name=name, lane=StoredLane(), draft_len=count, windows=windows)


def first(drafter: PrefillDrafter, row: int, gamma: int) -> list[int]:
    drafter.lane.begin(PROMPTS[row])
    return drafter.propose(Context(prompt=PROMPTS[row], ids=IDS[:0]), gamma).ids.tolist()


@pytest.mark.parametrize("name", FIRST)
def test_phase_1_drafts_are_the_first_drafts_of_exactly_so_many_states(name):
    drafter, count = prefill_drafter(name), 5
    ids = first_drafts(lively(name), head(), jnp.asarray(stored()[0][:, :count]), jnp.asarray(OWN_LEN, jnp.int32)).ids
    for row in (0, 1, 2, 0):
        assert first(drafter, row, count) == np.asarray(ids)[row, : OWN_LEN[row]].tolist()
        assert first(drafter, row, 2) == np.asarray(ids)[row, : min(OWN_LEN[row], 2)].tolist()
    assert set(drafter.lane.asked) == {count}


def test_in_phase_2_a_phase_1_drafter_drafts_nothing_and_reads_nothing():
    drafter = prefill_drafter("L4")
    assert isinstance(drafter, Drafter)
    assert not len(drafter.propose(context(0, 3), GAMMA).ids)
    assert not drafter.lane.asked


def test_an_adapter_of_offset_1_does_not_draft_in_phase_1():
    with pytest.raises(ConfigError, match=r"L5: predicts the next state \(offset 1\)"):
        prefill_drafter("L5")


def test_phase_1_refuses_more_ids_than_compiled():
    with pytest.raises(ValueError, match="drafter 'L2' was compiled for 5 ids, was asked for 6"):
        first(prefill_drafter("L2"), 0, 6)


def test_a_host_window_refuses_more_rows_than_it_has():
    with pytest.raises(ValueError, match=r"a window of 3 rows .* each of 6 tokens, got 6 states: .* make it larger"):
        HostWindow(3, WIDTH)([stored()[1][0, :6]], 2, 6)
