"""Writes a tree of clips (see `clip_tree.py`): the files of one clip, and at the end the lists of all."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError
from xmsd_jax.data.clip_tree import FORMAT, INDEX, file_digest
from xmsd_jax.data.events import EventFrames, Events
from xmsd_jax.data.npy_writer import write_event_npy
from xmsd_jax.data.pictures import encode_event_frame
from xmsd_jax.data.video import write_video
from xmsd_jax.runs import write_text

SKIPPED = "skipped.json"
# One thread: the same bytes on any number of cores, each worker its own core. "veryfast" takes a third of the time.
_X264 = {"threads": "1", "preset": "veryfast"}


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What is kept of a clip; by default what extraction reads: 4 MB a clip of DSEC where the events would take 150.

    event_frames: how event frames are drawn, all kept as PNG. events: also the events, EventGPT's npy or plain npz,
    13 bytes an event, twice because clips overlap. video_frames: pictures in the mp4, the 8 that the target looks at;
    null keeps all (20 a second). video_size: (height, width), null for the camera's. crf: x264's quality.
    """

    event_frames: EventFrames = field(default_factory=EventFrames)
    events: Literal["none", "npy", "npz"] = "none"
    video_frames: int | None = 8
    video_size: tuple[int, int] | None = None
    crf: int = 10

    def __post_init__(self) -> None:
        """Raise ConfigError for what no file can hold."""
        if self.video_frames is not None and self.video_frames < 1:
            raise ConfigError(f"video_frames: must be at least 1, or null for all, got {self.video_frames}")
        if self.video_size is not None and any(side < 2 or side % 2 for side in self.video_size):
            raise ConfigError(f"video_size: H.264 needs an even height and width, got {list(self.video_size)}")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"crf: x264's quality runs from 0 (lossless) to 51, got {self.crf}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A clip as it was cut. number: its place in the sequence; pictures: numbers of the video's pictures."""

    split: str
    sequence: str
    number: int
    start_us: int
    stop_us: int
    events: Events
    video: np.ndarray
    pictures: np.ndarray
    frame_times_us: np.ndarray


def write_cut(root: Path, cut: Cut, keep: Keep, fps: int) -> dict[str, Any]:
    """Write the clip's files, each whole or not at all; return its record for `clips.json`."""
    stem = f"{cut.sequence}/{cut.number:06d}"
    drawn = keep.event_frames.frames(cut.events, start_us=cut.start_us, stop_us=cut.stop_us)
    images = [f"event_image/{stem}_{i}.png" for i in range(len(drawn))]
    for file, image in zip(images, drawn, strict=True):
        _write(root / file, encode_event_frame(image))
    video = f"mp4/{stem}.mp4"
    write_video(root / video, cut.video, fps, crf=keep.crf, options=_X264)
    events = _write_events(root, stem, cut, keep)
    files = [*images, video, *([events] if events else [])]
    return {
        "name": stem.replace("/", "_"), "sequence": cut.sequence, "split": cut.split, "number": cut.number,
        "start_us": cut.start_us, "stop_us": cut.stop_us, "event_count": len(cut.events),
        "frame_times_us": cut.frame_times_us.tolist(), "video": video, "events": events, "images": images,
        "files": {file: file_digest(root / file) for file in files},
    }  # fmt: skip


def write_lists(
    root: Path,
    records: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    keep: Keep,
    size: tuple[int, int],
) -> None:
    """Write the study's index, the list of skipped clips and, last, `clips.json`: now the tree is a finished one."""
    write_text(root / INDEX, json.dumps([_study_entry(record) for record in records], indent=1))
    write_text(root / SKIPPED, json.dumps(list(skipped), indent=1))
    listed = {
        "format": FORMAT, "about": about, "event_frames": configs.dump(keep.event_frames), "size": list(size),
        "clips": list(records),
    }  # fmt: skip
    write_text(root / "clips.json", json.dumps(listed, indent=1))


def _study_entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """The study's keys; event_data names the clip there, so it stays where no events are kept."""
    stem = f"{record['sequence']}/{record['number']:06d}"
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"xmsd:{record['split']}/{stem}")),
        "split": record["split"],
        "event_data": f"{stem}.npy",
        "video_data": stem,
        "mp4_data": f"{stem}.mp4",
        "event_image": [image.removeprefix("event_image/") for image in record["images"]],
        "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": ""}],
    }


def _write_events(root: Path, stem: str, cut: Cut, keep: Keep) -> str | None:
    if keep.events == "none":
        return None
    path = f"event_{keep.events}/{stem}.{keep.events}"
    if keep.events == "npy":
        notes = {
            "time_start": cut.start_us, "time_end": cut.stop_us, "duration_ms": (cut.stop_us - cut.start_us) / 1000,
            "image_timestamp": cut.stop_us, "image_idx": int(cut.pictures[0]) if len(cut.pictures) else cut.number,
            "image_indices_in_clip": cut.pictures.tolist(), "num_events": len(cut.events),
        }  # fmt: skip
        write_event_npy(root / path, cut.events, notes)
    else:
        _write_npz(root / path, cut.events)
    return path


def _write_npz(path: Path, events: Events) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
    columns = {name: getattr(events, name) for name in "xypt"}
    try:
        np.savez(draft, **columns, height=np.int64(events.height), width=np.int64(events.width))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
