"""`xmsd convert`: the study's `.pt` chunk folders to stores and back; a store's states in another form."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.disk import is_full, write_error
from xmsd_jax.data.manifest import FILE, Manifest, States, claim_json, read_json
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recode import recode
from xmsd_jax.data.store import Store, StoreError, StoreWriter

OURS = "xmsd.json"
"""Beside our own chunks: manifest, names and notes of the store that they were written from."""
NOT_RECORDED = "not recorded"
REAL_VOCABULARY, TARGET_VOCABULARY = 32000, 32064
TOLD_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is made of a source.

    states: form of the states in a store that is made; None keeps that of the source. head: the target's head, where
    the chunk folder has none. shard_rows: of a store made from the study's chunks; chunk_rows: of chunks.
    """

    states: States | None = None
    head: Path | None = None
    shard_rows: int = 320
    chunk_rows: int = 1000

    def __post_init__(self) -> None:
        """Raise UserError for sizes below one."""
        for name in ("shard_rows", "chunk_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"convert: {name} must be at least 1, got {getattr(self, name)}")


def run(source: Path, into: Path, conversion: Conversion) -> Path:
    """Convert `source` into `into`, which a killed conversion of the same source continues; returns `into`.

    A store becomes a chunk folder, or, with `states`, a store of that form; a chunk folder becomes a store.

    Raises:
        UserError: neither store nor chunks, an `into` that holds something else, damaged input, a full disk.
    """
    is_store = (source / FILE).exists()
    try:
        if is_store and conversion.states is not None:
            return recode(source, into, conversion.states)
        return to_chunks(source, into, conversion) if is_store else to_store(source, into, conversion)
    except OSError as error:
        if is_full(error):
            raise write_error(into, "the conversion", error) from None
        raise


def to_chunks(source: Path, into: Path, conversion: Conversion) -> Path:
    """Write a finished store as a chunk folder of the study's form."""
    from torch_bridge import legacy

    store = Store.open(source)
    notes = {str(rows.start): note for rows, note in store.notes().items()}
    _claim(into, {"manifest": store.manifest.to_json(), "names": store.names, "notes": notes})
    head = source.parent / layout.HEAD
    if head.exists() and not (into / legacy.HEAD).exists():
        legacy.save_head(into / legacy.HEAD, store.head())
    files = []
    for rows in layout.shards(store.rows, conversion.chunk_rows):
        file = into / legacy.CHUNKS / legacy.chunk_name(rows.start)
        if not file.exists():
            legacy.save_chunk(file, _fields(store, slice(rows.start, rows.stop)))
        files.append(legacy.ChunkFile(path=file, start=rows.start, rows=len(rows)))
    config = {
        "max_questions": len(store.manifest.questions),
        "max_new_tokens": store.manifest.max_new_tokens,
        "hidden_dim": store.manifest.width,
        "quant": ", ".join(sorted(set(store.manifest.quantisation.values()))),
    }
    for left in into.rglob(".*.part"):  # of a conversion that was killed
        left.unlink()
    legacy.write_index(into, files, config, conversion.chunk_rows)
    return into


def to_store(source: Path, into: Path, conversion: Conversion) -> Path:
    """Write a chunk folder as a store: as it was, if a store was its origin; else with what the study recorded."""
    from torch_bridge import legacy

    folder = legacy.ChunkFolder(source)
    head_file = conversion.head or source / legacy.HEAD
    head = legacy.load_head(head_file) if conversion.head or head_file.exists() else None
    origin = _origin(source)
    if origin is None:
        manifest, names = _study_manifest(folder, head, conversion)
        notes = {}
    else:
        manifest, names, notes = origin
        manifest = replace(manifest, states=conversion.states or manifest.states)
    writer = StoreWriter.create_or_resume(into, manifest, names)
    if head is not None:
        if layout.head_fingerprint(head) != manifest.head_fingerprint:
            raise StoreError(f"{head_file}: is not the head that the states were emitted with: give the right --head")
        layout.keep_head(into.parent, head)
    pending = list(writer.pending())
    for count, rows in enumerate(pending, 1):
        fields = folder.read(rows)
        texts = {which: fields.pop(f"{which}_text", [""] * len(rows)) for which in ("target", "drafter")}
        if origin is None:
            fields |= _study_fields(rows, len(manifest.questions))
            if head is not None:
                fields["target_ids"] = legacy.emitted(fields["target_hidden"], head)
        writer.write(rows.start, _typed(source, fields, manifest), texts=texts, note=notes.get(str(rows.start)))
        if count % TOLD_EVERY == 0 or count == len(pending):
            print(f"convert: {rows.stop} of {manifest.rows} answers", flush=True)
    writer.finish()
    return into


def _fields(store: Store, block: slice) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: store.read(name, block) for name in layout.fields_of(store.manifest) if name != layout.DONE
    }
    return fields | {f"{which}_text": texts[block] for which, texts in store.texts.items()}


