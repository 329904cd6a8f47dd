"""The store that extraction leaves: right rows, and the same bytes however often the run was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.torch_bridge.fake_pair import EOS, PADDED, REAL, WIDTH, fake_clips, fake_drafter, fake_target
from torch_bridge.answers import Batch
from torch_bridge.batching import plan
from torch_bridge.extraction import Settings, describe, extract_split
from torch_bridge.overlap import to_numpy
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store, StoreError
from xmsd_jax.data.store_layout import shards

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = Settings(max_new_tokens=16, batch=2, shard_rows=30)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_clips(tmp_path_factory.mktemp("clips") / "clips", {"train": 7, "test": 2})


@pytest.fixture(scope="module")
def root(tmp_path_factory, folder):
    """An undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed") / "store"
    for split in folder.splits:
        extract_split(root, folder, split, fake_target(), fake_drafter(), SETTINGS)
    return root


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_rows_go_clip_by_clip_and_question_by_question(root, folder):
    store = Store.open(root / "train")
    clips, questions = np.divmod(np.arange(70), 10)
    np.testing.assert_array_equal(store.read("clip"), clips)
    np.testing.assert_array_equal(store.read("question"), questions)
    named = [store.names["sequences"][index] for index in store.read("sequence")]
    assert named == [entry.sequence for entry in folder.entries("train") for _ in QUESTIONS]
    assert store.names["clips"] == [entry.name for entry in folder.entries("train")]
    assert store.names["questions"] == list(QUESTIONS)


def test_each_stored_row_is_that_of_its_clip_and_question_alone(root, folder):
    store, target, drafter = Store.open(root / "train"), fake_target(), fake_drafter()
    for row in range(0, store.rows, 7):
        clip = folder.load(folder.entries("train")[store.read("clip")[row]])
        question = [store.names["questions"][store.read("question")[row]]]
        own = Batch(target, [clip], question).answer(16)
        reader = Batch(drafter, [clip], question)
        drafted = reader.answer(16)
        assert store.token_ids("target", row).tolist() == own.ids[0, : own.lengths[0]].tolist()
        assert store.token_ids("drafter", row).tolist() == drafted.ids[0, : drafted.lengths[0]].tolist()
        for name, states in [
            ("target_hidden", own.hidden),
            ("drafter_hidden", drafted.hidden),
            ("drafter_synced", reader.read_answers(own.ids, own.lengths)),
        ]:
            np.testing.assert_allclose(store.read(name, [row]), states.numpy(), rtol=0, atol=5e-5)


def test_the_stored_head_turns_stored_states_into_stored_ids(root):
    store = Store.open(root / "train")
    emitted = (store.read("target_hidden") @ store.head().T).argmax(-1)
    for row in range(store.rows):
        length = store.read("target_len")[row]
        np.testing.assert_array_equal(emitted[row, :length], store.token_ids("target", row))


def test_the_manifest_says_what_was_run(root, folder):
    manifest = Store.open(root / "test").manifest
    assert manifest == describe(folder, "test", fake_target(), fake_drafter(), SETTINGS)
    assert manifest.vocabulary == {"real": REAL, "target": PADDED, "drafter": REAL}
    assert (manifest.rows, manifest.width, manifest.dtype, manifest.norm_slot) == (20, WIDTH, "float32", "post")
    assert manifest.clips_fingerprint == folder.fingerprint


def test_texts_are_the_decoded_answers(root):
    store, tokenizer = Store.open(root / "test"), fake_target().tokenizer
    for which in ("target", "drafter"):
        rows = [store.token_ids(which, row).tolist() for row in range(store.rows)]
        assert store.texts[which] == tokenizer.decode_batch(rows)


KILLED = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.torch_bridge.fake_pair import ClipFolder, FakeVLM, fake_drafter, fake_target
from torch_bridge.extraction import extract_split
from tests.torch_bridge.test_extraction import SETTINGS
look = FakeVLM.look
def slow(self, pixels):
    print(self.name, self.encoded, flush=True)
    time.sleep(0.05)
    return look(self, pixels)
