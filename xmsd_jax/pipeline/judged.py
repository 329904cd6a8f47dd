"""What `evaluate` leaves for predictions and for the live run: every drafter at every anchor of a split's answers.

EVALUATION/judged.json                     splits, drafter names, and the fingerprint of each split's store
EVALUATION/<split>/<drafter>.npz           anchors of phase 2 (`xmsd_jax.metrics.acceptance.Anchors`)
EVALUATION/<split>/<drafter>.free.npz      free prefixes of phase 1 (`xmsd_jax.decoding.text_anchors.FreePrefix`)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xmsd_jax.config import UserError
from xmsd_jax.data.manifest import Manifest, write_json
from xmsd_jax.decoding.text_anchors import FreePrefix
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.pipeline.rows import folder_name

INDEX = "judged.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One drafter on one split, row by row of its store: what it can do in phase 2 and in phase 1; None where not."""

    anchors: Anchors | None = None
    prefix: FreePrefix | None = None


def write_judged(root: Path, split: str, judged: Mapping[str, Judged]) -> None:
    """Write the files of one split."""
    for name, one in judged.items():
        file = root / split / folder_name(name)
        if one.anchors is not None:
            one.anchors.save(file.with_suffix(".npz"))
        if one.prefix is not None:
            one.prefix.save(file.with_suffix(".free.npz"))


def write_index(root: Path, stores: Mapping[str, Manifest], names: list[str]) -> None:
    """Write the index, last: a folder that has one is whole."""
    write_json(root / INDEX, {"names": names, "stores": {s: m.fingerprint for s, m in stores.items()}})


def read_judged(root: Path, split: str, manifest: Manifest) -> dict[str, Judged]:
    """Read the drafters of one split.

    Raises:
        UserError: no evaluation there, none of that split, or one of another store.
    """
    try:
        index = json.loads((root / INDEX).read_text(encoding="utf-8"))
        found = index["stores"].get(split)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{root / INDEX}: cannot be read ({error}); run `xmsd evaluate` first") from None
    if found != manifest.fingerprint:
        what = f"no evaluation of split {split}" if found is None else f"the evaluation of another store as {split}"
        raise UserError(f"{root}: holds {what}; evaluate this store's split again")
    return {name: _read(root / split / folder_name(name)) for name in index["names"]}


def _read(file: Path) -> Judged:
    anchors, prefix = file.with_suffix(".npz"), file.with_suffix(".free.npz")
    return Judged(
        anchors=Anchors.load(anchors) if anchors.exists() else None,
        prefix=FreePrefix.load(prefix) if prefix.exists() else None,
    )