def _claim(into: Path, content: Mapping[str, Any]) -> None:
    """Begin our chunk folder, or go on in the one of the same store."""
    held = [file for file in into.iterdir() if file.suffix != ".part"] if into.exists() else []
    if held and not (into / OURS).exists():
        raise UserError(f"{into}: is not empty and no chunk folder of `xmsd convert`: give another folder")
    claim_json(into / OURS, content)
    if read_json(into / OURS) != json.loads(json.dumps(content)):
        raise UserError(f"{into}: holds the chunks of another store: give another folder")


def _origin(source: Path) -> tuple[Manifest, dict[str, list[str]], dict[str, Any]] | None:
    """Manifest, names and notes of the store that chunks were written from; None for the study's own."""
    if not (source / OURS).exists():
        return None
    content = read_json(source / OURS)
    try:
        values = {key: value for key, value in content["manifest"].items() if key not in ("format", "version")}
        return Manifest(**values), content["names"], content["notes"]
    except (TypeError, KeyError) as error:
        raise UserError(f"{source / OURS}: cannot be read ({error!r}): convert the store again") from None


def _study_manifest(
    folder: Any, head: np.ndarray | None, conversion: Conversion
) -> tuple[Manifest, dict[str, list[str]]]:
    first = folder.read(range(1))
    config = folder.index.get("config", {})
    asked = config.get("max_questions", len(QUESTIONS))
    if asked not in range(1, len(QUESTIONS) + 1):
        raise UserError(f"{folder.path}: index.json says {asked!r} questions a clip; 1..{len(QUESTIONS)} are known")
    questions = QUESTIONS[:asked]
    positions, width = first["target_hidden"].shape[1:]
    absent = [name for name in ("drafter_synced", "drafter_ids", "target_ids") if name not in first]
    if head is not None and "target_ids" in absent:
        absent.remove("target_ids")
    pair = ("target", "drafter")
    facts = [[file.path.name, file.rows, file.path.stat().st_size] for file in folder.files]
    manifest = Manifest(
        models={"target": "Video-LLaVA of the study", "drafter": "EventGPT of the study"},
        revisions=dict.fromkeys(pair, NOT_RECORDED),
        quantisation=dict.fromkeys(pair, str(config.get("quant", NOT_RECORDED))),
        norm_slot="post",
        prompt_hash=NOT_RECORDED,
        vocabulary={
            "real": REAL_VOCABULARY if head is None else min(REAL_VOCABULARY, len(head)),
            "target": TARGET_VOCABULARY if head is None else len(head),
            "drafter": REAL_VOCABULARY,
        },
        head_fingerprint=NOT_RECORDED if head is None else layout.head_fingerprint(head),
        software={"source": "the study's chunks"},
        batch={"order": "clip, question"},
        inputs={"chunks": {key: config[key] for key in sorted(config)}},
        questions=questions,
        max_new_tokens=positions,
        width=width,
        rows=folder.rows,
        dtype="bfloat16" if first["target_hidden"].dtype == ml_dtypes.bfloat16 else "float32",
        shard_rows=conversion.shard_rows,
        clips_fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        states=conversion.states or "native",
        absent=tuple([*absent, *([] if "target_text" in first else ["texts"])]),
    )
    clips = [f"clip_{number:06}" for number in range(-(-folder.rows // len(questions)))]
    return manifest, {"sequences": [NOT_RECORDED], "clips": clips, "questions": list(QUESTIONS)}


def _study_fields(rows: range, questions: int) -> dict[str, np.ndarray]:
    """Clip by clip, each with all questions: the order in which the study went through them."""
    clips, slots = np.divmod(np.arange(rows.start, rows.stop, dtype=np.int32), questions)
    return {"clip": clips, "question": slots, "sequence": np.zeros(len(rows), np.int32)}


def _typed(source: Path, fields: Mapping[str, Any], manifest: Manifest) -> dict[str, np.ndarray]:
    """The fields of a store, in its dtypes, which must hold them without rounding."""
    typed = {}
    for name in layout.fields_of(manifest):
        if name == layout.DONE:
            continue
        if name not in fields:
            raise UserError(f"{source}: a chunk has no {name}, but others have: convert the store again")
        typed[name] = fields[name].astype(layout.dtype_of(manifest, name))
        if name in layout.STATES and not _same_numbers(typed[name], fields[name]):
            raise UserError(f"{source}: {name} does not fit {manifest.dtype} without rounding: was it changed since?")
    return typed


def _same_numbers(typed: np.ndarray, given: np.ndarray) -> bool:
    return np.array_equal(typed.astype(np.float32), given.astype(np.float32), equal_nan=True)
