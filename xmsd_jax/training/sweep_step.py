"""The compiled programs of a sweep: members vmapped on a device and cut over the devices of a mesh."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.rollout import Mode
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.training.losses import Objective, Sums
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.state import Hyper, Params, Skeleton, TrainState, lowered
from xmsd_jax.training.step import DATA, P, evaluated, one_step, picked, placed


def make_member_steps(
    skeleton: Skeleton, objective: Objective, mesh: Mesh, *, compute: Any, dropout: bool
) -> Callable[..., tuple[TrainState, Bool[Array, " k"], Sums]]:
    """As `make_steps`, with a leading axis of members on state, alive, rate and hyper, and sums [steps, k, 2].

    A member whose loss is not finite, or that is not alive, keeps its state.
    """
    one = partial(one_step, skeleton, objective, dropout=dropout, axis=None)
    together = jax.vmap(one, in_axes=(0, 0, None, None, 0, 0))
    low = jax.vmap(partial(lowered, dtype=compute))

    def steps(
        state: TrainState, alive: Array, data: Any, head: TokenHead, order: Any, rate: Array, hyper: Hyper
    ) -> Any:
        def body(carry: Any, rows: Any) -> tuple[Any, Sums]:
            state, params, alive = carry
            after, sums = together(state, params, picked(data, rows, compute, lend=True), head, rate, hyper)
            alive = alive & jnp.isfinite(sums.tops).all(-1)
            state = jax.tree.map(lambda new, old: jnp.where(_wide(alive, new), new, old), after, state)
            return (state, low(state.params), alive), sums

        (state, _, alive), sums = jax.lax.scan(body, (state, low(state.params), alive), order)
        return state, alive, sums

    own = P(DATA)
    specs = (own, own, P(), P(), P(), own, own)
    mapped = jax.shard_map(steps, mesh=mesh, in_specs=specs, out_specs=(own, own, P(None, DATA)), check_vma=False)
    return jax.jit(mapped, donate_argnums=(0, 1))


def make_member_evaluation(
    skeleton: Skeleton, objective: Objective, recipe: Recipe, mode: Mode, mesh: Mesh, *, compute: Any
) -> Callable[..., tuple[Sums, Array]]:
    """As `make_evaluation`, member after member: (params, token weights, head, data, order), results [k, ...]."""

    def evaluate(params: Params, weights: Array, head: TokenHead, data: Any, order: Any) -> tuple[Sums, Array]:
        def one(member: tuple[Params, Array]) -> tuple[Sums, Array]:
            own = replace(objective, token_weight=member[1])  # pyright: ignore[reportArgumentType]
            return evaluated(skeleton, own, recipe, mode, member[0], data, head, order, compute=compute)

        return jax.lax.map(one, (params, weights))

    specs = (P(DATA), P(DATA), P(), P(), P())
    return jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=specs, out_specs=P(DATA), check_vma=False))


def stacked(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Trees of members as one tree with a leading axis, cut over the devices."""
    return placed(jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees), mesh, P(DATA))


@partial(jax.jit, donate_argnums=0)
def improved(best: Params, now: Params, better: Bool[Array, " k"]) -> Params:
    """The parameters `now` of the members that are better than before, else `best`, which is donated."""
    return jax.tree.map(lambda new, old: jnp.where(_wide(better, new), new, old), now, best)


def _wide(mask: Bool[Array, " k"], like: Float[Array, "k ..."]) -> Bool[Array, "k ..."]:
    return mask.reshape(-1, *[1] * (like.ndim - 1))
