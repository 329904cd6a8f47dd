"""The jitted train step and evaluation: pure functions of plain arrays, compiled once a run.

All pairs live on the device. A step takes its batch out of them by row numbers that are there too, so that the loop
only calls it; row -1 is padding and weighs nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.interface import Adapter, Streams
from xmsd_jax.adapters.rollout import Mode, first_drafts, rollout_everywhere
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.data.batches import Pairs
from xmsd_jax.training.losses import Objective, Sums, Truth
from xmsd_jax.training.recipe import Recipe

Params = dict[str, Array]
PADDING = -1


class Resident(NamedTuple):
    """Pairs on the device (`xmsd_jax.data.batches.Pairs`), or a batch of them."""

    drafter: Any
    target: Float[Array, "n t d"]
    drafter_len: Int32[Array, " n"]
    target_ids: Int32[Array, "n t"]
    same_mask: Bool[Array, "n t"]
    next_mask: Bool[Array, "n t"]


class TrainState(NamedTuple):
    """Parameters by dotted name, AdamW's moments, and the number of steps done."""

    params: Params
    moments: Any
    step: Int32[Array, ""]


TrainStep = Callable[
    [TrainState, Resident, TokenHead, Int32[Array, "steps b"], Float[Array, ""]], tuple[TrainState, Sums]
]
Evaluation = Callable[[Params, Resident, TokenHead, Int32[Array, "batches b"]], tuple[Sums, Int32[Array, "..."]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Skeleton:
    """An adapter without its parameters: `adapter(params)` puts them in, under jit as well."""

    graphdef: Any
    paths: Mapping[str, tuple[Any, ...]]

    @classmethod
    def split(cls, adapter: Adapter) -> tuple["Skeleton", Params]:
        """Take an adapter apart; the parameters are copies of its own."""
        graphdef, state = nnx.split(adapter, nnx.Param)
        flat = nnx.to_flat_state(state)
        names = {".".join(map(str, path)): path for path, _ in flat}
        # With an explicit dtype: a weakly typed start (a Python 0.1) would compile every step twice.
        values = [jnp.array(leaf[...], leaf[...].dtype, copy=True) for _, leaf in flat]
        return cls(graphdef=graphdef, paths=names), dict(zip(names, values, strict=True))

    def adapter(self, params: Params) -> Adapter:
        """The adapter with these parameters."""
        return nnx.merge(
            self.graphdef, nnx.from_flat_state([(self.paths[name], nnx.Param(value)) for name, value in params.items()])
        )


def resident(pairs: Pairs) -> Resident:
    """Put pairs on the device, in their own dtype."""
    fields: dict[str, Any] = {name: getattr(pairs, name) for name in Resident._fields}
    return Resident(**jax.device_put(fields, jax.devices()[0]))


def begin(params: Params, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    state = TrainState(params, optimiser(recipe).init(params), jnp.zeros((), jnp.int32))
    return jax.device_put(state, jax.devices()[0])


def optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) behind a clip by global norm, but for the factor -learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(recipe.weight_decay),
    )


def batches(rows: np.ndarray, size: int) -> np.ndarray:
    """Row numbers int32[steps, size], the last batch filled up with PADDING."""
    size = min(size, len(rows))
    filled = np.full(-(-len(rows) // size) * size, PADDING, np.int32)
    filled[: len(rows)] = rows
    return filled.reshape(-1, size)


def gather(data: Resident, rows: Int32[Array, " b"]) -> Resident:
    """A batch, its states in float32; rows that are PADDING have empty masks."""
    real = rows != PADDING
    batch = jax.tree.map(lambda x: x[jnp.maximum(rows, 0)], data)
    drafter = None if batch.drafter is None else batch.drafter.astype(jnp.float32)
    return batch._replace(
        drafter=drafter,
        target=batch.target.astype(jnp.float32),
        same_mask=batch.same_mask & real[:, None],
        next_mask=batch.next_mask & real[:, None],
    )


def make_step(skeleton: Skeleton, objective: Objective, recipe: Recipe) -> TrainStep:
    """The train step: (state, data, head, order, learning_rate) -> (next state, sums of its batch).

    `order` int32[steps, b] holds the batches of one epoch; the state's counter says which of them is meant, and with
    the seed which dropout, so that a restored state goes on exactly. The given state is donated: it is gone afterwards.
    """
    update = optimiser(recipe).update

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, data: Resident, head: TokenHead, order: Int32[Array, "steps b"], rate: Float[Array, ""]
    ) -> tuple[TrainState, Sums]:
        epoch, at = jnp.divmod(state.step, order.shape[0])
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), epoch), at)
        batch = gather(data, order[at])

        def loss(params: Params) -> tuple[Float[Array, ""], Sums]:
            sums = _sums(skeleton.adapter(params), objective, batch, head, recipe.dropout, key)
            return objective.value(sums), sums

        gradient, sums = jax.grad(loss, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            updates, moments = update(gradient, state.moments, state.params)
        params = jax.tree.map(lambda value, change: value - rate * change, state.params, updates)
        return TrainState(params, moments, state.step + 1), sums

    return step


def make_evaluation(skeleton: Skeleton, objective: Objective, recipe: Recipe, mode: Mode) -> Evaluation:
    """The evaluation: (params, data, head, order) -> (summed loss, drafted ids).

    Ids are int32[batches, b, t, gamma] at every anchor for a kind of offset 1 (drafter states as `mode` says), and
    int32[batches, b, prefill_draft_len] from the drafter's first states for a kind of offset 0.
    """

    @jax.jit
    def evaluate(
        params: Params, data: Resident, head: TokenHead, order: Int32[Array, "batches b"]
    ) -> tuple[Sums, Int32[Array, "..."]]:
        adapter = skeleton.adapter(params)

        def one(rows: Int32[Array, " b"]) -> tuple[Sums, Int32[Array, "..."]]:
            batch = gather(data, rows)
            return _sums(adapter, objective, batch, head, 0.0, None), _drafts(adapter, head, batch, recipe, mode)

        sums, ids = jax.lax.map(one, order)
        return jax.tree.map(lambda x: x.sum(0), sums), ids

    return evaluate


def _sums(
    adapter: Adapter, objective: Objective, batch: Resident, head: TokenHead, dropout: float, key: jax.Array | None
) -> Sums:
    streams = Streams(batch.drafter, batch.target)
    predicted = adapter(streams, batch.same_mask, dropout=dropout, key=key)
    truth = Truth(batch.target, batch.target_ids, batch.same_mask, batch.next_mask)
    return objective.sums(predicted, truth, head)


def _drafts(adapter: Any, head: TokenHead, batch: Resident, recipe: Recipe, mode: Mode) -> Int32[Array, "..."]:
    if adapter.facts.offset == 0:
        first = batch.drafter[:, : recipe.prefill_draft_len]
        return first_drafts(adapter, head, first, jnp.minimum(batch.drafter_len, first.shape[1])).ids
    streams = Streams(batch.drafter, batch.target)
    return rollout_everywhere(adapter, head, streams, batch.drafter_len, gamma=recipe.gamma, mode=mode).ids
