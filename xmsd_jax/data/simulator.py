"""Event camera simulator: a scene's frames become the events that a real sensor would have sent.

Model (as ESIM, Rebecq et al., CoRL 2018, and v2e, Hu et al., CVPRW 2021): every pixel remembers the log intensity
of its last event and sends an event each time that log(I + eps) has moved one threshold away from it. Between two
frames the *light* is linear, so that crossing times have a closed form: more interpolated frames would not change
them (a test holds that).
"""

from dataclasses import dataclass, replace

import numpy as np

from xmsd_jax.config import ConfigError
from xmsd_jax.data.events import Events

# ITU-R BT.601, what luma means in 8-bit RGB.
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
# A pixel's threshold is at least this share of the contrast: a normal draw may be negative, and would never settle.
_LEAST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """The sensor; the defaults fit the DAVIS346 recording: 0.932 correlation of 8x8-block, 40-ms counts, count -2 %.

    contrast: threshold C in log units; spread: its standard deviation between pixels, as a share of C;
    eps: dark current, in units of the frames (0..255); seed: which sensor, i.e. the pixels' own thresholds.
    """

    contrast: float = 0.27
    spread: float = 0.1
    eps: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for a sensor that cannot exist."""
        if self.contrast <= 0 or self.spread < 0 or self.eps <= 0 or self.seed < 0:
            raise ConfigError(
                f"a sensor needs contrast > 0, spread >= 0, eps > 0 and seed >= 0, got contrast {self.contrast},"
                f" spread {self.spread}, eps {self.eps}, seed {self.seed}; the defaults fit a DAVIS346"
            )

    def reseeded(self, seed: int) -> "SimulatorConfig":
        """Return the same kind of sensor, with the pixel thresholds that `seed` draws."""
        return replace(self, seed=seed)


def luma(video: np.ndarray) -> np.ndarray:
    """Return the luma (BT.601), float32[f, y, x] in 0..255, of RGB frames [f, y, x, 3] in 0..255."""
    return video.astype(np.float32) @ LUMA_WEIGHTS


def thresholds(config: SimulatorConfig, height: int, width: int) -> np.ndarray:
    """Return each pixel's contrast threshold, float32[y, x]: the same for one seed and size."""
    draws = np.random.default_rng(config.seed).standard_normal((height, width), dtype=np.float32)
    return config.contrast * np.maximum(1 + config.spread * draws, _LEAST_SHARE)


def simulate(frames: np.ndarray, times_us: np.ndarray, config: SimulatorConfig) -> Events:
    """Return the events of a scene, sorted in time, times_us[0] <= t < times_us[-1]; a still scene gives none.

    frames: uint8 or float [f, y, x] luma in 0..255, f >= 2; times_us: int64[f], increasing. 100 frames a second or
    more for moving things: an edge that jumps over pixels between frames cross-fades instead of moving.
    A pixel may send several events, of one polarity, between two frames. Events at one microsecond come
    in the order of frame interval and pixel.
    """
    frames, times = np.asarray(frames), np.asarray(times_us, np.int64)
    _check(frames, times)
    _, height, width = frames.shape
    threshold = thresholds(config, height, width).ravel()
    crossings = _crossings(_log_light(frames, config.eps).reshape(len(frames), -1), threshold)
    interval, pixel, steps, level = crossings
    count = np.abs(steps)
    rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 1
    interval, pixel, sign, level = (np.repeat(a, count) for a in (interval, pixel, np.sign(steps), level))
    crossed = np.exp(level + sign * rank * threshold[pixel].astype(np.float64)) - config.eps
    t = _crossing_times(frames.reshape(len(frames), -1), times, interval, pixel, crossed)
    order = np.argsort(t, kind="stable")
    y, x = np.divmod(pixel[order], width)
    return Events(
        x=x.astype(np.uint16), y=y.astype(np.uint16), p=(sign[order] > 0).astype(np.uint8), t=t[order],
        height=height, width=width,
    )  # fmt: skip


def _check(frames: np.ndarray, times: np.ndarray) -> None:
    if frames.ndim != 3 or len(frames) < 2 or times.shape != frames.shape[:1] or (np.diff(times) <= 0).any():
        raise ValueError(
            f"the simulator needs luma frames [f, y, x] with f >= 2 and f increasing times, got frames of shape"
            f" {frames.shape} and times of shape {times.shape}; turn RGB to luma first, sort the frames in time"
        )


def _log_light(frames: np.ndarray, eps: float) -> np.ndarray:
    if frames.dtype == np.uint8:
        return np.log(np.arange(256, dtype=np.float32) + np.float32(eps))[frames]
    return np.log(frames.astype(np.float32) + np.float32(eps))


def _crossings(log_light: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return interval, pixel, signed number of thresholds crossed, and the level before, for each pixel that fired."""
    level = log_light[0].copy()
    per_unit = 1 / threshold
    fired = []
    for interval, light in enumerate(log_light[1:]):
        steps = ((light - level) * per_unit).astype(np.int32)  # towards zero: only whole thresholds
        pixel = np.flatnonzero(steps)
        change = steps[pixel]
        before = level[pixel]
        level[pixel] = before + change * threshold[pixel]
        fired.append((np.full(len(pixel), interval), pixel, change, before))
    return tuple(np.concatenate(column) for column in zip(*fired, strict=True))


def _crossing_times(
    frames: np.ndarray, times: np.ndarray, interval: np.ndarray, pixel: np.ndarray, crossed: np.ndarray
) -> np.ndarray:
    """Return int64[e]: when light that is linear between two frames reaches the intensity `crossed`."""
    start = frames[interval, pixel].astype(np.float64)
    rise = frames[interval + 1, pixel] - start
    # A still pixel may fire by rounding, one step after its light stopped a hair below a threshold.
    share = np.clip(np.divide(crossed - start, rise, out=np.zeros_like(rise), where=rise != 0), 0, 1)
    first, last = times[interval], times[interval + 1]
    # A crossing at the very end belongs to the interval that it ends: intervals are [first, last).
    return np.minimum(first + (share * (last - first)).astype(np.int64), last - 1)
