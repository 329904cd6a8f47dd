"""Training one adapter, top to bottom: data, model, step, restore, epochs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmsd_jax.adapters.interface import POSITIONS, Adapter
from xmsd_jax.adapters.rollout import Mode
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import UserError
from xmsd_jax.data.batches import Pairs
from xmsd_jax.metrics.acceptance import Anchors, right_lengths
from xmsd_jax.metrics.tokens import free_of_k
from xmsd_jax.runs import progress
from xmsd_jax.training.checkpoints import Checkpoints
from xmsd_jax.training.history import Epoch, chosen, is_stale
from xmsd_jax.training.losses import Objective, Sums
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.state import Skeleton, batches, begin, make_evaluation, make_step, resident

ACCEPTED = {0: "n_free", 1: "tau"}
"""By offset, what the accepted tokens of a kind are called."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The adapter with the parameters of the epoch `kept`, and all epochs."""

    adapter: Adapter
    epochs: tuple[Epoch, ...]
    kept: Epoch


def train(
    adapter: Adapter,
    *,
    training: Pairs,
    validation: Pairs,
    head: TokenHead,
    mode: Mode,
    recipe: Recipe,
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
        checkpoints: where to continue from, and to save to; None does without.
        on_epoch: told of every epoch that is trained now.
        label: of the progress line.

    Raises:
        UserError: pairs that do not fit, a loss that is not finite (epoch and step are named), a bad checkpoint.
    """
    # Data
    check_pairs(adapter, training, validation)
    rows = np.flatnonzero(training.same_mask.any(1))
    data, held_out = resident(training), resident(validation)
    held_order = jax.device_put(batches(np.arange(len(validation)), recipe.batch), jax.devices()[0])

    # Model
    objective = Objective(name=recipe.loss, offset=adapter.facts.offset, token_weight=recipe.token_weight)
    skeleton, params = Skeleton.split(adapter)
    state = begin(params, recipe)
    best = state.params

    # Step
    step = make_step(skeleton, objective, recipe)
    evaluate = make_evaluation(skeleton, objective, recipe, mode)

    # Restore
    epochs: list[Epoch] = []
    if checkpoints is not None and (saved := checkpoints.restore({"state": state, "best": best})) is not None:
        state, best = saved.arrays["state"], saved.arrays["best"]
        epochs = [Epoch(**values) for values in saved.notes["epochs"]]

    # Epochs
    for number in progress(range(len(epochs), recipe.epochs), label=label):
        if is_stale(epochs, recipe.select, recipe.patience):
            break
        start = perf_counter()
        order = jax.device_put(epoch_order(rows, recipe, number), jax.devices()[0])
        rate = jax.device_put(np.float32(recipe.rate(number)), jax.devices()[0])
        steps = []
        for _ in range(len(order)):
            state, sums = step(state, data, head, order, rate)
            steps.append(sums)
        training_loss = mean_loss(objective, steps, f"{label}: epoch {number + 1}")
        sums, ids = evaluate(state.params, held_out, head, held_order)
        epochs.append(
            Epoch(
                epoch=number + 1,
                learning_rate=recipe.rate(number),
                training_loss=training_loss,
                validation_loss=mean_loss(objective, [sums], f"{label}: validation after epoch {number + 1}"),
                accepted=accepted_tokens(np.asarray(ids), validation, adapter.facts.offset, recipe.gamma),
                seconds=round(perf_counter() - start, 3),
            )
        )
        if chosen(epochs, recipe.select) is epochs[-1]:
            best = jax.tree.map(jnp.copy, state.params)
        if checkpoints is not None and (number + 1) % recipe.checkpoint_every == 0:
            notes = {"epochs": [asdict(epoch) for epoch in epochs]}
            checkpoints.save(number + 1, {"state": state, "best": best}, notes)
        on_epoch(epochs[-1])
    return Trained(adapter=skeleton.adapter(best), epochs=tuple(epochs), kept=chosen(epochs, recipe.select))


def check_pairs(adapter: Adapter, training: Pairs, validation: Pairs) -> None:
    """Raise UserError where pairs give nothing to learn or to choose by, or share a sequence."""
    for name, pairs in (("training", training), ("validation", validation)):
        if not pairs.same_mask.any():
            raise UserError(f"{name}: no answer has positions to compare, got {len(pairs)} answers; extract more")
    if shared := sorted(set(training.sequence) & set(validation.sequence)):
        raise UserError(
            f"validation needs sequences that training does not see, both have {', '.join(shared[:3])}; give a store "
            "of other sequences, or none, to split the training store"
        )
    if training.width != validation.width:
        raise UserError(f"training and validation states differ in width, {training.width} and {validation.width}")
    if adapter.facts.offset and max(training.target.shape[1], validation.target.shape[1]) > POSITIONS:
        raise UserError(f"answers of at most {POSITIONS} tokens can be learned, got {training.target.shape[1]}")


def epoch_order(rows: np.ndarray, recipe: Recipe, epoch: int) -> np.ndarray:
    """Batches of an epoch, int32[steps, b]: a permutation that depends on the seed and the epoch alone."""
    return batches(np.random.default_rng([recipe.seed, epoch]).permutation(rows), recipe.batch)


def mean_loss(objective: Objective, steps: list[Sums], where: str) -> float:
    """Loss over all pairs of some steps.

    Raises:
        UserError: a step's loss is nan or inf.
    """
    steps = jax.device_get(steps)
    finite = [bool(np.isfinite(sums.tops).all()) for sums in steps]
    if not all(finite):
        raise UserError(
            f"{where}, step {finite.index(False) + 1} of {len(steps)}: the loss is not finite; lower learning_rate or "
            "clip, and train with --fresh"
        )
    total = jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64).astype(np.float32), *steps)
    return float(objective.value(total))


def accepted_tokens(ids: np.ndarray, pairs: Pairs, offset: Any, gamma: int) -> float:
    """What drafts of an evaluation are worth: tau of walks from the first token (offset 1), mean n_free (offset 0).

    Args:
        ids: int32[batches, b, t, gamma] or int32[batches, b, k], padded rows last.
        pairs: the answers, in order.
        offset: of the kind.
        gamma: drafted tokens an iteration.
    """
    ids = ids.reshape(-1, *ids.shape[2:])[: len(pairs)]
    if offset == 0:
        kept = np.arange(ids.shape[1]) < pairs.target_len[:, None]
        wrong = (ids != pairs.target_ids[:, : ids.shape[1]]).astype(np.int32)
        top, bottom = free_of_k(wrong, kept, ids.shape[1])
    else:
        right = right_lengths(ids, pairs.target_ids, pairs.target_len)
        free = np.zeros(len(pairs), np.int32)
        walk = Anchors(right=right, gamma=gamma, target_len=pairs.target_len, free=free).walk(gamma)
        top, bottom = walk.emitted, walk.iterations
    return float(top.sum() / max(int(bottom.sum()), 1))
