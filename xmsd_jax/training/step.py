"""Many train steps in one compiled call, and the evaluation: pure functions of plain arrays over a mesh of devices.

The batch is cut over the mesh's axis "data"; parameters are the same on all devices. One device is a mesh of one. A
batch is either taken out of a split that lies on the devices, by row numbers, or comes as it is. A row -1 is padding
and weighs nothing; a batch of nothing else leaves the state as it was.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.attend import rows_are_fused
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.rollout import Mode, first_drafts, rollout_everywhere
from xmsd_jax.adapters.stored import Stored, taken
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.training.losses import Objective, Sums, Truth, counts
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.state import Hyper, Params, Skeleton, TrainState, lowered, updated

DATA = "data"
PADDING = -1
P = PartitionSpec


class Resident(NamedTuple):
    """Pairs on the device (`xmsd_jax.data.batches.Pairs`), or a batch of them."""

    drafter: Any
    target: Float[Array, "n t d"]
    drafter_len: Int32[Array, " n"]
    target_ids: Int32[Array, "n t"]
    same_mask: Bool[Array, "n t"]
    next_mask: Bool[Array, "n t"]


Steps = Callable[[TrainState, Any, TokenHead, Any, Float[Array, ""], Hyper], tuple[TrainState, Sums]]
"""(state, data, head, order, learning rate, hyper) -> (next state, sums [steps, 2]). The given state is donated.

