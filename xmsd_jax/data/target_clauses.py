"""What the target says: layout, colours, light, vehicles, positions; each clause a function of facts and question."""

from collections.abc import Callable

from xmsd_jax.data.phrasing import NUMBERS, Facts, pick

LANE_NAMES = ("near lane", "second lane", "third lane", "far lane")
TIME_WORDS = {
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
    return pick(TIME_WORDS[f["time"]], f["setting"], q % 3)


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
        "day": (
            "the light is bright and the colours are clear",
            "visibility is excellent",
            "sunshine covers everything",
        ),
        "dusk": ("long shadows soften the view", "the remaining light is warm", "evening haze dims the surfaces"),
        "night": (
            "headlights shine on the asphalt",
            "most of the surroundings stay dark",
            "lanterns spread a faint yellowish glow",
        ),
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
        "straight": (
            "four lanes run from side to side with dashed markings",
            "broken white stripes separate four parallel lanes",
        ),
        "curved": (
            "its four lanes sink toward both edges of the view",
            "the bend lowers all four lanes near the borders",
        ),
        "crossing": (
            "four lanes meet a side street with zebra stripes",
            "crosswalks flank the junction with a perpendicular alley",
        ),
    }
    return pick(forms[f["road"]], f["setting"])


CLAUSES: dict[str, Callable[[Facts, int], str]] = {
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
PLANS = (
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
CLAUSES["timed"] = lambda f, q: f"{_place(f, q)} {_time(f, q)}"
