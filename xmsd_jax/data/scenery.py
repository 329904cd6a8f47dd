"""Drawing a small-world scene: a fixed background and anti-aliased boxes, for all frames at once.

Intensities are 0..255 floats. Edges are drawn by the exact area a box covers of each pixel, so motion of a
fraction of a pixel changes brightness smoothly, as a sensor would see it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmsd_jax.data.simulator import LUMA_WEIGHTS

Colour = Sequence[float] | np.ndarray

SIZE = 96
LANE_BOTTOM = (89.0, 74.0, 61.0, 50.0)  # lane 0 is the nearest
LANE_SCALE = (1.15, 0.95, 0.8, 0.68)
SIDEWALK_BOTTOM = {"near": 95.0, "far": 38.0}
PERSON_SCALE = {"near": 1.1, "far": 0.85}
ROAD_TOP, ROAD_BOTTOM = 39.0, 92.0
AMBIENT = {"day": 1.0, "dusk": 0.62, "night": 0.34}
SKY = {"day": (150.0, 190.0, 235.0), "dusk": (225.0, 130.0, 80.0), "night": (12.0, 14.0, 36.0)}
PAINT = {
    "red": (230, 50, 50),
    "blue": (60, 100, 255),
    "green": (40, 160, 50),
    "yellow": (200, 170, 30),
    "purple": (160, 60, 200),
    "silver": (128, 128, 128),
}
GROUND = {"city": (118, 116, 112), "suburb": (104, 118, 86), "countryside": (92, 128, 64)}
PAN_PIXELS_PER_SECOND = {"still": 0.0, "panning left": 10.0, "panning right": -10.0}
_MARGIN = 16


def paint(colour: str, brightness: float) -> np.ndarray:
    """RGB [3] of the colour, scaled so that its luma is `brightness` whatever the hue: events must not show hue."""
    rgb = np.asarray(PAINT[colour], np.float32)
    return rgb * (brightness / float(rgb @ LUMA_WEIGHTS))


def draw(facts: Mapping[str, Any], times: np.ndarray, *, place_seed: int, rng: np.random.Generator) -> np.ndarray:
    """Frames [f, y, x, 3] float32 in 0..255 at `times` (seconds from the start of the clip)."""
    ambient = AMBIENT[facts["time"]] * rng.uniform(0.94, 1.06)
    pan = PAN_PIXELS_PER_SECOND[facts["camera"]] * times
    frames = _shifted(_background(facts, np.random.default_rng(place_seed)) * ambient, pan)
    _sky_and_lamps(frames, facts)
    canvas = _Canvas(frames, ambient)
    _people(canvas, facts, "far", times, pan)
    for vehicle in reversed(facts["vehicles"]):
        _vehicle(canvas, vehicle, facts, times, pan)
    _people(canvas, facts, "near", times, pan)
    return np.clip(frames, 0.0, 255.0)


class _Canvas:
    """Frames being drawn, and the light that falls on what is painted."""

    def __init__(self, frames: np.ndarray, ambient: float) -> None:
        self.frames, self.ambient = frames, ambient

    def box(
        self, left: np.ndarray, top: np.ndarray, width: float, height: float, rgb: Colour, *, lit: bool = True
    ) -> None:
        """One box per frame; `left`, `top` [f] in pixels. Lamps are not dimmed by the ambient light (lit=False)."""
        first, last = max(int(np.floor(top.min())), 0), min(int(np.ceil(top.max() + height)), SIZE)
        if first >= last:
            return
        cover_y = _coverage(np.arange(first, last), top, height)
        cover_x = _coverage(np.arange(SIZE), left, width)
        alpha = (cover_y[:, :, None] * cover_x[:, None, :])[..., None]
        colour = np.asarray(rgb, np.float32) * (self.ambient if lit else 1.0)
        view = self.frames[:, first:last]
        view += alpha * (colour - view)


def _coverage(pixels: np.ndarray, start: np.ndarray, length: float) -> np.ndarray:
    """Share of each unit pixel that [start, start+length) covers: [f, pixels]."""
    low = np.maximum(pixels[None, :], start[:, None])
    high = np.minimum(pixels[None, :] + 1, start[:, None] + length)
    return np.clip(high - low, 0.0, 1.0).astype(np.float32)


def bend(x: np.ndarray, road: str) -> np.ndarray:
    """Vertical shift (pixels, negative = up) of the road at column x: a curved road bends up towards both edges."""
    return -5.0 * ((x - SIZE / 2) / (SIZE / 2)) ** 2 if road == "curved" else np.zeros_like(x)


def _background(facts: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """The still part of a place, [y, x + 2 margins, 3], in full light."""
    width = SIZE + 2 * _MARGIN
    image = np.tile(np.asarray(GROUND[facts["setting"]], np.float32), (SIZE, width, 1))
    image += rng.normal(0.0, 3.0, (SIZE, width, 1)).astype(np.float32)
    _skyline(image, facts["setting"], rng)
    columns = np.arange(width, dtype=np.float64) - _MARGIN
    shift = bend(columns, facts["road"])
    rows = np.arange(SIZE)[:, None]
    road = (rows >= ROAD_TOP + shift) & (rows < ROAD_BOTTOM + shift)
    if facts["road"] == "crossing":
        road |= (rows >= 20) & (np.abs(columns - SIZE / 2) < 9)[None, :]
    image[road] = 72.0 + rng.normal(0.0, 1.5, (int(road.sum()), 1)).astype(np.float32)
    _markings(image, facts["road"], columns, shift)
    return image


def _skyline(image: np.ndarray, setting: str, rng: np.random.Generator) -> None:
    """Buildings, houses with trees, or hills along the horizon (rows 8 to 36)."""
    step, low, high = {"city": (14, 4, 14), "suburb": (18, 16, 22), "countryside": (24, 22, 27)}[setting]
    for left in range(0, image.shape[1], step):
        top = int(rng.integers(low, high))
        tone = rng.uniform(60, 150) * np.ones(3, np.float32)
        tone *= np.asarray((0.75, 1.1, 0.6) if setting == "countryside" or rng.random() < 0.3 else (1, 0.95, 0.9))
        image[top:34, left : left + step - int(rng.integers(0, 4))] = tone
        if setting == "city":
            image[top + 2 : 32 : 4, left + 2 : left + step - 3 : 3] = rng.uniform(30, 200)


def _markings(image: np.ndarray, road: str, columns: np.ndarray, shift: np.ndarray) -> None:
    """Dashed lane lines, a solid middle line, and the zebra stripes of a crossing."""
    inside = np.abs(columns - SIZE / 2) < 11 if road == "crossing" else np.zeros(columns.shape, bool)
    for lane in range(1, len(LANE_BOTTOM)):
        dashed = (columns % 12 < 6) | (lane == 2)
        y = np.rint(LANE_BOTTOM[lane] + 2 + shift).astype(int)
        use = np.flatnonzero(dashed & ~inside)
        image[y[use], use] = 170.0
    if road == "crossing":
        for x in (SIZE // 2 - 13 + _MARGIN, SIZE // 2 + 11 + _MARGIN):
            image[int(ROAD_TOP) + 2 : int(ROAD_BOTTOM) - 2 : 4, x : x + 3] = 170.0


def _shifted(image: np.ndarray, pan: np.ndarray) -> np.ndarray:
    """The background seen by a turning camera: linear interpolation between columns, [f, y, x, 3]."""
    if not pan.any():
        return np.repeat(image[None, :, _MARGIN : _MARGIN + SIZE], len(pan), axis=0)
    whole = np.floor(pan).astype(int)
    part = (pan - whole).astype(np.float32)
    frames = [
        (1 - w) * image[:, _MARGIN - k : _MARGIN - k + SIZE] + w * image[:, _MARGIN - k - 1 : _MARGIN - k - 1 + SIZE]
        for k, w in zip(whole, part, strict=True)
    ]
    return np.stack(frames)


def _sky_and_lamps(frames: np.ndarray, facts: Mapping[str, Any]) -> None:
    """The sky is a light of its own; at night lamps glow over the far sidewalk."""
    fade = np.linspace(1.0, 0.0, 20, dtype=np.float32)[None, :, None, None] ** 2
    frames[:, :20] += fade * (np.asarray(SKY[facts["time"]], np.float32) - frames[:, :20])
    if facts["time"] == "night":
        frames[:, 25:28, 12::24] = np.asarray((255.0, 225.0, 150.0))


def _track(thing: Mapping[str, Any], times: np.ndarray, pan: np.ndarray) -> np.ndarray:
    """Centre column [f]: `x` is where it stands in the middle of the clip."""
    sign = 1.0 if thing["direction"] == "right" else -1.0
    return thing["x"] + sign * thing["pixels_per_second"] * (times - 0.5) + (pan - pan.mean())


def _vehicle(
    canvas: _Canvas, vehicle: Mapping[str, Any], facts: Mapping[str, Any], times: np.ndarray, pan: np.ndarray
) -> None:
    scale, bottom = LANE_SCALE[vehicle["lane"]], LANE_BOTTOM[vehicle["lane"]]
    x = _track(vehicle, times, pan)
    y = bottom + bend(x, facts["road"])
    body = paint(vehicle["colour"], vehicle["brightness"])
    front = 1.0 if vehicle["direction"] == "right" else -1.0

    def part(along: float, up: float, length: float, height: float, rgb: Colour, *, lit: bool = True) -> None:
        """A box whose centre is `along` from the middle (forward positive) and whose foot is `up` above the road."""
        left = x + (front * along - length / 2) * scale
        canvas.box(left, y - (up + height) * scale, length * scale, height * scale, rgb, lit=lit)

    length = {"car": 21.0, "truck": 30.0, "bus": 34.0}[vehicle["kind"]]
    part(0, -0.8, length + 1, 2.2, (10, 10, 10))
    _BODIES[vehicle["kind"]](part, body)
    for wheel in (-length * 0.3, length * 0.3):
        part(wheel, -0.5, 4.0, 3.4, (14, 14, 14))
    part(length / 2 - 0.8, 2.6, 1.8, 2.0, (250, 245, 215), lit=False)
    part(-length / 2 + 0.8, 2.6, 1.6, 2.0, (190, 20, 20), lit=False)
    if facts["time"] != "day":
        part(length / 2 + 3.5, -0.5, 7.0, 1.6, (170, 160, 125), lit=False)


def _car(part: Any, body: np.ndarray) -> None:
    part(0, 1, 21, 5.5, body)
    part(-2, 6.5, 11, 4, body)
    part(2.2, 6.8, 2.4, 3, (150, 165, 175))
    part(-4, 6.8, 5, 3, (30, 34, 40))


def _truck(part: Any, body: np.ndarray) -> None:
    part(-3.5, 1.5, 23, 12.5, body)
    part(11.5, 1, 7, 9, body * 0.75)
    part(13, 6, 3, 3.4, (150, 165, 175))


def _bus(part: Any, body: np.ndarray) -> None:
    part(0, 1, 34, 12, body)
    for window in (-13, -8, -3, 2, 7):
        part(window, 7.5, 3.6, 3.6, (30, 34, 40))
    part(14.5, 6, 3.4, 5.4, (150, 165, 175))


_BODIES = {"car": _car, "truck": _truck, "bus": _bus}


def _people(canvas: _Canvas, facts: Mapping[str, Any], side: str, times: np.ndarray, pan: np.ndarray) -> None:
    for person in facts["people"]:
        if person["side"] == side:
            _person(canvas, person, times, pan)


def _person(canvas: _Canvas, person: Mapping[str, Any], times: np.ndarray, pan: np.ndarray) -> None:
    scale, foot = PERSON_SCALE[person["side"]], SIDEWALK_BOTTOM[person["side"]]
    x, tone = _track(person, times, pan), (person["brightness"],) * 3
    swing = 1.6 * np.sin(2 * np.pi * 1.8 * times)
    up = np.zeros_like(x)
    if person["kind"] == "pedestrian":
        for leg in (swing, -swing):
            canvas.box(x + leg - 0.7, up + foot - 4 * scale, 1.4, 4 * scale, (25, 25, 30))
        canvas.box(x - 1.6, up + foot - 9.5 * scale, 3.2, 5.6 * scale, tone)
        canvas.box(x - 1.1, up + foot - 12 * scale, 2.2, 2.4 * scale, (185, 150, 125))
        return
    for wheel in (-3.4, 3.4):
        canvas.box(x + wheel * scale - 1.7, up + foot - 3.6 * scale, 3.4, 3.6 * scale, (18, 18, 18))
    canvas.box(x - 3.4, up + foot - 4.6 * scale, 6.8, 1.4, (40, 40, 44))
    canvas.box(x - 1.5, up + foot - 10.5 * scale, 3.0, 6.0 * scale, tone)
    canvas.box(x - 1.0, up + foot - 12.8 * scale, 2.0, 2.3 * scale, (185, 150, 125))
