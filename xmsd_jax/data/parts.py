"""Parts of a store's shards, for several processes that write one store: `--shard i/n`.

Part i of n has every n-th shard of each split, from the i-th on. A shard is one file an array, so parts never write to
one file; and a shard's batches are formed inside it, so that n parts leave the bytes that one process would.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xmsd_jax.config import UserError

FOLDER = ".writers"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Raise UserError for a part that is not there."""
        if not 1 <= self.number <= self.count:
            raise UserError(f"--shard: parts are counted from 1/{self.count} to {self.count}/{self.count}; got {self}")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read "i/n", as in `--shard 2/4`.

        Raises:
            UserError: not two whole numbers, or i outside 1..n.
        """
        if (found := re.fullmatch(r"(\d+)/(\d+)", text)) is None:
            raise UserError(f"--shard: i/n is expected, as 2/4, the second of four parts; got {text!r}")
        return cls(number=int(found[1]), count=int(found[2]))

    def __str__(self) -> str:
        """The part as it is given, "2/4"."""
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether nobody else has a part."""
        return self.count == 1

    def has(self, shard: int) -> bool:
        """Whether a shard, by its number from 0, belongs to this part."""
        return shard % self.count == self.number - 1


WHOLE = Part()


@contextlib.contextmanager
def claim(root: Path, part: Part) -> Iterator[None]:
    """Hold a part of the stores under `root`; the claim ends with the process, however that ends.

    Where the file system knows no locks, nothing is held, and nothing is refused.

    Raises:
        UserError: another process holds the part, or one of another count, so that shards would be written twice.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        own = _file(part)
        if not _lock(held, folder / own):
            raise UserError(f"{root}: another process writes part {part}: wait for it, or give another --shard")
        for other in sorted(folder.glob("*-of-*")):
            if not other.name.endswith(f"-of-{part.count}") and _is_held(other):
                (folder / own).unlink(missing_ok=True)  # a part that was never begun is not one of the division
                raise UserError(
                    f"{root}: another process writes part {other.name.replace('-of-', '/')}, which overlaps with part "
                    f"{part}: wait for it, or divide the work as it does"
                )
        yield


def counts(root: Path) -> set[int]:
    """Into how many parts the work under `root` was divided, as far as processes have begun them."""
    return {int(file.name.rpartition("-")[2]) for file in (root / FOLDER).glob("*-of-*")}


def _file(part: Part) -> str:
    return f"{part.number}-of-{part.count}"


def _lock(held: contextlib.ExitStack, file: Path) -> bool:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True


def _is_held(file: Path) -> bool:
    with contextlib.ExitStack() as briefly:
        return not _lock(briefly, file)