FakeVLM.look = slow
extract_split(Path(sys.argv[1]), ClipFolder.open(sys.argv[2]), "train", fake_target(), fake_drafter(), SETTINGS)
"""


@pytest.mark.parametrize("at", [pytest.param("fake-drafter 0", marks=pytest.mark.slow), "fake-target 5"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, folder, root, at):
    """Killed in the first shard, and in the middle of the second."""
    path = tmp_path / "store"
    arguments = [sys.executable, "-c", KILLED, str(path), str(folder.path)]
    path_list = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path_list}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert any(line.strip() == at for line in process.stdout)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(path / "train")
    unfinished = {entry.name for entry in (path / "train" / "target_hidden" / "c").glob("*")}
    assert unfinished <= (set() if at.startswith("fake-drafter") else {"0"})  # written beside the models
    extract_split(path, folder, "train", fake_target(), fake_drafter(), SETTINGS)
    assert contents(path / "train") == contents(root / "train")


def test_a_finished_split_is_not_answered_again(root, folder):
    before = contents(root)
    target = fake_target()
    extract_split(root, folder, "train", target, fake_drafter(), SETTINGS)
    assert target.encoded == 0
    assert contents(root) == before


def test_another_target_does_not_go_on_in_the_store(root, folder):
    before = contents(root)
    other = fake_target()
    other.name, other.fingerprint = "another", "x"
    with pytest.raises(StoreError, match=r"models.target is 'fake-target', expected 'another'.*--fresh"):
        extract_split(root, folder, "train", other, fake_drafter(), SETTINGS)
    assert contents(root) == before


def test_a_run_with_other_threads_does_not_go_on_in_the_store(root, folder, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(StoreError, match=r"software.threads is '1', expected '3'"):
        extract_split(root, folder, "train", fake_target(), fake_drafter(), SETTINGS)


def test_bfloat16_states_are_stored_bit_by_bit(tmp_path, folder):
    pair = fake_target(dtype=torch.bfloat16), fake_drafter(dtype=torch.bfloat16)
    extract_split(tmp_path, folder, "test", *pair, SETTINGS)
    store = Store.open(tmp_path / "test")
    assert store.read("target_hidden").dtype == store.head().dtype == ml_dtypes.bfloat16
    clips = [folder.load(entry) for entry in folder.entries("test")]
    own = Batch(pair[0], clips, QUESTIONS).answer(16)
    assert store.read("target_hidden").tobytes() == to_numpy(own.hidden).tobytes()


@pytest.mark.parametrize("rows", [10, 30, 7, 64])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_cover_every_row_once_and_in_order(rows, batch):
    answered = []
    for shard in shards(63, rows):
        jobs = plan(shard, (0, 3, 4), batch)
        assert [job.closes for job in jobs] == [False] * (len(jobs) - 1) + [True]
        assert all(len(job.clips) <= batch for job in jobs)
        pairs = [(clip, question) for job in jobs for clip in job.clips for question in job.questions]
        assert len(pairs) == len(shard)
        answered += pairs
    assert answered == [(clip, question) for clip in range(21) for question in (0, 3, 4)]


def test_a_subset_of_questions_keeps_their_own_indices(tmp_path, folder):
    settings = Settings(questions=(4, 1), max_new_tokens=4, batch=2, shard_rows=3)
    extract_split(tmp_path, folder, "test", fake_target(), fake_drafter(), settings)
    store = Store.open(tmp_path / "test")
    assert store.read("question").tolist() == [4, 1, 4, 1]
    assert store.manifest.questions == (QUESTIONS[4], QUESTIONS[1])


def test_a_pair_of_two_dtypes_is_refused(folder):
    with pytest.raises(StoreError, match="one shape and dtype"):
        describe(folder, "test", fake_target(), fake_drafter(dtype=torch.bfloat16), SETTINGS)


def test_the_end_of_an_answer_is_stored_with_it(root):
    store = Store.open(root / "train")
    ended = [store.token_ids("target", row)[-1] == EOS for row in range(store.rows)]
    assert any(ended)
    assert all(ended[row] or store.read("target_len")[row] == 16 for row in range(store.rows))
