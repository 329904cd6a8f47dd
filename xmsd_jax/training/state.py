"""What a training run carries: parameters by name, AdamW's moments, a counter; and the numbers that steer a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int32

from xmsd_jax.adapters.interface import Adapter
from xmsd_jax.training.recipe import Recipe

Params = dict[str, Array]


class TrainState(NamedTuple):
    """Parameters by dotted name, AdamW's moments, and the number of steps done. All but the counter in float32."""

    params: Params
    moments: Any
    step: Int32[Array, ""]


class Hyper(NamedTuple):
    """The numbers of a recipe that a step reads; traced, so that members of a sweep differ in them alone."""

    weight_decay: Float[Array, ""]
    clip: Float[Array, ""]
    dropout: Float[Array, ""]
    token_weight: Float[Array, ""]
    seed: Int32[Array, ""]

    @classmethod
    def of(cls, recipe: Recipe) -> "Hyper":
        """Those of a recipe."""
        values = (np.float32(getattr(recipe, name)) for name in cls._fields[:-1])
        return cls(*values, np.int32(recipe.seed))  # pyright: ignore[reportCallIssue]


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


def begin(params: Params) -> TrainState:
    """The state before the first step."""
    return TrainState(params, _adam().init(params), jnp.zeros((), jnp.int32))


def updated(state: TrainState, gradient: Params, rate: Float[Array, ""], hyper: Hyper) -> TrainState:
    """The state after one step of AdamW (Loshchilov & Hutter 2019) behind a clip by global norm."""
    update = optax.chain(
        optax.clip_by_global_norm(hyper.clip),  # pyright: ignore[reportArgumentType]
        _adam(),
        optax.add_decayed_weights(hyper.weight_decay),
    ).update
    blank = (optax.EmptyState(), state.moments, optax.EmptyState())
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        change, after = update(gradient, blank, state.params)
    _, moments, _ = after  # pyright: ignore[reportGeneralTypeIssues]
    params = jax.tree.map(lambda value, change: value - rate * change, state.params, change)
    return TrainState(params, moments, state.step + 1)


def lowered(params: Params, dtype: jnp.dtype) -> Params:
    """What a step computes with: matrices in `dtype`; vectors and scalars stay as they are."""
    return {name: value.astype(dtype) if value.ndim >= 2 else value for name, value in params.items()}


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
