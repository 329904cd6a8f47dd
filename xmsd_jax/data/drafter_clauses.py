"""What the drafter says: motion, counts and directions, no colour and no light."""

from collections.abc import Callable

from xmsd_jax.data.phrasing import NUMBERS, Facts, pick


def _moving(f: Facts, q: int) -> str:
    n = f["moving"]
    if n == 1:
        return pick(("events come from a single moving object", "just one moving object is active"), q)
    forms = (
        "events come from {} moving objects",
        "motion analysis finds {} moving objects",
        "activity: {} moving objects",
    )
    return pick(forms, q).format(NUMBERS[n])


def _strongest(f: Facts, q: int) -> str:
    v = f["vehicles"][0]
    forms = (
        "the strongest edges travel {speed} to the {direction}",
        "the largest shape shifts {direction} and goes {speed}",
        "{speed} the nearest outline sweeps toward the {direction}",
    )
    return pick(forms, q, f["camera"]).format(**v)


def _flow(f: Facts, q: int) -> str:
    movers = [v for v in (*f["vehicles"], *f["people"]) if v.get("speed") != "stopped"]
    left = sum(v["direction"] == "left" for v in movers)
    right = len(movers) - left
    forms = ("flow: {} leftward, {} rightward", "{} leave toward the left and {} toward the right")
    return pick(forms, q).format(NUMBERS[left], NUMBERS[right])


def _sensor(f: Facts, q: int) -> str:
    if f["camera"] == "still":
        return pick(("the sensor itself rests", "static structure triggers nothing", "ego motion is negligible"), q)
    forms = ("the whole background drifts since the sensor keeps {}", "ego motion: the sensor is slowly {}")
    return pick(forms, q).format(f["camera"])


def _walkers(f: Facts, q: int) -> str:
    n = len(f["people"])
    if n == 0:
        return pick(("small contours are absent", "neither walkers nor riders leave traces"), q)
    return f"{NUMBERS[n]} small contour{'s' * (n > 1)} drift{'s' * (n == 1)} beside the lanes"


def _polarity(f: Facts, q: int) -> str:
    forms = (
        "positive and negative polarities alternate along each edge",
        "polarity bands mark every contour",
        "timestamps cluster around sharp brightness transitions",
    )
    return pick(forms, q, f["moving"])


CLAUSES: dict[str, Callable[[Facts, int], str]] = {
    "moving": _moving,
    "strongest": _strongest,
    "flow": _flow,
    "sensor": _sensor,
    "walkers": _walkers,
    "polarity": _polarity,
}
PLANS = (
    "moving.strongest.flow.sensor",
    "moving.strongest.walkers.sensor",
    "sensor.moving.strongest.walkers",
    "strongest.moving.flow.polarity",
    "polarity.moving.strongest.walkers",
)
