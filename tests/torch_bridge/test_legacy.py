"""The study's chunk folders: what is written comes back to the byte, other spellings are read, the rest is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch

from tests import small_store
from tests.data import writing
from torch_bridge import legacy
from torch_bridge.legacy import ChunkFolder, LegacyError, load_chunk
from xmsd_jax import cli
from xmsd_jax.config import UserError
from xmsd_jax.data.batches import read_pairs
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store, StoreError, StoreWriter
from xmsd_jax.pipeline import convert
from xmsd_jax.pipeline.convert import Conversion

N, T, D, V = 25, 6, 16, 12
HEAD = np.random.default_rng(1).normal(0, 1, (V, D)).astype(np.float32)


def study_states(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (N, T, D)).astype(np.float32))


LENGTHS = torch.from_numpy(np.random.default_rng(3).integers(1, T + 1, N))


def study_folder(root, *, chunk=10, index=True, spell=None):
    """A folder as the study describes it: three keys a chunk."""
    spell = spell or {"egpt_hidden": study_states(1), "vl_hidden": study_states(2), "seq_lens": LENGTHS}
    (root / "chunks").mkdir(parents=True)
    chunks = []
    for start in range(0, N, chunk):
        name = f"chunk_{start:06}.pt"
        torch.save({key: value[start : start + chunk] for key, value in spell.items()}, root / "chunks" / name)
        chunks.append({"path": name, "start_idx": start, "n_samples": min(chunk, N - start)})
    config = {"split": "train", "quant": "4bit", "max_questions": 5, "max_new_tokens": T, "hidden_dim": D}
    if index:
        content = {"total_samples": N, "chunk_size": chunk, "chunks": chunks, "config": config}
        (root / "index.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"dtype": "float32"}, {"states": "float8"}])
def test_a_store_comes_back_from_chunks_to_the_byte(tmp_path, changes):
    store = writing.extract(tmp_path / "a", **changes)
    convert.run(store, tmp_path / "chunks", Conversion(chunk_rows=5))
    back = convert.run(tmp_path / "chunks", tmp_path / "b" / "train", Conversion())
    assert writing.contents(back.parent) == writing.contents(store.parent)


def test_chunks_have_the_studys_form_and_its_three_keys(tmp_path):
    store = writing.extract(tmp_path / "a")
    folder = convert.run(store, tmp_path / "chunks", Conversion(chunk_rows=10))
    index = json.loads((folder / "index.json").read_text())
    assert [one["path"] for one in index["chunks"]] == ["chunk_000000.pt", "chunk_000010.pt", "chunk_000020.pt"]
    assert [one["n_samples"] for one in index["chunks"]] == [10, 10, 2]
    assert index["total_samples"] == writing.ROWS
    chunk = torch.load(folder / "chunks" / "chunk_000010.pt", weights_only=True)
    states = Store.open(store).read("target_hidden", slice(10, 20)).astype(np.float32)
    assert chunk["vl_hidden"].dtype == chunk["egpt_hidden"].dtype == torch.float32
    np.testing.assert_array_equal(chunk["vl_hidden"].numpy(), states)
    shorter = np.minimum(Store.open(store).read("target_len"), Store.open(store).read("drafter_len"))[10:20]
    assert chunk["seq_lens"].dtype == torch.int64
    np.testing.assert_array_equal(chunk["seq_lens"].numpy(), shorter)


def test_a_conversion_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    store = writing.extract(tmp_path / "a")
    saved = []

    def save_two(path, fields, save=legacy.save_chunk):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path.name)
        save(path, fields)

    monkeypatch.setattr(legacy, "save_chunk", save_two)
    with pytest.raises(KeyboardInterrupt):
        convert.run(store, tmp_path / "chunks", Conversion(chunk_rows=5))
    with pytest.raises(KeyboardInterrupt):  # goes on with the third, not the first
        convert.run(store, tmp_path / "chunks", Conversion(chunk_rows=5))
    assert saved == ["chunk_000000.pt", "chunk_000005.pt"]
    monkeypatch.undo()
    (tmp_path / "chunks" / "chunks" / ".chunk_000010.pt.12.ab.part").write_bytes(b"of a killed one")
    convert.run(store, tmp_path / "chunks", Conversion(chunk_rows=5))
    assert not [*(tmp_path / "chunks").rglob(".*")]

    written = []

    def write_two(self, start, fields, write=StoreWriter.write, **more):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, fields, **more)

    monkeypatch.setattr(StoreWriter, "write", write_two)
    with pytest.raises(KeyboardInterrupt):
        convert.run(tmp_path / "chunks", tmp_path / "b" / "train", Conversion())
    monkeypatch.undo()
    convert.run(tmp_path / "chunks", tmp_path / "b" / "train", Conversion())
    assert written == [0, 4]
    assert writing.contents(tmp_path / "b") == writing.contents(tmp_path / "a")


def test_the_studys_chunks_become_a_store_to_train_on(tmp_path):
    source = study_folder(tmp_path / "study")
    torch.save(torch.from_numpy(HEAD), tmp_path / "vl_lm_head.pt")
    conversion = Conversion(head=tmp_path / "vl_lm_head.pt", shard_rows=8)
    store = Store.open(convert.run(source, tmp_path / "store" / "train", conversion))
    np.testing.assert_array_equal(store.read("target_hidden"), study_states(2).numpy())
    np.testing.assert_array_equal(store.read("drafter_hidden"), study_states(1).numpy())
    np.testing.assert_array_equal(store.read("target_ids"), (study_states(2).numpy() @ HEAD.T).argmax(-1))
    np.testing.assert_array_equal(store.read("target_len"), LENGTHS.numpy())
    np.testing.assert_array_equal(store.read("clip"), np.arange(N) // 5)
    np.testing.assert_array_equal(store.read("question"), np.arange(N) % 5)
    np.testing.assert_array_equal(store.head(), HEAD)
    assert store.manifest.quantisation == {"target": "4bit", "drafter": "4bit"}
    assert store.manifest.questions == QUESTIONS[:5]
    assert len(read_pairs(store, inputs="both", pairing="index")) == N
    with pytest.raises(StoreError, match="has no drafter_synced"):
        read_pairs(store, inputs="both", pairing="synced")
    with pytest.raises(StoreError, match="has no drafter_ids"):
        store.token_ids("drafter", 0)


def test_the_studys_chunks_come_back_from_their_store(tmp_path):
    source = study_folder(tmp_path / "study")
    store = convert.run(source, tmp_path / "store" / "train", Conversion())
    back = convert.run(store, tmp_path / "back", Conversion(chunk_rows=10))
    for file in sorted((source / "chunks").iterdir()):
        theirs, ours = (torch.load(folder / "chunks" / file.name, weights_only=True) for folder in (source, back))
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


@pytest.mark.parametrize(
    "spell",
    [
        {"h_egpt": study_states(1), "h_vl": study_states(2), "mask": torch.arange(T) < LENGTHS[:, None]},
        {"drafter_hidden": study_states(1), "target_hidden": study_states(2), "lens": LENGTHS.int()},
    ],
)
def test_other_spellings_and_a_folder_without_index_are_read(tmp_path, spell):
    rows = ChunkFolder(study_folder(tmp_path / "s", index=False, spell=spell)).read(range(8, 23))
    np.testing.assert_array_equal(rows["target_hidden"], study_states(2).numpy()[8:23])
    np.testing.assert_array_equal(rows["drafter_len"], LENGTHS.numpy()[8:23])


def test_a_list_with_a_dict_for_each_answer_is_read(tmp_path):
    one = [
        {"h_egpt": study_states(1)[n], "h_vl": study_states(2)[n], "mask": torch.arange(T) < LENGTHS[n]}
        for n in range(4)
    ]
    torch.save(one, tmp_path / "chunk_0.pt")
    fields = ChunkFolder(tmp_path).read(range(4))
    np.testing.assert_array_equal(fields["drafter_hidden"], study_states(1).numpy()[:4])
    np.testing.assert_array_equal(fields["target_len"], LENGTHS.numpy()[:4])


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"egpt": torch.zeros(2, 3, 4), "speed": torch.zeros(2)},
            r"does not fit; found egpt, speed; accepted are .*h_vl",
        ),
        ({"h_egpt": torch.zeros(2, 3, 4), "h_vl": torch.zeros(2, 3, 4)}, "does not fit"),
        (torch.zeros(3), "a dict of tensors is expected"),
        ({"h_egpt": torch.zeros(2, 3, 4), "h_vl": torch.zeros(2, 3, 5), "lens": torch.ones(2)}, "of one shape"),
        ({"h_egpt": torch.zeros(2, 3, 4), "h_vl": torch.zeros(2, 3, 4), "lens": torch.ones(3)}, "not as many of"),
        ({"h_egpt": torch.zeros(1, 3, 4), "h_vl": torch.zeros(1, 3, 4), "mask": torch.tensor([[1, 0, 1]])}, "holes"),
        ({"h_egpt": Hostile()}, "more than tensors"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_with_what_was_found(tmp_path, capsys, content, problem):
    torch.save(content, tmp_path / "chunk_0.pt")
    with pytest.raises(LegacyError, match=problem) as error:
        load_chunk(tmp_path / "chunk_0.pt")
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(LegacyError, match="no chunk_"):
        ChunkFolder(tmp_path)
    source = study_folder(tmp_path / "study")
    file = source / "chunks" / "chunk_000010.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-900])
    with pytest.raises(LegacyError, match=r"chunk_000010.pt: cannot be read"):
        ChunkFolder(source)
    file.unlink()
    with pytest.raises(LegacyError, match=r"chunk_000010.pt: the chunk is missing"):
        ChunkFolder(source)
    (source / "index.json").write_text("{")
    with pytest.raises(LegacyError, match=r"index.json: cannot be read"):
        ChunkFolder(source)


def test_conversions_into_something_else_are_refused(tmp_path):
    store = writing.extract(tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        convert.run(store, tmp_path / "full", Conversion())
    convert.run(store, tmp_path / "chunks", Conversion())
    other = small_store.write_store(tmp_path / "other" / "train")
    with pytest.raises(UserError, match="another store"):
        convert.run(other, tmp_path / "chunks", Conversion())
    torch.save(torch.zeros(3, 4), tmp_path / "head.pt")
    with pytest.raises(StoreError, match="not the head"):
        convert.run(tmp_path / "chunks", tmp_path / "b" / "train", Conversion(head=tmp_path / "head.pt"))


def test_a_chunk_that_finds_no_room_is_told_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    store = writing.extract(tmp_path / "a")

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9472 vs 9392\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        LegacyError, match=r"vl_lm_head.pt: cannot be written .*make room and run the same command again"
    ):
        convert.run(store, tmp_path / "chunks", Conversion())
    assert not [*(tmp_path / "chunks").rglob("*.pt"), *(tmp_path / "chunks").rglob(".*")]


def test_a_head_is_a_matrix_or_a_dict_that_holds_one(tmp_path):
    weight = HEAD.astype(ml_dtypes.bfloat16)
    legacy.save_head(tmp_path / "h.pt", weight)
    assert legacy.load_head(tmp_path / "h.pt").tobytes() == weight.tobytes()
    torch.save({"lm_head.weight": torch.from_numpy(HEAD)}, tmp_path / "h.pt")
    np.testing.assert_array_equal(legacy.load_head(tmp_path / "h.pt"), HEAD)
    torch.save({"bias": torch.zeros(3)}, tmp_path / "h.pt")
    with pytest.raises(LegacyError, match="found bias"):
        legacy.load_head(tmp_path / "h.pt")


def test_the_command_line_converts_and_refuses(tmp_path, capsys):
    store = writing.extract(tmp_path / "a")
    chunks, coded = str(tmp_path / "chunks"), str(tmp_path / "f" / "train")
    assert cli.main(["convert", str(store), chunks, "--chunk-rows", "7"]) == 0
    assert cli.main(["convert", chunks, str(tmp_path / "b" / "train")]) == 0
    assert writing.contents(tmp_path / "b") == writing.contents(tmp_path / "a")
    assert cli.main(["convert", str(store), coded, "--states", "float8"]) == 0
    assert Store.open(tmp_path / "f" / "train").manifest.states == "float8"
    assert cli.main(["convert", "--help"]) == 0
    assert "usage: xmsd convert SOURCE INTO" in capsys.readouterr().out
    for wrong in (
        [],
        [chunks],
        [chunks, "b", "--states", "int4"],
        [chunks, "b", "--shard-rows", "x"],
        [chunks, "b", "--x", "1"],
    ):
        assert cli.main(["convert", *wrong]) == 2
        assert capsys.readouterr().err.startswith("xmsd: error: command line: convert:")
    assert cli.main(["convert", chunks, "b", "--shard-rows", "0"]) == 2
    assert cli.main(["convert", str(tmp_path / "nowhere"), "b"]) == 2
    assert "no chunk_" in capsys.readouterr().err
