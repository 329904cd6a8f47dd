"""The loop: which epoch is kept, when it stops, what it refuses, and that it counts what a walk counts."""

import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.training import made_up
from xmsd_jax.adapters.files import named_parameters
from xmsd_jax.adapters.kinds import make
from xmsd_jax.config import UserError
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.history import Epoch, chosen, columns, is_stale, rows_of
from xmsd_jax.training.loop import DEFAULT_ENGINE, Pace, accepted_tokens, epoch_order, train
from xmsd_jax.training.losses import Objective

WIDTH = 64
pytestmark = pytest.mark.usefixtures("quick_compile")
TRAIN, HELD_OUT = made_up.pairs(), made_up.pairs(8, seed=1, prefix="validation")


def trained(
    kind="L1", *, training=TRAIN, validation=HELD_OUT, on_epoch=lambda e: None, engine=DEFAULT_ENGINE, **changes
):
    return train(
        make(kind, WIDTH),
        training=training,
        validation=validation,
        head=made_up.head(),
        mode="own",
        recipe=made_up.recipe(**changes),
        engine=engine,
        on_epoch=on_epoch,
    )


def epochs(*values: tuple[float, float]) -> list[Epoch]:
    """Epochs from (validation loss, accepted)."""
    return [
        Epoch(epoch=i, learning_rate=0.1, training_loss=1.0, validation_loss=loss, accepted=accepted, seconds=0.0)
        for i, (loss, accepted) in enumerate(values, 1)
    ]


def test_the_kept_epoch_is_the_best_at_the_named_metric_and_the_earliest_of_equals():
    made = epochs((3.0, 0.0), (1.0, 1.0), (2.0, 1.5), (2.0, 1.5), (4.0, 1.0))
    assert chosen(made, "loss").epoch == 2
    assert chosen(made, "accepted").epoch == 3


def test_while_nothing_is_accepted_the_loss_decides():
    made = epochs((3.0, 0.0), (2.0, 0.0), (1.0, 0.0))
    assert chosen(made, "accepted").epoch == 3
    assert not is_stale(made, "accepted", 1)


def test_patience_counts_the_epochs_since_the_kept_one():
    made = epochs((1.0, 0.0), (2.0, 1.0), (2.0, 1.0), (2.0, 1.0))
    assert is_stale(made, "loss", 3)
    assert not is_stale(made, "loss", 4)
    assert is_stale(made, "accepted", 2)
    assert not is_stale([], "loss", 1)


def test_lists_and_epochs_are_the_same_history():
    made = epochs((1.0, 0.5), (2.0, 1.0))
    lists = columns(made, "tau")
    assert (lists["epochs"], lists["validation_tau"]) == ([1, 2], [0.5, 1.0])
    assert rows_of(lists, "tau") == made


def test_the_kept_parameters_are_those_of_the_kept_epoch():
    told = []
    whole = trained(epochs=3, learning_rate=0.3, final_learning_rate=0.3, select="loss", on_epoch=told.append)
    assert tuple(told) == whole.epochs
    assert whole.kept == chosen(whole.epochs, "loss")
    short = trained(epochs=whole.kept.epoch, learning_rate=0.3, final_learning_rate=0.3, select="loss")
    for name, value in named_parameters(short.adapter).items():
        assert_array_equal(value, named_parameters(whole.adapter)[name])


def test_training_stops_when_patience_runs_out():
    still = 1e-12  # a rate too small to change anything: the first epoch stays the best one
    done = trained(epochs=9, learning_rate=still, final_learning_rate=still, select="loss", patience=2)
    assert (done.kept.epoch, len(done.epochs)) == (1, 3)


def test_a_run_traces_one_train_step_and_one_evaluation(monkeypatch):
    traces = []
    for name in ("of_tail", "row_sums"):
        whole = getattr(Objective, name)
        monkeypatch.setattr(Objective, name, lambda *args, n=name, f=whole: traces.append(n) or f(*args))
    done = trained("L5F", epochs=2, loss="next")
    assert len(done.epochs) == 2
    # 16 rows in batches of 6, the last one padded; 8 held-out rows in two. A loss is made of sums of its rows.
    assert traces == ["of_tail", "row_sums", "row_sums"]


def test_a_learnable_next_token_is_accepted_after_training():
    done = trained("B1", epochs=200, cosine_epochs=200, learning_rate=3e-3, dropout=0.0, loss="next", patience=200)
    assert done.kept.accepted == max(e.accepted for e in done.epochs)
    assert done.epochs[0].accepted < done.kept.accepted
    assert done.kept.accepted > 2.0


