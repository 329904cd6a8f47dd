"""One store out of copies that hold different shards of it, and the test that nothing is missing."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.disk import write_error
from xmsd_jax.data.manifest import Manifest, StoreError, read_json, read_manifest
from xmsd_jax.data.store_writer import NAMES, StoreWriter, record_file
from xmsd_jax.runs import part_of


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the rows of a split must be about: the clips' sequences, in the store's order, and the questions asked.

    Row r is about clip r // len(questions) and question r % len(questions) of these.
    """

    sequences: Sequence[str]
    questions: Sequence[int]


def merge(into: Path, source: Path) -> int:
    """Copy the shards of the store `source` that the store `into` has not; return how many they were.

    `into` is made where it is not there. Each shard is copied whole, and counts as written only when it is, so that a
    merge that was cut off is simply done again.

    Raises:
        StoreError: stores of different runs; a shard that both have, with different content; a damaged source; a full
            disk.
    """
    manifest = read_manifest(source)
    writer = StoreWriter.create_or_resume(into, manifest, read_json(source / NAMES))
    own, copied = set(written_shards(into, manifest)), 0
    for number in written_shards(source, manifest):
        layout.check_files(source, manifest, [number])
        files = [*layout.shard_files(source, manifest, number)]
        files.insert(-1, record_file(source, number))  # `done` comes last
        pairs = [(file, writer.path / file.relative_to(source)) for file in files if file.exists()]
        if number in own:
            _same(pairs, number)
            continue
        for file, copy in pairs:
            _copy(file, copy)
        copied += 1
    return copied


def written_shards(path: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of the shards of an unfinished store that are whole.

    Raises:
        StoreError: a store that cannot be read, or a shard of which some rows only are written.
    """
    if layout.is_begun_only(path):
        return []
    done = layout.read(path, layout.open_field(path, manifest, "done"), slice(None))
    found = []
    for number, rows in enumerate(layout.shards(manifest.rows, manifest.shard_rows)):
        flags = done[rows.start : rows.stop]
        if flags.any() and not flags.all():
            raise StoreError(f"{path}: only some of rows {told(rows)} are done: {layout.REPAIR}")
        found += [number] if flags.all() else []
    return found


def missing_shards(path: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of the shards that are not written, after a look at the files of those that are.

    Raises:
        StoreError: a file of a written shard is missing or cut short.
    """
    written = written_shards(path, manifest)
    layout.check_files(path, manifest, written)
    return sorted(set(range(len(layout.shards(manifest.rows, manifest.shard_rows)))) - set(written))


def check_rows(path: Path, manifest: Manifest, expected: Expected) -> None:
    """Raise StoreError unless every clip and question stands in exactly one row, its own; all rows must be written."""
    rows = len(expected.sequences) * len(expected.questions)
    if manifest.rows != rows:
        raise StoreError(f"{path}: holds {manifest.rows} rows, the clips and questions are {rows}: extract again")
    clips, slots = np.divmod(np.arange(rows), len(expected.questions))
    names = np.asarray(read_json(path / NAMES)["sequences"])
    found = {field: layout.read(path, layout.open_field(path, manifest, field), slice(None)) for field in INDICES}
    wrong = (found["clip"] != clips) | (found["question"] != np.asarray(expected.questions)[slots])
    wrong |= names[np.clip(found["sequence"], 0, len(names) - 1)] != np.asarray(expected.sequences)[clips]
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise StoreError(
            f"{path}: {wrong.sum()} rows are not about their own clip and question: some are doubled, some missing; "
            f"row {row} is about clip {found['clip'][row]}, question {found['question'][row]}: {layout.REPAIR}"
        )


def told(rows: range) -> str:
    """Return rows as text, "0..319"."""
    return f"{rows.start}..{rows.stop - 1}"


INDICES = ("clip", "question", "sequence")


def _same(pairs: list[tuple[Path, Path]], number: int) -> None:
    for file, other in pairs:
        if not other.exists() or file.read_bytes() != other.read_bytes():
            raise StoreError(
                f"{file}: shard {number} is there twice, with different content; the other is {other}: keep the store "
                "of one of the two processes, and run the other's --shard again without that shard"
            )


def _copy(file: Path, copy: Path) -> None:
    part = part_of(copy)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, part)
        part.replace(copy)
    except OSError as error:
        raise write_error(copy.parent, file.name, error) from None
    finally:
        part.unlink(missing_ok=True)
