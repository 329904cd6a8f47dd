"""Many trainings in one compiled program: members differ in numbers that a step reads, and share its batches.

Members are vmapped on a device and cut over the devices, as pmap would: K members on D devices, each batch read once a
device. A member computes what its single run computes. One whose loss is not finite is masked and told; the others go
on. A member that stopped (patience, fewer epochs) is masked too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.interface import Adapter
from xmsd_jax.adapters.rollout import Mode
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError
from xmsd_jax.runs import progress
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.history import Epoch, chosen, is_stale
from xmsd_jax.training.loop import accepted_counts, check_pairs, epoch_order, mean_loss
from xmsd_jax.training.losses import Objective, Sums
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.sources import Source
from xmsd_jax.training.state import Hyper, Params, Skeleton, TrainState, begin, lowered
from xmsd_jax.training.step import DATA, P, batches, evaluated, one_step, picked, placed

FREE = (
    "epochs", "learning_rate", "final_learning_rate", "cosine_epochs", "weight_decay", "clip", "dropout",
    "token_weight", "patience", "seed",
)  # fmt: skip
"""Fields of a recipe in which members of one program may differ."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """Validation of one epoch, answer by answer: losses [n, 2] with their pairs, accepted tokens [n] with iterations."""

    tops: np.ndarray
    counts: np.ndarray
    accepted: np.ndarray
    iterations: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """What came of one member: `died` says where its loss was not finite, and then nothing was kept after it."""

    adapter: Adapter
    recipe: Recipe
    epochs: tuple[Epoch, ...]
    kept: Epoch | None
    judgement: Judgement | None
    died: str | None


def train_together(
    adapters: Sequence[Adapter],
    recipes: Sequence[Recipe],
    *,
    training: Source,
    validation: Source,
    head: TokenHead,
    mode: Mode,
    engine: Engine,
    mesh: Mesh,
    on_epoch: Callable[[int, Epoch], None] = lambda member, epoch: None,
    label: str = "sweep",
) -> list[Member]:
    """Train all members at once, each as `xmsd_jax.training.loop.train` trains it alone.

    Args:
        adapters: with their starting values, of one kind and width.
        recipes: of each; they agree in all but FREE.
        training, validation: over `mesh`.
        head: of the target.
        mode: as of `train`.
        engine: as of `train`.
        mesh: the devices that members are cut over.
        on_epoch: told of every member's epochs.
        label: of the progress line.

    Raises:
        ConfigError: recipes that differ in more.
        UserError: pairs that do not fit.
    """
    check_together(recipes)
    facts, recipe = adapters[0].facts, recipes[0]
    check_pairs(facts, training.index, validation.index)
    skeleton, _ = Skeleton.split(adapters[0])
    objective = Objective(name=recipe.loss, offset=facts.offset, token_weight=recipe.token_weight)
    members = len(adapters)
    width = -(-members // mesh.size) * mesh.size
    padded = [*range(members), *[0] * (width - members)]

    starts = [begin(Skeleton.split(adapter)[1]) for adapter in adapters]
    state = stacked([starts[i] for i in padded], mesh)
    hyper = stacked([Hyper.of(recipes[i]) for i in padded], mesh)
    head = placed(TokenHead(head.weight.astype(engine.dtype), head.vocabulary), mesh)
    dropout = any(recipe.dropout > 0 for recipe in recipes)
    steps = make_member_steps(skeleton, objective, mesh, compute=engine.dtype, dropout=dropout)
    evaluate = make_member_evaluation(skeleton, objective, recipe, mode, mesh, compute=engine.dtype)

    rows = np.flatnonzero(training.index.same_mask.any(1))
    held_order = batches(np.arange(len(validation.index)), recipe.batch)
    best = jax.tree.map(jnp.copy, state.params)
    log = _Log(recipes)
    for number in progress(range(max(recipe.epochs for recipe in recipes)), label=label):
        running = log.running(number)
        if not any(running):
            break
        start = perf_counter()
        rates = placed(np.float32([recipes[i].rate(number) for i in padded]), mesh, P(DATA))
        alive = placed(np.array([running[i] and n < members for n, i in enumerate(padded)]), mesh, P(DATA))
        parts = []
        for data, piece in training.epoch(epoch_order(rows, recipe, number), cut=False):
            state, alive, sums = steps(state, alive, data, head, piece, rates, hyper)
            parts.append(sums)
        trained = _by_member(parts, axis=1)
        speed = len(rows) / (perf_counter() - start)
        found = [
            evaluate(state.params, data, head, piece, hyper.token_weight)
            for data, piece in validation.epoch(held_order, cut=False)
        ]
        held, ids = _by_member([sums for sums, _ in found]), np.concatenate([np.asarray(x) for _, x in found], 1)
        better = np.zeros(width, bool)
        for member in np.flatnonzero(running):
            sums = Sums(*(part[:, member] for part in trained))
            judged = _judgement(held, ids, member, validation, facts.offset, recipe.gamma)
            if log.mark_dead(member, number, sums, judged, training.where, epoch_order(rows, recipe, number)):
                continue
            epoch = Epoch(
                epoch=number + 1,
                learning_rate=recipes[member].rate(number),
                training_loss=mean_loss(_weighted(objective, recipes[member]), sums),
                validation_loss=mean_loss(objective, Sums(judged.tops, judged.counts)),
                accepted=float(judged.accepted.sum() / max(int(judged.iterations.sum()), 1)),
                seconds=round(perf_counter() - start, 3),
                answers_per_second=round(speed, 1),
            )
            better[member] = log.add(member, epoch, judged)
            on_epoch(member, epoch)
        best = _chosen(best, state.params, placed(better, mesh, P(DATA)))
    return [
        log.member(i, skeleton.adapter({name: jnp.asarray(np.asarray(x[i])) for name, x in best.items()}))
        for i in range(members)
    ]


def check_together(recipes: Sequence[Recipe]) -> None:
    """Raise ConfigError where recipes cannot share a program."""
    for recipe in recipes[1:]:
        same = replace(recipe, **{name: getattr(recipes[0], name) for name in FREE})
        if same != recipes[0]:
            raise ConfigError(f"members of one program may differ in {', '.join(FREE)} alone; split the sweep")


def make_member_steps(
    skeleton: Skeleton, objective: Objective, mesh: Mesh, *, compute: Any, dropout: bool
) -> Callable[..., tuple[TrainState, Bool[Array, " k"], Sums]]:
    """As `make_steps`, with a leading axis of members on state, alive, rate and hyper, and sums [steps, k, 2].

    A member whose loss is not finite, or that is not alive, keeps its state.
    """
    one = partial(one_step, skeleton, objective, dropout=dropout, axis=None)
    together = jax.vmap(one, in_axes=(0, 0, None, None, 0, 0))
    low = jax.vmap(partial(lowered, dtype=compute))

    def steps(state, alive, data, head, order, rate, hyper):  # noqa: ANN001, ANN202
        def body(carry: Any, rows: Any) -> tuple[Any, Sums]:
            state, params, alive = carry
            after, sums = together(state, params, picked(data, rows, compute), head, rate, hyper)
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
    """As `make_evaluation`, member after member, with a leading axis of members on all results."""

    def evaluate(params: Params, data: Any, head: TokenHead, order: Any, weights: Array) -> tuple[Sums, Array]:
        def one(member: tuple[Params, Array]) -> tuple[Sums, Array]:
            own = replace(objective, token_weight=member[1])
            return evaluated(skeleton, own, recipe, mode, member[0], data, head, order, compute=compute)

        return jax.lax.map(one, (params, weights))

    specs = (P(DATA), P(), P(), P(), P(DATA))
    return jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=specs, out_specs=P(DATA), check_vma=False))


class _Log:
    """Histories of all members, and who still runs."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._recipes = recipes
        self._epochs: list[list[Epoch]] = [[] for _ in recipes]
        self._judged: list[Judgement | None] = [None] * len(recipes)
        self._died: list[str | None] = [None] * len(recipes)

    def running(self, number: int) -> list[bool]:
        """Which members train in epoch `number`, the first of which is 0."""
        return [
            died is None and number < recipe.epochs and not is_stale(epochs, recipe.select, recipe.patience)
            for recipe, epochs, died in zip(self._recipes, self._epochs, self._died, strict=True)
        ]

    def mark_dead(
        self,
        member: int,
        number: int,
        sums: Sums,
        judged: Judgement,
        where: Callable[[np.ndarray], str],
        order: np.ndarray,
    ) -> bool:
        """Note a member whose loss was not finite, in training or on the validation answers after it."""
        bad = np.flatnonzero(~np.isfinite(sums.tops).all(-1))
        if bad.size:
            step = int(bad[0])
            self._died[member] = f"epoch {number + 1}, step {step + 1} of {len(order)}: {where(order[step])}"
        elif not np.isfinite(judged.tops).all():
            self._died[member] = f"validation after epoch {number + 1}"
        return self._died[member] is not None

    def add(self, member: int, epoch: Epoch, judged: Judgement) -> bool:
        """Note an epoch; whether it is the best so far."""
        self._epochs[member].append(epoch)
        best = chosen(self._epochs[member], self._recipes[member].select) is epoch
        if best:
            self._judged[member] = judged
        return best

    def member(self, i: int, adapter: Adapter) -> Member:
        """What came of member i."""
        epochs, recipe = self._epochs[i], self._recipes[i]
        kept = chosen(epochs, recipe.select) if epochs else None
        return Member(
            adapter=adapter,
            recipe=recipe,
            epochs=tuple(epochs),
            kept=kept,
            judgement=self._judged[i],
            died=self._died[i],
        )