def test_tau_is_tokens_over_iterations_of_walks_from_the_first_token():
    answers = HELD_OUT.take([0, 1])  # 7 and 8 tokens
    ids = np.full((1, 3, 10, 3), -1, np.int32)  # the third row is padding
    for t in range(9):
        proposed = answers.target_ids[0, t + 1 : t + 4]
        ids[0, 0, t, : len(proposed)] = proposed
    # row 0: anchors 0 and 4, then the end; row 1: one token an iteration
    assert accepted_tokens(ids, answers, 1, 3) == pytest.approx((6 + 7) / (2 + 7))


def test_n_free_is_the_mean_right_prefix():
    answers = HELD_OUT.take([0, 1, 2])
    ids = answers.target_ids[:, :4].copy()
    ids[1, 0], ids[2, 2] = -1, -1
    assert accepted_tokens(ids[None], answers, 0, 3) == pytest.approx((4 + 0 + 2) / 3)


def test_the_order_of_an_epoch_depends_on_its_own_seed_and_epoch_alone():
    rows, recipe = np.arange(10), made_up.recipe()
    first = epoch_order(rows, recipe, 0)
    assert sorted(first[first >= 0].tolist()) == rows.tolist()
    assert_array_equal(first, epoch_order(rows, recipe, 0))
    assert (first != epoch_order(rows, recipe, 1)).any()
    assert (first != epoch_order(rows, made_up.recipe(order_seed=1), 0)).any()
    assert_array_equal(first, epoch_order(rows, made_up.recipe(seed=1), 0))


def test_an_order_on_several_devices_is_the_order_on_one():
    rows, recipe = np.arange(5), made_up.recipe()
    one, two = (epoch_order(rows, recipe, 1, devices) for devices in (1, 2))
    assert_array_equal(one[one >= 0], two[two >= 0])
    assert two.shape[1] % 2 == 0


def test_the_seed_of_dropout_is_not_the_seed_of_the_order():
    start, other_dropout, other_order = (
        trained(epochs=1, dropout=0.3, **seeds) for seeds in ({}, {"seed": 1}, {"order_seed": 1})
    )
    first, dropped, ordered = (d.epochs[0].training_loss for d in (start, other_dropout, other_order))
    assert len({first, dropped, ordered}) == 3


def test_without_dropout_the_seed_changes_nothing_but_initial_values():
    """The adapter comes in with its own start."""
    one, other = (trained(epochs=1, dropout=0.0, seed=seed) for seed in (0, 1))
    assert one.epochs[0].training_loss == other.epochs[0].training_loss


def test_a_batch_that_cannot_be_cut_over_the_devices_is_refused():
    with pytest.raises(UserError, match="7 answers cannot be cut over 2 devices"):
        trained(batch=7)
    assert len(trained(batch=7, epochs=1, engine=Engine(devices=1)).epochs) == 1


def test_the_pace_is_counted_in_answers_and_told_with_the_utilisation():
    done = trained(epochs=1)
    assert done.epochs[0].answers_per_second > 0
    pace = Pace(answer_flops=2e6, chip_flops=1e9)
    assert pace.utilisation(100.0) == pytest.approx(0.2)
    told = dataclasses.replace(done.epochs[0], answers_per_second=1234.0)
    assert pace.told([told]) == ", 1,234 answers/s, MFU 246.8%"
    assert pace.told([]) == ""


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step():
    target = TRAIN.target.copy()
    target[:, 0] = 3e38
    with pytest.raises(UserError, match=r"train: epoch 1, step 1 of 3: the loss is not finite \(rows \d+, .*\); lower"):
        trained(training=dataclasses.replace(TRAIN, target=target))


@pytest.mark.parametrize(
    ("training", "validation", "words"),
    [
        (TRAIN, TRAIN, "both have train_0"),
        (TRAIN.take([]), HELD_OUT, "training: no answer has positions"),
        (dataclasses.replace(TRAIN, target=TRAIN.target[..., :32]), HELD_OUT, "differ in width, 32 and 64"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(training, validation, words):
    with pytest.raises(UserError, match=words):
        trained(training=training, validation=validation)


def test_the_adapter_that_came_in_is_left_as_it_was():
    adapter = make("L1", WIDTH)
    before = jax.tree.map(np.asarray, named_parameters(adapter))
    train(
        adapter, training=TRAIN, validation=HELD_OUT, head=made_up.head(), mode="own", recipe=made_up.recipe(epochs=1)
    )
    for name, value in named_parameters(adapter).items():
        assert_array_equal(value, before[name])
