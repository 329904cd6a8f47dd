"""The state of training: AdamW by formula, and what a step computes with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.training import made_up
from tests.training.built import WIDTH, built
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import KINDS, make
from xmsd_jax.training.losses import Truth
from xmsd_jax.training.state import Hyper, Skeleton, begin, lowered
from xmsd_jax.training.step import picked

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_step_is_adamw_with_clipping_and_decay_on_all_parameters():
    clip, decay = 0.05, 0.02
    one = built("L2", dropout=0.0, clip=clip, weight_decay=decay)
    rows = np.asarray([[0, 5, 9], [1, 2, 3]], np.int32)

    @jax.jit
    @jax.grad
    def slope(params, rows):
        batch = picked(one.data, rows, jnp.float32)
        truth = Truth(batch.target, batch.target_ids, batch.same_mask, batch.next_mask)
        predicted = one.skeleton.adapter(params)(Streams(batch.drafter), batch.same_mask)
        return one.objective.value(one.objective.sums(predicted, truth, one.head))

    def gradient(params, rows):
        return {name: np.asarray(value, np.float64) for name, value in slope(params, rows).items()}

    state = one.start()
    hand = {name: np.asarray(value, np.float64) for name, value in state.params.items()}
    first, second = ({name: 0.0 for name in hand} for _ in range(2))
    for count, rate in ((1, 1e-2), (2, 5e-3)):
        slopes = gradient({name: jnp.asarray(v, jnp.float32) for name, v in hand.items()}, rows[count - 1])
        norm = np.sqrt(sum((g**2).sum() for g in slopes.values()))
        assert norm > clip
        for name, g in slopes.items():
            g = g * clip / norm
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m_hat, v_hat = first[name] / (1 - 0.9**count), second[name] / (1 - 0.999**count)
            hand[name] = hand[name] * (1 - rate * decay) - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        state, _ = one.run(state, rows[count - 1 : count], rate)
    for name, value in state.params.items():
        moved = np.abs(gradient(state.params, rows[0])[name]) > 1e-6  # elsewhere m / sqrt(v) is rounding over rounding
        assert_allclose(np.asarray(value)[moved], hand[name][moved], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_lowered_and_vectors_and_scalars_are_kept(kind):
    _, params = Skeleton.split(make(kind, WIDTH))
    low = lowered(params, jnp.dtype("bfloat16"))
    assert {value.dtype for value in low.values()} == {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    for name, value in low.items():
        assert (value.dtype == jnp.bfloat16) == (params[name].ndim == 2), name
        assert_array_equal(value, params[name].astype(value.dtype))


def test_an_adapter_taken_apart_is_put_together_again():
    skeleton, params = Skeleton.split(make("L5F", WIDTH))
    _, again = Skeleton.split(skeleton.adapter(params))
    assert list(again) == list(params)
    for name, value in params.items():
        assert_array_equal(again[name], value, strict=True)
        assert not again[name].weak_type


def test_the_first_state_is_float32_with_blank_moments():
    state = begin(Skeleton.split(make("L1", WIDTH))[1])
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.moments.mu))} == {np.dtype("float32")}
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.moments))
    assert (int(state.step), state.step.dtype) == (0, np.int32)


def test_the_numbers_of_a_recipe_keep_their_places():
    recipe = made_up.recipe(weight_decay=0.1, clip=0.2, dropout=0.3, token_weight=0.4, seed=5)
    found = Hyper.of(recipe)
    for name in Hyper._fields:
        assert getattr(found, name) == pytest.approx(getattr(recipe, name))
