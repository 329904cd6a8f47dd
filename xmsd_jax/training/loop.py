"""Training one adapter, top to bottom: data, model, step, restore, epochs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmsd_jax.adapters.interface import POSITIONS, Adapter, Facts
from xmsd_jax.adapters.rollout import Mode
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import UserError
from xmsd_jax.data.batches import Index, Pairs
from xmsd_jax.metrics.acceptance import Anchors, right_lengths
from xmsd_jax.metrics.tokens import free_of_k
from xmsd_jax.runs import progress
from xmsd_jax.training.checkpoints import Checkpoints
from xmsd_jax.training.engine import Engine, check_batch, matmul_rate, step_flops
from xmsd_jax.training.history import Epoch, chosen, is_stale
from xmsd_jax.training.losses import Objective, Sums
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.sources import Source, as_source
from xmsd_jax.training.state import Hyper, Params, Skeleton, TrainState, begin
from xmsd_jax.training.step import Evaluation, Steps, batches, make_evaluation, make_steps, placed

ACCEPTED = {0: "n_free", 1: "tau"}
"""By offset, what the accepted tokens of a kind are called."""
DEFAULT_ENGINE = Engine()


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The adapter with the parameters of the epoch `kept`, and all epochs."""

    adapter: Adapter
    epochs: tuple[Epoch, ...]
    kept: Epoch


def train(
    adapter: Adapter,
    *,
    training: Pairs | Source,
    validation: Pairs | Source,
    head: TokenHead,
    mode: Mode,
    recipe: Recipe,
    engine: Engine = DEFAULT_ENGINE,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    label: str = "train",
) -> Trained:
    """Train until `recipe.epochs`, or until patience runs out; keep the epoch that is best on the validation answers.

    Args:
        adapter: with its starting values; it is left as it is.
        training: answers to learn from; those without a pair are left out.
        validation: answers of other sequences.
        head: of the target, frozen.
        mode: drafter states that a kind of offset 1 is rolled out on.
        recipe: how.
        engine: on what.
        checkpoints: where to continue from, and to save to; None does without.
        on_epoch: told of every epoch that is trained now.
        label: of the progress line.

    Raises:
        UserError: pairs that do not fit, a batch that cannot be cut over the devices, a loss that is not finite (epoch,
            step, shards and rows are named), a bad checkpoint.
    """
    # Mesh and data
    mesh = engine.mesh()
    check_batch(recipe.batch, mesh.size)
    training, validation = as_source(training, mesh), as_source(validation, mesh)
    check_pairs(adapter.facts, training.index, validation.index)
    rows = np.flatnonzero(training.index.same_mask.any(1))
    held_order = batches(np.arange(len(validation.index)), recipe.batch, multiple=mesh.size)

    # Model
    objective = Objective(name=recipe.loss, offset=adapter.facts.offset, token_weight=recipe.token_weight)
    skeleton, params = Skeleton.split(adapter)
    state, hyper = placed((begin(params), Hyper.of(recipe)), mesh)
    head = placed(TokenHead(head.weight.astype(engine.dtype), head.vocabulary), mesh)

    # Step
    steps = make_steps(skeleton, objective, recipe, mesh, compute=engine.dtype)
    evaluate = make_evaluation(skeleton, objective, recipe, mode, mesh, compute=engine.dtype)
    pace = Pace.of(params, training.index, mesh.size, engine)

    # Restore, epochs
    state, best, epochs = restored(checkpoints, state)
    for number in progress(range(len(epochs), recipe.epochs), label=lambda: f"{label}{pace.told(epochs)}"):
        if is_stale(epochs, recipe.select, recipe.patience):
            break
        start = perf_counter()
        order = epoch_order(rows, recipe, number, mesh.size)
        rate = placed(np.float32(recipe.rate(number)), mesh)
        state, sums = learned(steps, state, training, order, head, rate, hyper, where=f"{label}: epoch {number + 1}")
        trained = perf_counter() - start
        where = f"{label}: validation after epoch {number + 1}"
        held_sums, ids = judged(evaluate, state.params, validation, held_order, head, where=where)
        epochs.append(
            Epoch(
                epoch=number + 1,
                learning_rate=recipe.rate(number),
                training_loss=mean_loss(objective, sums),
                validation_loss=mean_loss(objective, held_sums),
                accepted=accepted_tokens(ids, validation.index, adapter.facts.offset, recipe.gamma),
                seconds=round(perf_counter() - start, 3),
                answers_per_second=round(len(rows) / trained, 1),
            )
        )
        if chosen(epochs, recipe.select) is epochs[-1]:
            best = jax.tree.map(jnp.copy, state.params)
        if checkpoints is not None and (number + 1) % recipe.checkpoint_every == 0:
            checkpoints.save(number + 1, {"state": state, "best": best}, {"epochs": [asdict(e) for e in epochs]})
        on_epoch(epochs[-1])
    return Trained(adapter=skeleton.adapter(best), epochs=tuple(epochs), kept=chosen(epochs, recipe.select))


def restored(checkpoints: Checkpoints | None, state: TrainState) -> tuple[TrainState, Params, list[Epoch]]:
    """State, best parameters and epochs so far: of the newest checkpoint, or `state` before any epoch."""
    saved = None if checkpoints is None else checkpoints.restore({"state": state, "best": state.params})
    if saved is None:
        return state, state.params, []
    return saved.arrays["state"], saved.arrays["best"], [Epoch(**values) for values in saved.notes["epochs"]]


