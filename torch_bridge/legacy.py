"""The study's chunk folders: states of 1,000 answers in a `.pt` file each, read and written.

    <folder>/index.json                 {"total_samples", "chunk_size", "chunks": [{"path", "start_idx", "n_samples"}],
                                        "config": {"split", "quant", "max_questions", "max_new_tokens", "hidden_dim"}}
    <folder>/chunks/chunk_000000.pt     a dict of tensors; the number is that of the first answer

This is how the study describes its own extraction; none of its files was at hand. Read as well: folders without
index.json (chunks are then taken by their numbers), chunks beside it, other spellings (KEYS), a mask [n, t] in place of
lengths, and a list with one dict an answer. Files are read with `weights_only`: tensors, and no code. Written by us, a
chunk holds under our own names what the study had not (ids, lengths of both, synced states, texts), so that a store
comes back as it was; the study's programs find their three keys and pass over the rest.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from xmsd_jax.config import UserError
from xmsd_jax.runs import part_of, write_text

KEYS: Mapping[str, tuple[str, ...]] = {
    "drafter_hidden": ("egpt_hidden", "h_egpt", "egpt_hidden_states", "drafter_hidden"),
    "target_hidden": ("vl_hidden", "h_vl", "vl_hidden_states", "target_hidden"),
    "lengths": ("seq_lens", "seq_len", "lengths", "lens"),
    "mask": ("mask", "masks", "attention_mask"),
}
"""What a chunk of the study's holds -> the names it may go by; the first is the one that is written."""
OURS = ("drafter_synced", "drafter_ids", "target_ids", "drafter_len", "target_len", "question", "sequence", "clip")
TEXTS = ("drafter_text", "target_text")
INDEX, CHUNKS, HEAD = "index.json", "chunks", "vl_lm_head.pt"
HEAD_KEYS = ("lm_head.weight", "weight", "lm_head", "vl_lm_head")
Fields = dict[str, Any]


class LegacyError(UserError):
    """A chunk folder that is missing, damaged, or not of the study's form."""


@dataclass(frozen=True, kw_only=True)
class ChunkFile:
    """A file of answers `start` .. `start + rows - 1`."""

    path: Path
    start: int
    rows: int


class ChunkFolder:
    """A chunk folder, read one file at a time; files are mapped into memory and not read whole."""

    def __init__(self, path: Path) -> None:
        """Find the chunks.

        Raises:
            LegacyError: none, or they do not follow each other.
        """
        self.path = Path(path)
        self.index = _read_index(self.path)
        self.files = self._found()
        self._load = lru_cache(1)(load_chunk)

    @property
    def rows(self) -> int:
        """The number of answers."""
        return self.files[-1].start + self.files[-1].rows

    def read(self, rows: range) -> Fields:
        """Return the fields of some answers, [n, ...]: numpy arrays, bfloat16 as ml_dtypes', and lists of text."""
        pieces = []
        for file in self.files:
            start, stop = max(rows.start, file.start), min(rows.stop, file.start + file.rows)
            if start < stop:
                part = slice(start - file.start, stop - file.start)
                pieces.append({name: value[part] for name, value in self._load(file.path).items()})
        return {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}

    def _found(self) -> list[ChunkFile]:
        listed = [(self._place(one["path"]), one.get("n_samples")) for one in self.index.get("chunks", [])]
        listed = listed or [(path, None) for path in _by_number(self.path)]
        if not listed:
            raise LegacyError(
                f"{self.path}: no chunk_*.pt there nor in {CHUNKS}/: give a folder of the study's extraction"
            )
        files, start = [], 0
        for path, count in listed:
            rows = len(load_chunk(path)["target_hidden"])
            if count is not None and count != rows:
                raise LegacyError(f"{path}: holds {rows} answers, {INDEX} says {count}: copy the folder again")
            files.append(ChunkFile(path=path, start=start, rows=rows))
            start += rows
        return files

    def _place(self, name: str) -> Path:
        within = [self.path / CHUNKS / Path(name).name, self.path / Path(name).name]
        found = next((path for path in within if path.exists()), None)
        if found is None:
            raise LegacyError(f"{within[0]}: the chunk is missing, {INDEX} lists it: copy the folder again")
        return found


def load_chunk(path: Path) -> Fields:
    """Read a chunk: `drafter_hidden`, `target_hidden` [n, t, d], `drafter_len`, `target_len` [n], and what else it has.

    Raises:
        LegacyError: damaged, with code inside, or without the keys that are needed (those found are listed).
    """
    content = _load(path)
    if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        content = {key: _stacked(path, key, [one[key] for one in content if key in one]) for key in content[0]}
    if not isinstance(content, dict):
        raise LegacyError(f"{path}: a dict of tensors is expected, or a list of them; found {type(content).__name__}")
    named = {name: _first(content, spellings) for name, spellings in KEYS.items()}
    lengths = _lengths(path, named)
    missing = [name for name in ("drafter_hidden", "target_hidden") if named[name] is None]
    if missing or lengths is None:
        wanted = "; ".join(f"{name}: {' or '.join(KEYS[name])}" for name in KEYS)
        raise LegacyError(
            f"{path}: does not fit; found {', '.join(map(str, content)) or 'nothing'}; accepted are {wanted}"
        )
    fields = {"drafter_len": lengths, "target_len": lengths} | {k: v for k, v in content.items() if k in OURS}
    fields |= {"drafter_hidden": named["drafter_hidden"], "target_hidden": named["target_hidden"]}
    fields |= {name: content[name] for name in TEXTS if name in content}
    _check_shapes(path, fields)
    return fields


