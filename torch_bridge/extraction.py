"""Both models answer every (clip, question) of a split, into the store; a killed run goes on where it stopped."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor

from torch_bridge.answers import Batch
from torch_bridge.quantize import dense_weight
from torch_bridge.vlm import VLM, prompt_ids
from xmsd_jax.data.clip_folder import ClipEntry, ClipFolder
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.manifest import States
from xmsd_jax.data.parts import WHOLE, Part
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Manifest, StoreError, StoreWriter
from xmsd_jax.data.store_layout import head_fingerprint, keep_head
from xmsd_jax.runs import progress


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is extracted and how rows are put together; all of it is recorded in the manifest.

    `questions` are indices into QUESTIONS; `batch` is the number of clips that are answered together, each with all its
    questions; `shard_rows` is what a killed run loses at most. A multiple of the number of questions keeps a clip's
    questions together. `inputs` says what the models see of a clip beyond their own configuration; `states` how states
    lie on disk: in their own dtype, or in 8 bits.
    """

    questions: tuple[int, ...] = tuple(range(len(QUESTIONS)))
    max_new_tokens: int = 64
    batch: int = 1
    shard_rows: int = 320
    inputs: Mapping[str, Any] = field(default_factory=dict)
    states: States = "native"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch: clips (numbers in the split) with the same questions; `closes` says that its shard is complete."""

    shard: range
    clips: tuple[int, ...]
    questions: tuple[int, ...]
    closes: bool


def extract_split(
    root: Path,
    folder: ClipFolder,
    split: str,
    target: VLM,
    drafter: VLM,
    settings: Settings,
    part: Part = WHOLE,
) -> Path:
    """Write the store of one split, or what is missing of it, and the target's head beside; return the store's path.

    Rows are ordered clip by clip, question by question. Batches are formed inside a shard, from its first row on, so
    that a resumed run makes the very batches that an undisturbed one would have made. Of a `part` only its shards are
    written, and the store is left unfinished (`xmsd extract --merge-check` finishes it).

    Raises:
        StoreError: the folder holds a store of another run; the split has no clips; the widths of the models differ.
    """
    entries = folder.entries(split)
    manifest = describe(folder, split, target, drafter, settings)
    writer = StoreWriter.create_or_resume(root / split, manifest, _names(entries))
    keep_head(root, to_numpy(dense_weight(target.lm_head)))
    jobs = [job for shard in writer.pending(part) for job in plan(shard, settings)]
    parts: list[dict[str, np.ndarray]] = []
    for job in progress(jobs, total=len(jobs), label=f"extract {split}"):
        clips = [folder.load(entries[number]) for number in job.clips]
        parts.append(_answer(job, clips, target, drafter, settings) | _indices(job, entries))
        if job.closes:
            fields = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
            batches = [list(one.clips) for one in plan(job.shard, settings)]
            texts = _texts(fields, target, drafter)
            writer.write(job.shard.start, fields, texts=texts, note={"batches": batches})
            parts.clear()
    if part.is_whole:
        written = {name: writer.read(name) for name in ("target_ids", "target_len", "drafter_ids", "drafter_len")}
        writer.finish(_texts(written, target, drafter))
    return root / split


def plan(shard: range, settings: Settings) -> list[Job]:
    """Cut the rows of a shard into batches of at most `batch` neighbouring clips that ask the same questions."""
    asked: dict[int, list[int]] = {}
    for row in shard:
        clip, slot = divmod(row, len(settings.questions))
        asked.setdefault(clip, []).append(settings.questions[slot])
    groups: list[tuple[list[int], tuple[int, ...]]] = []
    for clip, questions in asked.items():
        if groups and groups[-1][1] == tuple(questions) and len(groups[-1][0]) < settings.batch:
            groups[-1][0].append(clip)
        else:
            groups.append(([clip], tuple(questions)))
    return [
        Job(shard=shard, clips=tuple(clips), questions=questions, closes=number == len(groups) - 1)
        for number, (clips, questions) in enumerate(groups)
    ]


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
        batch={"clips": settings.batch, "order": "clip, question", "padding": "between prefix and question"},
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


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the host; bfloat16 becomes ml_dtypes.bfloat16, int64 stays."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return host.numpy()


def _answer(job: Job, clips: Sequence[Clip], target: VLM, drafter: VLM, settings: Settings) -> dict[str, np.ndarray]:
    questions = [QUESTIONS[index] for index in job.questions]
    answers = Batch(target, clips, questions).answer(settings.max_new_tokens)
    reader = Batch(drafter, clips, questions)
    own = reader.answer(settings.max_new_tokens)
    ids, lengths = answers.ids.to(drafter.device), answers.lengths.to(drafter.device)
    fields = {
        "drafter_hidden": own.hidden,
        "target_hidden": answers.hidden,
        "drafter_synced": reader.read_answers(ids, lengths),
        "drafter_ids": own.ids.int(),
        "target_ids": answers.ids.int(),
        "drafter_len": own.lengths.int(),
        "target_len": answers.lengths.int(),
    }
    return {name: to_numpy(tensor) for name, tensor in fields.items()}


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