def learned(
    steps: Steps,
    state: TrainState,
    source: Source,
    order: np.ndarray,
    head: TokenHead,
    rate: Any,
    hyper: Hyper,
    *,
    where: str,
) -> tuple[TrainState, Sums]:
    """The state after an epoch, and the sums of its steps. Raises UserError, which begins with `where`."""
    parts = []
    for data, piece in source.epoch(order):
        state, sums = steps(state, data, head, piece, rate, hyper)
        parts.append(sums)
    sums = joined(parts)
    check_finite(sums, order, source, where)
    return state, sums


def judged(
    evaluate: Evaluation, params: Params, source: Source, order: np.ndarray, head: TokenHead, *, where: str
) -> tuple[Sums, np.ndarray]:
    """Sums [batches, b, 2] and drafted ids of an evaluation. Raises UserError, which begins with `where`."""
    found = [evaluate(params, data, head, piece) for data, piece in source.epoch(order)]
    sums = joined([sums for sums, _ in found])
    check_finite(sums, order, source, where)
    return sums, np.concatenate([np.asarray(ids) for _, ids in found])


def check_pairs(facts: Facts, training: Index | Pairs, validation: Index | Pairs) -> None:
    """Raise UserError where pairs give nothing to learn or to choose by, or share a sequence."""
    for name, pairs in (("training", training), ("validation", validation)):
        if not pairs.same_mask.any():
            raise UserError(f"{name}: no answer has positions to compare, got {len(pairs)} answers; extract more")
    if shared := sorted(set(training.sequence) & set(validation.sequence)):
        raise UserError(
            f"validation needs sequences that training does not see, both have {', '.join(shared[:3])}; give a store "
            "of other sequences, or none, to split the training store"
        )
    if isinstance(training, Pairs) and isinstance(validation, Pairs) and training.width != validation.width:
        raise UserError(f"training and validation states differ in width, {training.width} and {validation.width}")
    longest = max(training.same_mask.shape[1], validation.same_mask.shape[1])
    if facts.offset and longest > POSITIONS:
        raise UserError(f"answers of at most {POSITIONS} tokens can be learned, got {longest}")


def epoch_order(rows: np.ndarray, recipe: Recipe, epoch: int, devices: int = 1) -> np.ndarray:
    """Batches of an epoch, int32[steps, b]: a permutation that depends on order_seed and the epoch alone."""
    shuffled = np.random.default_rng([recipe.order_seed, epoch]).permutation(rows)
    return batches(shuffled, recipe.batch, multiple=devices)


def joined(parts: list[Sums]) -> Sums:
    """Sums of one piece after the other, on the host."""
    arrays: Any = (np.concatenate(part) for part in zip(*jax.device_get(parts), strict=True))
    return Sums(*arrays)


def check_finite(sums: Sums, order: np.ndarray, source: Source, where: str) -> None:
    """Raise UserError at the first batch whose loss is nan or inf: sums [steps, ..., 2]."""
    finite = np.isfinite(sums.tops).reshape(len(sums.tops), -1).all(1)
    if not finite.all():
        step = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"{where}, step {step + 1} of {len(order)}: the loss is not finite ({source.where(order[step])}); lower "
            "learning_rate or clip, and train with --fresh"
        )


def mean_loss(objective: Objective, sums: Sums) -> float:
    """Loss over all pairs of some steps or answers, [..., 2]."""
    total = [np.sum(part.reshape(-1, 2), axis=0, dtype=np.float64).astype(np.float32) for part in sums]
    return float(objective.value(Sums(*(jnp.asarray(part) for part in total))))


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast training is against what the chip could do: model FLOPs a second over those of a matrix product."""

    answer_flops: float
    chip_flops: float

    @classmethod
    def of(cls, params: Params, index: Index | Pairs, devices: int, engine: Engine) -> "Pace":
        """For answers of an index on so many devices."""
        length = index.same_mask.shape[1]
        shapes = {name: value.shape for name, value in params.items()}
        return cls(answer_flops=step_flops(shapes, length, length), chip_flops=devices * matmul_rate(engine.dtype))

    def utilisation(self, answers_per_second: float) -> float:
        """MFU, 0 to 1: model FLOPs utilisation."""
        return answers_per_second * self.answer_flops / self.chip_flops

    def told(self, epochs: Sequence[Epoch]) -> str:
        """The last epoch's speed, in words."""
        if not epochs:
            return ""
        speed = epochs[-1].answers_per_second
        return f", {speed:,.0f} answers/s, MFU {self.utilisation(speed):.1%}"


def accepted_tokens(ids: np.ndarray, pairs: Index | Pairs, offset: Any, gamma: int) -> float:
    """What drafts of an evaluation are worth: tau of walks from the first token (offset 1), mean n_free (offset 0).

    Args:
        ids: int32[batches, b, t, gamma] or int32[batches, b, k], padded rows last.
        pairs: the answers, in order.
        offset: of the kind.
        gamma: drafted tokens an iteration.
    """
    top, bottom = accepted_counts(ids, pairs, offset, gamma)
    return float(top.sum() / max(int(bottom.sum()), 1))


def accepted_counts(ids: np.ndarray, pairs: Index | Pairs, offset: Any, gamma: int) -> tuple[np.ndarray, np.ndarray]:
    """The same answer by answer, as numerators and denominators [n]."""
    ids = ids.reshape(-1, *ids.shape[2:])[: len(pairs)]
    if offset == 0:
        kept = np.arange(ids.shape[1]) < pairs.target_len[:, None]
        wrong = (ids != pairs.target_ids[:, : ids.shape[1]]).astype(np.int32)
        return free_of_k(wrong, kept, ids.shape[1])
    right = right_lengths(ids, pairs.target_ids, pairs.target_len)
    free = np.zeros(len(pairs), np.int32)
    walk = Anchors(right=right, gamma=gamma, target_len=pairs.target_len, free=free).walk(gamma)
    return walk.emitted, walk.iterations