def save_chunk(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a chunk, whole or not at all; states of both models as float32 under the study's names."""
    content: dict[str, Any] = {name: _tensor(value) for name, value in fields.items() if name in OURS}
    content |= {name: list(fields[name]) for name in TEXTS if name in fields}
    for name in ("drafter_hidden", "target_hidden"):
        content[KEYS[name][0]] = _tensor(fields[name]).float()
    shorter = np.minimum(fields["drafter_len"], fields["target_len"])
    content[KEYS["lengths"][0]] = torch.from_numpy(shorter.astype(np.int64))
    _save(path, content)


def write_index(folder: Path, files: Sequence[ChunkFile], config: Mapping[str, Any], chunk_rows: int) -> None:
    """Write index.json in the study's form; last, as its presence says that all chunks are there."""
    chunks = [{"path": one.path.name, "start_idx": one.start, "n_samples": one.rows} for one in files]
    total = sum(one.rows for one in files)
    content = {"total_samples": total, "chunk_size": chunk_rows, "chunks": chunks, "config": dict(config)}
    write_text(folder / INDEX, json.dumps(content, indent=1))


def chunk_name(start: int) -> str:
    """The file of the chunk that begins with an answer."""
    return f"chunk_{start:06}.pt"


def load_head(path: Path) -> np.ndarray:
    """Read the target's head [v, d] as the study keeps it: a tensor, or a dict that holds it.

    Raises:
        LegacyError: damaged, or no matrix in it.
    """
    content = _load(path)
    found = _first(content, HEAD_KEYS) if isinstance(content, dict) else content
    if not isinstance(found, Tensor) or found.ndim != 2:
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise LegacyError(f"{path}: a matrix [v, d] is expected, or one of {', '.join(HEAD_KEYS)}; found {keys}")
    return _array(found)


def save_head(path: Path, weight: np.ndarray) -> None:
    """Write the target's head as the study keeps it, in its own dtype."""
    _save(path, _tensor(weight))


def emitted(states: np.ndarray, head: np.ndarray) -> np.ndarray:
    """The ids int32[n, t] that states [n, t, d] emit: argmax of the head, in float32."""
    weight = _tensor(head).float().T
    return torch.stack([(_tensor(row).float() @ weight).argmax(-1) for row in states]).int().numpy()


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content, "chunks": list(content["chunks"]), "config": dict(content.get("config", {}))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LegacyError(f"{file}: cannot be read ({error!r}): copy the folder again") from None


def _by_number(folder: Path) -> list[Path]:
    paths = [*folder.glob("chunk_*.pt"), *(folder / CHUNKS).glob("chunk_*.pt")]
    return sorted(paths, key=lambda path: int((re.findall(r"\d+", path.stem) or ["0"])[-1]))


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch lets through whatever zip files, pickles and the system raise
        told = (str(error) or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":
            raise LegacyError(f"{path}: holds more than tensors and is not opened ({told})") from None
        raise LegacyError(f"{path}: cannot be read ({told}): copy it again") from None


def _save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        torch.save(content, part)
        part.replace(path)
    except RuntimeError as error:  # torch tells no more than "file write failed"
        raise LegacyError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}): make room and run the same command again, it "
            "continues"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _first(content: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((content[name] for name in names if name in content), None)


def _lengths(path: Path, named: Mapping[str, Any]) -> Tensor | None:
    if named["lengths"] is not None or named["mask"] is None:
        return None if named["lengths"] is None else named["lengths"].int()
    mask = named["mask"].bool()
    lengths = mask.sum(1, dtype=torch.int32)
    if not torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None]):
        raise LegacyError(f"{path}: the mask has holes; answers lie at the front of their rows: extract again")
    return lengths


def _stacked(path: Path, key: str, values: Sequence[Any]) -> Any:
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (RuntimeError, ValueError, TypeError):  # text, or answers of several lengths
        if all(isinstance(value, str) for value in values):
            return list(values)
        raise LegacyError(f"{path}: {key} of its answers do not stack: shapes differ, pad them to one length") from None


def _check_shapes(path: Path, fields: Mapping[str, Any]) -> None:
    shape = fields["target_hidden"].shape
    if len(shape) != 3 or fields["drafter_hidden"].shape != shape:
        raise LegacyError(f"{path}: states are [n, t, d] of one shape; found {list(shape)} and "
                          f"{list(fields['drafter_hidden'].shape)}")  # fmt: skip
    wrong = [name for name, value in fields.items() if len(value) != shape[0]]
    if wrong:
        raise LegacyError(f"{path}: {shape[0]} answers, but not as many of {', '.join(wrong)}")


def _joined(pieces: Sequence[Any]) -> Any:
    if isinstance(pieces[0], list):
        return [text for piece in pieces for text in piece]
    return np.concatenate([_array(piece) for piece in pieces])


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()


def _tensor(array: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
