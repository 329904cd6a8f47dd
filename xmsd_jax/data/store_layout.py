"""How a store lies on disk: its fields, their zarr3 metadata, the size of every shard file, and the head's file."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes numpy know "bfloat16"
import numpy as np
import tensorstore
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xmsd_jax.data.disk import first_line, is_full, write_error
from xmsd_jax.data.manifest import Manifest, StoreError
from xmsd_jax.runs import part_of

# Field -> (its axes after the rows, dtype; None = the manifest's).
FIELDS: Mapping[str, tuple[tuple[str, ...], str | None]] = {
    "drafter_hidden": (("t", "d"), None),
    "target_hidden": (("t", "d"), None),
    "drafter_synced": (("t", "d"), None),
    "drafter_ids": (("t",), "int32"),
    "target_ids": (("t",), "int32"),
    "drafter_len": ((), "int32"),
    "target_len": ((), "int32"),
    "question": ((), "int32"),
    "sequence": ((), "int32"),
    "clip": ((), "int32"),
    "done": ((), "uint8"),
}
STATES = tuple(field for field, (_, dtype) in FIELDS.items() if dtype is None)
DONE = "done"
SCALE = "_scale"
"""Added to the name of a field of states: the scales [n, t] of its float8 codes (`xmsd_jax.data.float8`)."""
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
HEAD = "target_head.safetensors"
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # offset and length of an inner chunk, uint64 each
REPAIR = "the store is damaged: delete it and extract again (--fresh)"


def fields_of(manifest: Manifest) -> list[str]:
    """Return the fields that a store has, as its readers know them."""
    return [field for field in FIELDS if field not in manifest.absent]


def arrays_of(manifest: Manifest) -> list[str]:
    """Return the arrays that a store has on disk, `done` last: its fields, and the scales of states in float8.

    They are made in this order, so that a store with `done` has them all.
    """
    fields = [field for field in fields_of(manifest) if field != DONE]
    scales = [field + SCALE for field in fields if field in STATES and manifest.states == "float8"]
    return [*fields, *scales, DONE]


def is_begun_only(path: Path) -> bool:
    """Whether the process that was making a store's arrays did not get through."""
    return not (path / DONE / "zarr.json").exists()


def row_shape(manifest: Manifest, field: str) -> tuple[int, ...]:
    """Return the shape of one row of a field."""
    sizes = {"t": manifest.max_new_tokens, "d": manifest.width}
    return tuple(sizes[axis] for axis in _axes(field))


def dtype_of(manifest: Manifest, field: str) -> np.dtype:
    """Return the numpy dtype of a field as it is written and read."""
    return np.dtype(FIELDS[field][1] or manifest.dtype)


def stored_dtype(manifest: Manifest, field: str) -> np.dtype:
    """Return the numpy dtype of an array on disk."""
    codes = field.removesuffix(SCALE) in STATES and (manifest.states == "float8" or field.endswith(SCALE))
    return np.dtype(np.uint8) if codes else dtype_of(manifest, field)


def row_bytes(manifest: Manifest, field: str) -> int:
    """Return the size of one row of a field in bytes, as it is read."""
    return math.prod(row_shape(manifest, field)) * dtype_of(manifest, field).itemsize


def stored_row_bytes(manifest: Manifest, field: str) -> int:
    """Return the size of one row of an array on disk in bytes."""
    return math.prod(row_shape(manifest, field)) * stored_dtype(manifest, field).itemsize


def shards(rows: int, shard_rows: int) -> list[range]:
    """Return the row range of every shard; the last may be shorter."""
    return [range(start, min(start + shard_rows, rows)) for start in range(0, rows, shard_rows)]


def open_field(path: Path, manifest: Manifest, field: str, *, create: bool = False) -> tensorstore.TensorStore:
    """Open one field's array, which must have exactly the metadata that the manifest asks for.

    Raises:
        StoreError: missing, or of another shape, dtype or chunking; the disk is full.
    """
    try:
        return tensorstore.open(_spec(path, manifest, field), open=True, create=create).result()
    except ValueError as error:
        if create and is_full(error):
            raise write_error(path, f"the array {field}", error) from None
        raise StoreError(f"{path / field}: {first_line(error)}: {REPAIR}") from None


def read(path: Path, array: tensorstore.TensorStore, index: slice | np.ndarray) -> np.ndarray:
    """Read rows; one indexed read is some 50 times faster than a read per row.

    Raises:
        StoreError: the data does not match its crc32c, or a shard is cut short.
    """
    try:
        return np.asarray(array[index].read().result())
    except ValueError as error:
        raise StoreError(f"{path}: {first_line(error)}: {REPAIR}") from None


def check_fields(path: Path, manifest: Manifest, fields: Mapping[str, np.ndarray], rows: int) -> None:
    """Raise StoreError unless `fields` are all fields but `done`, each [rows, ...] in its dtype."""
    if wrong := sorted(set(fields).symmetric_difference(set(fields_of(manifest)) - {"done"})):
        raise StoreError(f"{path}: a shard is written with all its fields; missing or unknown: {', '.join(wrong)}")
    for name, array in fields.items():
        shape, dtype = (rows, *row_shape(manifest, name)), dtype_of(manifest, name)
        if array.shape != shape or array.dtype != dtype:
            raise StoreError(f"{path}: {name} must be {dtype}{list(shape)}; received {array.dtype}{list(array.shape)}")


