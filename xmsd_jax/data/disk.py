"""What a system's error says about the disk: full, over its quota, or something else."""

import errno
import re
import shutil
from pathlib import Path

from xmsd_jax.data.manifest import StoreError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not grow so long",
}


def is_full(error: Exception) -> bool:
    """Whether there was no room, as OSError, or as tensorstore and safetensors tell it: in their text only."""
    return _number(error) in FULL


def write_error(path: Path, what: str, error: Exception) -> StoreError:
    """The error for the user when `what` could not be written at `path`: what is full, how much is free, what to do."""
    number = _number(error)
    if number not in FULL:
        return StoreError(f"{path}: {what} cannot be written ({first_line(error)}): check the disk, then run it again")
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return StoreError(
        f"{path}: {FULL[number]} ({shutil.disk_usage(place).free / 1e6:,.1f} MB free), so {what} cannot be written; "
        "what was written before is kept: make room and run the same command again, it continues"
    )


def too_little_room(path: Path, needed: int) -> str | None:
    """A line to say before hours of work when `needed` more bytes will not fit; None when they will."""
    free = shutil.disk_usage(path).free
    if needed <= free:
        return None
    return (
        f"{path}: {needed / 1e9:,.1f} GB are still to be written and {free / 1e9:,.1f} GB are free: the run will stop "
        "when the disk is full, and continue from there when there is room"
    )


def first_line(error: Exception) -> str:
    """Return what tensorstore says without its trace and specification."""
    return str(error).splitlines()[0].split(" [tensorstore_spec")[0] if str(error) else type(error).__name__


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'|os error (\d+)", str(error))
    return None if found is None else int(found[1] or found[2])
