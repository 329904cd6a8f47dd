"""Writers that are killed, that write one store together, or that find no room: nothing lost, nothing doubled."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.data import writing
from tests.data.writing import ROWS, SHARD, contents, extract, manifest, shard_fields, texts_of
from xmsd_jax.config import UserError
from xmsd_jax.data import parts
from xmsd_jax.data.disk import write_error
from xmsd_jax.data.merging import merge, missing_shards
from xmsd_jax.data.parts import Part, claim
from xmsd_jax.data.store import Store, StoreError, StoreWriter

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20
PHASES = ("create", "write", "finish")


def start(*arguments: object, **options) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.data.writing", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        **options,
    )  # fmt: skip


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a process; its exit status and what it said on stderr."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    extract(root)
    return contents(root)


@dataclass(frozen=True)
class Killed:
    """What a run had begun last when it was told to die, and whether it was through."""

    begun: str
    ended: bool


def kill(root: Path, moment: np.random.Generator, phase: str) -> Killed:
    """Start a run, and kill it a random while after it has begun a random step of the phase."""
    begins = f"write {moment.integers(0, ROWS // SHARD + 1) * SHARD}" if phase == "write" else phase
    with start(root) as process:
        assert process.stdout is not None
        assert any(line.strip() == begins for line in process.stdout)
        time.sleep(moment.uniform(0, {"create": 0.03, "write": 0.015, "finish": 0.004}[phase]))
        process.kill()
        rest = process.stdout.read().split("\n")
        assert process.wait() == -signal.SIGKILL
    return Killed(begun=begins, ended="end" in rest)


def test_a_run_killed_at_20_random_moments_loses_nothing_and_doubles_nothing(tmp_path, undisturbed):
    """While it makes the store, while it writes any shard, while it finishes; each store then goes on to its bytes."""
    killed = []
    for number in range(KILLS):
        root, phase = tmp_path / str(number), PHASES[min(number // 5, 2) if number < 10 else number % 3]
        killed.append(kill(root, np.random.default_rng(number), phase))
        if not killed[-1].ended and not (root / writing.SPLIT / "texts.json").exists():
            with pytest.raises(StoreError):
                Store.open(root / writing.SPLIT)
        extract(root)
        assert contents(root) == undisturbed, killed[-1]
    assert sum(not one.ended for one in killed) >= KILLS // 2, killed


def test_one_store_killed_again_and_again_goes_on_to_the_same_bytes(tmp_path, undisturbed):
    for number in range(5):
        with start(tmp_path) as process:
            assert process.stdout is not None
            list(zip(range(2), process.stdout, strict=False))  # it gets one shard further, or into it
            time.sleep(np.random.default_rng(number).uniform(0, 0.02))
            process.kill()
    extract(tmp_path)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_make_one_store_at_the_same_moment_leave_the_bytes_of_one(tmp_path, undisturbed, attempt):
    gate, root = tmp_path / "go", tmp_path / "root"
    processes = [start(root, f"{number}/4", "--gate", gate) for number in (1, 2, 3, 4)]
    time.sleep(0.4)  # all of them wait at the gate
    gate.touch()
    assert [end(process) for process in processes] == [(0, "")] * 4
    with pytest.raises(StoreError, match="did not finish"):
        Store.open(root / writing.SPLIT)
    extract(root)
    assert contents(root) == undisturbed


def test_the_parts_cover_every_shard_once():
    for count in range(1, 9):
        owners = [
            [number for number in range(1, count + 1) if Part(number=number, count=count).has(s)] for s in range(20)
        ]
        assert all(len(one) == 1 for one in owners)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "4", "a/b", "-1/4", "1/4/2", "1 / 4"])
def test_a_part_that_is_not_there_is_refused(text):
    with pytest.raises(UserError, match="--shard"):
        Part.parse(text)


def test_two_processes_do_not_write_the_same_part_nor_overlapping_ones(tmp_path):
    first, second = Part(number=1, count=2), Part(number=2, count=2)
    with claim(tmp_path, first), claim(tmp_path, second):
        with pytest.raises(UserError, match="another process writes part 1/2"), claim(tmp_path, first):
            pass
        for other in (parts.WHOLE, Part(number=3, count=3)):
            with pytest.raises(UserError, match="overlaps"), claim(tmp_path, other):
                pass
    with claim(tmp_path, first):
        assert parts.counts(tmp_path) == {2}


def part_of_store(root: Path, text: str, **changes) -> Path:
    return extract(root, Part.parse(text), **changes)


def test_stores_with_some_of_the_shards_each_become_one(tmp_path, undisturbed):
    copies = [part_of_store(tmp_path / text[0], text) for text in ("1/3", "2/3", "3/3")]
    into = tmp_path / "merged" / writing.SPLIT
    assert [merge(into, copy) for copy in copies[:2]] == [2, 2]
    assert missing_shards(into, manifest()) == [2, 5]
    assert merge(into, copies[2]) == 2
    assert [merge(into, copy) for copy in copies] == [0, 0, 0]  # again: they are there already, with the same content
    StoreWriter.create_or_resume(into, manifest(), writing.NAMES).finish()
    assert contents(into) == {
        name.removeprefix("train/"): content for name, content in undisturbed.items() if name.startswith("train/")
    }


def test_a_shard_that_is_there_twice_with_different_content_is_refused(tmp_path):
    one, other = part_of_store(tmp_path / "a", "1/2"), part_of_store(tmp_path / "b", "1/3")
    StoreWriter.create_or_resume(other, manifest(), writing.NAMES).write(
        0, {**shard_fields(range(4), manifest()), "target_len": np.zeros(4, np.int32)}, texts=texts_of(range(4))
    )
    with pytest.raises(StoreError, match="shard 0 is there twice, with different content"):
        merge(one, other)


def test_stores_of_different_runs_are_not_merged(tmp_path):
    one, other = part_of_store(tmp_path / "a", "1/2"), part_of_store(tmp_path / "b", "2/2", software={"torch": "3"})
    before = contents(one)
    with pytest.raises(StoreError, match=r"software.torch is '2', expected '3'"):
        merge(one, other)
    assert contents(one) == before


def test_a_copy_with_a_shard_cut_short_is_refused_before_anything_of_it_is_taken(tmp_path):
    source = part_of_store(tmp_path / "a", "1/2")
    file = source / "target_hidden" / "c" / "2" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError, match="bytes is expected"):
        merge(tmp_path / "into", source)
    assert 2 in missing_shards(tmp_path / "into", manifest())


def test_a_store_that_was_only_begun_has_all_its_shards_missing(tmp_path):
    writer = StoreWriter.create_or_resume(tmp_path / "s", manifest(), writing.NAMES)
    (writer.path / "done" / "zarr.json").unlink()
    assert missing_shards(writer.path, manifest()) == list(range(6))
    with pytest.raises(StoreError, match=r"all 22 rows are unfinished.*continues"):
        Store.open(writer.path)


@pytest.mark.parametrize("largest", [100, 400, 2_000, 3_500])
def test_a_limit_on_file_sizes_is_told_in_one_line_and_the_store_goes_on(tmp_path, undisturbed, largest):
    """Met by the manifest, by an array's description, by a shard; a system that really refuses to write."""
    status, said = end(start(tmp_path, "--largest-file", largest))
    assert status == 1
    assert "may not grow so long" in said
    assert "make room and run the same command again" in said
    assert said.count("\n") == 1
    extract(tmp_path)
    assert contents(tmp_path) == undisturbed


