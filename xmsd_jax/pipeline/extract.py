"""Stage `extract`: both models answer every question about every clip; states and ids go into one store a split."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.manifest import States
from xmsd_jax.data.parts import WHOLE, Part, claim
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline.merge_check import Wanted, check_and_finish
from xmsd_jax.pipeline.pair import PairConfig, pair_fingerprint, pair_options
from xmsd_jax.runs import Run, stage_key

STAGE = "store"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What is answered, by whom, and in which portions.

    clips: a folder that `xmsd clips` made; splits: which of its splits, all when empty; questions: indices into the
    ten questions; batch: clips answered together, each with all its questions, null to plan it from the free memory
    (it is halved in any case when memory runs out; the same batches give the same store, and its notes say which they
    were); shard_rows: rows a store file holds, and a killed run loses at most (256 to 1024 for states of width 4096; a
    multiple of the number of questions).
    drafter_device: a GPU of its own for the drafter, which then answers beside the target; null for the pair's.
    expand: with 4-bit weights, hold the full ones that products of many rows would make anew: the same numbers there
    (for few rows, by GPU, the same to rounding), three to four times the memory, some twice the speed; auto does so
    where they fill no more than half of the free memory.
    states: native keeps the states' own dtype; float8 takes 8 bits and a scale a vector, half of bfloat16's room
    (results/fp8_store says what that costs in accepted tokens).
    """

    clips: Path
    pair: PairConfig = field(default_factory=PairConfig)
    splits: tuple[str, ...] = ()
    questions: tuple[int, ...] = tuple(range(len(QUESTIONS)))
    max_new_tokens: int = 64
    batch: int | None = 1
    shard_rows: int = 320
    drafter_device: str | None = None
    expand: Literal["auto", "always", "never"] = "auto"
    states: States = "native"

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes below one and for questions that are not there."""
        for name in ("max_new_tokens", "batch", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
        if self.drafter_device is not None:
            replace(self.pair, device=self.drafter_device)  # is checked like the pair's own
        known = set(range(len(QUESTIONS)))
        if not self.questions or len(set(self.questions)) < len(self.questions) or not set(self.questions) <= known:
            raise ConfigError(
                f"questions: different indices 0..{len(known) - 1} are needed, got {list(self.questions)}"
            )


def run(
    config: ExtractConfig,
    run_dir: Path,
    fresh: bool = False,
    shard: str = "1/1",
    merge_check: bool = False,
    merge_from: str = "",
) -> dict[str, Path]:
    """Extract (or reuse, or continue) `run_dir/store/<split>`; returns each split's store.

    Args:
        config: what is answered, by whom.
        run_dir: the run's folder.
        fresh: remove what a former run left there.
        shard: "i/n", the i-th of n parts of the work, i = 1..n; the store is left for `merge_check` to finish.
        merge_check: answer nothing; verify that all parts are there, and finish the stores.
        merge_from: run folders, with commas between, whose shards are taken over before that.

    Raises:
        UserError: clips, models or settings that do not fit, a store of other settings in `run_dir` (hours of work are
            not removed without `fresh`), or rows that are missing in `merge_check`.
    """
    part, sources = Part.parse(shard), [Path(one) for one in merge_from.split(",") if one]
    _check_options(part, fresh, merge_check, sources)
    folder = ClipFolder.open(config.clips)
    key = _key(config, folder)
    if not fresh and _other_store(run_dir / STAGE, key):
        raise UserError(
            f"{run_dir / STAGE}: holds the store of other settings, clips or models; give --fresh to replace it, "
            "or another --run-dir"
        )
    opened = Run.open(run_dir, config)
    if merge_check:
        return _merge_check(config, folder, opened, [source / STAGE for source in sources])
    return extract(config, folder, opened, fresh, part)


def extract(
    config: ExtractConfig, folder: ClipFolder, run: Run, fresh: bool = False, part: Part = WHOLE
) -> dict[str, Path]:
    """The stage inside an open run, over clips that are open already; a killed one goes on at its last whole shard."""
    with run.stage(STAGE, _key(config, folder), fresh, shared=not part.is_whole) as stage:
        paths = {split: stage.path / split for split in config.splits or folder.splits}
        if stage.reused:
            return paths
        for split in paths:
            folder.require_frames(split, config.pair.event_frames)  # before the models are loaded; so is a wrong split
        with claim(stage.path, part):
            _extract(config, folder, stage.path, run, tuple(paths), part)
    return paths


def _merge_check(config: ExtractConfig, folder: ClipFolder, run: Run, sources: Sequence[Path]) -> dict[str, Path]:
    splits, key = config.splits or folder.splits, _key(config, folder)
    for source in sources:
        if _other_store(source, key):
            raise UserError(f"{source}: was made with other settings, clips or models than this config: leave it out")
    wanted = Wanted(folder=folder, questions=config.questions, splits=tuple(splits))
    with run.stage(STAGE, key) as stage, claim(stage.path, WHOLE):  # the stage is done when nothing is missing
        try:
            paths = check_and_finish(stage.path, wanted, sources)
        except UserError:
            if stage.reused:
                run.reopen(STAGE)  # so that the parts that are missing are not taken for done
            raise
        for split, path in paths.items():
            print(_told(split, path, summary(Store.open(path))), flush=True)
    return paths


def _check_options(part: Part, fresh: bool, merge_check: bool, sources: Sequence[Path]) -> None:
    if merge_check and (fresh or not part.is_whole):
        raise UserError("command line: --merge-check: verifies what is there; leave out --shard and --fresh")
    if fresh and not part.is_whole:
        raise UserError(
            "command line: --fresh: with --shard each process would remove what the others wrote; remove the run "
            "folder once, then start the parts without --fresh"
        )
    if sources and not merge_check:
        raise UserError("command line: --merge-from: needs --merge-check, which takes the shards over")


def summary(store: Store) -> dict[str, float]:
    """Return rows, mean lengths, and the share of positions at which both models' own answers have the same token.

    The last is over positions t < min(drafter_len, target_len): why states paired by index do not fit together.
    """
    lengths = {which: store.read(f"{which}_len") for which in ("target", "drafter")}
    within = np.arange(store.manifest.max_new_tokens) < np.minimum(*lengths.values())[:, None]
    same = (store.read("target_ids") == store.read("drafter_ids")) & within
    return {
        "rows": store.rows,
        "target_len": float(lengths["target"].mean()),
        "drafter_len": float(lengths["drafter"].mean()),
        "same_position": float(same.sum() / within.sum()),
    }


def _extract(
    config: ExtractConfig, folder: ClipFolder, root: Path, run: Run, splits: tuple[str, ...], part: Part
) -> None:
    from torch_bridge.extraction import Settings, extract_split
    from torch_bridge.pair import load_pair

    target, drafter = load_pair(**pair_options(config.pair), drafter_device=config.drafter_device)
    settings = Settings(
        questions=config.questions,
        max_new_tokens=config.max_new_tokens,
        batch=config.batch,
        shard_rows=config.shard_rows,
        inputs={
            "event_frames": dump(config.pair.event_frames),
            "drafter_adaptor_passes": config.pair.drafter_adaptor_passes,
        },
        states=config.states,
        expand=config.expand,
    )
    for split in splits:
        start = perf_counter()
        path = extract_split(root, folder, split, target, drafter, settings, part)
        seconds = round(perf_counter() - start, 3)
        if not part.is_whole:
            run.log(split=split, shard=str(part), seconds=seconds)
            print(f"{split}: part {part} is written; `xmsd extract --merge-check` finishes -> {path}", flush=True)
            continue
        figures = summary(Store.open(path))
        run.log(split=split, seconds=seconds, **figures)
        print(_told(split, path, figures), flush=True)


def _told(split: str, path: Path, figures: Mapping[str, float]) -> str:
    return (
        f"{split}: {figures['rows']} answers of {figures['target_len']:.1f} (target) and {figures['drafter_len']:.1f} "
        f"(drafter) tokens, {figures['same_position']:.1%} the same at the same position -> {path}"
    )


def _key(config: ExtractConfig, folder: ClipFolder) -> str:
    """What the store depends on: the clips' content, not where they lie; the kinds of devices, not which of them."""
    devices = config.pair.device, config.drafter_device or config.pair.device
    device, beside = (name.partition(":")[0] for name in devices)
    expand = "auto" if config.pair.quantisation.format == "none" else config.expand
    pair = replace(config.pair, device=device)
    same = replace(config, clips=Path(), pair=pair, expand=expand, drafter_device=None if beside == device else beside)
    return stage_key(same, __version__, folder.fingerprint, pair_fingerprint(config.pair))


def _other_store(root: Path, key: str) -> bool:
    """Whether `root` holds stores that another key made."""
    try:
        found = json.loads((root / "stage.json").read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError):
        found = None
    return found != key and any(root.glob("*/manifest.json"))
