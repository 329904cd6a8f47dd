"""Pairs: the masks of the contract, states that are refused, and validation by whole sequences."""

from dataclasses import fields
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.small_store import length_of, write_store
from xmsd_jax.data.batches import (
    LEAST_PAIRS,
    Index,
    keep_answers,
    pair_masks,
    read_index,
    read_pairs,
    split_by_sequence,
    state_bytes,
)
from xmsd_jax.data.store import Store, StoreError


@pytest.fixture
def store(tmp_path):
    return Store.open(write_store(tmp_path / "train"))


def test_index_pairs_end_with_the_shorter_answer_and_short_ones_count_nothing():
    same, following = pair_masks(np.array([6, 8, 8, 3]), np.array([8, 6, 4, 8]), 8, index=True)
    assert same.sum(1).tolist() == [6, 6, 0, 0]
    assert same.sum(1)[same.any(1)].min() >= LEAST_PAIRS
    assert following.sum(1).tolist() == [5, 6, 0, 0], "y[5] is compared with h[6] where the target goes on"


def test_synced_and_target_pairs_end_with_the_target():
    same, following = pair_masks(np.array([6, 1, 0]), np.array([6, 1, 0]), 8, index=False)
    assert same.sum(1).tolist() == [6, 1, 0]
    assert following.sum(1).tolist() == [5, 0, 0]


@pytest.mark.parametrize(("pairing", "field"), [("index", "drafter_hidden"), ("synced", "drafter_synced")])
def test_the_pairing_says_which_drafter_states_are_read(store, pairing, field):
    pairs = read_pairs(store, inputs="both", pairing=pairing)
    length = pairs.drafter_len[3]
    assert_array_equal(pairs.drafter[3, :length], store.read(field)[3, :length].astype(np.float32))
    assert pairs.drafter.dtype == pairs.target.dtype == np.float32
    expected = store.read("drafter_len") if pairing == "index" else store.read("target_len")
    assert_array_equal(pairs.drafter_len, expected)


def test_states_past_the_end_are_zeros_whatever_the_store_holds(tmp_path):
    path = write_store(tmp_path / "train", spoil=lambda fields: fields["target_hidden"][:, -1].fill(np.nan))
    pairs = read_pairs(Store.open(path), inputs="target", pairing=None)
    assert pairs.drafter is None
    assert not pairs.target[np.arange(pairs.target.shape[1]) >= pairs.target_len[:, None]].any()


@pytest.mark.parametrize("field", ["drafter_hidden", "target_hidden", "drafter_synced"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused_by_field_and_row(tmp_path, field, value):
    def spoil(fields):
        fields[field][5, 2, 1] = value

    store = Store.open(write_store(tmp_path / "train", spoil=spoil))
    pairing = "synced" if field == "drafter_synced" else "index"
    with pytest.raises(StoreError, match=f"row 5 of {field} holds nan or inf .* extract again"):
        read_pairs(store, inputs="both", pairing=pairing)


def test_states_can_be_kept_as_they_are_stored(tmp_path):
    store = Store.open(write_store(tmp_path / "train", dtype="bfloat16"))
    kept = read_pairs(store, inputs="drafter", pairing="index", as_stored=True)
    read = read_pairs(store, inputs="drafter", pairing="index")
    assert kept.target.dtype.name == "bfloat16"
    assert_array_equal(kept.target.astype(np.float32), read.target)


@pytest.mark.parametrize(("inputs", "pairing"), [("target", "index"), ("both", None)])
def test_a_pairing_is_given_exactly_where_drafter_states_are_read(store, inputs, pairing):
    with pytest.raises(ValueError, match="pairing says which drafter states"):
        read_pairs(store, inputs=inputs, pairing=pairing)


def test_an_impossible_length_is_refused(tmp_path):
    path = write_store(tmp_path / "train", spoil=lambda fields: fields["target_len"].__setitem__(4, 99))
    with pytest.raises(StoreError, match=r"row 4 of target_len must be 0\.\.10, got 99"):
        read_pairs(Store.open(path), inputs="target", pairing=None)


def test_rows_are_taken_in_the_order_asked_for(store):
    pairs = read_pairs(store, inputs="both", pairing="synced")
    taken = pairs.take([7, 2])
    assert len(taken) == 2
    assert taken.target_len.tolist() == [length_of(7), length_of(2)]
    assert taken.row.tolist() == [7, 2]
    assert taken.take([True, False]).row.tolist() == [7], "a row stays the store's"
    assert_array_equal(taken.target[0], pairs.target[7])
    assert read_pairs(store, inputs="target", pairing=None).take([1]).drafter is None


@pytest.mark.parametrize(("inputs", "pairing"), [("both", "index"), ("drafter", "synced"), ("target", None)])
def test_an_index_is_the_pairs_without_their_states(store, inputs, pairing):
    index, pairs = read_index(store, inputs=inputs, pairing=pairing), read_pairs(store, inputs=inputs, pairing=pairing)
    assert {field.name for field in fields(pairs)} - {field.name for field in fields(index)} == {"drafter", "target"}
    for field in fields(index):
        assert_array_equal(getattr(index, field.name), getattr(pairs, field.name))
    assert index.row.tolist() == list(range(store.rows))
    assert index.row.dtype == np.int32


def test_an_index_is_split_as_its_pairs_are(store):
    parts = split_by_sequence(read_index(store, inputs="both", pairing="index"), 0.4, 2)
    expected = split_by_sequence(read_pairs(store, inputs="both", pairing="index"), 0.4, 2)
    for part, pairs in zip(parts, expected, strict=True):
        assert isinstance(part, Index)
        assert_array_equal(part.row, pairs.row)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_of_the_states_are_those_that_pairs_hold(tmp_path, dtype):
    store = Store.open(write_store(tmp_path / "train", dtype=dtype))
    pairs = read_pairs(store, inputs="both", pairing="index", as_stored=True)
    assert state_bytes(store, "index") == pairs.drafter.nbytes + pairs.target.nbytes
    assert state_bytes(store, None, rows=3) == pairs.target[:3].nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_kind_of_nan_and_infinity_is_seen_and_no_number_is_taken_for_one(dtype, value):
    most = float(ml_dtypes.finfo(dtype).max)
    states = np.array([[[most, -most]], [[0, -0.0]]], dtype)
    keep_answers(states, np.array([1, 1]), np.arange(2), Path("train/target_hidden"))
    states[1, 0, 1] = value
    with pytest.raises(StoreError, match="row 9 of target_hidden"):
        keep_answers(states, np.array([1, 1]), np.array([4, 9]), Path("train/target_hidden"))


@pytest.mark.parametrize("share", [0.01, 0.4, 0.99])
def test_validation_takes_whole_sequences_and_neither_part_is_empty(store, share):
    pairs = read_pairs(store, inputs="both", pairing="index")
    for seed in range(3):
        train, validation = split_by_sequence(pairs, share, seed)
        assert not set(train.sequence) & set(validation.sequence)
        assert set(train.sequence) | set(validation.sequence) == set(pairs.sequence)
        assert len(train) + len(validation) == len(pairs)
    again = split_by_sequence(pairs, share, 1)[1]
    assert_array_equal(again.sequence, split_by_sequence(pairs, share, 1)[1].sequence)


def test_one_sequence_cannot_be_split(store):
    pairs = read_pairs(store, inputs="target", pairing=None)
    one = pairs.take(pairs.sequence == pairs.sequence[0])
    with pytest.raises(StoreError, match=r"has only .*give a validation store"):
        split_by_sequence(one, 0.5, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_sequence(pairs, 1.0, 0)
