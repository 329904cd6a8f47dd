"""Losses by hand, and that nothing outside the masks has a part in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError
from xmsd_jax.training.losses import Objective, Sums, Truth, shifted, state_loss, token_loss

HEAD = TokenHead.of(jnp.asarray([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]), 2)
PREDICTED = jnp.asarray([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]])
TARGET = jnp.asarray([[[1.0, 0.0], [2.0, 0.0], [4.0, 3.0]]])
IDS = jnp.asarray([[0, 1, 0]], jnp.int32)
ALL, FIRST_TWO = jnp.asarray([[True, True, True]]), jnp.asarray([[True, True, False]])
TRUTH = Truth(TARGET, IDS, ALL, FIRST_TWO)


def summed(objective: Objective):
    """Compiled as one program: op by op it takes seconds."""
    return jax.jit(objective.sums)


def test_squares_are_divided_by_positions_times_width_and_cosines_by_positions():
    # squared errors 0, 4 + 4, 1 + 1 over d = 2; cosines 1, 0, 24/25
    assert state_loss(PREDICTED, TARGET, ALL, 0.0) == pytest.approx(0 + 4 + 1)
    assert state_loss(PREDICTED, TARGET, ALL, 0.5) == pytest.approx(5 + 0.5 * (0 + 1 + 1 / 25))
    sums = summed(Objective(name="study", offset=0))(PREDICTED, TRUTH, HEAD)
    assert sums.counts.tolist() == [3, 2]
    assert Objective(name="study", offset=0).value(sums) == pytest.approx((5 + 0.5 * 1.04) / 3)


def test_the_study_asks_one_output_of_a_causal_kind_to_be_two_states():
    # next pairs: y[0] with h[1]: (1 + 0) / 2; y[1] with h[2]: (16 + 1) / 2
    objective = Objective(name="study", offset=1)
    sums = summed(objective)(PREDICTED, TRUTH, HEAD)
    assert sums.tops.tolist() == pytest.approx([5 + 0.5 * 1.04, 9.0])
    assert objective.value(sums) == pytest.approx(0.5 * (5 + 0.5 * 1.04) / 3 + 0.5 * 9.0 / 2)


def test_next_compares_with_the_next_state_and_its_token():
    objective = Objective(name="next", offset=1, token_weight=0.1)
    states = 9.0 + 0.5 * ((1 - 1.0) + (1 - 6 / 10))
    # logits of real ids: (1, 0) for token 1, and (0, 2) for token 0
    tokens = np.log(np.e + 1) + np.log(1 + np.e**2)
    sums = summed(objective)(PREDICTED, TRUTH, HEAD)
    assert objective.value(sums) == pytest.approx((states + 0.1 * tokens) / 2, rel=1e-6)


def test_ids_that_are_not_real_cost_nothing_and_move_nothing():
    ids = jnp.asarray([[2, -1, 7]], jnp.int32)
    loss, gradient = jax.jit(jax.value_and_grad(lambda x: token_loss(x, ids, ALL, HEAD).sum()))(PREDICTED)
    assert loss == 0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", ["study", "next"])
def test_what_the_masks_leave_out_reaches_neither_loss_nor_gradient(name):
    objective = Objective(name=name, offset=1)
    same = jnp.asarray([[True, False, False]])
    truth = Truth(TARGET, IDS, same, same)

    @jax.jit
    @jax.value_and_grad
    def slope(predicted, target):
        return objective.value(objective.sums(predicted, truth._replace(target=target), HEAD))

    wild_prediction = PREDICTED.at[:, 1:].set(1e30)
    wild_target = TARGET.at[:, 2:].set(1e30)
    loss, gradient = map(np.asarray, slope(wild_prediction, wild_target))
    assert loss == slope(PREDICTED, TARGET)[0]
    assert gradient[:, 0].any()
    assert not gradient[:, 1:].any()


def test_zero_states_have_a_finite_gradient():
    zeros = jnp.zeros_like(PREDICTED)
    gradient = jax.jit(jax.grad(lambda x: state_loss(x, zeros, ALL, 0.5).sum()))(zeros)
    assert np.isfinite(gradient).all()


def test_sums_of_parts_give_the_loss_of_the_whole():
    objective = Objective(name="study", offset=1)
    draw = np.random.default_rng(0)
    predicted, target = (jnp.asarray(draw.normal(size=(5, 3, 2)), jnp.float32) for _ in range(2))
    same = jnp.asarray(np.arange(3) < np.array([3, 1, 0, 2, 3])[:, None])
    truth = Truth(target, jnp.zeros((5, 3), jnp.int32), same, same & shifted(same).at[:, -1].set(False))

    def sums(rows: slice) -> Sums:
        part = [np.asarray(x)[rows] for x in (predicted, *truth)]
        return summed(objective)(jnp.asarray(part[0]), Truth(*map(jnp.asarray, part[1:])), HEAD)

    parts = jax.tree.map(lambda a, b: a + b, sums(slice(0, 2)), sums(slice(2, 5)))
    assert objective.value(parts) == pytest.approx(float(objective.value(sums(slice(0, 5)))), rel=1e-6)


def test_no_pairs_give_zero_not_nan():
    nothing = jnp.zeros_like(ALL)
    objective = Objective(name="next", offset=1)
    assert objective.value(summed(objective)(PREDICTED, Truth(TARGET, IDS, nothing, nothing), HEAD)) == 0


def test_next_is_refused_for_a_kind_that_predicts_the_same_position():
    with pytest.raises(ConfigError, match="loss: next is for kinds"):
        Objective(name="next", offset=0)
