"""mp4 files through PyAV: every frame as RGB with its time."""

import os
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from xmsd_jax.config import UserError

# A clip is a second or so; this much RGB is half an hour of 96x96, or 43 s of 1440x1080 at 20 fps.
MAX_BYTES = 4 << 30
# Near lossless for H.264's 4:2:0: the mean error of noise-free rendered scenes stays below one grey level.
_CRF = 10
_NOTHING: Mapping[str, str] = {}


class VideoError(UserError):
    """A video that is missing, truncated, foreign or too large; the text names its path."""


def read_video(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of the first video stream, uint8[f, y, x, 3] RGB, and their times, int64[f] microseconds.

    Times are those in the file, less the first one: the video starts at 0. Raises VideoError, with the path, for a
    file that is missing, no video, has fewer frames than it announces, or takes more than max_bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such file; check the path")
    try:
        # Only the mp4 demuxer: others (playlists, concat scripts) would open further files that the file names.
        with av.open(str(path), format="mp4") as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream; give an mp4 with one")
            frames, times, announced = _decode(container, path, max_bytes)
    except FFmpegError as error:
        raise VideoError(
            f"{path}: not a readable mp4 ({error.strerror}); it is truncated, damaged or of another kind"
        ) from error
    if not frames or len(frames) < announced:
        raise VideoError(f"{path}: holds {len(frames)} of {announced} frames; it is truncated, copy it again")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{path}: its frames change size; encode it at one size")
    times_us = np.array(times, np.int64)
    if (np.diff(times_us) <= 0).any():
        raise VideoError(f"{path}: frame times do not increase; encode it again")
    return np.stack(frames), times_us - times_us[0]


def _decode(container: InputContainer, path: Path, max_bytes: int) -> tuple[list[np.ndarray], list[int], int]:
    stream = container.streams.video[0]
    frames: list[np.ndarray] = []
    times: list[int] = []
    for frame in container.decode(stream):
        if frame.pts is None or frame.time_base is None:
            raise VideoError(f"{path}: frame {len(frames)} has no time; encode it again, as mp4")
        frames.append(frame.to_ndarray(format="rgb24"))
        times.append(round(frame.pts * frame.time_base * 1_000_000))
        if len(frames) * frames[0].nbytes > max_bytes:
            raise VideoError(f"{path}: takes more than {max_bytes} bytes of memory; cut it into clips first")
    return frames, times, stream.frames


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    fps: int,
    *,
    crf: int = _CRF,
    options: Mapping[str, str] = _NOTHING,
) -> None:
    """Write uint8[f, y, x, 3] RGB frames as H.264 mp4 (4:2:0, so height and width are even); whole or not at all.

    crf: x264's quality, 0 lossless to 51; options: more of x264's. One thread ("threads": "1") gives the same bytes on
    any number of cores.
    """
    frames = np.asarray(frames)
    shape = frames.shape
    if frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0] or shape[1] % 2 or shape[2] % 2:
        raise ValueError(
            f"a video is written from uint8 [f, y, x, 3] with f >= 1 and even height and width, got {frames.dtype}"
            f" {list(shape)}; crop or pad the frames"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(draft), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), **options})
            stream.height, stream.width = shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
