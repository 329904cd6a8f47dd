"""Answers of the study's shape with random states, for measuring speed: on the device, or as a store on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from xmsd_jax.config import ConfigError
from xmsd_jax.data.batches import Index, pair_masks
from xmsd_jax.data.manifest import Manifest
from xmsd_jax.data.store import FIELDS, StoreWriter
from xmsd_jax.training.sources import FACTS, ResidentSource
from xmsd_jax.training.step import Resident, placed

MEAN_LENGTH, SPREAD, SHORTEST = 36.9, 8.0, 11
"""The study's answers: 11 to 50 tokens, 36.9 on average; the spread is assumed."""
SHARD_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a split: answers, positions, width of a state, padded vocabulary."""

    answers: int = 8192
    positions: int = 50
    width: int = 4096
    vocabulary: int = 32064

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that nothing can have."""
        sizes = {"answers": self.answers, "positions": self.positions, "vocabulary": self.vocabulary}
        if small := [name for name, size in sizes.items() if size < 2]:
            raise ConfigError(f"{small[0]}: must be at least 2, got {sizes[small[0]]}")
        if self.width < 16 or self.width % 16:
            raise ConfigError(f"width: must be a multiple of 16, got {self.width}")

    def lengths(self) -> np.ndarray:
        """Answer lengths int32[n], as the study's are distributed."""
        drawn = np.random.default_rng(0).normal(MEAN_LENGTH / 50, SPREAD / 50, self.answers) * self.positions
        least = min(max(SHORTEST * self.positions // 50, 5), self.positions)
        return np.clip(drawn.round(), least, self.positions).astype(np.int32)


def made_index(shape: Shape) -> Index:
    """All but the states: random ids, two sequences."""
    lengths = shape.lengths()
    same, following = pair_masks(lengths, lengths, shape.positions, index=False)
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, (shape.answers, shape.positions)).astype(np.int32)
    rows = np.arange(shape.answers, dtype=np.int32)
    return Index(
        row=rows,
        drafter_len=lengths,
        target_len=lengths,
        target_ids=ids,
        question=np.zeros_like(rows),
        sequence=np.where(rows % 2, "b", "a"),
        same_mask=same,
        next_mask=following,
    )


def made_source(shape: Shape, mesh: Mesh, *, drafter: bool = True) -> ResidentSource:
    """A resident split of normal bfloat16 states, made on the device."""
    index = made_index(shape)
    size = (shape.answers, shape.positions, shape.width)
    draw = jax.jit(lambda key: jax.random.normal(key, size, jnp.bfloat16))
    target, other = (draw(jax.random.key(seed)) if wanted else None for seed, wanted in ((0, True), (1, drafter)))
    states = {"target": target, "drafter": other}
    facts = placed({n: getattr(index, n) for n in FACTS}, mesh)
    data = Resident(**{name: None if x is None else placed(x, mesh) for name, x in states.items()}, **facts)
    return ResidentSource(index=index, data=data, mesh=mesh)


def write_made_store(path: Path, shape: Shape) -> None:
    """Write such a split as a store, whole shards at a time; as long as rows * t * d * 6 bytes."""
    index, rng = made_index(shape), np.random.default_rng(2)
    block = rng.standard_normal((SHARD_ROWS, shape.positions, shape.width), np.float32).astype(ml_dtypes.bfloat16)
    writer = StoreWriter.create_or_resume(
        path, _manifest(shape), {"sequences": ["a", "b"], "clips": ["made"], "questions": ["?"]}
    )
    small = {
        "drafter_ids": index.target_ids,
        "target_ids": index.target_ids,
        "drafter_len": index.drafter_len,
        "target_len": index.target_len,
        "question": index.question,
        "sequence": index.row % 2,
        "clip": index.question,
    }
    for rows in writer.pending():
        count = len(rows)
        states = {name: np.roll(block, rows.start + i, 0)[:count] for i, name in enumerate(_STATES)}
        writer.write(rows.start, {**states, **{name: x[rows.start : rows.stop] for name, x in small.items()}})
    writer.finish({which: [""] * shape.answers for which in ("target", "drafter")})


_STATES = [name for name in FIELDS if name.endswith(("_hidden", "_synced"))]


def _manifest(shape: Shape) -> Manifest:
    nothing: dict[str, Any] = {}
    return Manifest(
        models=nothing,
        revisions=nothing,
        quantisation=nothing,
        norm_slot="post",
        prompt_hash="",
        vocabulary={"real": shape.vocabulary, "padded": shape.vocabulary},
        head_fingerprint="",
        software=nothing,
        batch=nothing,
        inputs=nothing,
        questions=("?",),
        max_new_tokens=shape.positions,
        width=shape.width,
        rows=shape.answers,
        shard_rows=SHARD_ROWS,
        clips_fingerprint="",
        dtype="bfloat16",
    )
