"""The train step: padding that weighs nothing, one compilation, no data through the host, dropout by seed and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.training import made_up
from tests.training.built import built
from xmsd_jax.adapters.stored import Stored, taken
from xmsd_jax.training.sources import resident
from xmsd_jax.training.step import PADDING, batches, picked

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_batches_hold_every_row_once_and_fill_up_with_padding():
    order = batches(np.arange(10)[::-1], 4)
    assert order.tolist() == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0, PADDING, PADDING]]
    assert batches(np.arange(3), 64).tolist() == [[0, 1, 2]]


def test_a_short_batch_can_still_be_cut_over_the_devices():
    assert batches(np.arange(3), 64, multiple=2).tolist() == [[0, 1, 2, PADDING]]
    assert batches(np.arange(6), 4, multiple=4).tolist() == [[0, 1, 2, 3], [4, 5, PADDING, PADDING]]


@pytest.mark.parametrize("compute", [jnp.float32, jnp.bfloat16])
def test_padding_rows_have_empty_masks_and_states_have_the_dtype_of_the_step(compute):
    data = resident(made_up.pairs())
    data = data._replace(target=data.target.astype(jnp.bfloat16), drafter=None)
    batch = picked(data, jnp.asarray([3, PADDING], jnp.int32), compute)
    assert batch.same_mask.any(1).tolist() == batch.next_mask.any(1).tolist() == [True, False]
    assert batch.target.dtype == compute
    assert_array_equal(batch.target[0], data.target[3].astype(compute))


@pytest.mark.parametrize("compute", [jnp.float32, jnp.bfloat16])
def test_states_stay_in_the_split_only_where_kernels_read_them_as_they_are(compute, monkeypatch):
    data = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim == 3 else x, resident(made_up.pairs()))
    rows = jnp.asarray([3, PADDING, 5], jnp.int32)
    assert not isinstance(picked(data, rows, compute, lend=True).target, Stored)  # a CPU has no kernels
    monkeypatch.setattr("xmsd_jax.adapters.attend.BACKENDS", ("gpu", "cpu"))
    lent, own = picked(data, rows, compute, lend=True), picked(data, rows, compute)
    assert isinstance(lent.target, Stored) == isinstance(lent.drafter, Stored) == (compute == jnp.bfloat16)
    assert_array_equal(taken(lent.target), own.target)
    assert_array_equal(taken(lent.drafter), own.drafter)
    assert_array_equal(lent.same_mask, own.same_mask)


def test_a_padded_batch_gives_the_step_of_the_smaller_one():
    one = built("L4", dropout=0.0)
    small, few = one.run(one.start(), [[2, 7]], 1e-3)
    padded, many = one.run(one.start(), [[2, PADDING, 7, PADDING]], 1e-3)
    assert_allclose(few.tops, many.tops, rtol=1e-5)
    assert_array_equal(few.counts, many.counts)
    for name, moment in small.moments.mu.items():
        assert_allclose(moment, padded.moments.mu[name], rtol=1e-3, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_of_padding_leaves_the_state_bit_by_bit(devices):
    one = built("L5", devices=devices, weight_decay=0.5)
    state, _ = one.run(one.start(), [[0, 1, 2, 3]], 1e-2)
    before = jax.tree.map(np.asarray, state)
    after, sums = one.run(state, [[PADDING] * 4], 1e-2)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert_array_equal(new, old)
    assert not np.asarray(sums.counts).any()
    assert not np.asarray(sums.tops).any()


def test_steps_in_one_call_are_the_steps_of_many_calls():
    one, order = built("L4", dropout=0.3), [[0, 1, 2], [3, PADDING, 4], [5, 6, 7]]
    whole, sums = one.run(one.start(), order, 1e-2)
    state, tops = one.start(), []
    for rows in order:
        state, each = one.run(state, [rows], 1e-2)
        tops.append(np.asarray(each.tops)[0])
    assert_allclose(sums.tops, tops, rtol=1e-6)
    for name, value in state.params.items():
        assert_allclose(value, whole.params[name], atol=1e-6, err_msg=name)  # two programs
    assert int(state.step) == int(whole.step) == 3


@pytest.mark.parametrize(("kind", "loss"), [("L3", "study"), ("B1", "next"), ("L5F", "study")])
def test_one_batch_is_learned_by_heart(kind, loss):
    one = built(kind, loss=loss, dropout=0.0, weight_decay=0.0)
    _, sums = one.run(one.start(), [[0, 1, 2, 3]] * 150, 3e-3)
    losses = np.asarray(one.objective.value(sums))
    # The study's loss of an EAGLE kind has a floor: half-way between two states.
    assert losses[-1] < losses[0] * (0.1 if (kind, loss) != ("L5F", "study") else 0.6)


@pytest.mark.parametrize(("kind", "devices"), [("L3", 1), ("L5", 2)])
def test_one_compilation_for_all_steps_one_for_all_evaluations_and_no_transfers(kind, devices):
    one = built(kind, devices=devices)
    order, rates = one.order(batches(np.arange(16), 6)), [one.number(rate) for rate in (1e-3, 1e-4)]
    state, _ = one.steps(one.start(), one.data, one.head, order, rates[0], one.hyper)
    one.evaluate(state.params, one.data, one.head, order)
    with jax.transfer_guard("disallow"):
        for rate in rates * 2:
            state, _ = one.steps(state, one.data, one.head, order, rate, one.hyper)
            one.evaluate(state.params, one.data, one.head, order)
    assert (one.steps._cache_size(), one.evaluate._cache_size()) == (1, 1)
    assert int(state.step) == 5 * 3


def test_the_state_is_donated():
    one = built("L1")
    state = one.start()
    one.run(state, [[0]], 1e-3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((one.data, one.head, one.hyper)))


def test_half_precision_keeps_parameters_and_moments_in_float32_and_goes_nearly_the_same_way():
    losses = {}
    for compute in (jnp.float32, jnp.bfloat16):
        one = built("L5F", compute=compute, dropout=0.0)
        state, sums = one.run(one.start(), [[0, 1, 2, 3]] * 12, 1e-2)
        kept = (state.params, state.moments.mu, state.moments.nu, sums)
        assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}
        losses[compute] = np.asarray(one.objective.value(sums))
    assert_allclose(losses[jnp.bfloat16], losses[jnp.float32], rtol=0.01)  # bfloat16 has 8 bits
    assert (losses[jnp.bfloat16] != losses[jnp.float32]).all()


def test_a_change_below_half_precision_is_not_lost():
    one = built("L5", compute=jnp.bfloat16, dropout=0.0, weight_decay=0.0)
    state, _ = one.run(one.start(), [[0, 1, 2, 3]] * 3, 1e-6)
    before, after = (np.asarray(s.params["output.proj.kernel"]) for s in (one.state, state))
    assert 0 < np.abs(after - before).max() < 2**-9  # of 1: what bfloat16 would round away


def test_dropout_depends_on_seed_epoch_and_step_and_not_on_the_way_there():
    def moments(seed: int, *counters: int) -> list[bytes]:
        """What one step from each counter adds; the epoch has two batches, with the same rows."""
        one = built("L1", dropout=0.5, seed=seed)
        ends = [one.run(one.start(at), [[0, 1], [0, 1]], 0)[0] for at in counters]
        return [np.asarray(end.moments.mu["blocks.0.up.kernel"]).tobytes() for end in ends]

    first, *others = moments(0, 3, 3, 2, 1)
    assert others[0] == first
    assert len({first, *others[1:], *moments(1, 3)}) == 4


@pytest.mark.parametrize("kind", ["L3", "B1"])
def test_dropout_does_not_depend_on_how_a_batch_is_cut_over_devices(kind):
    found = []
    for devices in (1, 2):
        one = built(kind, dropout=0.5, devices=devices)
        state, sums = one.run(one.start(), [[0, 5, PADDING, 3], [8, 9, 2, 1]], 1e-2)
        found.append((np.asarray(sums.tops), jax.tree.map(np.asarray, state.moments.mu)))
    assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for name, moment in found[0][1].items():
        assert_allclose(moment, found[1][1][name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_every_place_in_a_batch_has_its_own_dropout():
    one = built("L1", dropout=0.5)
    tops = [float(one.run(one.start(), rows, 0)[1].tops[0, 0]) for rows in ([[0, PADDING]], [[PADDING, 0]])]
    assert tops[0] == tops[1], "Up starts at zero: only the gradient depends on what is dropped"
    slopes = [
        np.asarray(one.run(one.start(), rows, 0)[0].moments.mu["blocks.0.up.kernel"])
        for rows in ([[0, PADDING]], [[PADDING, 0]])
    ]
    assert np.abs(slopes[0] - slopes[1]).max() > 0.1 * np.abs(slopes[0]).max()