def _judgement(held: Sums, ids: np.ndarray, member: int, source: Source, offset: Any, gamma: int) -> Judgement:
    count = len(source.index)
    tops, counts = (part[member].reshape(-1, 2)[:count] for part in held)
    accepted, iterations = accepted_counts(ids[member], source.index, offset, gamma)
    return Judgement(tops=tops, counts=counts, accepted=accepted, iterations=iterations)


def _weighted(objective: Objective, recipe: Recipe) -> Objective:
    return replace(objective, token_weight=recipe.token_weight)


def _by_member(parts: list[Sums], axis: int = 0) -> Sums:
    """Sums of all pieces: [k, batches, b, 2] (axis 0), or [steps, k, 2] (axis 1)."""
    join = 1 - axis
    return Sums(*(np.concatenate(arrays, axis=join) for arrays in zip(*jax.device_get(parts), strict=True)))


def stacked(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Trees of members as one tree with a leading axis, cut over the devices."""
    return placed(jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees), mesh, P(DATA))


@partial(jax.jit, donate_argnums=0)
def _chosen(best: Params, now: Params, better: Bool[Array, " k"]) -> Params:
    return jax.tree.map(lambda new, old: jnp.where(_wide(better, new), new, old), now, best)


def _wide(mask: Bool[Array, " k"], like: Float[Array, "k ..."]) -> Bool[Array, "k ..."]:
    return mask.reshape(-1, *[1] * (like.ndim - 1))
