"""Clips as the study laid them out, one tree of files; `ClipFolder.open` reads such a tree as it is.

EventGPT_Instruction_Subset.json      list of {"event_data": "<seq>/000000.npy", "mp4_data", "event_image", "split"}
event_npy/<seq>/000000.npy            the pickled dict, read without unpickling (`npy.py`); event_npz/ in a tree of ours
event_image/<seq>/000000_{0..4}.png   event frames drawn before
mp4/<seq>/000000.mp4                  H.264
clips.json                            in a tree of ours: windows, frame times, how frames were drawn, sha256 of files

A tree without clips.json is the study's: clips without `.npy` show its frames, drawn so that blue wins; the window goes
from the first event or frame to the last; its fingerprint covers the index and the name, size and time of each file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from xmsd_jax import config as configs
from xmsd_jax.data.clips import Clip, ClipError
from xmsd_jax.data.event_files import read_events
from xmsd_jax.data.events import EventFrames, Events, Rendered
from xmsd_jax.data.pictures import PictureError, decode_png
from xmsd_jax.data.video import read_video

INDEX = "EventGPT_Instruction_Subset.json"
FORMAT = "xmsd-clip-tree-1"
STUDY_FRAMES = EventFrames(rule="blue-wins")
"""What the study's fast renderer drew."""


@dataclass(frozen=True, kw_only=True)
class TreeClip:
    """A clip in a tree; paths are relative to it.

    video: its mp4; events: .npy or .npz, None where they are not kept; images: its event frames, drawn as `how` says.
    window, frame_times_us, size of the sensor: None in the study's trees, which do not say; digests: sha256 by path.
    """

    name: str
    sequence: str
    split: str
    video: str
    fingerprint: str
    events: str | None = None
    images: tuple[str, ...] = ()
    how: EventFrames = STUDY_FRAMES
    window: tuple[int, int] | None = None
    frame_times_us: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ClipError for a path that leaves the tree."""
        for path in (self.video, *self.images, *self.digests, *([self.events] if self.events else [])):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ClipError(f"{self.name}: its file {path!r} lies outside the tree; correct the tree's index")


def own_clips(listed: Mapping[str, Any]) -> list[TreeClip]:
    """The clips of a tree of ours, from its clips.json; KeyError and TypeError (ConfigError) where it is damaged."""
    how = configs.load(EventFrames, listed["event_frames"])
    return [_own_clip(record, how, tuple(listed["size"])) for record in listed["clips"]]


def _own_clip(record: Mapping[str, Any], how: EventFrames, size: tuple[int, int]) -> TreeClip:
    return TreeClip(
        name=record["name"],
        sequence=record["sequence"],
        split=record["split"],
        video=record["video"],
        events=record["events"],
        images=tuple(record["images"]),
        fingerprint=fingerprint({**record, "event_frames": configs.dump(how), "size": list(size)}),
        how=how,
        window=(record["start_us"], record["stop_us"]),
        frame_times_us=tuple(record["frame_times_us"]),
        size=size,
        digests=record["files"],
    )


def fingerprint(content: Any) -> str:
    """sha256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def study_clips(root: Path) -> list[TreeClip]:
    """The clips of a tree that the study made, in the order of its index.

    Raises ClipError for an index that is damaged, or that lists clips whose files are not there.
    """
    path = root / INDEX
    try:
        entries = json.loads(path.read_bytes())
        return [_study_clip(root, entry) for entry in entries]
    except (OSError, TypeError, KeyError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ClipError(f"{path}: is not the study's list of clips ({error!r}); give a tree with its index") from error


def _study_clip(root: Path, entry: Mapping[str, Any]) -> TreeClip:
    key = entry.get("event_data") or entry["mp4_data"]
    stem = PurePosixPath(key).with_suffix("")
    events, video = f"event_npy/{stem}.npy", f"mp4/{entry.get('mp4_data') or f'{stem}.mp4'}"
    kept = (root / events).is_file()
    images = tuple(f"event_image/{image}" for image in entry.get("event_image") or ())
    if not kept and not images:
        raise ClipError(f"{root / events}: {stem} has neither events nor event_image; copy them, or leave it out")
    read = (events, video) if kept else (*images, video)
    return TreeClip(
        name=str(stem).replace("/", "_"),
        sequence=str(stem.parent),
        split=entry.get("split") or root.absolute().name,
        video=video,
        events=events if kept else None,
        images=() if kept else images,
        how=EventFrames(n=max(len(images), 1), rule="blue-wins"),
        fingerprint=fingerprint([entry, [_stamp(root / file) for file in read]]),
    )


def _stamp(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ClipError(f"{path}: is listed but cannot be read ({error.strerror}); copy it, or leave it out") from error
    return [found.st_size, found.st_mtime_ns]


def load_tree_clip(root: Path, clip: TreeClip) -> Clip:
    """Read a clip: events where they are kept, event frames where they are drawn, the video.

    Raises ClipError, EventError or VideoError, with the path, for a file that is missing, damaged or not the listed
    one.
    """
    for file, digest in clip.digests.items():
        _check_digest(root / file, digest)
    rendered = _rendered(root, clip) if clip.images else None
    video, times = read_video(root / clip.video)
    events = read_events(root / clip.events, clip.size) if clip.events else _no_events(clip, rendered)
    if clip.frame_times_us is not None:
        times = np.asarray(clip.frame_times_us, np.int64)
        if len(times) != len(video):
            raise ClipError(f"{root / clip.video}: holds {len(video)} frames, {len(times)} are listed; make it again")
    else:
        times = times + (int(events.t[0]) if len(events) else 0)
    ends = [*events.t[[0, -1]].tolist(), *times[[0, -1]].tolist()] if len(events) else times[[0, -1]].tolist()
    start, stop = clip.window or (min(ends), max(ends) + 1)
    return Clip(
        name=clip.name, sequence=clip.sequence, events=events, video=video, frame_times_us=times,
        start_us=start, stop_us=stop, rendered=rendered,
    )  # fmt: skip


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, digest: str) -> None:
    try:
        found = file_digest(path)
    except OSError as error:
        raise ClipError(f"{path}: cannot be read ({error.strerror}); run `xmsd clips` again with --fresh") from error
    if found != digest:
        raise ClipError(f"{path}: is not the file that clips.json lists; run `xmsd clips` again with --fresh")


def _rendered(root: Path, clip: TreeClip) -> Rendered:
    frames = []
    for image in clip.images:
        try:
            frames.append(decode_png((root / image).read_bytes()))
        except (OSError, PictureError) as error:
            raise ClipError(f"{root / image}: cannot be read ({error}); make the tree again") from error
    return Rendered(how=clip.how, frames=_same_size(frames))


def _same_size(frames: list[np.ndarray]) -> np.ndarray:
    """One array; the study cut each frame at its own largest coordinates, so what is missing is filled with white."""
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    whole = np.full((len(frames), height, width, 3), 255, np.uint8)
    for place, frame in zip(whole, frames, strict=True):
        place[: frame.shape[0], : frame.shape[1]] = frame
    return whole


def _no_events(clip: TreeClip, rendered: Rendered | None) -> Events:
    if rendered is None:
        raise ClipError(f"{clip.name}: has neither events nor event frames; make the tree again")
    height, width = clip.size or rendered.frames.shape[1:3]
    none = {"x": np.uint16, "y": np.uint16, "p": np.uint8, "t": np.int64}
    return Events(**{key: np.zeros(0, kind) for key, kind in none.items()}, height=height, width=width)
