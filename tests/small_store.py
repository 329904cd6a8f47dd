"""A store of made-up answers, in which the next state follows from the present one, so that adapters can learn it."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  makes numpy know "bfloat16"
import numpy as np

from xmsd_jax.data import store_layout
from xmsd_jax.data.store import Manifest, StoreWriter

ROWS, STEPS, WIDTH, REAL, PADDED = 16, 10, 64, 24, 32
SEQUENCES = 4
QUESTIONS = ("what?", "where?")
HEAD = np.random.default_rng(7).normal(0, 1, (PADDED, WIDTH)).astype(np.float32)


def length_of(row: int) -> int:
    """L of an answer."""
    return 7 + row % 3


def manifest(rows: int = ROWS, **changes) -> Manifest:
    values = dict(
        models={"target": "tall", "drafter": "short"}, revisions={"target": "1", "drafter": "2"},
        quantisation={"target": "none", "drafter": "none"}, norm_slot="post", prompt_hash="ab",
        vocabulary={"real": REAL, "target": PADDED, "drafter": REAL},
        head_fingerprint=store_layout.head_fingerprint(HEAD), software={"torch": "2"}, batch={"clips": 2},
        inputs={"n": 5}, questions=QUESTIONS, max_new_tokens=STEPS, width=WIDTH, rows=rows, dtype="float32",
        shard_rows=rows, clips_fingerprint="cd",
    )  # fmt: skip
    return Manifest(**{**values, **changes})


def rows_of_store(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Answers count on from a first token; a state is its token's row of the head; the drafter's is a turned one."""
    draw = np.random.default_rng(seed)
    places, first = np.arange(STEPS), draw.integers(0, REAL, rows)
    ids = ((first[:, None] + places) % REAL).astype(np.int32)
    target = HEAD[ids] + draw.normal(0, 0.05, (rows, STEPS, WIDTH))
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(WIDTH, WIDTH)))[0]
    lengths = np.array([length_of(row) for row in range(rows)], np.int32)
    return {
        "target_hidden": target, "drafter_hidden": target @ turn, "drafter_synced": target @ turn,
        "target_ids": ids, "drafter_ids": ids.copy(), "target_len": lengths, "drafter_len": lengths - 1,
        "question": np.arange(rows, dtype=np.int32) % 2,
        "sequence": np.arange(rows, dtype=np.int32) * SEQUENCES // rows,
        "clip": np.arange(rows, dtype=np.int32) // 2,
    }  # fmt: skip


def write_store(
    path: Path,
    *,
    rows: int = ROWS,
    seed: int = 0,
    prefix: str = "train",
    spoil: Callable[[dict[str, np.ndarray]], object] = lambda fields: None,
    **changes,
) -> Path:
    """Write a finished store at `path`, its head beside it; `spoil` changes the fields in place before."""
    made = manifest(rows, **changes)
    names = {
        "sequences": [f"{prefix}_{i}" for i in range(SEQUENCES)],
        "clips": [f"{prefix}_{i}" for i in range(rows // 2)],
        "questions": list(QUESTIONS),
    }
    writer = StoreWriter.create_or_resume(path, made, names)
    fields = rows_of_store(rows, seed)
    spoil(fields)
    typed = {name: np.asarray(value, store_layout.dtype_of(made, name)) for name, value in fields.items()}
    for part in list(writer.pending()):
        writer.write(part.start, {name: value[part.start : part.stop] for name, value in typed.items()})
    writer.finish({"target": ["t"] * rows, "drafter": ["d"] * rows})
    store_layout.keep_head(path.parent, HEAD)
    return path
