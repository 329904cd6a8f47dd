"""The command line of `xmsd convert`; nothing heavy is imported for its help."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from xmsd_jax.config import UserError

HELP = """usage: xmsd convert SOURCE INTO [--states native|float8] [--head FILE] [--shard-rows 320] [--chunk-rows 1000]

the study's .pt chunk folders to a store and back, without loss; killed, the same command continues

SOURCE   a chunk folder (index.json, chunks/chunk_000000.pt ...), or a split's store of `xmsd extract`
INTO     the store that is made of chunks, as runs/study/store/train; the chunk folder that is made of a store
  --states native|float8   make a store whose states lie so; from a store, too
  --head FILE              the target's head (the study's vl_lm_head.pt): gives the target's ids, which chunks lack
  --shard-rows N           answers in a file of the store that is made of the study's chunks
  --chunk-rows N           answers in a chunk"""
OPTIONS = ("states", "head", "shard-rows", "chunk-rows")


def command(positional: Sequence[str], options: Mapping[str, str], flags: Collection[str]) -> int:
    """Run it; returns the exit code.

    Raises:
        UserError: arguments that it does not take, or what converting raises.
    """
    if "help" in flags:
        print(HELP)
        return 0
    sizes = {name.replace("-", "_"): value for name, value in options.items() if name.endswith("-rows")}
    fits = len(positional) == 2 and not flags and set(options) <= set(OPTIONS)
    states = options.get("states")
    if not fits or states not in (None, "native", "float8") or not all(size.isdecimal() for size in sizes.values()):
        given = [*positional, *(f"--{name} {value}" for name, value in options.items())]
        raise UserError(f"command line: convert: `xmsd convert --help` says what it takes, got {' '.join(given)}")
    from xmsd_jax.pipeline.convert import Conversion, run

    head = Path(options["head"]) if "head" in options else None
    conversion = Conversion(states=states, head=head, **{name: int(size) for name, size in sizes.items()})
    print(f"convert: {run(Path(positional[0]), Path(positional[1]), conversion)}")
    return 0
