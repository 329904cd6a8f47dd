"""The part of stage `clips` that turns DSEC into a tree of clips: in parallel, resumable, damage listed or fatal."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clip_tree import INDEX
from xmsd_jax.data.dsec import HEIGHT, WIDTH, Damage, Drive, find_drive, image_times, windows
from xmsd_jax.data.tree_writer import SKIPPED, Keep, write_lists
from xmsd_jax.pipeline.dsec_cut import RECORDS, Outcome, Task, cut_task, skip
from xmsd_jax.runs import Run, progress, stage_key

# Clips a process cuts in one go: going forward reads each event once, but a task's first half second is read twice.
TASK_CLIPS = 24
_OURS = {"stage.json", "clips.json", SKIPPED, INDEX, RECORDS, "event_image", "event_npy", "event_npz", "mp4"}


@dataclass(frozen=True, kw_only=True)
class DsecConfig:
    """Which sequences become clips of which split, what is kept of them, and what happens to damaged input.

    roots: folders that hold the sequences' folders (`data/dsec.py` says in which layouts); splits: sequences by split;
    damaged: "stop" at the first damage, or "skip" its clips and list them in skipped.json (pictures that no clip shows
    are not looked at); workers: processes, null for one a core (each takes up to 1 GB).
    """

    roots: tuple[Path, ...]
    splits: dict[str, tuple[str, ...]]
    keep: Keep = field(default_factory=Keep)
    damaged: Literal["skip", "stop"] = "stop"
    workers: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a sequence in two splits or twice in one, and for nothing to do."""
        given = [(name, split) for split, names in self.splits.items() for name in names]
        twice = next((name for name, count in Counter(name for name, _ in given).items() if count > 1), None)
        if twice is not None:
            where = ", ".join(split for name, split in given if name == twice)
            raise ConfigError(f"splits: sequence {twice} is given twice ({where}): splits share no sequence; keep one")
        if not given or not self.roots:
            raise ConfigError("dsec: needs roots (folders of sequences) and splits with at least one sequence")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: must be at least 1, or null for one a core, got {self.workers}")


def make_tree(config: DsecConfig, run: Run, fresh: bool = False) -> ClipFolder:
    """Make (or reuse, or continue) `<run>/clips`: a tree as `data/clip_tree.py` describes it.

    Raises:
        ConfigError: a sequence that lies under none of the roots.
        Damage: damaged input where the policy is to stop.
        UserError: no clip is left, or the tree cannot be written.
    """
    drives = {name: (split, find_drive(config.roots, name)) for split, names in config.splits.items() for name in names}
    key = _key(config, [drive for _, drive in drives.values()])
    if not fresh and _other_tree(run.path / "clips", key):
        raise UserError(
            f"{run.path / 'clips'}: holds clips of other settings or input; give --fresh to replace them, or another"
            " --run-dir"
        )
    with run.stage("clips", key, fresh) as stage:
        if not stage.reused:
            _prepare(stage.path)
            about = {"source": "DSEC", "key": key}
            kept = _cut_all(config, list(drives.values()), stage.path, about)
            folder, skipped = ClipFolder.open(stage.path), skipped_clips(stage.path)
            print(_summary(folder, kept, skipped), flush=True)
            run.log(clips=len(folder.clips), kept=kept, skipped=len(skipped))
        elif config.damaged == "stop" and (skipped := skipped_clips(stage.path)):
            raise UserError(
                f"{stage.path / SKIPPED}: the clips were made with damaged: skip and {len(skipped)} are left out; keep"
                " that policy, or repair the input"
            )
    return ClipFolder.open(stage.path)


def skipped_clips(path: Path) -> list[dict[str, Any]]:
    """The list of clips that were left out of a tree, each with kind, path and reason."""
    return json.loads((path / SKIPPED).read_bytes())