class FullDisk:
    """An array that finds no room, as tensorstore tells it (the text of a real, full tmpfs)."""

    TEXT = (
        'RESOURCE_EXHAUSTED: Error writing local file "/mnt/a/c/0/0": Failed writing: "/mnt/a/c/0/0.__lock": Failed to '
        "write 1563136 bytes to file 4: No space left on device [os_error_code='28']"
    )

    def __getitem__(self, rows):
        return self

    def write(self, array, **options):
        return self

    def exception(self):
        return ValueError(self.TEXT)


def test_a_full_disk_leaves_a_readable_store_that_goes_on(tmp_path, undisturbed, monkeypatch):
    writer = StoreWriter.create_or_resume(tmp_path / writing.SPLIT, manifest(), writing.NAMES)
    writer.write(0, shard_fields(range(4), manifest()), texts=texts_of(range(4)), note={"batches": [[0], [1]]})
    monkeypatch.setitem(writer._arrays, "target_hidden", FullDisk())
    with pytest.raises(StoreError, match=r"the disk is full \([\d.,]+ MB free\), so rows 4\.\.7 cannot") as error:
        writer.write(4, shard_fields(range(4, 8), manifest()), texts=texts_of(range(4, 8)))
    assert "\n" not in str(error.value)
    again = StoreWriter.create_or_resume(tmp_path / writing.SPLIT, manifest(), writing.NAMES)
    assert [rows.start for rows in again.pending()] == [4, 8, 12, 16, 20]
    np.testing.assert_array_equal(again.read("clip")[:4], [0, 0, 1, 1])
    extract(tmp_path)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "the quota is used up"),
        (ValueError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(5, "Input/output error"), "cannot be written (.*Input/output error)"),
    ],
)
def test_errors_of_the_system_are_told_for_what_they_are(tmp_path, error, told):
    with pytest.raises(StoreError, match=told.replace("(", r"\(").replace(")", r"\)")):
        raise write_error(tmp_path / "not" / "there", "rows 0..3", error)


def test_too_little_room_is_said_before_the_work_begins(tmp_path, monkeypatch, capsys):
    StoreWriter.create_or_resume(tmp_path / "s", manifest(), writing.NAMES)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    writer = StoreWriter.create_or_resume(tmp_path / "s", manifest(), writing.NAMES)
    assert "are still to be written and 0.0 GB are free" in capsys.readouterr().err
    monkeypatch.undo()
    before = writer.bytes_left()
    extract(tmp_path / "all")
    files = [file for file in (tmp_path / "all" / "train").rglob("c/**/*") if file.is_file()]
    written = sum(file.stat().st_size for file in files)
    assert written <= before < written * 1.2
    writer.write(0, shard_fields(range(4), manifest()))
    assert writer.bytes_left() == before * 5 // 6


def test_notes_come_back_by_rows_and_a_note_is_there_when_its_rows_are_done(tmp_path):
    store = Store.open(extract(tmp_path))
    assert list(store.notes()) == [range(start, min(start + SHARD, ROWS)) for start in range(0, ROWS, SHARD)]
    assert store.notes()[range(4, 8)] == {"batches": [[2], [3]]}
    assert store.texts == texts_of(range(ROWS))


def test_a_shard_without_texts_asks_for_a_run_that_has_the_tokenizers(tmp_path):
    writer = StoreWriter.create_or_resume(tmp_path / "s", manifest(), writing.NAMES)
    for rows in writer.pending():
        writer.write(rows.start, shard_fields(rows, manifest()), note={"batches": []})
    with pytest.raises(StoreError, match=r"text are missing: run `xmsd extract` without --shard"):
        writer.finish()
    writer.finish(texts_of(range(ROWS)))
    assert Store.open(tmp_path / "s").texts == texts_of(range(ROWS))
