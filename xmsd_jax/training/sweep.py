"""Many trainings in one compiled program: members differ in numbers that a step reads, and share its batches.

Members are vmapped on a device and cut over the devices, as pmap would: K members on D devices, each batch read once a
device. A member computes what its single run computes. One whose loss is not finite is masked and told; the others go
on. A member that stopped (patience, fewer epochs) is masked too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

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
from xmsd_jax.training.state import Hyper, Skeleton, begin
from xmsd_jax.training.step import DATA, P, batches, placed
from xmsd_jax.training.sweep_step import improved, make_member_evaluation, make_member_steps, stacked

FREE = (
    "epochs", "learning_rate", "final_learning_rate", "cosine_epochs", "weight_decay", "clip", "dropout",
    "token_weight", "patience", "seed",
)  # fmt: skip
"""Fields of a recipe in which members of one program may differ."""


class Judgement(NamedTuple):
    """Validation of one epoch, answer by answer: losses [n, 2] with their pairs, accepted tokens and iterations [n]."""

    sums: Any
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
        head, mode, engine: as `train` takes them.
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

    # Programs
    skeleton, _ = Skeleton.split(adapters[0])
    objective = Objective(name=recipe.loss, offset=facts.offset, token_weight=recipe.token_weight)
    dropout = any(recipe.dropout > 0 for recipe in recipes)
    steps = make_member_steps(skeleton, objective, mesh, compute=engine.dtype, dropout=dropout)
    evaluate = make_member_evaluation(skeleton, objective, recipe, mode, mesh, compute=engine.dtype)

    # Members; the first one again where they do not fill the devices
    filled = [*range(len(adapters)), *[0] * (-len(adapters) % mesh.size)]
    starts = [begin(Skeleton.split(adapter)[1]) for adapter in adapters]
    state = stacked([starts[i] for i in filled], mesh)
    hyper = stacked([Hyper.of(recipes[i]) for i in filled], mesh)
    head = placed(TokenHead(head.weight.astype(engine.dtype), head.vocabulary), mesh)
    best = jax.tree.map(jnp.copy, state.params)

    # Epochs
    rows = np.flatnonzero(training.index.same_mask.any(1))
    held_order = batches(np.arange(len(validation.index)), recipe.batch)
    log = _Log(recipes, objective, training)
    for number in progress(range(max(recipe.epochs for recipe in recipes)), label=label):
        running = log.running(number)
        if not running:
            break
        start = perf_counter()
        order = epoch_order(rows, recipe, number)
        rates = placed(np.array([recipes[i].rate(number) for i in filled], np.float32), mesh, P(DATA))
        alive = placed(np.array([n in running for n in range(len(filled))]), mesh, P(DATA))
        parts = []
        for data, piece in training.epoch(order, cut=False):
            state, alive, sums = steps(state, alive, data, head, piece, rates, hyper)
            parts.append(sums)
        trained = _joined(parts, axis=0)
        speed = len(rows) / (perf_counter() - start)
        pieces = validation.epoch(held_order, cut=False)
        held = [evaluate(state.params, hyper.token_weight, head, *piece) for piece in pieces]
        judged = _judged(held, validation, facts.offset, recipe.gamma)
        better = np.zeros(len(filled), bool)
        for i in running:
            epoch = log.note(i, number, Sums(trained.tops[:, i], trained.counts[:, i]), judged[i], order)
            if epoch is not None:
                epoch = replace(epoch, seconds=round(perf_counter() - start, 3), answers_per_second=round(speed, 1))
                better[i] = log.add(i, epoch, judged[i])
                on_epoch(i, epoch)
        best = improved(best, state.params, placed(better, mesh, P(DATA)))
    kept = [{name: jnp.asarray(value[i]) for name, value in jax.device_get(best).items()} for i in range(len(adapters))]
    return [log.member(i, skeleton.adapter(params)) for i, params in enumerate(kept)]


def check_together(recipes: Sequence[Recipe]) -> None:
    """Raise ConfigError where recipes cannot share a program."""
    for recipe in recipes[1:]:
        same = replace(recipe, **{name: getattr(recipes[0], name) for name in FREE})
        if same != recipes[0]:
            raise ConfigError(f"members of one program may differ in {', '.join(FREE)} alone; split the sweep")


class _Log:
    """Histories of all members, and who still runs."""

    def __init__(self, recipes: Sequence[Recipe], objective: Objective, training: Source) -> None:
        self._recipes, self._objective, self._training = recipes, objective, training
        self._epochs: list[list[Epoch]] = [[] for _ in recipes]
        self._judged: list[Judgement | None] = [None] * len(recipes)
        self._died: list[str | None] = [None] * len(recipes)

    def running(self, number: int) -> list[int]:
        """Which members train in epoch `number`, the first of which is 0."""
        return [
            i
            for i, (recipe, epochs) in enumerate(zip(self._recipes, self._epochs, strict=True))
            if self._died[i] is None and number < recipe.epochs and not is_stale(epochs, recipe.select, recipe.patience)
        ]

    def note(self, i: int, number: int, sums: Sums, judged: Judgement, order: np.ndarray) -> Epoch | None:
        """The epoch of a member; None if its loss was not finite, in training or on the validation answers after it."""
        bad = np.flatnonzero(~np.isfinite(sums.tops).all(-1))
        if bad.size:
            step = int(bad[0])
            where = self._training.where(order[step])
            self._died[i] = f"epoch {number + 1}, step {step + 1} of {len(order)}: {where}"
        elif not np.isfinite(judged.sums.tops).all():
            self._died[i] = f"validation after epoch {number + 1}"
        if self._died[i] is not None:
            return None
        return Epoch(
            epoch=number + 1,
            learning_rate=self._recipes[i].rate(number),
            training_loss=mean_loss(self._objective, sums),
            validation_loss=mean_loss(self._objective, judged.sums),
            accepted=float(judged.accepted.sum() / max(int(judged.iterations.sum()), 1)),
            seconds=0.0,
        )

    def add(self, i: int, epoch: Epoch, judged: Judgement) -> bool:
        """Keep an epoch; whether it is the best so far."""
        self._epochs[i].append(epoch)
        best = chosen(self._epochs[i], self._recipes[i].select) is epoch
        if best:
            self._judged[i] = judged
        return best

    def member(self, i: int, adapter: Adapter) -> Member:
        """What came of member i."""
        epochs, recipe = self._epochs[i], self._recipes[i]
        return Member(
            adapter=adapter,
            recipe=recipe,
            epochs=tuple(epochs),
            kept=chosen(epochs, recipe.select) if epochs else None,
            judgement=self._judged[i],
            died=self._died[i],
        )


def _judged(held: list[tuple[Sums, Array]], source: Source, offset: Any, gamma: int) -> list[Judgement]:
    """Validation of every member, from pieces [k, batches, b, ...]."""
    count = len(source.index)
    sums = _joined([sums for sums, _ in held], axis=1)
    ids = np.concatenate([np.asarray(ids) for _, ids in held], axis=1)
    return [
        Judgement(
            Sums(*(part[i].reshape(-1, 2)[:count] for part in sums)),
            *accepted_counts(ids[i], source.index, offset, gamma),
        )
        for i in range(len(ids))
    ]


def _joined(parts: list[Sums], axis: int) -> Any:
    """Sums of one piece after the other, on the host."""
    arrays: Any = (np.concatenate(part, axis=axis) for part in zip(*jax.device_get(parts), strict=True))
    return Sums(*arrays)