`data` is the resident split and `order` int32[steps, b] the rows of each batch; or `data` is None and `order` the
batches themselves, `Resident` of [steps, b, ...].
"""
Evaluation = Callable[[Params, Any, TokenHead, Any], tuple[Sums, Int32[Array, "..."]]]
"""(params, data, head, order) -> (sums [batches, b, 2], drafted ids), `data` and `order` as of `Steps`."""


def make_steps(skeleton: Skeleton, objective: Objective, recipe: Recipe, mesh: Mesh, *, compute: Any) -> Steps:
    """Train steps over a mesh, as many in a call as `order` has batches.

    Args:
        skeleton: of the adapter.
        objective: the loss.
        recipe: says whether there is dropout; its other numbers come with `Hyper`.
        mesh: of an axis "data", over which batches are cut.
        compute: dtype of states and matrices in a step.
    """
    one = partial(one_step, skeleton, objective, dropout=recipe.dropout > 0, axis=DATA)

    def steps(
        state: TrainState, data: Any, head: TokenHead, order: Any, rate: Float[Array, ""], hyper: Hyper
    ) -> tuple[TrainState, Sums]:
        def body(carry: tuple[TrainState, Params], rows: Any) -> tuple[tuple[TrainState, Params], Sums]:
            batch = picked(data, rows, compute, lend=True)
            state, sums = one(*carry, batch, head, rate, hyper)
            return (state, lowered(state.params, compute)), sums

        (state, _), sums = jax.lax.scan(body, (state, lowered(state.params, compute)), order)
        return state, sums

    specs = (P(), P(), P(), P(None, DATA), P(), P())
    mapped = jax.shard_map(steps, mesh=mesh, in_specs=specs, out_specs=(P(), P()), check_vma=False)
    return jax.jit(mapped, donate_argnums=0)


def one_step(
    skeleton: Skeleton,
    objective: Objective,
    state: TrainState,
    low: Params,
    batch: Resident,
    head: TokenHead,
    rate: Float[Array, ""],
    hyper: Hyper,
    *,
    dropout: bool,
    axis: str | None,
) -> tuple[TrainState, Sums]:
    """One step on a device's part of a batch; sums are those of the whole batch.

    Args:
        skeleton: of the adapter.
        objective: the loss.
        state: before the step.
        low: its parameters as a step computes with them (`lowered`).
        batch: this device's answers.
        head: of the target.
        rate: learning rate.
        hyper: the recipe's other numbers.
        dropout: whether there is any.
        axis: over which a batch is cut; None for a whole batch.
    """
    add = (lambda x: jax.lax.psum(x, axis)) if axis else (lambda x: x)
    size = len(batch.target_ids)
    slots = (jax.lax.axis_index(axis) * size if axis else 0) + jnp.arange(size, dtype=jnp.int32)
    noise = Noise.of(hyper.dropout, hyper.seed, state.step, slots) if dropout else None
    objective = _weighted(objective, hyper)
    total = add(counts(_truth(batch)).sum(0))

    def loss(low: Params) -> tuple[Float[Array, ""], Array]:
        adapter, streams = skeleton.adapter(low), Streams(batch.drafter, batch.target)
        streams = streams if adapter.reads_stored else Streams(*map(taken, streams))
        tail = adapter.tail(streams, batch.same_mask, noise=noise)
        return objective.of_tail(tail, _truth(batch), head, total)

    gradient, tops = jax.grad(loss, has_aux=True)(low)
    gradient = jax.tree.map(lambda x: x.astype(jnp.float32), add(gradient))
    after = updated(state, gradient, rate, hyper)
    after = jax.tree.map(lambda new, old: jnp.where(total.sum() > 0, new, old), after, state)
    return after, Sums(add(tops), total)


def make_evaluation(
    skeleton: Skeleton, objective: Objective, recipe: Recipe, mode: Mode, mesh: Mesh, *, compute: Any
) -> Evaluation:
    """The evaluation over a mesh.

    Ids are int32[batches, b, t, gamma] at every anchor for a kind of offset 1 (drafter states as `mode` says), and
    int32[batches, b, prefill_draft_len] from the drafter's first states for a kind of offset 0.
    """

    def evaluate(params: Params, data: Any, head: TokenHead, order: Any) -> tuple[Sums, Int32[Array, "..."]]:
        found = evaluated(skeleton, objective, recipe, mode, params, data, head, order, compute=compute)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, axis=1, tiled=True), found)

    specs = (P(), P(), P(), P(None, DATA))
    return jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=specs, out_specs=(P(), P()), check_vma=False))


def evaluated(
    skeleton: Skeleton,
    objective: Objective,
    recipe: Recipe,
    mode: Mode,
    params: Params,
    data: Any,
    head: TokenHead,
    order: Any,
    *,
    compute: Any,
) -> tuple[Sums, Int32[Array, "..."]]:
    """What `Evaluation` gives, of the answers that this device sees."""
    adapter = skeleton.adapter(lowered(params, compute))

    def one(rows: Any) -> tuple[Sums, Int32[Array, "..."]]:
        batch = picked(data, rows, compute)
        predicted = adapter(Streams(batch.drafter, batch.target), batch.same_mask)
        return objective.row_sums(predicted, _truth(batch), head), _drafts(adapter, head, batch, recipe, mode)

    return jax.lax.map(one, order)


def batches(rows: np.ndarray, size: int, *, multiple: int = 1) -> np.ndarray:
    """Row numbers int32[steps, size], the last batch filled up with PADDING.

    A batch is no larger than the rows there are, rounded up to a `multiple`.
    """
    size = min(size, -(-len(rows) // multiple) * multiple)
    filled = np.full(-(-len(rows) // size) * size, PADDING, np.int32)
    filled[: len(rows)] = rows
    return filled.reshape(-1, size)


def picked(data: Resident | None, rows: Any, compute: Any, *, lend: bool = False) -> Resident:
    """A batch in the dtype `compute`: rows of the split, or what came; rows that are PADDING have empty masks.

    With `lend`, states that row kernels can read in the split stay there (`Stored`).
    """
    if data is None:
        return _computed(rows, compute)
    real, places = (rows != PADDING)[:, None], jnp.maximum(rows, 0)
    lends = lend and rows_are_fused(data.target.shape[-1], data.target.dtype) and data.target.dtype == compute
    states = {name: getattr(data, name) for name in ("drafter", "target")}
    facts = data._replace(drafter=None, target=None)
    facts = jax.tree.map(lambda x: x[places], facts)
    facts = facts._replace(same_mask=facts.same_mask & real, next_mask=facts.next_mask & real)
    lent = {name: None if x is None else Stored(x, places) for name, x in states.items()}
    batch = facts._replace(**lent)
    return batch if lends else _computed(batch._replace(**{name: taken(x) for name, x in lent.items()}), compute)


def _computed(batch: Resident, compute: Any) -> Resident:
    drafter = None if batch.drafter is None else batch.drafter.astype(compute)
    return batch._replace(drafter=drafter, target=batch.target.astype(compute))


def placed(x: Any, mesh: Mesh, spec: PartitionSpec | None = None) -> Any:
    """Host arrays on the devices of a mesh, of one process or many: the same everywhere, or cut as `spec` says."""
    sharding = NamedSharding(mesh, P() if spec is None else spec)

    def put(value: Any) -> Any:
        if sharding.is_fully_addressable:
            return jax.device_put(value, sharding)
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, x)


def _weighted(objective: Objective, hyper: Hyper) -> Objective:
    return Objective(name=objective.name, offset=objective.offset, token_weight=hyper.token_weight)  # pyright: ignore[reportArgumentType]


def _truth(batch: Resident) -> Truth:
    return Truth(batch.target, batch.target_ids, batch.same_mask, batch.next_mask)


def _drafts(adapter: Any, head: TokenHead, batch: Resident, recipe: Recipe, mode: Mode) -> Int32[Array, "..."]:
    if adapter.facts.offset == 0:
        first = batch.drafter[:, : recipe.prefill_draft_len]
        return first_drafts(adapter, head, first, jnp.minimum(batch.drafter_len, first.shape[1])).ids
    streams = Streams(batch.drafter, batch.target)
    return rollout_everywhere(adapter, head, streams, batch.drafter_len, gamma=recipe.gamma, mode=mode).ids
