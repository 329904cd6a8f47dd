"""Writes a store, shard by shard, by one process or by several at once; killed anywhere, it is continued."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from xmsd_jax.data import float8
from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.disk import too_little_room, write_error
from xmsd_jax.data.manifest import FILE, Manifest, StoreError, claim_json, read_json, read_manifest, require, write_json
from xmsd_jax.data.parts import WHOLE, Part

NAMES, TEXTS, SHARDS = "names.json", "texts.json", "shards"
INDICES = ("sequences", "clips", "questions")
ANSWERERS = ("target", "drafter")
OTHER = "use --fresh to replace it, or another --run-dir"
Names = Mapping[str, Sequence[str]]
Texts = Mapping[str, Sequence[str]]


class StoreWriter:
    """Writes a store shard by shard; what it never finished is written again whole, so no row is lost or doubled.

    Several processes may write one store at once, each its own part of the shards (`pending`).
    """

    def __init__(self, path: Path, manifest: Manifest, arrays: Mapping[str, tensorstore.TensorStore]) -> None:
        """Use `create_or_resume`."""
        self.path, self.manifest, self._arrays = path, manifest, arrays

    @classmethod
    def create_or_resume(cls, path: Path, manifest: Manifest, names: Names) -> "StoreWriter":
        """Make the store, or continue the one that a run with the same manifest and names began, or is beginning.

        Args:
            path: the split's folder.
            manifest: what will be written.
            names: "sequences", "clips" and "questions": the strings that the index fields point into.

        Raises:
            StoreError: the folder holds something else, or a store of another run (every differing field is named);
                the disk is full.
        """
        path, wanted = Path(path), {key: list(names[key]) for key in INDICES}
        _refuse_foreign(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            claim_json(path / FILE, manifest.to_json())  # first: whoever has the manifest made, decides
            _check_same(path, manifest)
            claim_json(path / NAMES, wanted)
            if read_json(path / NAMES) != wanted:
                raise StoreError(f"{path}: the clips differ from those the store was begun with: {OTHER}")
            claim_json(path / "zarr.json", layout.GROUP)
            opened = {name: layout.open_field(path, manifest, name, create=True) for name in layout.arrays_of(manifest)}
        except OSError as error:
            raise write_error(path, "the store's folder", error) from None
        writer = cls(path, manifest, opened)
        if note := too_little_room(path, writer.bytes_left()):
            print(f"note: {note}", file=sys.stderr, flush=True)
        return writer

    def pending(self, part: Part = WHOLE) -> Iterator[range]:
        """Yield the row ranges, whole shards, that are not written yet; of one part, where several processes write."""
        done = self.read("done")
        for number, rows in enumerate(layout.shards(self.manifest.rows, self.manifest.shard_rows)):
            if part.has(number) and not done[rows.start : rows.stop].all():
                yield rows

    def bytes_left(self) -> int:
        """Return how many bytes the shards that are not written will take."""
        numbers = [rows.start // self.manifest.shard_rows for rows in self.pending()]
        sizes = [layout.shard_files(self.path, self.manifest, number) for number in {*numbers[:1], *numbers[-1:]}]
        each = max((sum(files.values()) for files in sizes), default=0)  # all are of one size, but the last
        return each * len(numbers)

    def read(self, field: str) -> np.ndarray:
        """Return a whole field as it stands, no states; rows that were never written are zeros."""
        return layout.read(self.path, self._arrays[field], slice(None))

    def write(
        self,
        start: int,
        fields: Mapping[str, np.ndarray],
        *,
        texts: Texts | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one whole shard that begins at row `start`; it counts as written only after all of it is on disk.

        Args:
            start: the first row of a range that `pending` gave.
            fields: every field except `done`, with the shard's rows, in the dtype of FIELDS.
            texts: the answers of "target" and "drafter", one string a row, so that `finish` needs no tokenizer.
            note: JSON values about the shard, such as which clips were answered together; `Store.notes` gives it back.

        Raises:
            StoreError: not the start of a shard, or fields missing, unknown, or of another shape or dtype; the disk is
                full.
        """
        number, rows = self._shard(start)
        layout.check_fields(self.path, self.manifest, fields, len(rows))
        if texts is not None:
            _check_texts(self.path, texts, len(rows))
        told = f"rows {rows.start}..{rows.stop - 1}"
        try:
            self._write_arrays(rows, self._as_stored(fields))
            if texts is not None or note is not None:
                record = {"texts": texts and _lists(texts), "note": note, "rows": [rows.start, rows.stop]}
                write_json(record_file(self.path, number), record)
            self._write_arrays(rows, {"done": np.ones(len(rows), np.uint8)})
        except (ValueError, OSError) as error:
            raise write_error(self.path, told, error) from None

    def finish(self, texts: Texts | None = None) -> None:
        """Declare the store complete.

        Args:
            texts: the answers of "target" and "drafter", one string a row; None takes those given with the shards.

        Raises:
            StoreError: rows are still missing, or there is not a text for each; the disk is full.
        """
        if missing := sum(map(len, self.pending())):
            raise StoreError(f"{self.path}: {missing} rows are not written yet: write the ranges of pending() first")
        texts = self._recorded_texts() if texts is None else texts
        _check_texts(self.path, texts, self.manifest.rows)
        for left in [*self.path.rglob("*.__lock"), *self.path.rglob(".*.part")]:
            left.unlink(missing_ok=True)  # of writers that were killed: every shard is written, so nobody writes
        try:
            write_json(self.path / TEXTS, _lists(texts))
        except OSError as error:
            raise write_error(self.path, TEXTS, error) from None

    def _shard(self, start: int) -> tuple[int, range]:
        number, rest = divmod(start, self.manifest.shard_rows)
        if rest or not 0 <= start < self.manifest.rows:
            raise StoreError(
                f"{self.path}: whole shards are written, starting at multiples of "
                f"{self.manifest.shard_rows}; received row {start}: write the ranges of pending()"
            )
        return number, layout.shards(self.manifest.rows, self.manifest.shard_rows)[number]

    def _as_stored(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.manifest.states == "native":
            return dict(fields)
        stored = {}
        for name, array in fields.items():
            if name in layout.STATES:
                stored[name], stored[name + layout.SCALE] = float8.encode(array)
            else:
                stored[name] = array
        return stored

    def _write_arrays(self, rows: range, arrays: Mapping[str, np.ndarray]) -> None:
        block = slice(rows.start, rows.stop)
        writes = [
            self._arrays[name][block].write(array, can_reference_source_data_indefinitely=True)
            for name, array in arrays.items()
        ]
        errors = [error for write in writes if (error := write.exception()) is not None]  # waits for all of them
        if errors:
            raise errors[0]

    def _recorded_texts(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {which: [] for which in ANSWERERS}
        for number in range(len(layout.shards(self.manifest.rows, self.manifest.shard_rows))):
            file = record_file(self.path, number)
            record = read_json(file) if file.exists() else {}
            if not record.get("texts"):
                raise StoreError(
                    f"{file}: the shard's answers as text are missing: run `xmsd extract` without --shard to finish"
                )
            for which in ANSWERERS:
                texts[which] += record["texts"][which]
        return texts


def record_file(path: Path, number: int) -> Path:
    """Return the file that holds the texts and the note of a shard."""
    return path / SHARDS / f"{number:05}.json"


def read_notes(path: Path, manifest: Manifest) -> dict[range, dict[str, Any]]:
    """Return the notes of a store's shards, by their rows."""
    rows = layout.shards(manifest.rows, manifest.shard_rows)
    files = {one: record_file(path, number) for number, one in enumerate(rows)}
    notes = {one: read_json(file).get("note") for one, file in files.items() if file.exists()}
    return {one: note for one, note in notes.items() if note is not None}


def _refuse_foreign(path: Path) -> None:
    if not path.exists() or (path / FILE).exists():
        return
    foreign = any(not entry.name.endswith((".tmp", ".part")) for entry in path.iterdir())
    if foreign and not (path / FILE).exists():  # another process may have begun it in between
        raise StoreError(f"{path}: the folder is not empty and holds no store: choose another --run-dir")


def _check_same(path: Path, manifest: Manifest) -> None:
    require(path, read_manifest(path), manifest.values(), OTHER)


def _check_texts(path: Path, texts: Texts, rows: int) -> None:
    for which in ANSWERERS:
        if len(texts[which]) != rows:
            raise StoreError(f"{path}: one text per row, {rows}; received {len(texts[which])} for {which}")


def _lists(texts: Texts) -> dict[str, list[str]]:
    return {which: list(texts[which]) for which in ANSWERERS}
