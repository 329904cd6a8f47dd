"""Steps, evaluation, first state, data and head of a kind, on the devices of a mesh."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.training import made_up
from xmsd_jax.adapters.kinds import KINDS, make
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.losses import Objective, Sums
from xmsd_jax.training.sources import resident
from xmsd_jax.training.state import Hyper, Skeleton, TrainState, begin
from xmsd_jax.training.step import DATA, P, make_evaluation, make_steps, placed

WIDTH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """What one kind trains with. `state` is the first one; a call of `run` donates what it is given."""

    skeleton: Skeleton
    steps: Any
    evaluate: Any
    state: TrainState
    data: Any
    head: Any
    hyper: Hyper
    objective: Objective
    mesh: Any

    def order(self, rows: Any) -> jax.Array:
        """Batches on the devices."""
        return placed(np.asarray(rows, np.int32), self.mesh, P(None, DATA))

    def number(self, value: float) -> jax.Array:
        return placed(np.float32(value), self.mesh)

    def run(self, state: TrainState, rows: Any, rate: float) -> tuple[TrainState, Sums]:
        """Steps on rows [steps, b] from a state, which is lost."""
        return self.steps(state, self.data, self.head, self.order(rows), self.number(rate), self.hyper)

    def start(self, step: int = 0) -> TrainState:
        """A copy of the first state, at another count of steps."""
        return jax.tree.map(jnp.copy, self.state)._replace(step=placed(np.int32(step), self.mesh))


def built(kind: str, *, loss: Any = "study", devices: int = 1, compute: Any = jnp.float32, **changes: Any) -> Built:
    """Of a kind at width 64 and 16 made-up answers."""
    recipe, mesh = made_up.recipe(**changes), Engine(devices=devices).mesh()
    objective = Objective(name=loss, offset=KINDS[kind].facts.offset)
    skeleton, params = Skeleton.split(make(kind, WIDTH))
    mode = "synced" if kind == "B1" else "own"
    return Built(
        skeleton=skeleton,
        steps=make_steps(skeleton, objective, recipe, mesh, compute=compute),
        evaluate=make_evaluation(skeleton, objective, recipe, mode, mesh, compute=compute),
        state=placed(begin(params), mesh),
        data=placed(resident(made_up.pairs()), mesh),
        head=placed(made_up.head(), mesh),
        hyper=placed(Hyper.of(recipe), mesh),
        objective=objective,
        mesh=mesh,
    )
