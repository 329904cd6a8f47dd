"""A stream of states: the rows asked for, in that order, in few buffers; no damage passes and no thread is left."""

import contextlib
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tests.small_store import ROWS, STEPS, WIDTH, write_store
from xmsd_jax.data import row_reader, stream
from xmsd_jax.data.batches import read_pairs
from xmsd_jax.data.row_reader import RowReader
from xmsd_jax.data.store import Store, StoreError
from xmsd_jax.data.stream import stream_rows

FIELDS = ("drafter_hidden", "target_hidden")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Two rows to a thread, so that a small chunk has many parts."""
    monkeypatch.setattr(stream, "PART_BYTES", 2 * STEPS * WIDTH * 4)


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "train", shard_rows=4)


@pytest.fixture
def store(path):
    return Store.open(path)


@pytest.fixture
def pairs(store):
    return read_pairs(store, inputs="both", pairing="index", as_stored=True)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream-rows")]


def orders(count: int, size: int = 6, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(-1, ROWS, size) for _ in range(count)]


def expected(states: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where((rows >= 0)[:, None, None], states[rows], np.zeros((), states.dtype))


def damage(path, field: str, row: int) -> None:
    """Flip a bit in the middle of a row; shards hold four."""
    file = path / field / "c" / str(row // 4) / "0" / "0"
    content = bytearray(file.read_bytes())
    content[(row % 4) * (STEPS * WIDTH * 4 + 4) + 9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stream_gives_the_rows_of_pairs_in_the_order_asked_for(tmp_path_factory, dtype):
    path = write_store(tmp_path_factory.mktemp("s") / "train", shard_rows=4, dtype=dtype)
    store = Store.open(path)
    pairs = read_pairs(store, inputs="both", pairing="index", as_stored=True)
    chunk = st.lists(st.integers(-1, ROWS - 1), max_size=9).map(lambda rows: np.array(rows, np.int32))

    @given(st.lists(chunk, max_size=5), st.integers(1, 3), st.integers(1, 3))
    @settings(max_examples=40, deadline=None)
    def check(chunks, ahead, threads):
        given_back = stream_rows(store, FIELDS, chunks, ahead=ahead, threads=threads)
        for rows, states in zip(chunks, given_back, strict=True):
            assert list(states) == list(FIELDS)
            for field, all_states in zip(FIELDS, (pairs.drafter, pairs.target), strict=True):
                assert states[field].dtype == all_states.dtype
                assert_array_equal(states[field], expected(all_states, rows))

    check()


def test_synced_states_end_with_the_target(store):
    synced = read_pairs(store, inputs="both", pairing="synced", as_stored=True)
    (states,) = stream_rows(store, ["drafter_synced"], [np.arange(ROWS)])
    assert_array_equal(states["drafter_synced"], synced.drafter)


def test_states_past_the_end_are_zeros_whatever_the_store_holds_at_the_first_reading_and_later(tmp_path):
    path = write_store(tmp_path / "train", spoil=lambda fields: fields["target_hidden"][:, -1].fill(np.nan))
    store = Store.open(path)
    clean = read_pairs(store, inputs="target", pairing=None).target
    for states in stream_rows(store, ["target_hidden"], [np.arange(ROWS)] * 2):
        assert_array_equal(states["target_hidden"], clean)


def test_rows_are_read_again_without_tensorstore_and_are_the_same(store, pairs, monkeypatch):
    rows = np.array([5, 0, 15, -1, 5])
    list(stream_rows(store, FIELDS, [rows]))
    monkeypatch.setattr(RowReader, "_read_verified", None)
    (states,) = stream_rows(store, FIELDS, [rows[::-1]])
    assert_array_equal(states["target_hidden"], expected(pairs.target, rows[::-1]))


@pytest.mark.parametrize("hold", [1, 2, 3])
@pytest.mark.parametrize("ahead", [1, 2])
def test_a_chunk_stays_as_it_is_until_hold_more_were_asked_for(store, pairs, ahead, hold):
    held = []
    chunks = orders(12)
    for rows, states in zip(chunks, stream_rows(store, FIELDS, chunks, ahead=ahead, hold=hold), strict=True):
        held = [*held, (rows, states)][-hold:]
        time.sleep(0.002)  # the readers run as far ahead as they may
        for older, kept in held:
            assert_array_equal(kept["target_hidden"], expected(pairs.target, older))


@pytest.mark.parametrize(("ahead", "hold"), [(1, 1), (2, 1), (3, 2)])
def test_memory_is_ahead_plus_hold_chunks_however_long_the_stream(store, monkeypatch, ahead, hold):
    allocated = []
    buffer = stream._Source.buffer
    monkeypatch.setattr(stream._Source, "buffer", lambda self, rows: allocated.append(rows) or buffer(self, rows))
    list(stream_rows(store, FIELDS, [*orders(20), np.arange(2)], ahead=ahead, hold=hold))
    assert sum(allocated) == (ahead + hold) * 6 * len(FIELDS)


def test_order_holds_when_later_chunks_are_read_sooner(store, pairs, monkeypatch):
    read_into = RowReader.read_into

    def slow_when_even(self, rows, *where):
        time.sleep(0.01 if rows[0] % 2 == 0 else 0)
        return read_into(self, rows, *where)

    monkeypatch.setattr(RowReader, "read_into", slow_when_even)
    chunks = [np.full(2, row) for row in range(ROWS)]
    for rows, states in zip(chunks, stream_rows(store, FIELDS, chunks, ahead=4, threads=4), strict=True):
        assert_array_equal(states["drafter_hidden"], pairs.drafter[rows])


def test_chunks_are_taken_no_further_ahead_than_said_and_may_be_endless(store):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield np.array([len(taken) % ROWS])

    states = stream_rows(store, FIELDS, endless(), ahead=3)
    assert not taken, "nothing is read before it is asked for"
    next(states)
    next(states)
    assert len(taken) == 2 + 3
    states.close()


def test_the_callers_index_array_may_be_reused(store, pairs):
    def reused():
        rows = np.zeros(3, np.int64)
        for row in range(5):
            rows[:] = row
            yield rows

    for row, states in enumerate(stream_rows(store, FIELDS, reused())):
        assert_array_equal(states["target_hidden"][1], pairs.target[row])


@pytest.mark.parametrize("how", ["end", "close", "break", "error"])
def test_no_thread_is_left(store, how):
    states = stream_rows(store, FIELDS, orders(8) if how != "error" else [np.array([1]), np.array([ROWS])], ahead=1)
    if how == "end":
        list(states)
    elif how == "error":
        with pytest.raises(StoreError):
            list(states)
    else:
        next(states)
        assert readers()
        if how == "close":
            states.close()
        del states
    assert not readers()


def test_an_error_of_a_reader_is_raised_where_its_chunk_is_asked_for(store, monkeypatch):
    read_into = RowReader.read_into

    def fails(self, rows, *where):
        if 7 in rows:
            raise MemoryError("no more")
        return read_into(self, rows, *where)

    monkeypatch.setattr(RowReader, "read_into", fails)
    states = stream_rows(store, FIELDS, [np.array([1]), np.array([2]), np.array([7]), np.array([3])], ahead=3)
    next(states)
    next(states)
    with pytest.raises(MemoryError, match="no more"):
        next(states)
    assert not readers()
    assert not list(states)


@pytest.mark.parametrize("field", FIELDS)
def test_a_damaged_byte_is_found_and_its_file_and_row_are_named(path, field):
    damage(path, field, 6)
    store = Store.open(path)
    list(stream_rows(store, FIELDS, [np.array([5, 7])]))
    with pytest.raises(StoreError, match=rf"{field}/c/1/0/0: row 6 of {field} cannot be read .*--fresh") as error:
        list(stream_rows(store, FIELDS, [np.array([4, 5, 6, 7])]))
    assert "\n" not in str(error.value)


def test_a_damaged_row_is_refused_again_when_it_is_asked_for_again(path):
    damage(path, "target_hidden", 6)
    store = Store.open(path)
    for _ in range(2):
        with pytest.raises(StoreError, match="row 6 of target_hidden"):
            list(stream_rows(store, ["target_hidden"], [np.array([6])]))


def test_a_damaged_shard_index_is_found(path):
    file = path / "target_hidden" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="row 4 of target_hidden cannot be read"):
        list(stream_rows(Store.open(path), ["target_hidden"], [np.array([4])]))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("what", ["gone", "short"])
def test_a_file_that_is_lost_after_its_rows_were_verified_is_an_error(path, store, pairs, what, passes):
    list(stream_rows(store, ["target_hidden"], [np.arange(ROWS)] * passes))
    file = path / "target_hidden" / "c" / "3" / "0" / "0"
    file.unlink() if what == "gone" else os.truncate(file, 100)
    again = stream_rows(store, ["target_hidden"], [np.array([1, 13])])
    if (what, passes) == ("gone", 2):  # opened by the second pass, and an open file is still there
        assert_array_equal(next(again)["target_hidden"], pairs.target[[1, 13]])
    else:
        with pytest.raises(StoreError, match="c/3/0/0: row 13 of target_hidden cannot be read"):
            list(again)


def test_of_a_row_read_before_no_more_than_its_answer_is_read(path, store, pairs):
    list(stream_rows(store, ["target_hidden"], [np.arange(ROWS)]))
    for file in (path / "target_hidden").rglob("0"):
        if file.is_file():
            content = np.frombuffer(bytearray(file.read_bytes()), np.uint8)
            number, row_bytes = int(file.parts[-3]), STEPS * WIDTH * 4
            for place in range(4):
                length = pairs.target_len[number * 4 + place]
                start = place * (row_bytes + 4)
                content[start + length * WIDTH * 4 : start + row_bytes] = 0xFF
            file.write_bytes(content.tobytes())
    (states,) = stream_rows(store, ["target_hidden"], [np.arange(ROWS)])
    assert_array_equal(states["target_hidden"], pairs.target)
    read = np.full_like(pairs.target, 7)
    store.reader("target_hidden").read_into(np.arange(ROWS), pairs.target_len, read)
    assert (read[np.arange(STEPS) >= pairs.target_len[:, None]] == 7).all()


@pytest.mark.parametrize("passes", [0, 1])
def test_a_shorter_answer_leaves_nothing_of_the_longer_one_before(store, pairs, passes):
    longest, shortest = np.argmax(pairs.target_len), np.argmin(pairs.target_len)
    assert pairs.target_len[longest] > pairs.target_len[shortest]
    list(stream_rows(store, ["target_hidden"], [np.arange(ROWS)] * passes))
    order = [np.array([row]) for row in (longest, shortest, longest, -1, longest, shortest, -1)]
    for rows, states in zip(order, stream_rows(store, ["target_hidden"], order, ahead=1), strict=True):
        assert_array_equal(states["target_hidden"], expected(pairs.target, rows))


def test_buffers_cannot_be_written_to(store):
    (states,) = stream_rows(store, ["target_hidden"], [np.array([1])])
    with pytest.raises(ValueError, match="read-only"):
        states["target_hidden"][0, -1] = 1


def test_every_row_is_tested_for_nan_at_its_first_reading_and_never_again(store, monkeypatch):
    tested = []
    monkeypatch.setattr(stream, "keep_answers", lambda states, lengths, rows, source: tested.extend(rows))
    for rows in ([9, -1, 3, 4], [4, 5, -1, 9, 6], np.arange(ROWS)[::-1], np.arange(ROWS)):
        list(stream_rows(store, ["target_hidden"], [np.array(rows)]))
        assert set(rows) - {-1} <= set(tested)
    assert sorted(tested) == list(range(ROWS))


def test_a_row_with_nan_is_refused_again_when_it_is_asked_for_again(tmp_path):
    store = Store.open(write_store(tmp_path / "train", spoil=lambda fields: fields["target_hidden"][5, 0].fill(np.nan)))
    for _ in range(2):
        with pytest.raises(StoreError, match="row 5 of target_hidden holds nan or inf"):
            list(stream_rows(store, ["target_hidden"], [np.arange(ROWS)]))


def open_shards(path) -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            found += str(path) in os.readlink(link)
    return found


def settles(path, count: int) -> bool:
    """Whether so many shards are open, soon: files of earlier reads are closed by threads of their own."""
    for _ in range(300):
        if open_shards(path) == count:
            return True
        time.sleep(0.01)
    return False


def test_few_shards_stay_open_and_none_when_the_store_is_gone(path, monkeypatch):
    monkeypatch.setattr(row_reader, "MOST_OPEN", 2)
    store = Store.open(path)
    rows = np.arange(ROWS)
    pairs = read_pairs(store, inputs="both", pairing="index", as_stored=True)
    assert settles(path, 0)
    for states in stream_rows(store, FIELDS, [rows] * 8, threads=4):
        assert_array_equal(states["target_hidden"], pairs.target)
    del states
    assert settles(path, 2 * len(FIELDS))
    gc.disable()
    try:
        del store
        assert settles(path, 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_state_that_is_not_finite_is_refused_as_by_pairs(tmp_path, value):
    def spoil(fields):
        fields["drafter_hidden"][5, 2, 1] = value

    store = Store.open(write_store(tmp_path / "train", spoil=spoil, dtype="bfloat16"))
    with pytest.raises(StoreError) as expected_error:
        read_pairs(store, inputs="both", pairing="index")
    with pytest.raises(StoreError, match="row 5 of drafter_hidden holds nan or inf") as error:
        list(stream_rows(store, FIELDS, [np.array([2, 5])]))
    assert str(error.value) == str(expected_error.value)


@pytest.mark.parametrize(
    ("rows", "problem"), [([0, ROWS], r"-1\.\.15; received 0\.\.16"), ([-2], "-2"), ([[1]], "shape")]
)
def test_rows_outside_the_store_are_refused(store, rows, problem):
    with pytest.raises(StoreError, match=problem):
        list(stream_rows(store, FIELDS, [np.array(rows)]))


@pytest.mark.parametrize("wrong", [{"ahead": 0}, {"hold": 0}, {"threads": 0}, {"fields": ["clip"]}, {"fields": []}])
def test_impossible_arguments_are_refused_at_once(store, wrong):
    with pytest.raises(ValueError, match=r"at least 1|fields of states"):
        stream_rows(store, **{"fields": FIELDS, "chunks": [], **wrong})
