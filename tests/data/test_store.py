"""The store: what is written is what is read, a killed writer loses nothing, and nothing damaged is read in silence."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from xmsd_jax.config import UserError
from xmsd_jax.data import store_layout
from xmsd_jax.data.store import FIELDS, Manifest, Store, StoreError, StoreWriter

ROWS, SHARD, STEPS, WIDTH = 10, 4, 3, 8
NAMES = {"sequences": ["a", "b"], "clips": ["a0", "a1", "b0"], "questions": ["what?", "where?"]}
TEXTS = {"target": ["t"] * ROWS, "drafter": ["d"] * ROWS}
HEAD = np.arange(12, dtype=np.float32).reshape(3, 4)


def manifest(**changes) -> Manifest:
    values = dict(
        models={"target": "tall", "drafter": "short"}, revisions={"target": "1", "drafter": "2"},
        quantisation={"target": "none", "drafter": "none"}, norm_slot="post", prompt_hash="ab",
        vocabulary={"real": 60, "target": 64, "drafter": 60}, head_fingerprint=store_layout.head_fingerprint(HEAD),
        software={"torch": "2"}, batch={"clips": 2}, inputs={"n": 5}, questions=("what?",), max_new_tokens=STEPS,
        width=WIDTH, rows=ROWS, dtype="bfloat16", shard_rows=SHARD, clips_fingerprint="cd",
    )  # fmt: skip
    return Manifest(**{**values, **changes})


def shard(rows: range, made: Manifest, seed: int = 0) -> dict[str, np.ndarray]:
    """A shard's fields; every row depends on its own number only."""
    fields = {}
    for name in sorted(set(FIELDS) - {"done"}):
        shape, dtype = store_layout.row_shape(made, name), store_layout.dtype_of(made, name)
        draws = [np.random.default_rng([seed, row]).integers(0, 3, shape) for row in rows]
        fields[name] = np.stack(draws).astype(dtype)
    return fields


def fill(writer: StoreWriter, count: int | None = None) -> None:
    for rows in list(writer.pending())[:count]:
        writer.write(rows.start, shard(rows, writer.manifest))


@pytest.fixture
def made(tmp_path):
    """A finished store."""
    path = tmp_path / "root" / "test"
    writer = StoreWriter.create_or_resume(path, manifest(), NAMES)
    fill(writer)
    writer.finish(TEXTS)
    store_layout.keep_head(path.parent, HEAD)
    return path


