"""A split on the devices and the same split read while training runs: the same bits, one program each.

Without `quick_compile`: with most of XLA's optimisations off, the two programs round differently in the last bit.
"""

import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.small_store import ROWS, write_store
from tests.training import made_up
from xmsd_jax.adapters.files import named_parameters
from xmsd_jax.adapters.kinds import KINDS, make
from xmsd_jax.config import UserError
from xmsd_jax.data.batches import read_index, read_pairs
from xmsd_jax.data.store import Store, StoreError
from xmsd_jax.training import engine as engines
from xmsd_jax.training import loop, sources
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.loop import train
from xmsd_jax.training.sources import ResidentSource, StreamSource, as_source, store_source
from xmsd_jax.training.step import PADDING

WIDTH = 64
ORDER = np.asarray([[3, 15], [0, PADDING], [7, 7], [9, 1], [4, 2]], np.int32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [
        Store.open(write_store(root / name, rows=rows, seed=seed, prefix=name, shard_rows=4))
        for name, rows, seed in (("train", ROWS, 0), ("validation", 8, 1))
    ]


def of_store(store: Store, engine: Engine, *, inputs="both", pairing="index"):
    return store_source(store, read_index(store, inputs=inputs, pairing=pairing), pairing, engine, engine.mesh())


def trained(stores, engine: Engine, kind="L1", pairing="index", **changes):
    inputs = KINDS[kind].facts.inputs
    training, validation = (of_store(store, engine, inputs=inputs, pairing=pairing) for store in stores)
    return train(
        make(kind, WIDTH),
        training=training,
        validation=validation,
        head=made_up.head(),
        mode="synced" if pairing == "synced" else "own",
        recipe=made_up.recipe(**{"batch": 4, "dropout": 0.2, "epochs": 2, **changes}),
        engine=engine,
    )


def numbers(done) -> list[tuple]:
    return [(e.training_loss, e.validation_loss, e.accepted) for e in done.epochs]


@pytest.fixture
def steps_of(monkeypatch):
    """Every train step and evaluation that is made."""
    made = []
    for name in ("make_steps", "make_evaluation"):
        whole = getattr(loop, name)
        monkeypatch.setattr(loop, name, lambda *a, f=whole, **k: made.append(f(*a, **k)) or made[-1])
    return made


@pytest.mark.parametrize(
    ("kind", "steps"),
    # 16 answers are 4 batches: a stream of 3 at a time ends with 2 batches of padding, one of 8 is one piece.
    [("L1", 3), ("L4", 8)],
)
def test_a_stream_trains_to_the_bits_of_a_resident_split_in_one_program_each(stores, steps_of, kind, steps):
    resident, stream = (trained(stores, Engine(mode=mode, stream_steps=steps), kind) for mode in ("resident", "stream"))
    assert numbers(stream) == numbers(resident)
    for name, value in named_parameters(resident.adapter).items():
        assert_array_equal(named_parameters(stream.adapter)[name], value, err_msg=name)
    assert [made._cache_size() for made in steps_of] == [1, 1, 1, 1]


def test_a_resident_split_holds_what_its_pairs_in_memory_do(stores):
    pairs = read_pairs(stores[0], inputs="both", pairing="index")
    engine = Engine(mode="resident")
    memory, store = as_source(pairs, engine.mesh()), of_store(stores[0], engine)
    for name, value in memory.data._asdict().items():
        assert_array_equal(getattr(store.data, name), value, err_msg=name)


@pytest.mark.parametrize("pairing", ["index", "synced", None])
def test_every_batch_of_a_stream_is_what_a_resident_split_gives(stores, pairing):
    inputs, engine = "target" if pairing is None else "both", Engine(stream_steps=2)
    resident = of_store(stores[0], dataclasses.replace(engine, mode="resident"), inputs=inputs, pairing=pairing)
    stream = of_store(stores[0], dataclasses.replace(engine, mode="stream"), inputs=inputs, pairing=pairing)
    ((data, order),) = resident.epoch(ORDER)
    assert_array_equal(order, ORDER)
    pieces = []
    for nothing, piece in stream.epoch(ORDER):
        assert nothing is None
        pieces.append(jax.tree.map(np.array, piece))
    assert [piece.target.shape[:2] for piece in pieces] == [(2, 2)] * 3, "the last one is filled up"
    assert not pieces[-1].same_mask[1].any()
    assert not pieces[-1].target[1].any()
    whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(ORDER)], *pieces)
    real = ORDER != PADDING
    for name, value in whole._asdict().items():
        held = getattr(data, name)
        assert (value is None) == (held is None)
        if value is not None:
            assert_array_equal(value[real], np.asarray(held)[ORDER[real]], err_msg=name)
    assert not whole.same_mask[~real].any()
    assert not whole.next_mask[~real].any()


