"""A proposal stays on its device: what crosses, what is donated, what is drawn there."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import (
    HEAD_ROWS,
    VOCABULARY,
    StateHead,
    drafts,
    head,
    streams,
)
from tests.decoding.stored_drafters import (
    GAMMA,
    LENGTH,
    OWN_LEN,
    PROMPTS,
    ROWS,
    context,
    propose,
    rollout_drafter,
    stored,
    usual,
    wanted,
)
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.acceptance import softmax
from xmsd_jax.decoding.ports import Window

pytestmark = pytest.mark.usefixtures("quick_compile")


class Lent:
    """`Window` over what lies on the device already, as torch's memory does: the states of one prompt."""

    def __init__(self, states: np.ndarray) -> None:
        self.states = jax.device_put(states[None], jax.devices()[0])

    def __call__(self, blocks: Sequence[np.ndarray], start: int, stop: int) -> jax.Array:
        return self.states


def lent_windows() -> Callable[[int], Window]:
    """The windows of a drafter by the rows that it asks for: N for the target's states, N + 1 for the drafter's."""
    drafter, target = stored()
    return lambda rows: Lent(target[0] if rows == LENGTH else drafter[0])


@pytest.mark.parametrize(
    ("name", "mode", "temperature"),
    [("B1", "own", 0.0), ("B1", "own", 1.0), ("L5", "own", 1.0), ("L5F", "own", 0.0), ("L5F", "synced", 0.0)],
)
def test_nothing_is_sent_to_the_device_and_only_int32_ids_come_from_it(name, mode, temperature):
    fetched = []

    def fetch(array):
        fetched.append((array.dtype, array.shape))
        return jax.device_get(array)

    drafter = rollout_drafter(name, mode, windows=lent_windows(), temperature=temperature, fetch=fetch)
    propose(drafter, 0, 0)  # compiles, and sends the key of the answer
    fetched.clear()
    with jax.transfer_guard("disallow_explicit"):
        drafts = [propose(drafter, 0, anchor) for anchor in (3, 4, 12)]
    assert fetched == [(jnp.int32, (GAMMA,))] * 3
    if not temperature:
        assert drafts == [wanted(name, mode, 0, anchor) for anchor in (3, 4, 12)]


def test_states_that_come_from_the_host_would_be_seen():
    """The guard of the test above is no empty word on a CPU: what it does not see there is the way back."""
    drafter = usual("B1", "own")
    propose(drafter, 0, 0)
    with jax.transfer_guard("disallow_explicit"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        propose(drafter, 0, 3)


@pytest.mark.parametrize(("name", "mode"), [("B1", "own"), ("L5F", "synced")])
def test_kept_keys_and_values_are_updated_in_place(name, mode):
    drafter = usual(name, mode)
    propose(drafter, 0, 0)
    before = jax.tree.leaves(drafter._memory)
    addresses = [leaf.unsafe_buffer_pointer() for leaf in before]
    propose(drafter, 0, 3)
    assert all(leaf.is_deleted() for leaf in before)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(drafter._memory)] == addresses


@pytest.mark.parametrize(("name", "mode"), [("B1", "own"), ("L5F", "own"), ("L5", "synced")])
def test_a_draft_at_a_temperature_is_drawn_from_the_q_that_it_gives(name, mode):
    """q is the softmax of the offline rollout's logits; ids are drawn from it, as a function of seed and context."""
    drafter, row = rollout_drafter(name, mode, temperature=0.7, seed=5), 0
    rolled = drafts(name, mode, streams(ROWS, LENGTH), own_len=OWN_LEN, gamma=GAMMA, to=StateHead(head())).margins
    drawn = []
    for anchor in (1, 4, 9):
        if drafter.lane is not None:
            drafter.lane.begin(PROMPTS[row])
        draft = drafter.propose(context(row, anchor), GAMMA)
        assert isinstance(draft.q, jax.Array)
        wanted = softmax(head().logits(jnp.asarray(rolled[row, anchor])), 0.7)
        np.testing.assert_allclose(draft.q, wanted, atol=1e-5)
        assert (np.take_along_axis(np.asarray(draft.q), draft.ids[:, None], 1) > 0).all()
        drawn.append(draft.ids.tolist())
    assert [propose(drafter, row, anchor) for anchor in (9, 1, 4)] == [drawn[2], *drawn[:2]]
    drafter.reseed(6)
    again = [propose(drafter, row, anchor) for anchor in (1, 4, 9)]
    drafter.reseed(5)
    assert again != [propose(drafter, row, anchor) for anchor in (1, 4, 9)] == drawn


def test_fewer_ids_at_a_temperature_have_as_many_rows_of_q():
    draft = rollout_drafter("B1", "own", temperature=1.0).propose(context(0, 3), 2)
    assert (draft.ids.shape, draft.q.shape) == ((2,), (2, HEAD_ROWS))
    assert not np.asarray(draft.q)[:, VOCABULARY:].any()


@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature must be 0 .* got {temperature}"):
        rollout_drafter("B1", "own", temperature=temperature)


def test_the_head_is_used_where_it_lies():
    given = head()
    assert rollout_drafter("B1", "own", of=given)._head.weight.unsafe_buffer_pointer() == (
        given.weight.unsafe_buffer_pointer()
    )
