"""The clip: one second or so of events and video with what is known about it, and its file.

A clip file is a plain npz without objects: `x, y, p, t` (so that any reader of our event npz reads it), `video`,
`frame_times_us`, and the rest as JSON in `meta` (uint8, UTF-8).
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.data.events import EventFrames, Events, Rendered, checked, serves

FORMAT = "xmsd-clip-1"
_ARRAYS = ("x", "y", "p", "t", "video", "frame_times_us")
# No clip comes near it (26 M DSEC events are 0.4 GB); an archive that declares more is damaged or hostile.
_MAX_BYTES = 4 << 30


class ClipError(UserError):
    """A clip, its file or its folder is missing, damaged or of another kind; the text names the path."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Events and video of one scene on one clock (microseconds).

    name: unique in its folder; sequence: the drive or place it was cut from (splits and intervals go by it);
    video: uint8[f, y, x, 3] RGB; frame_times_us: int64[f], increasing; facts: ground truth where there is one,
    JSON-able; [start_us, stop_us): the window. The event sensor and the camera may differ in size.
    rendered: event frames drawn before; a clip of a tree may have them in place of events (which are then none).
    """

    name: str
    sequence: str
    events: Events
    video: np.ndarray
    frame_times_us: np.ndarray
    start_us: int
    stop_us: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    rendered: Rendered | None = None

    def event_frames(self, how: EventFrames) -> np.ndarray:
        """Return uint8[f, y, x, 3]: those drawn before where they are what `how` asks for, else drawn from the events.

        Raises ClipError where other ones are asked for and the events are not kept.
        """
        if self.rendered is not None and serves(self.rendered.how, how):
            return self.rendered.frames[:1] if how.use == "first" else self.rendered.frames
        if self.rendered is not None and not len(self.events):
            raise ClipError(
                f"{self.name}: keeps event frames made with {self.rendered.how} and no events, asked for {how}; set"
                " pair.event_frames to what it keeps, or make the clips again with these frames or with their events"
            )
        return how.frames(self.events, start_us=self.start_us, stop_us=self.stop_us)

    def fingerprint(self) -> str:
        """Return the sha256 of the content: equal for equal clips, whatever file they lie in."""
        digest = hashlib.sha256(_meta(self))
        for array in _arrays(self).values():
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        if self.rendered is not None:
            digest.update(f"{self.rendered.how}{self.rendered.frames.shape}".encode())
            digest.update(np.ascontiguousarray(self.rendered.frames).data)
        return digest.hexdigest()


def save_clip(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write the clip; the file appears whole or not at all, and the same clip always gives the same bytes."""
    path = Path(path)
    if clip.rendered is not None:
        raise ClipError(
            f"{path}: a clip file holds events, {clip.name} has event frames drawn before; keep it in its tree"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Level 1: within a few percent of np.savez_compressed's size at a third of its time.
        with zipfile.ZipFile(draft, "w") as archive:
            meta = np.frombuffer(_meta(clip), np.uint8)
            for name, array in {**_arrays(clip), "meta": meta}.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
                # A ZipInfo made by hand carries no clock: equal clips, equal bytes.
                entry = zipfile.ZipInfo(f"{name}.npy")
                archive.writestr(entry, content.getbuffer(), zipfile.ZIP_DEFLATED, compresslevel=1)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load_clip(path: str | os.PathLike[str]) -> Clip:
    """Read a clip; ClipError with the path if it is missing, damaged or no clip, EventError if its events are bad."""
    arrays = read_npz(path, (*_ARRAYS, "meta"))
    meta = _read_meta(arrays["meta"], path)
    video, frame_times = arrays["video"], arrays["frame_times_us"]
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or frame_times.shape != video.shape[:1]:
        raise ClipError(
            f"{path}: a clip needs video uint8[f, y, x, 3] with f frame times, got {video.dtype}{list(video.shape)} and"
            f" {list(frame_times.shape)}; make the clip again with `xmsd clips`"
        )
    if frame_times.dtype.kind not in "iu" or (np.diff(frame_times.astype(np.int64)) <= 0).any():
        raise ClipError(f"{path}: frame times must be integers that increase; make the clip again with `xmsd clips`")
    events = Events(**{k: arrays[k] for k in "xypt"}, height=meta.pop("height"), width=meta.pop("width"))
    # A still scene has no event, and its clip is right; a file of events without any is not.
    events = checked(events, where=str(path)) if len(events) else events
    return Clip(events=events, video=video, frame_times_us=frame_times.astype(np.int64), **meta)


def read_npz(
    path: str | os.PathLike[str],
    names: tuple[str, ...],
    *,
    optional: tuple[str, ...] = (),
    error: type[UserError] = ClipError,
) -> dict[str, np.ndarray]:
    """Read these arrays of an npz without ever unpickling; `error` with the path for anything wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_BYTES:
            raise error(f"{path}: declares {size} bytes, the limit is {_MAX_BYTES}; cut it into shorter clips")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                found = ", ".join(map(ascii, archive.files))[:120] or "nothing"
                raise error(f"{path}: lacks {', '.join(missing)}, it holds {found}; it is of another kind")
            return {name: archive[name] for name in (*names, *optional) if name in archive.files}
    except UserError:
        raise
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file; check the path") from cause
    # On foreign bytes zipfile and numpy's header parser raise nearly anything: BadZipFile, zlib.error, EOFError,
    # ValueError, TypeError, struct.error, tokenize.TokenError, MemoryError. All of it means one thing here.
    except Exception as cause:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise error(f"{path}: not a readable npz ({reason}); it is truncated or of another kind") from cause


def _arrays(clip: Clip) -> dict[str, np.ndarray]:
    events = clip.events
    columns = (events.x, events.y, events.p, events.t, clip.video, np.asarray(clip.frame_times_us, np.int64))
    return dict(zip(_ARRAYS, columns, strict=True))


def _meta(clip: Clip) -> bytes:
    meta = {
        "format": FORMAT, "name": clip.name, "sequence": clip.sequence, "facts": dict(clip.facts),
        "start_us": int(clip.start_us), "stop_us": int(clip.stop_us),
        "height": clip.events.height, "width": clip.events.width,
    }  # fmt: skip
    return json.dumps(meta, sort_keys=True, allow_nan=False).encode()


_META = {"name": str, "sequence": str, "facts": dict, "start_us": int, "stop_us": int, "height": int, "width": int}


def _read_meta(array: np.ndarray, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        meta = json.loads(array.tobytes())
    except ValueError as error:
        raise ClipError(f"{path}: its `meta` is not JSON ({error}); it is damaged or no clip") from error
    wrong = not isinstance(meta, dict) or meta.pop("format", None) != FORMAT
    if wrong or set(meta) != set(_META) or not all(isinstance(meta[key], kind) for key, kind in _META.items()):
        raise ClipError(f"{path}: its `meta` is not that of an {FORMAT} file; make the clip again with `xmsd clips`")
    return meta