def plan(config: DsecConfig, drives: list[tuple[str, Drive]], root: Path) -> tuple[list[Task], list[Outcome]]:
    """Cut the work into tasks; sequences whose image times are damaged are listed, or fatal."""
    tasks, lost = [], []
    stop = config.damaged == "stop"
    for split, drive in drives:
        try:
            count = len(windows(image_times(drive.times)))
        except Damage as damage:
            if stop:
                raise
            lost.append(skip(split, drive.name, None, damage))
            continue
        for first in range(0, count, TASK_CLIPS):
            numbers = range(first, min(first + TASK_CLIPS, count))
            tasks.append(Task(root=root, drive=drive, split=split, numbers=numbers, keep=config.keep, stop=stop))
    return tasks, lost


def _cut_all(config: DsecConfig, drives: list[tuple[str, Drive]], root: Path, about: dict[str, Any]) -> int:
    tasks, lost = plan(config, drives, root)
    workers = config.workers or len(os.sched_getaffinity(0))
    done: dict[int, list[Outcome]] = {index: [] for index in range(len(tasks))}
    found = _in_processes(tasks, workers) if workers > 1 else ((i, o) for i, t in enumerate(tasks) for o in cut_task(t))
    for index, outcome in progress(found, total=sum(len(task.numbers) for task in tasks), label="clips"):
        done[index].append(outcome)
    outcomes = [*lost, *(outcome for made in done.values() for outcome in made)]
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    skipped = [outcome.skipped for outcome in outcomes if outcome.skipped is not None]
    if not records:
        reason = f"; the first of {len(skipped)}: {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
        raise UserError(f"{', '.join(map(str, config.roots))}: no clip is left of the sequences{reason}")
    write_lists(root, records, skipped, about=about, keep=config.keep, size=(HEIGHT, WIDTH))
    return sum(outcome.kept for outcome in outcomes)


def _in_processes(tasks: list[Task], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Task numbers and outcomes, task by task as they are done, from processes that are spawned, never forked."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)) or 1, mp_context=context, initializer=_end_with_parent)
    try:
        numbers = {pool.submit(cut_task, task): index for index, task in enumerate(tasks)}
        for future in as_completed(numbers):
            for outcome in future.result():
                yield numbers[future], outcome
    except BrokenProcessPool as error:
        raise UserError(
            "workers: a process was killed, most likely for memory; run it again with fewer workers, it goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A killed run leaves no process behind that still writes: a worker ends when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _other_tree(root: Path, key: str) -> bool:
    """Whether clips lie there that another key made: an hour of work is not removed unasked."""
    try:
        found = json.loads((root / "stage.json").read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError):
        return False
    return found != key and (root / "mp4").exists()


def _prepare(root: Path) -> None:
    """Refuse a folder that holds other things; remove drafts that a killed run left."""
    foreign = [path.name for path in sorted(root.iterdir()) if path.name not in _OURS and path.name[0] != "."]
    if foreign:
        raise UserError(f"{root}: holds {foreign[0]}, which no tree of clips has; give another --run-dir, or empty it")
    for draft in (*root.rglob(".*.tmp"), *root.rglob(".*.tmp.npz")):
        draft.unlink()


def _key(config: DsecConfig, drives: list[Drive]) -> str:
    """What the clips depend on: not where they lie, how many processes cut them, or what damage leads to."""
    result = replace(config, roots=(Path(),), damaged="stop", workers=None)
    return stage_key(result, __version__, *(_input(drive) for drive in drives))


def _input(drive: Drive) -> str:
    """sha256 over names, sizes and times of a sequence's files: hashing hundreds of gigabytes would take an hour."""
    digest = hashlib.sha256(drive.name.encode())
    for part in drive.parts:
        files = sorted(part.iterdir()) if part.is_dir() else [part]
        for file in files:
            found = file.stat() if file.exists() else None
            digest.update(f"{file.name} {found and (found.st_size, found.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _summary(folder: ClipFolder, kept: int, skipped: list[dict[str, Any]]) -> str:
    splits = ", ".join(f"{split} {len(folder.entries(split))}" for split in folder.splits)
    again = f", {kept} of them already there" if kept else ""
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(entry["kind"] for entry in skipped).items())
    left = f"{len(skipped)} skipped ({kinds}), listed in {folder.path / SKIPPED}" if skipped else "none skipped"
    return f"clips: {len(folder.clips)} clips ({splits}){again}, {left} -> {folder.path}"
