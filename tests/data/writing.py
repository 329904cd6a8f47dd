"""A made-up extraction that writes one store in its own process, to be killed, limited, or run beside others.

    python -m tests.data.writing ROOT [i/n] [--gate FILE] [--largest-file BYTES]

says on its output what it begins, waits for FILE first where one is named, and stays until it is killed in the end.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.parts import WHOLE, Part
from xmsd_jax.data.store import Manifest, StoreError, StoreWriter

ROWS, SHARD, STEPS, WIDTH = 22, 4, 6, 64
HEAD = np.arange(32 * WIDTH, dtype=np.float32).reshape(32, WIDTH)
NAMES = {"sequences": ["a", "b"], "clips": [f"clip{n}" for n in range(ROWS // 2)], "questions": ["what?", "where?"]}
SPLIT = "train"


def manifest(**changes) -> Manifest:
    values = dict(
        models={"target": "tall", "drafter": "short"}, revisions={"target": "1", "drafter": "2"},
        quantisation={"target": "none", "drafter": "none"}, norm_slot="post", prompt_hash="ab",
        vocabulary={"real": 30, "target": 32, "drafter": 30}, head_fingerprint=layout.head_fingerprint(HEAD),
        software={"torch": "2"}, batch={"clips": 2}, inputs={"n": 5}, questions=("what?", "where?"),
        max_new_tokens=STEPS, width=WIDTH, rows=ROWS, dtype="bfloat16", shard_rows=SHARD, clips_fingerprint="cd",
    )  # fmt: skip
    return Manifest(**{**values, **changes})


def shard_fields(rows: range, made: Manifest) -> dict[str, np.ndarray]:
    """A shard's fields; every row depends on its own number only."""
    fields = {}
    for name in sorted(set(layout.fields_of(made)) - {"done"}):
        shape, dtype = layout.row_shape(made, name), layout.dtype_of(made, name)
        draws = [np.random.default_rng([row, len(name)]).normal(0, 3, shape) for row in rows]
        fields[name] = np.stack(draws).astype(dtype)
    numbers = np.arange(rows.start, rows.stop, dtype=np.int32)
    return fields | {"clip": numbers // 2, "question": numbers % 2, "sequence": numbers * 2 // ROWS}


def texts_of(rows: range) -> dict[str, list[str]]:
    return {which: [f"{which} says {row}" for row in rows] for which in ("target", "drafter")}


def extract(root: Path, part: Part = WHOLE, say: Callable[[str], object] = str, **changes) -> Path:
    """Write the store, or what is missing of it; of the whole, finish it."""
    say("create")
    made = manifest(**changes)
    writer = StoreWriter.create_or_resume(root / SPLIT, made, NAMES)
    layout.keep_head(root, HEAD)
    for rows in writer.pending(part):
        say(f"write {rows.start}")
        note = {"batches": [[rows.start // 2], [rows.start // 2 + 1]]}
        writer.write(rows.start, shard_fields(rows, made), texts=texts_of(rows), note=note)
    if part.is_whole:
        say("finish")
        writer.finish()
    say("end")
    return root / SPLIT


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("part", type=Part.parse, nargs="?", default=WHOLE)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--largest-file", type=int)
    given = parser.parse_args()
    if given.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.largest_file, given.largest_file))
    while given.gate is not None and not given.gate.exists():
        time.sleep(0.0005)
    try:
        extract(given.root, given.part, lambda word: print(word, flush=True))
    except StoreError as error:
        sys.exit(f"StoreError: {error}")
    if given.largest_file is None and given.gate is None:
        time.sleep(60)


if __name__ == "__main__":
    _main()