def contents(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_field_reads_back_what_was_written_in_its_dtype(tmp_path, dtype):
    writer = StoreWriter.create_or_resume(tmp_path / "s", manifest(dtype=dtype), NAMES)
    fill(writer)
    writer.finish(TEXTS)
    store = Store.open(tmp_path / "s")
    for name, written in shard(range(ROWS), store.manifest).items():
        read = store.read(name)
        assert read.dtype == written.dtype
        np.testing.assert_array_equal(read, written)
    assert store.read("target_hidden").dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    assert (store.names, store.texts, store.rows) == (NAMES, TEXTS, ROWS)
    assert store.manifest == manifest(dtype=dtype)


def test_rows_are_read_in_the_order_asked_for(made):
    store, rows = Store.open(made), [7, 0, 3, 3]
    np.testing.assert_array_equal(store.read("drafter_synced", rows), store.read("drafter_synced")[rows])
    np.testing.assert_array_equal(store.read("target_len", slice(2, 6)), store.read("target_len")[2:6])


def test_token_ids_are_cut_at_the_length(made):
    store = Store.open(made)
    for row in range(ROWS):
        length = store.read("target_len")[row]
        np.testing.assert_array_equal(store.token_ids("target", row), store.read("target_ids")[row, :length])


@pytest.mark.parametrize("rows", [[10], [-1], [0, 99]])
def test_a_row_outside_the_store_is_an_error(made, rows):
    with pytest.raises(StoreError, match=r"rows are 0\.\.9"):
        Store.open(made).read("target_ids", rows)


def test_a_writer_that_was_stopped_continues_to_the_same_bytes(tmp_path, made):
    path = tmp_path / "resumed"
    fill(StoreWriter.create_or_resume(path, manifest(), NAMES), count=1)
    writer = StoreWriter.create_or_resume(path, manifest(), NAMES)
    assert [rows.start for rows in writer.pending()] == [4, 8]
    fill(writer)
    writer.finish(TEXTS)
    assert contents(path) == contents(made)


def test_a_shard_that_was_cut_off_before_its_done_flag_is_written_again(tmp_path, made, monkeypatch):
    path = tmp_path / "cut"
    writer = StoreWriter.create_or_resume(path, manifest(), NAMES)
    other = shard(range(SHARD), manifest(), seed=1)
    monkeypatch.delitem(writer._arrays, "done")
    with pytest.raises(KeyError):  # dies after the fields, before the flag
        writer.write(0, other)
    again = StoreWriter.create_or_resume(path, manifest(), NAMES)
    fill(again)
    again.finish(TEXTS)
    assert contents(path) == contents(made)


def test_unfinished_rows_are_counted_in_the_error(tmp_path):
    writer = StoreWriter.create_or_resume(tmp_path / "s", manifest(), NAMES)
    fill(writer, count=2)
    with pytest.raises(StoreError, match=r"2 of 10 rows are unfinished.*continues"):
        Store.open(tmp_path / "s")
    with pytest.raises(StoreError, match="2 rows are not written yet"):
        writer.finish(TEXTS)


def test_a_store_without_texts_is_unfinished(made):
    (made / "texts.json").unlink()
    with pytest.raises(StoreError, match="did not finish"):
        Store.open(made)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_missing_or_truncated_shard_of_any_field_is_found_on_opening(made, tmp_path, field):
    file = next(file for file in sorted((made / field / "c").rglob("*")) if file.is_file())
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(StoreError):
        Store.open(made)
    file.unlink()
    with pytest.raises(StoreError):
        Store.open(made)


def test_a_flipped_bit_is_found_by_its_checksum(made):
    file = made / "target_hidden" / "c" / "1" / "0" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[3] ^= 1
    file.write_bytes(damaged)
    store = Store.open(made)
    store.read("target_hidden", [0])
    with pytest.raises(StoreError, match="damaged"):
        store.read("target_hidden", [4])


def test_each_field_of_a_wrong_manifest_is_named_with_both_values_and_a_remedy(made):
    expected = {"models": {"target": "tall", "drafter": "other"}, "max_new_tokens": 64, "dtype": "bfloat16"}
    with pytest.raises(StoreError) as error:
        Store.open(made, expect=expected)
    text = str(error.value)
    assert "models.drafter is 'short', expected 'other'" in text
    assert "max_new_tokens is 3, expected 64" in text
    assert "tall" not in text
    assert "extract again" in text


def test_a_manifest_that_fits_is_accepted(made):
    assert Store.open(made, expect={"models": {"target": "tall"}, "questions": ["what?"]}).rows == ROWS


@pytest.mark.parametrize(
    "change",
    [{"shard_rows": 5}, {"prompt_hash": "x"}, {"rows": 11}, {"questions": ("why?",)}, {"software": {"torch": "3"}}],
)
def test_a_writer_refuses_the_store_of_another_run_and_leaves_it_as_it_was(made, change):
    before = contents(made)
    with pytest.raises(StoreError, match=next(iter(change))):
        StoreWriter.create_or_resume(made, manifest(**change), NAMES)
    with pytest.raises(StoreError, match="clips differ"):
        StoreWriter.create_or_resume(made, manifest(), {**NAMES, "clips": ["z"]})
    assert contents(made) == before


def test_foreign_folders_and_files_are_refused(made, tmp_path):
    with pytest.raises(StoreError, match="not a store"):
        Store.open(tmp_path / "nowhere")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        StoreWriter.create_or_resume(full, manifest(), NAMES)
    assert contents(full) == {"thesis.txt": b"mine"}
    for text, problem in [("{", "cannot be read"), ('{"a": 1}', "foreign"), ('{"format": "xmsd-store"}', "version")]:
        (made / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match=problem):
            Store.open(made)


def test_a_manifest_with_a_missing_or_unknown_field_is_refused(made):
    content = json.loads((made / "manifest.json").read_text())
    content["colour"] = content.pop("width")
    (made / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="missing or unknown: colour, width"):
        Store.open(made)


def test_arrays_of_another_shape_than_the_manifest_are_refused(made):
    content = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**content, "width": 16}))
    with pytest.raises(StoreError):
        Store.open(made)


def test_only_whole_shards_with_all_fields_in_their_dtype_are_written(tmp_path):
    writer = StoreWriter.create_or_resume(tmp_path / "s", manifest(), NAMES)
    good = shard(range(4), manifest())
    with pytest.raises(StoreError, match="whole shards"):
        writer.write(2, good)
    with pytest.raises(StoreError, match="missing or unknown: clip"):
        writer.write(0, {name: array for name, array in good.items() if name != "clip"})
    with pytest.raises(StoreError, match="target_hidden must be bfloat16"):
        writer.write(0, {**good, "target_hidden": good["target_hidden"].astype(np.float32)})
    with pytest.raises(StoreError, match="clip must be int32"):
        writer.write(8, good)  # four rows, the last shard has two
    assert sum(map(len, writer.pending())) == ROWS


def test_the_head_that_is_read_is_the_one_the_states_were_emitted_with(made):
    store = Store.open(made)
    np.testing.assert_array_equal(store.head(), HEAD)
    with pytest.raises(StoreError, match="another target"):
        store_layout.keep_head(made.parent, HEAD + 1)
    (made.parent / store_layout.HEAD).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.head()
    store_layout.keep_head(made.parent, HEAD + 1)
    with pytest.raises(StoreError, match="fingerprint"):
        store.head()


def test_a_bfloat16_head_keeps_its_bits(tmp_path):
    head = HEAD.astype(ml_dtypes.bfloat16)
    store_layout.keep_head(tmp_path, head)
    read = store_layout.read_head(tmp_path)
    assert read.dtype == ml_dtypes.bfloat16
    assert read.tobytes() == head.tobytes()


def test_store_errors_are_shown_to_the_user_as_one_line(made):
    shutil.rmtree(made / "target_ids")
    with pytest.raises(UserError) as error:
        Store.open(made).read("target_ids")
    assert "\n" not in str(error.value)
