"""States in 8 bits: within the error that is promised, canonical, and read like any other states, fast path or not."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from tests import small_store
from tests.small_store import ROWS, STEPS, WIDTH, write_store
from xmsd_jax.data import row_reader, store_layout
from xmsd_jax.data.batches import read_pairs, state_bytes
from xmsd_jax.data.float8 import NAN_SCALE, Decoder, decode, encode
from xmsd_jax.data.manifest import StoreError, read_manifest
from xmsd_jax.data.recode import recode
from xmsd_jax.data.store import Manifest, Store
from xmsd_jax.data.stream import stream_rows

FIELDS = ("drafter_hidden", "target_hidden")
FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-4, 4, width=32)),
    st.integers(-90, 90),
)
def test_each_number_is_within_a_sixteenth_or_the_least_step(states, power):
    states = np.ldexp(states, power)
    found = decode(*encode(states), FLOAT32)
    largest = np.abs(states).max(-1, keepdims=True)
    # Half the step of e4m3's evenly spaced numbers near zero; the least normal float32 where that would be below it.
    least_step = np.maximum(largest / 224 * 2.0**-10, np.float32(2.0**-126))
    assert (np.abs(found - states) <= np.maximum(np.abs(states) / 16, least_step) * (1 + 1e-6)).all()


@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_what_was_read_is_stored_again_as_the_same_bytes_and_is_the_same_in_both_dtypes(states):
    codes, scales = encode(states)
    for dtype in (FLOAT32, BFLOAT16):
        found = decode(codes, scales, dtype)
        assert_array_equal(found.astype(np.float32), decode(codes, scales, FLOAT32))
        again, scales_again = encode(found)
        assert_array_equal(again, codes)
        assert_array_equal(scales_again, scales)


def test_codes_are_those_of_ml_dtypes_at_the_least_power_that_holds_the_largest():
    states = np.random.default_rng(0).normal(0, 1, (200, 64)).astype(np.float32)
    states *= np.exp2(np.random.default_rng(1).integers(-20, 20, (200, 1))).astype(np.float32)
    codes, scales = encode(states)
    for vector, own, scale in zip(states, codes, scales, strict=True):
        powers = [p for p in range(-40, 40) if np.isfinite(np.ldexp(vector, -p).astype(ml_dtypes.float8_e4m3fn)).all()]
        assert int(scale) - 127 == powers[0]
        assert_array_equal(np.ldexp(vector, -powers[0]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8), own)


def test_states_as_a_model_has_them_keep_their_direction():
    """Of 4096 numbers, a few of them fifty times the others, as Llama's states are."""
    draw = np.random.default_rng(0)
    states = draw.normal(0, 1, (64, 4096)).astype(np.float32)
    states[:, draw.integers(0, 4096, 6)] *= 50
    assert cosine(states, decode(*encode(states), BFLOAT16)).min() > 0.9993


def test_zeros_stay_zeros_and_what_is_not_a_number_spoils_its_vector_only():
    states = np.array([[0, -0.0, 0], [1, np.nan, 2], [1, -np.inf, 2], [1, 2, 3], [1e-45, 0, 0]], np.float32)
    codes, scales = encode(states)
    assert scales.tolist()[1:3] == [NAN_SCALE] * 2
    found = decode(codes, scales, FLOAT32)
    assert_array_equal(found[[0, 3]], states[[0, 3]])
    assert np.isnan(found[1:3]).all()
    assert np.isfinite(found[4]).all()


def test_a_decoder_knows_the_scales_that_it_was_made_of():
    codes, scales = encode(np.ldexp(np.ones((4, 5), np.float32), np.array([[-3], [0], [7], [0]])))
    out = np.empty((4, 5), BFLOAT16)
    Decoder(scales, BFLOAT16).decode_into(codes, scales, out)
    assert_array_equal(out.astype(np.float32), np.ldexp(np.ones((4, 5), np.float32), np.array([[-3], [0], [7], [0]])))


def size_of(array) -> int:
    return sum(file.stat().st_size for file in (array / "c").rglob("*") if file.is_file())


@pytest.fixture(params=["float32", "bfloat16"])
def both(request, tmp_path):
    """The same answers, native and in float8."""
    path = write_store(tmp_path / "native" / "train", shard_rows=4, dtype=request.param)
    return Store.open(path), Store.open(recode(path, tmp_path / "coded" / "train", "float8"))


