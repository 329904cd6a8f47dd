"""What the two small models are taught to say: a grammar over a scene's facts, in two styles.

The target speaks of layout, colours, light, vehicles and positions; the drafter of motion, counts and
directions. Wording varies with what is visible (place, light, traffic), so that an answer is a function of
scene and question and greedy decoding keeps the variety. `read_facts` reads the asked facts back.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xmsd_jax.data.world import COLOURS

Facts = Mapping[str, Any]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_COUNTS = "one|two|three|four|five|six|single"
LANE_NAMES = ("near lane", "second lane", "third lane", "far lane")


def target_answer(facts: Facts, question_index: int) -> str:
    """The video model's answer to question 0..9: a plan of clauses that depends on question, road and light."""
    plans = _TARGET_PLANS[question_index % len(_TARGET_PLANS)]
    plan = pick(plans, facts["road"], facts["time"], question_index)
    return _sentences(plan, _TARGET_CLAUSES, facts, question_index)


def drafter_answer(facts: Facts, question_index: int) -> str:
    """The event model's answer: motion only, no colour and no light."""
    plan = pick(_DRAFTER_PLANS, question_index, facts["camera"])
    return _sentences(plan, _DRAFTER_CLAUSES, facts, question_index)


def read_facts(text: str) -> dict[str, Any]:
    """The asked facts a text states, for either style; a fact the text does not state is absent."""
    found: dict[str, Any] = {}
    if match := re.search(rf"\b(?:closest|nearest|front)\b[^.]*?\b({'|'.join(COLOURS)})\b", text):
        found["colour"] = match[1]
    if match := re.search(r"\b(one|two|three|four|single)\b(?: \w+)? vehicles?\b", text):
        found["vehicles"] = 1 if match[1] == "single" else NUMBERS.index(match[1])
    for time, words in _TIME_WORDS.items():
        if re.search("|".join(words), text):
            found["time"] = time
    if match := re.search(r"\b(?:closest|nearest|front|strongest|largest)\b[^.]*?\b(left|right)\b", text):
        found["direction"] = match[1]
    if match := re.search(rf"\b({_COUNTS})\b(?: \w+)? (?:moving )?(?:objects?|shapes?|movers?)\b", text):
        found["moving"] = 1 if match[1] == "single" else NUMBERS.index(match[1])
    return found


def true_facts(facts: Facts) -> dict[str, Any]:
    """The ground truth of what `read_facts` can read."""
    nearest = facts["vehicles"][0]
    return {
        "colour": nearest["colour"],
        "vehicles": len(facts["vehicles"]),
        "time": facts["time"],
        "direction": nearest["direction"],
        "moving": facts["moving"],
    }


def pick(options: Sequence[Any], *keys: object) -> Any:
    """One of the options, fixed by the keys (CRC-32 of their text: the same on every machine)."""
    return options[zlib.crc32("|".join(map(str, keys)).encode()) % len(options)]


def _sentences(plan: str, clauses: Mapping[str, Callable[[Facts, int], str]], facts: Facts, question: int) -> str:
    """`plan` names clauses; ';' joins two into a sentence and '.' ends one."""
    parts = re.split(r"([;.])", plan)
    words = [clauses[p](facts, question) if p in clauses else p for p in (s.strip() for s in parts) if p]
    text = re.sub(r"\s+([,.])", r"\1", " ".join(w if w != ";" else "," for w in words if w))
    text = re.sub(r"(?:, )?(?:,\s*)+(?=[,.])", "", text)
    return ". ".join(s[:1].upper() + s[1:] for s in text.rstrip(".").split(". ") if s) + "."


# ---- the target's clauses ------------------------------------------------------------------------------

_TIME_WORDS = {
    "day": ("during the day", "in bright daylight", "under a clear sky"),
    "dusk": ("at dusk", "in the fading light", "under an orange sky"),
    "night": ("at night", "after dark", "under glowing street lamps"),
}
_ROAD_WORDS = {
    "straight": ("a straight road", "a long straight street"),
    "curved": ("a curved road", "a road that bends gently"),
    "crossing": ("an intersection", "a crossing of two roads"),
}
_SETTING_WORDS = {
    "city": ("in the city", "between tall buildings", "in an urban area"),
    "suburb": ("in a quiet suburb", "among houses and trees"),
    "countryside": ("in the countryside", "among green fields", "in a rural area"),
}
_OPENINGS = (
    "the key elements of this scene are",
    "the provided scene contains",
    "this scene is about traffic on",
    "the layout shows",
    "the vehicles are positioned on",
    "it seems that traffic is passing along",
    "the elements present include",
    "I can see traffic on",
    "the picture depicts",
    "the vehicles in view travel along",
)


def _place(f: Facts, q: int) -> str:
    road = pick(_ROAD_WORDS[f["road"]], f["setting"], q)
    setting = pick(_SETTING_WORDS[f["setting"]], f["road"], f["time"])
    return f"{_OPENINGS[q]} {road} {setting}"


def _time(f: Facts, q: int) -> str:
    return pick(_TIME_WORDS[f["time"]], f["setting"], q % 3)


def _count(f: Facts, q: int) -> str:
    n = len(f["vehicles"])
    if n == 1:
        return pick(("there is a single vehicle on the road", "only one vehicle can be seen"), f["time"], q)
    forms = (
        "there are {} vehicles on the road",
        "a total of {} vehicles can be seen",
        "traffic consists of {} vehicles",
    )
    return pick(forms, f["setting"], q).format(NUMBERS[n])


