"""The work of one process on DSEC: neighbouring clips of a sequence, cut, drawn and written unless they are there."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.data.clip_tree import file_digest
from xmsd_jax.data.dsec import (
    FOREIGN,
    FPS,
    MISSING,
    Damage,
    Drive,
    image_times,
    pictures_within,
    read_pictures,
    windows,
)
from xmsd_jax.data.dsec_events import EventFile
from xmsd_jax.data.tree_writer import Cut, Keep, write_cut
from xmsd_jax.runs import write_text

RECORDS = "records"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Clips `numbers` of a sequence, into the tree `root`; stop: damage ends the run instead of being listed."""

    root: Path
    drive: Drive
    split: str
    numbers: range
    keep: Keep
    stop: bool

    @property
    def log(self) -> Path:
        """Records of finished clips, one JSON a line: what a killed run has done."""
        return self.root / RECORDS / self.drive.name / f"{self.numbers.start:06d}.jsonl"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a clip: its record, or the entry of the list of skipped ones; kept: it was there already."""

    record: dict[str, Any] | None = None
    skipped: dict[str, Any] | None = None
    kept: bool = False


def cut_task(task: Task) -> list[Outcome]:
    """Make the task's clips, in order.

    Raises Damage where it shall stop, UserError where the tree cannot be written.
    """
    try:
        there = _kept(task)
        write_text(task.log, "".join(json.dumps(record) + "\n" for record in there.values()))
        made = dict(_cut_missing(task, [number for number in task.numbers if number not in there]))
    except OSError as error:
        raise UserError(
            f"{task.root}: cannot be written ({error}); make room or give another --run-dir, and run it again"
        ) from error
    kept = {number: Outcome(record=record, kept=True) for number, record in there.items()}
    return [(kept | made)[number] for number in task.numbers]


def skip(split: str, sequence: str, number: int | None, damage: Damage) -> Outcome:
    """The entry of a clip that is left out; number None: of a sequence whose clips cannot even be counted."""
    return Outcome(
        skipped={
            "split": split, "sequence": sequence, "number": number,
            "kind": damage.kind, "path": damage.path, "reason": damage.reason,
        }
    )  # fmt: skip


def _kept(task: Task) -> dict[int, dict[str, Any]]:
    found = {}
    for line in task.log.read_text(encoding="utf-8").splitlines() if task.log.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # the line at which a run was killed
            continue
        # By content: after a power cut a file may be there, and empty.
        files = {task.root / file: digest for file, digest in record["files"].items()}
        if all(path.is_file() and file_digest(path) == digest for path, digest in files.items()):
            found[record["number"]] = record
    return found


def _cut_missing(task: Task, numbers: list[int]) -> Iterator[tuple[int, Outcome]]:
    if not numbers:
        return
    times = image_times(task.drive.times)
    try:
        events = EventFile(task.drive.events)
    except Damage as damage:
        if task.stop:
            raise
        yield from ((number, skip(task.split, task.drive.name, number, damage)) for number in numbers)
        return
    with events, task.log.open("a", encoding="utf-8") as log:
        for number in numbers:
            try:
                record = write_cut(task.root, _cut(task, events, times, number), task.keep, FPS)
            except Damage as damage:
                if task.stop:
                    raise
                yield number, skip(task.split, task.drive.name, number, damage)
                continue
            log.write(json.dumps(record) + "\n")
            log.flush()
            yield number, Outcome(record=record)


def _cut(task: Task, events: EventFile, times: np.ndarray, number: int) -> Cut:
    start, stop = windows(times)[number]
    pictures = pictures_within(times, start, stop, task.keep.video_frames)
    if not len(pictures):
        raise Damage(MISSING, task.drive.times, f"no image time in [{start}, {stop}) us")
    video = read_pictures(task.drive, pictures, task.keep.video_size)
    if video.shape[1] % 2 or video.shape[2] % 2:
        raise Damage(FOREIGN, task.drive.pictures, f"pictures of {video.shape[1:3]}, H.264 needs even sides")
    return Cut(
        split=task.split, sequence=task.drive.name, number=number, start_us=start, stop_us=stop,
        events=events.cut(start, stop), video=video, pictures=pictures, frame_times_us=times[pictures],
    )  # fmt: skip
