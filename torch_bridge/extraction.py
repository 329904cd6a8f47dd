"""Both models answer every (clip, question) of a split, into the store; a killed run goes on where it stopped."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

from torch_bridge.answering import Pair, Pixels, Settings
from torch_bridge.batching import Job, plan
from torch_bridge.overlap import Behind, Leaving, Span, ahead, to_numpy
from torch_bridge.quantize import dense_weight
from torch_bridge.vlm import VLM, prompt_ids
from xmsd_jax.config import UserError
from xmsd_jax.data.clip_folder import ClipEntry, ClipFolder
from xmsd_jax.data.parts import WHOLE, Part
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Manifest, StoreError, StoreWriter
from xmsd_jax.data.store_layout import head_fingerprint, keep_head
from xmsd_jax.runs import progress


def extract_split(
    root: Path,
    folder: ClipFolder,
    split: str,
    target: VLM,
    drafter: VLM,
    settings: Settings,
    part: Part = WHOLE,
    watch: list[Span] | None = None,
) -> Path:
    """Write the store of one split, or what is missing of it, and the target's head beside; return the store's path.

    Rows are ordered clip by clip, question by question. Batches are formed inside a shard, from its first row on, so
    that a resumed run makes the very batches that an undisturbed one would have made; a batch that does not fit in
    memory is halved, and so are all that follow. The store's notes say which clips were answered together. Clips are
    read before their batch, and shards written after it, beside the models.

    Of a `part` only its shards are written, and the store is left unfinished (`xmsd extract --merge-check` finishes
    it). `watch` is given the time of every batch on the target's device.

    Raises:
        StoreError: the folder holds a store of another run; the split has no clips; the widths of the models differ.
        UserError: one clip alone does not fit in memory, or a clip cannot be read.
    """
    entries = folder.entries(split)
    manifest = describe(folder, split, target, drafter, settings)
    writer = StoreWriter.create_or_resume(root / split, manifest, _names(entries))
    keep_head(root, to_numpy(dense_weight(target.lm_head)))
    if shards := list(writer.pending(part)):
        _answer(writer, shards, folder, split, Pair(target, drafter, settings), settings, watch)
    if part.is_whole:
        written = {name: writer.read(name) for name in ("target_ids", "target_len", "drafter_ids", "drafter_len")}
        writer.finish(_texts(written, target, drafter))
    return root / split


def _answer(
    writer: StoreWriter,
    shards: Sequence[range],
    folder: ClipFolder,
    split: str,
    pair: Pair,
    settings: Settings,
    watch: list[Span] | None,
) -> None:
    """Answer and write shards; what fails beside the models, reading or writing, stops it at the next batch."""
    entries, read = folder.entries(split), partial(_pixels, folder, pair)
    batch = settings.batch or pair.planned(read(entries[shards[0].start // len(settings.questions)]))
    jobs = [job for shard in shards for job in plan(shard, settings.questions, batch)]
    groups = [[entries[number] for number in job.clips] for job in jobs]
    parts: list[tuple[Job, Leaving]] = []
    with Behind() as behind, closing(ahead(groups, read)) as seen:
        batches = zip(jobs, seen, strict=True)
        for job, pixels in progress(batches, total=len(jobs), label=f"extract {split}"):
            behind.check()
            parts += pair.answers(job, pixels, watch)
            if job.closes:
                behind(partial(_write, writer, job.shard, parts, entries, pair))
                parts = []


def _pixels(folder: ClipFolder, pair: Pair, entry: ClipEntry) -> Pixels:
    """What both models look at of a clip; any error names it."""
    try:
        clip = folder.load(entry)
        return pair.target.pixels(clip), pair.drafter.pixels(clip)
    except (UserError, OSError) as error:
        if isinstance(error, UserError) and entry.name in str(error):
            raise
        raise UserError(f"{folder.path}: clip {entry.name} cannot be read ({error}): make the clips again") from error
    except Exception as error:
        error.add_note(f"while clip {entry.name} of {folder.path} was read")
        raise


def describe(folder: ClipFolder, split: str, target: VLM, drafter: VLM, settings: Settings) -> Manifest:
    """Return the manifest of a split's store.

    Raises:
        StoreError: no clips in the split, widths or dtypes that differ, or a dtype that the store does not know.
    """
    rows = len(folder.entries(split)) * len(settings.questions)
    if not rows:
        raise StoreError(f"split {split!r} has no clips or no questions: choose one of {', '.join(folder.splits)}")
    if target.dtype not in (torch.float32, torch.bfloat16):
        raise StoreError(
            f"states are stored in float32 or bfloat16; received {target.dtype}: load the pair in one of them"
        )
    if (target.width, target.dtype) != (drafter.width, drafter.dtype):
        raise StoreError(
            "target and drafter states share one shape and dtype; received "
            f"{target.dtype}[{target.width}] and {drafter.dtype}[{drafter.width}]: load a pair of one width and dtype"
        )
    pair = {"target": target, "drafter": drafter}
    return Manifest(
        models={which: vlm.name for which, vlm in pair.items()},
        revisions={which: vlm.fingerprint for which, vlm in pair.items()},
        quantisation={which: vlm.quantisation for which, vlm in pair.items()},
        norm_slot="post",
        prompt_hash=_prompt_hash(pair.values(), settings),
        vocabulary={
            "real": min(target.real_vocabulary, drafter.real_vocabulary),
            "target": target.lm_head.out_features,
            "drafter": drafter.lm_head.out_features,
        },
        head_fingerprint=head_fingerprint(to_numpy(dense_weight(target.lm_head))),
        software=_software(target),
        batch={
            "clips": settings.batch or "planned from free memory, see the notes",
            "order": "clip, question",
            "padding": "between prefix and question",
        },
        inputs=settings.inputs,
        questions=tuple(QUESTIONS[index] for index in settings.questions),
        max_new_tokens=settings.max_new_tokens,
        width=target.width,
        rows=rows,
        dtype="bfloat16" if target.dtype == torch.bfloat16 else "float32",
        shard_rows=settings.shard_rows,
        clips_fingerprint=folder.fingerprint,
        states=settings.states,
    )


def _write(
    writer: StoreWriter, shard: range, parts: Sequence[tuple[Job, Leaving]], entries: Sequence[ClipEntry], pair: Pair
) -> None:
    """Write a shard, with a note of which clips were answered together and where."""
    made = [leaving.arrays() | _indices(job, entries) for job, leaving in parts]
    fields = {name: np.concatenate([one[name] for one in made]) for name in made[0]}
    note = {
        "batches": [list(job.clips) for job, _ in parts],
        "device": _device_name(pair.target.device),
        "expanded": pair.expanded,
    }
    writer.write(shard.start, fields, texts=_texts(fields, pair.target, pair.drafter), note=note)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _indices(job: Job, entries: Sequence[ClipEntry]) -> dict[str, np.ndarray]:
    sequences = {name: number for number, name in enumerate(_names(entries)["sequences"])}
    count = len(job.questions)
    return {
        "question": np.tile(np.asarray(job.questions, np.int32), len(job.clips)),
        "sequence": np.repeat([sequences[entries[clip].sequence] for clip in job.clips], count).astype(np.int32),
        "clip": np.repeat(job.clips, count).astype(np.int32),
    }


def _names(entries: Sequence[ClipEntry]) -> dict[str, list[str]]:
    # All ten questions, so that the field `question` is the index that prompts and templates use.
    sequences = list(dict.fromkeys(entry.sequence for entry in entries))
    return {"sequences": sequences, "clips": [entry.name for entry in entries], "questions": list(QUESTIONS)}


def _software(target: VLM) -> dict[str, str]:
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "device": target.device.type,
    }
    # A sum over two threads rounds otherwise than over one: a resumed run would not make the same bytes.
    return versions | ({"threads": str(torch.get_num_threads())} if target.device.type == "cpu" else {})


def _prompt_hash(models: Iterable[VLM], settings: Settings) -> str:
    digest = hashlib.sha256()
    for vlm in models:
        for index in settings.questions:
            digest.update(prompt_ids(vlm, QUESTIONS[index]).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _texts(fields: Mapping[str, np.ndarray], target: VLM, drafter: VLM) -> dict[str, list[str]]:
    texts = {}
    for which, vlm in (("target", target), ("drafter", drafter)):
        rows = zip(fields[f"{which}_ids"], fields[f"{which}_len"], strict=True)
        texts[which] = vlm.tokenizer.decode_batch([ids[:length].tolist() for ids, length in rows])
    return texts