def test_pieces_of_a_stream_stay_what_they_are_while_later_ones_are_read(stores):
    """The buffers that they were read into are filled again; a step may not have run yet."""
    order = np.arange(ROWS, dtype=np.int32).reshape(8, 2)
    pieces = [piece for _, piece in of_store(stores[0], Engine(mode="stream", stream_steps=1)).epoch(order)]
    pairs = read_pairs(stores[0], inputs="both", pairing="index")
    for rows, piece in zip(order, pieces, strict=True):
        assert_array_equal(piece.target[0], pairs.target[rows])
        assert_array_equal(piece.drafter[0], pairs.drafter[rows])


def test_a_part_of_a_split_is_read_by_its_own_rows(stores, monkeypatch):
    monkeypatch.setattr(sources, "UPLOAD_ROWS", 3)
    store, mesh = stores[0], Engine().mesh()
    index = read_index(store, inputs="both", pairing="index").take([12, 5, 6, 7, 0])
    resident = ResidentSource.of_store(store, index, "index", mesh)
    pairs = read_pairs(store, inputs="both", pairing="index").take([12, 5, 6, 7, 0])
    for name, value in resident.data._asdict().items():
        assert_array_equal(value, getattr(pairs, name), err_msg=name)
    stream = StreamSource(index=index, store=store, pairing="index", mesh=mesh, steps=2)
    ((_, piece),) = stream.epoch(np.asarray([[0, 4]], np.int32))
    assert_array_equal(piece.target[0], pairs.target[[0, 4]])


def test_every_device_holds_a_resident_split_and_its_part_of_a_stream(stores):
    whole, stream = (of_store(stores[0], Engine(mode=mode)) for mode in ("resident", "stream"))
    assert {shard.data.shape[0] for shard in whole.data.target.addressable_shards} == {ROWS}
    ((_, piece),) = stream.epoch(ORDER)
    assert {shard.data.shape[:2] for shard in piece.target.addressable_shards} == {(len(ORDER), 1)}


def test_free_memory_decides_between_the_two(stores, monkeypatch):
    for free, resident in ((10**9, True), (10**3, False), (None, True)):
        monkeypatch.setattr(engines, "free_memory", lambda free=free: free)
        assert of_store(stores[0], Engine()).resident is resident
    assert of_store(stores[0], Engine(mode="resident")).resident
    assert not of_store(stores[0], Engine(mode="stream")).resident
    mesh = Engine().mesh()
    assert as_source(made_up.pairs(), mesh).resident


def overflowing(root, row: int) -> list[Store]:
    """A store in which one answer's states are finite, and their squares are not."""

    def spoil(fields):
        fields["target_hidden"][row, 0] = 3e38

    made = write_store(root / "train", spoil=spoil, shard_rows=4)
    return [Store.open(made), Store.open(write_store(root / "validation", rows=8, prefix="validation"))]


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_a_loss_that_is_not_finite_names_epoch_step_shard_and_rows(tmp_path, mode):
    row = 13
    stores = overflowing(tmp_path, row)
    order = loop.epoch_order(np.arange(ROWS), made_up.recipe(batch=2), 0, 2)
    step = int(np.flatnonzero((order == row).any(1))[0])
    rows = sorted(order[step].tolist())
    shards = ", ".join(map(str, sorted({r // 4 for r in rows})))
    with pytest.raises(UserError) as caught:
        trained(stores, Engine(mode=mode, stream_steps=3), batch=2)
    told = f"epoch 1, step {step + 1} of 8: the loss is not finite (rows {rows[0]}, {rows[1]} of "
    assert told in str(caught.value)
    assert f"{stores[0].path}, shards {shards})" in str(caught.value)


def test_many_rows_are_counted_not_listed(stores):
    told = of_store(stores[0], Engine(mode="stream")).where(np.arange(ROWS)[::-1])
    assert told.startswith("rows 0, 1, 2, 3, 4, 5, 6, 7 and 8 more of ")
    assert told.endswith("shards 0, 1, 2, 3")
    assert as_source(made_up.pairs(), Engine().mesh()).where(np.asarray([2, PADDING])) == "rows 2"


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_a_state_that_is_not_finite_stops_the_reading_with_its_row(tmp_path, mode):
    def spoil(fields):
        fields["drafter_hidden"][3, 0, 0] = np.nan

    stores = [
        Store.open(write_store(tmp_path / name, spoil=change, prefix=name))
        for name, change in (("train", spoil), ("validation", lambda fields: None))
    ]
    with pytest.raises(StoreError, match="row 3 of drafter_hidden holds nan or inf"):
        trained(stores, Engine(mode=mode), epochs=1)


def test_splits_that_share_a_sequence_are_refused_before_they_are_read(stores):
    with pytest.raises(UserError, match="both have train_0"):
        trained([stores[0], stores[0]], Engine(mode="stream"))
