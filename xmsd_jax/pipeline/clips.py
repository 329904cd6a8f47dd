"""Stage `clips`: scenes of the small world, the shipped recording and files become one folder of clips; DSEC a tree."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError
from xmsd_jax.data import recording, scenery, simulator, world
from xmsd_jax.data.clip_folder import ClipFolder, ClipFolderWriter
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.event_files import read_events
from xmsd_jax.data.recording import SEQUENCE, davis_clips
from xmsd_jax.data.video import read_video
from xmsd_jax.data.world import WorldConfig, split_sizes, world_clips
from xmsd_jax.pipeline.dsec_clips import DsecConfig, make_tree
from xmsd_jax.runs import Run, progress, stage_key

RECORDING_SPLIT = "recording"
_RECORDING_CLIPS = 3


@dataclass(frozen=True, kw_only=True)
class FileClip:
    """One clip from the user's files; relative paths start at the working directory.

    events: EventGPT's .npy, or .npz of x, y, p, t; video: .mp4, its first frame at `video_start_us` on the events'
    clock (by default at the first event). size: (height, width) of the event sensor, by default what the file says,
    else the largest coordinates. name, sequence: by default the event file's name and its folder's.
    """

    events: Path
    video: Path
    split: str = "files"
    name: str | None = None
    sequence: str | None = None
    size: tuple[int, int] | None = None
    video_start_us: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """What the folder holds: the small world's splits, the recording as split "recording", and files; or else DSEC."""

    world: WorldConfig | None = None
    recording: bool = False
    files: tuple[FileClip, ...] = ()
    dsec: DsecConfig | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError when nothing is asked for, or DSEC beside other things."""
        others = self.world is not None or self.recording or bool(self.files)
        if not others and self.dsec is None:
            raise ConfigError("clips come from somewhere: set at least one of world, recording: true, files, dsec")
        if others and self.dsec is not None:
            raise ConfigError("dsec: becomes a tree of its own; put world, recording and files into another config")


def run(config: ClipsConfig, run_dir: Path, fresh: bool = False) -> ClipFolder:
    """Make (or reuse, or continue) `run_dir/clips`; UserError for files that cannot be read."""
    return make_clips(config, Run.open(run_dir, config), fresh)


def make_clips(config: ClipsConfig, run: Run, fresh: bool = False) -> ClipFolder:
    """The stage inside an open run; after a kill, clips already written are kept."""
    if config.dsec is not None:
        return make_tree(config.dsec, run, fresh)
    key = stage_key(config, __version__, *_fingerprints(sources(config)))
    with run.stage("clips", key, fresh) as stage:
        if stage.reused:
            return ClipFolder.open(stage.path)
        writer = ClipFolderWriter(stage.path, {"key": key})
        for split, clip in progress(_clips(config), total=_count(config), label="clips"):
            writer.add(split, clip)
        folder = writer.close()
        print(_summary(folder, writer.kept), flush=True)
    return folder


def _clips(config: ClipsConfig) -> Iterator[tuple[str, Clip]]:
    parts = []
    if config.world is not None:
        parts += [_world(config.world, split) for split in split_sizes(config.world)]
    if config.recording:
        parts.append((RECORDING_SPLIT, clip) for clip in davis_clips())
    parts.append((file.split, file_clip(file)) for file in config.files)
    return chain.from_iterable(parts)


def _world(world: WorldConfig, split: str) -> Iterator[tuple[str, Clip]]:
    return ((split, clip) for clip in world_clips(world, split))


def file_clip(source: FileClip) -> Clip:
    """Read one clip from its files; its window goes from the first event or frame to the last of both."""
    events = read_events(source.events, source.size)
    video, times_us = read_video(source.video)
    first, last = int(events.t[0]), int(events.t[-1])
    times_us = times_us + (first if source.video_start_us is None else source.video_start_us)
    return Clip(
        name=source.name or source.events.stem,
        sequence=source.sequence or source.events.absolute().parent.name,
        events=events,
        video=video,
        frame_times_us=times_us,
        start_us=min(first, int(times_us[0])),
        stop_us=max(last, int(times_us[-1])) + 1,
    )


def _count(config: ClipsConfig) -> int:
    world = sum(split_sizes(config.world).values()) if config.world else 0
    return world + _RECORDING_CLIPS * config.recording + len(config.files)


def sources(config: ClipsConfig) -> list[Path]:
    """All files that the clips are made of: the user's, the recording, and the code that renders the world."""
    found = [path for source in config.files for path in (source.events, source.video)]
    if config.recording:
        code = Path(str(recording.__file__))
        found += [code, code.parent / "recordings" / f"{SEQUENCE}.npz"]
    if config.world is not None:
        found += [Path(str(module.__file__)) for module in (world, scenery, simulator)]
    return found


def _fingerprints(paths: list[Path]) -> list[str]:
    """sha256 of each file, so that a changed file is read again."""
    found = []
    for path in paths:
        try:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ConfigError(f"files: {path}: cannot be read ({error.strerror}); check the path") from error
    return found


def _summary(folder: ClipFolder, kept: int) -> str:
    splits = ", ".join(f"{split} {len(folder.entries(split))}" for split in folder.splits)
    again = f", {kept} of them already there" if kept else ""
    return f"clips: {len(folder.clips)} clips ({splits}){again} -> {folder.path}"
