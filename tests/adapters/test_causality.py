"""What an output may depend on, by perturbing what it may not: later positions, masked positions, other answers.

Each test has a positive control: the same perturbation of something that the output reads does change it.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import CONTROL_0, CONTROL_1, FACTS, LENGTH, ROWS, every, lively, normal, streams
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import CONTROLS

STUDY = ["L1", "L2", "L3", "L4", "L5", "B1", "L5F", *CONTROLS]
CAUSAL = [name for name, facts in FACTS.items() if facts.causal]
ALONE = ["L1", "L2", "L3", *CONTROLS]  # these look at one position only
SEES_OTHERS = [name for name in FACTS if name not in ALONE]


def perturbed(given: Streams, where: np.ndarray) -> Streams:
    """Both streams, other at `where` bool[b, t]."""
    noise = 10 * normal(ROWS, LENGTH, given.drafter.shape[-1], seed=9)
    return Streams(*(jnp.where(jnp.asarray(where)[..., None], noise, stream) for stream in given))


def at_positions(where: np.ndarray) -> np.ndarray:
    return np.broadcast_to(where, (ROWS, LENGTH))


def changed(name: str, where: np.ndarray, mask=None) -> np.ndarray:
    """Which outputs [b, t] change at all where the input is perturbed."""
    mask = every() if mask is None else mask
    before, after = (lively(name)(given, mask) for given in (streams(), perturbed(streams(), where)))
    return np.asarray((before != after).any(-1))


def test_the_facts_of_the_seven_kinds_and_the_controls_are_those_of_the_study():
    assert [name for name in STUDY if not FACTS[name].causal] == ["L4"]
    assert [name for name in STUDY if FACTS[name].offset == 1] == ["L5", "B1", "L5F", CONTROL_1]
    assert [name for name in STUDY if FACTS[name].inputs == "drafter"] == ["L1", "L2", "L3", "L4", "L5", CONTROL_0]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("t", [0, 4, LENGTH - 2])
def test_a_causal_adapter_does_not_see_later_positions(name, t):
    moved = changed(name, at_positions(np.arange(LENGTH) > t))
    assert not moved[:, : t + 1].any()
    assert moved[:, t + 1 :].all()


@pytest.mark.parametrize("name", ALONE)
def test_a_per_position_adapter_sees_its_own_position_only(name):
    here = at_positions(np.arange(LENGTH) == 4)
    np.testing.assert_array_equal(changed(name, here), here)


@pytest.mark.parametrize("name", [name for name in SEES_OTHERS if FACTS[name].causal])
def test_a_causal_layer_sees_earlier_positions(name):
    moved = changed(name, at_positions(np.arange(LENGTH) == 4))
    np.testing.assert_array_equal(moved, at_positions(np.arange(LENGTH) >= 4))


def test_l4_sees_all_positions():
    assert changed("L4", at_positions(np.arange(LENGTH) == 4)).all()


@pytest.mark.parametrize("name", SEES_OTHERS)
def test_masked_positions_are_not_looked_at(name):
    hidden = at_positions(np.isin(np.arange(LENGTH), (2, 3, 8)))
    moved = changed(name, hidden, jnp.asarray(~hidden))
    np.testing.assert_array_equal(moved, hidden)  # its own position is always read


@pytest.mark.parametrize("name", FACTS)
def test_answers_of_a_batch_do_not_see_each_other(name):
    rows = np.broadcast_to(np.array([True, False, True])[:, None], (ROWS, LENGTH))
    np.testing.assert_array_equal(changed(name, rows).any(1), [True, False, True])


@pytest.mark.parametrize("name", SEES_OTHERS)
def test_a_row_without_a_real_position_gives_numbers(name):
    mask = jnp.asarray(np.array([True, False, True])[:, None] & np.ones((ROWS, LENGTH), bool))
    assert np.isfinite(lively(name)(streams(), mask)).all()


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.inputs == "drafter"])
def test_drafter_kinds_do_not_read_the_target(name):
    only = Streams(drafter=streams().drafter)
    np.testing.assert_array_equal(lively(name)(only, every()), lively(name)(streams(), every()))


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.inputs == "target"])
def test_target_kinds_do_not_read_the_drafter(name):
    only = Streams(target=streams().target)
    np.testing.assert_array_equal(lively(name)(only, every()), lively(name)(streams(), every()))
