"""`xmsd extract CONFIG --merge-check`: are all parts there, none doubled, of one run? Then the stores are finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xmsd_jax.config import UserError
from xmsd_jax.data import parts
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.manifest import Manifest, StoreError, read_manifest
from xmsd_jax.data.merging import Expected, check_rows, merge, missing_shards, told
from xmsd_jax.data.store import Store
from xmsd_jax.data.store_layout import HEAD, keep_head, read_head, shards
from xmsd_jax.data.store_writer import NAMES, StoreWriter, read_json

SAME_RUN = (
    "models", "revisions", "quantisation", "norm_slot", "prompt_hash", "vocabulary", "head_fingerprint", "software",
    "batch", "inputs", "questions", "max_new_tokens", "width", "dtype", "shard_rows", "clips_fingerprint", "states",
)  # fmt: skip
"""Fields of the manifest in which the splits of one run agree: all but the number of rows."""
MOST_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the stores must be of: the clips, the questions by their indices, and the splits."""

    folder: ClipFolder
    questions: tuple[int, ...]
    splits: tuple[str, ...]


def check_and_finish(root: Path, wanted: Wanted, sources: Sequence[Path] = ()) -> dict[str, Path]:
    """Take over what `sources` hold, verify the stores under `root`, list what is missing, finish them.

    Args:
        root: folder with one store a split.
        wanted: what they must hold.
        sources: folders like `root`, each with some of the shards.

    Raises:
        UserError: rows are missing (a line for each range is printed before); stores of different runs; shards that are
            damaged, or there twice with different content; rows that are not about their own clip and question.
    """
    for source in sources:
        _take_over(root, source, wanted.splits)
    paths = {split: root / split for split in wanted.splits}
    absent = [split for split, path in paths.items() if not (path / NAMES).exists()]
    if absent:
        raise UserError(f"{root}: no process has begun {', '.join(absent)}: run the parts with --shard first")
    manifests = {split: read_manifest(path) for split, path in paths.items()}
    _check_one_run(root, manifests, wanted.folder)
    counts = {count for folder in (root, *sources) for count in parts.counts(folder) if count > 1}
    lines = [line for split, path in paths.items() for line in _missing(path, split, manifests[split], counts)]
    if lines:
        print("\n".join(lines), flush=True)
        first = lines[0].strip() + (f", and {len(lines) - 1} more" if len(lines) > 1 else "")
        raise UserError(f"{root}: not all rows are there; {first}: run those parts again, they continue")
    for split, path in paths.items():
        _finish(path, split, manifests[split], wanted)
    return paths


def _take_over(root: Path, source: Path, splits: Sequence[str]) -> None:
    if not any((source / split / NAMES).exists() for split in splits):
        raise UserError(f"{source}: holds no store of {', '.join(splits)}: give run folders of `xmsd extract`")
    for split in splits:
        if (source / split / NAMES).exists():
            count = merge(root / split, source / split)
            print(f"{split}: {count} shards taken over from {source}", flush=True)
    if (source / HEAD).exists():
        keep_head(root, read_head(source))


def _check_one_run(root: Path, manifests: Mapping[str, Manifest], folder: ClipFolder) -> None:
    first = next(iter(manifests.values())).values()
    for split, manifest in manifests.items():
        values = manifest.values()
        different = [name for name in SAME_RUN if values[name] != first[name]]
        if different:
            raise StoreError(f"{root / split}: {', '.join(different)} differ from the other splits: extract it again")
        if manifest.clips_fingerprint != folder.fingerprint:
            raise StoreError(
                f"{root / split}: is about other clips than {folder.path}: give the clips it was made from"
            )


def _missing(path: Path, split: str, manifest: Manifest, counts: set[int]) -> list[str]:
    """A line for each shard that is missing, with the part that it belongs to where the work was divided."""
    numbers, all_shards = missing_shards(path, manifest), shards(manifest.rows, manifest.shard_rows)
    if not numbers:
        return []
    lines = [f"{split}: {len(numbers)} of {len(all_shards)} shards are missing"]
    for number in numbers[:MOST_LISTED]:
        whose = "".join(f", --shard {number % count + 1}/{count}" for count in sorted(counts))
        lines.append(f"  {split}: shard {number}, rows {told(all_shards[number])}{whose}")
    more = len(numbers) - MOST_LISTED
    return lines + ([f"  {split}: and {more} more"] if more > 0 else [])


def _finish(path: Path, split: str, manifest: Manifest, wanted: Wanted) -> None:
    sequences = [entry.sequence for entry in wanted.folder.entries(split)]
    check_rows(path, manifest, Expected(sequences=sequences, questions=wanted.questions))
    StoreWriter.create_or_resume(path, manifest, read_json(path / NAMES)).finish()
    Store.open(path).head()