def test_a_float8_store_holds_the_same_answers_in_less_room(both):
    native, coded = both
    for field in store_layout.FIELDS:
        if field not in store_layout.STATES:
            assert_array_equal(coded.read(field), native.read(field))
            continue
        assert coded.read(field).dtype == native.read(field).dtype
        assert cosine(coded.read(field), native.read(field)).min() > 0.999
    assert (coded.texts, coded.names) == (native.texts, native.names)
    assert_array_equal(coded.head(), native.head())
    sizes = [size_of(store.path / "target_hidden") + size_of(store.path / "target_hidden_scale") for store in both]
    assert sizes[1] < sizes[0] / (1.6 if native.manifest.dtype == "bfloat16" else 3.2)


def test_every_way_of_reading_gives_the_same_numbers(both):
    _, coded = both
    pairs = read_pairs(coded, inputs="both", pairing="index", as_stored=True)
    rows = np.array([5, -1, 0, 15, 5, 9])
    for pieces in (stream_rows(coded, FIELDS, [rows] * 3), stream_rows(coded, FIELDS, [rows])):
        for states in pieces:  # verified at first, then straight from the files
            for field, whole in zip(FIELDS, (pairs.drafter, pairs.target), strict=True):
                assert states[field].dtype == coded.manifest.dtype
                assert_array_equal(
                    states[field], np.where((rows >= 0)[:, None, None], whole[rows], whole.dtype.type(0))
                )
    picked = coded.read("target_hidden", [3, 1])
    assert_array_equal(picked, coded.read("target_hidden")[[3, 1]])
    assert state_bytes(coded, "index") == pairs.drafter.nbytes + pairs.target.nbytes


def test_a_float8_store_is_streamed_from_its_files_at_the_second_reading(both, monkeypatch):
    _, coded = both
    whole = read_pairs(coded, inputs="target", pairing=None, as_stored=True).target
    list(stream_rows(coded, ["target_hidden"], [np.arange(ROWS)]))
    monkeypatch.setattr(row_reader.RowReader, "_read_verified", None)
    (states,) = stream_rows(coded, ["target_hidden"], [np.arange(ROWS)[::-1]])
    assert_array_equal(states["target_hidden"], whole[::-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_found_when_it_is_read(tmp_path, bad):
    path = write_store(tmp_path / "train", states="float8", spoil=lambda fields: fields["target_hidden"][3].fill(bad))
    with pytest.raises(StoreError, match="row 3 of target_hidden holds nan or inf"):
        read_pairs(Store.open(path), inputs="target", pairing=None)
    with pytest.raises(StoreError, match="row 3 of target_hidden holds nan or inf"):
        list(stream_rows(Store.open(path), ["target_hidden"], [np.arange(ROWS)]))


@pytest.mark.parametrize("name", ["target_hidden", "target_hidden_scale"])
def test_damage_to_codes_and_to_scales_is_found(tmp_path, name):
    path = write_store(tmp_path / "train", states="float8")
    file = next(file for file in (path / name / "c").rglob("*") if file.is_file())
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(path).read("target_hidden")
    file.write_bytes(content[:-1])
    with pytest.raises(StoreError, match="bytes is expected"):
        Store.open(path)


def test_back_to_native_keeps_what_float8_reads(both, tmp_path):
    _, coded = both
    back = Store.open(recode(coded.path, tmp_path / "back" / "train", "native"))
    assert back.manifest.states == "native"
    for field in store_layout.STATES:
        assert_array_equal(back.read(field), coded.read(field))


def test_a_native_store_is_still_of_version_1_with_the_same_fingerprint(tmp_path):
    """Adapters that were trained before float8 know their store by this."""
    path = write_store(tmp_path / "train")
    content = json.loads((path / "manifest.json").read_text())
    assert content["version"] == 1
    assert not {"states", "absent"} & set(content)
    assert read_manifest(path) == small_store.manifest()
    old = json.dumps(content, sort_keys=True)
    assert read_manifest(path).fingerprint == hashlib.sha256(old.encode()).hexdigest()


def test_a_float8_store_says_so_and_does_not_pass_for_the_native_one(both):
    native, coded = both
    assert json.loads((coded.path / "manifest.json").read_text())["version"] == 2
    assert coded.manifest.fingerprint != native.manifest.fingerprint
    with pytest.raises(StoreError, match="states is 'float8', expected 'native'"):
        Store.open(coded.path, expect={"states": "native"})
    with pytest.raises(StoreError, match="states must be native or float8"):
        Manifest(**{**small_store.manifest().values(), "states": "int4"})


def test_rows_of_odd_sizes_are_decoded(tmp_path):
    states = np.random.default_rng(0).normal(0, 1, (3, STEPS, WIDTH - 1)).astype(np.float32)
    assert cosine(states, decode(*encode(states), FLOAT32)).min() > 0.999
    assert decode(*encode(states[:0]), FLOAT32).shape == (0, STEPS, WIDTH - 1)
