"""Checkpoints of a training run (orbax, written in the background): a killed run goes on to the same bits.

A checkpoint holds the whole state: parameters, moments, step counter, best parameters, and the epochs so far. One that
was being written when the run died does not count; the one before it does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore

from xmsd_jax.config import UserError

KEEP = 1
_SECONDS = 600  # for one background write


class CheckpointError(UserError):
    """A checkpoint that is damaged or belongs to another run."""


class Restored(NamedTuple):
    """`arrays` as they were saved, on the device; `notes`: the JSON beside them."""

    arrays: Any
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder, all of one run. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, folder: Path, key: str) -> None:
        """`key`: what must be equal for a run to go on from a checkpoint (config and inputs)."""
        self.folder, self.key = Path(folder).absolute(), key
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, create=True, async_options=ocp.AsyncOptions(timeout_secs=_SECONDS)
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("arrays", "notes"))

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Wait for a write under way, then let go."""
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, epoch: int, arrays: Any, notes: Mapping[str, Any]) -> None:
        """Begin to write; `arrays` may be donated or changed as soon as this returns."""
        arrays = jax.tree.map(jnp.copy, arrays)
        content = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave({"key": self.key, **notes})
        )
        self._manager.save(epoch, args=content, force=True)

    def restore(self, like: Any) -> Restored | None:
        """The newest checkpoint, or None without one.

        Args:
            like: arrays with the shapes, dtypes and device of those that were saved.

        Raises:
            CheckpointError: it is damaged, or another run's.
        """
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        notes = self._read(epoch, notes=ocp.args.JsonRestore())["notes"]
        if not isinstance(notes, dict) or notes.get("key") != self.key:
            raise CheckpointError(
                f"{self.folder}: the checkpoint of another config or store (key {str(notes.get('key'))[:12]}, this run "
                f"has {self.key[:12]}); delete the folder, or use --fresh or another --run-dir"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arrays = self._read(epoch, arrays=ocp.args.StandardRestore(abstract))["arrays"]
        return Restored(arrays, notes)

    def _read(self, epoch: int, **items: Any) -> Any:
        try:
            if "arrays" in items:
                _check_readable(self.folder / str(epoch) / "arrays")
            return self._manager.restore(epoch, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax, tensorstore and JSON each raise their own
            told = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.folder / str(epoch)}: the checkpoint is damaged ({type(error).__name__}: {told}); delete this "
                f"folder to train from the start"
            ) from None


def _check_readable(folder: Path) -> None:
    """Read orbax's metadata and every value of its database once, which checks their checksums.

    Orbax reads all arrays at once: after the first error the others print tracebacks from their threads.
    """
    described = folder / "array_metadatas"
    if described.exists() and not any(described.iterdir()):
        raise FileNotFoundError(f"{described} is empty")
    for file in (folder / "_METADATA", *described.glob("*")):
        json.loads(file.read_bytes())
    database = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    names = database.list().result()
    if not names:
        raise FileNotFoundError(f"{folder} holds no arrays")
    for name in names:
        database.read(name).result()