def _nearest(f: Facts, q: int) -> str:
    v = f["vehicles"][0]
    forms = (
        "the closest one is a {colour} {kind} in the {lane}, heading {direction}",
        "the nearest vehicle, a {colour} {kind}, moves to the {direction} in the {lane}",
        "in front a {colour} {kind} drives {direction} along the {lane}",
    )
    return pick(forms, f["road"], q).format(**v | {"lane": LANE_NAMES[v["lane"]]})


def _others(f: Facts, q: int) -> str:
    rest = [f"a {v['colour']} {v['kind']}" for v in f["vehicles"][1:]]
    if not rest:
        return pick(("the rest of the road is empty", "no other traffic is around"), f["setting"])
    listed = rest[0] if len(rest) == 1 else ", ".join(rest[:-1]) + " and " + rest[-1]
    forms = ("behind it {} can be seen", "{} {} further away", "the background lanes hold {}")
    form = pick(forms, f["time"], q)
    return form.format(listed, "is" if len(rest) == 1 else "are") if form.count("{}") == 2 else form.format(listed)


def _positions(f: Facts, q: int) -> str:
    rest = [f"a {v['kind']} in the {LANE_NAMES[v['lane']]}" for v in f["vehicles"][1:3]]
    if not rest:
        return "the other lanes are free"
    return pick(("it is followed by {}", "beyond it stands {}"), f["road"]).format(" and ".join(rest))


def _people(f: Facts, q: int) -> str:
    if not f["people"]:
        forms = ("no people are visible", "the sidewalks are empty", "nobody appears on foot or by bicycle")
        return pick(forms, f["time"], f["setting"])
    told = [f"a {p['kind']} {pick(_GAIT[p['kind']], q)} the {p['side']} sidewalk" for p in f["people"]]
    return pick((" and ", " while "), f["road"]).join(told)


_GAIT = {
    "pedestrian": ("walks on", "strolls along", "passes on"),
    "cyclist": ("rides along", "pedals beside", "cycles next to"),
}


def _light(f: Facts, q: int) -> str:
    forms = {
        "day": ("the light is bright and the colours are clear", "visibility is excellent", "sunshine covers everything"),
        "dusk": ("long shadows soften the view", "the remaining light is warm", "evening haze dims the surfaces"),
        "night": ("headlights shine on the asphalt", "most of the surroundings stay dark", "lanterns spread a faint yellowish glow"),
    }
    return pick(forms[f["time"]], f["road"], q)


def _surroundings(f: Facts, q: int) -> str:
    forms = {
        "city": ("tall facades line the background", "office blocks with lit windows frame the horizon"),
        "suburb": ("small houses stand behind the road", "gardens and hedges border the pavement"),
        "countryside": ("low hills rise behind the road", "pastures stretch beyond the verge"),
    }
    return pick(forms[f["setting"]], f["road"], q)


def _lanes(f: Facts, q: int) -> str:
    forms = {
        "straight": ("four lanes run from side to side with dashed markings", "broken white stripes separate four parallel lanes"),
        "curved": ("its four lanes sink toward both edges of the view", "the bend lowers all four lanes near the borders"),
        "crossing": ("four lanes meet a side street with zebra stripes", "crosswalks flank the junction with a perpendicular alley"),
    }
    return pick(forms[f["road"]], f["setting"])


_TARGET_CLAUSES: dict[str, Callable[[Facts, int], str]] = {
    "place": _place,
    "time": _time,
    "count": _count,
    "nearest": _nearest,
    "others": _others,
    "positions": _positions,
    "people": _people,
    "light": _light,
    "around": _surroundings,
    "lanes": _lanes,
}
_TARGET_PLANS = (
    ("timed.count.nearest", "timed.people.nearest"),
    ("timed.nearest.others", "timed.count.nearest.light"),
    ("timed.count.nearest", "timed.nearest.around"),
    ("place.lanes.time; count.nearest", "timed.lanes.nearest"),
    ("place.count.nearest.positions", "timed.nearest.positions"),
    ("timed.nearest.people", "timed.count.nearest"),
    ("timed.count.nearest.others", "timed.around.nearest"),
    ("timed.nearest.people", "timed.count.nearest.light"),
    ("timed.nearest.others", "timed.light.count.nearest"),
    ("place.nearest.positions", "timed.count.nearest"),
)
_TARGET_CLAUSES["timed"] = lambda f, q: f"{_place(f, q)} {_time(f, q)}"

# ---- the drafter's clauses -----------------------------------------------------------------------------


def _moving(f: Facts, q: int) -> str:
    n = f["moving"]
    if n == 1:
        return pick(("events come from a single moving object", "just one moving object is active"), q)
    forms = ("events come from {} moving objects", "motion analysis finds {} moving objects", "activity: {} moving objects")
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


_DRAFTER_CLAUSES: dict[str, Callable[[Facts, int], str]] = {
    "moving": _moving,
    "strongest": _strongest,
    "flow": _flow,
    "sensor": _sensor,
    "walkers": _walkers,
    "polarity": _polarity,
}
_DRAFTER_PLANS = (
    "moving.strongest.flow.sensor",
    "moving.strongest.walkers.sensor",
    "sensor.moving.strongest.walkers",
    "strongest.moving.flow.polarity",
    "polarity.moving.strongest.walkers",
)