def check_files(path: Path, manifest: Manifest, numbers: Iterable[int] | None = None) -> None:
    """Raise StoreError when a shard file is missing or has not the size that its rows give.

    A missing shard would be read as zeros, in silence. `numbers`: of the shards that are looked at; all by default.
    """
    wanted = range(len(shards(manifest.rows, manifest.shard_rows))) if numbers is None else numbers
    for number in wanted:
        for file, size in shard_files(path, manifest, number).items():
            found = file.stat().st_size if file.exists() else None
            if found != size:
                received = "the file is missing" if found is None else f"{found} bytes"
                raise StoreError(f"{file}: a shard of {size} bytes is expected; {received}: {REPAIR}")


def shard_file(path: Path, field: str, number: int) -> Path:
    """Return the file of an array's shard."""
    return path.joinpath(field, "c", str(number), *["0"] * len(_axes(field)))


def shard_files(path: Path, manifest: Manifest, number: int) -> dict[Path, int]:
    """Return the files of a shard and their exact sizes, `done` last: uncompressed chunks with a crc, and an index."""
    rows = shards(manifest.rows, manifest.shard_rows)[number]
    sizes = {}
    for field in arrays_of(manifest):
        inner = _inner_rows(manifest, field)
        chunk = inner * stored_row_bytes(manifest, field) + CRC_BYTES
        index = manifest.shard_rows // inner * INDEX_ENTRY_BYTES + CRC_BYTES
        sizes[shard_file(path, field, number)] = -(-len(rows) // inner) * chunk + index
    return sizes


def row_offsets(path: Path, manifest: Manifest, field: str, number: int) -> np.ndarray:
    """Return where each row of a shard begins in its file, int64[shard_rows] bytes; fields of one row a chunk only.

    The shard's index is not compared with its checksum here: tensorstore does so when it reads a row.

    Raises:
        OSError: the file cannot be read, or is shorter than its index.
    """
    size = manifest.shard_rows * INDEX_ENTRY_BYTES
    with shard_file(path, field, number).open("rb") as file:
        file.seek(-size - CRC_BYTES, os.SEEK_END)
        entries = np.frombuffer(file.read(size), "<u8")
    return entries.reshape(-1, 2)[:, 0].astype(np.int64)


def head_fingerprint(weight: np.ndarray) -> str:
    """Return the sha256 of a head's dtype, shape and bytes, 16 hex digits."""
    digest = hashlib.sha256(f"{weight.dtype}{weight.shape}".encode())
    digest.update(np.ascontiguousarray(weight).view(np.uint8).data)
    return digest.hexdigest()[:16]


def keep_head(root: Path, weight: np.ndarray) -> None:
    """Write the target's head [v, d] to `root`, whole or not at all; leave it alone if it is there already.

    Raises:
        StoreError: `root` holds the head of another target; the disk is full.
    """
    if (root / HEAD).exists():
        if head_fingerprint(read_head(root)) != head_fingerprint(weight):
            raise StoreError(f"{root / HEAD}: the head of another target; use --fresh, or another --run-dir")
        _remove_parts_of_head(root)
        return
    root.mkdir(parents=True, exist_ok=True)
    part = part_of(root / HEAD)  # several processes may write it at once
    try:
        save_file({"lm_head.weight": np.ascontiguousarray(weight)}, part)
        part.replace(root / HEAD)
        _remove_parts_of_head(root)
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileNotFoundError) and (root / HEAD).exists():
            return  # another process was faster, and removed this one's part
        raise write_error(root, HEAD, error) from None
    finally:
        part.unlink(missing_ok=True)


def _remove_parts_of_head(root: Path) -> None:
    for left in root.glob(f".{HEAD}.*.part"):  # of a writer that was killed, or comes too late
        left.unlink(missing_ok=True)


def read_head(root: Path) -> np.ndarray:
    """Read the target's head [v, d], or raise StoreError."""
    try:
        return load_file(root / HEAD)["lm_head.weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise StoreError(f"{root / HEAD}: the target's head cannot be read ({error!r}): {REPAIR}") from None


def _inner_rows(manifest: Manifest, field: str) -> int:
    # One value a row is read as a whole column anyway, and 20 bytes of index and checksum for 4 would be waste.
    return 1 if _axes(field) else manifest.shard_rows


def _axes(field: str) -> tuple[str, ...]:
    return ("t",) if field.endswith(SCALE) else FIELDS[field][0]


def _spec(path: Path, manifest: Manifest, field: str) -> dict[str, Any]:
    row, dtype = row_shape(manifest, field), stored_dtype(manifest, field)
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"},
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": [_inner_rows(manifest, field), *row],
        "codecs": codecs,
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path / field)},
        "store_data_equal_to_fill_value": True,  # so that every written shard has a file, of a known size
        "metadata": {
            "shape": [manifest.rows, *row],
            "data_type": dtype.name,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [manifest.shard_rows, *row]}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
    }
