"""The page and the table of a simulation: speed-up over gamma, a line a drafter, imposed acceptances as thin lines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from xmsd_jax.report import lineplot, sections
from xmsd_jax.report.columns import DASH, TIMES
from xmsd_jax.report.lineplot import Axis, Look, Plot, Series
from xmsd_jax.report.markup import Markup, tag
from xmsd_jax.report.page import head, what_was_run
from xmsd_jax.report.reading import clips_title, listed, numbers, of_metric
from xmsd_jax.report.rows import clips_of
from xmsd_jax.runs import Row

COLOURS = 8  # classes c1.. of style.css
MARKS = ("dot", "square", "triangle")  # of the first, second and third row of one colour; dashes v2, v3 of style.css
IMPOSED = Look(key="imposed", shape="none", words="acceptance imposed on every drafted token, as written at the line")
_VARIANT = re.compile(r" \((ride|wait|own|synced)\)$")


def simulated_page(title: str, rows: Sequence[Row], provenance: Mapping[str, Any]) -> str:
    """Render one HTML file without requests or scripts, from rows of results.json and its provenance.

    provenance["notices"]: sentences on what the cost file lacks.
    """
    groups = by_clips(rows)
    top = next(iter(groups.values()))
    looks = looks_of([row.row for row in rows if row.kind != "imposed"])
    notices = [tag("li", notice) for notice in provenance.get("notices", ())]
    rest = {name: value for name, value in provenance.items() if name != "notices"}
    body = [
        tag("header", tag("h1", title), tag("p", what_was_run(rest), class_="run"), tag("p", lead(top), class_="lead")),
        tag(
            "main",
            *(_section(clips, group, looks) for clips, group in groups.items()),
            tag("section", tag("h2", "Left out or assumed"), tag("ul", *notices, class_="notices"))
            if notices
            else None,
            tag(
                "section", tag("h2", "Ground"), sections.provenance_section(rest), sections.all_rows(rows), id="ground"
            ),
        ),
        tag("footer", tag("p", "Made by xmsd simulate from stored states and a cost file.")),
    ]
    return f"<!doctype html>\n{tag('html', head(title), tag('body', *body), lang='en')}\n"


def simulated_table(rows: Sequence[Row]) -> str:
    """The same as text: the fastest drafter first, imposed acceptances last."""
    return "\n\n".join("\n".join(_text_lines(clips, group)) for clips, group in by_clips(rows).items())


def by_clips(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Curves by split: predicted ones from the highest down, then imposed ones in their order."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(of_metric(rows, "speedup_by_gamma"), key=_rank):
        groups.setdefault(clips_of(row), []).append(row)
    return groups


def lead(rows: Sequence[Row]) -> str:
    """The highest prediction of one split, and what it is against."""
    drafters = [row for row in rows if row.kind != "imposed"]
    if not drafters:
        return "No drafter was predicted; the lines are of imposed acceptances."
    top = drafters[0]
    if top.settings["best"] == 0 and (top.value or 0.0) <= 1.0:
        return f"No drafter is expected to make {top.baseline} faster, at any draft length."
    what = f"{top.row} at gamma {top.settings['best']}, {_times(top.value)}{_interval(top)} against {top.baseline}"
    return f"Expected to be fastest at the costs of {top.settings['machine']}: {what}."


def reading(rows: Sequence[Row]) -> str:
    """What the plot is made from and what it says."""
    drafters, imposed = ([row for row in rows if (row.kind == "imposed") is which] for which in (False, True))
    about = rows[0].settings
    text = (
        f"Predicted from walks over {about['answers']} stored answers of {about['target']} with the milliseconds of "
        f"{about['costs']} ({about['machine']}), whole answers against {rows[0].baseline}, the line at 1{TIMES}; "
        "nothing here was run."
    )
    return " ".join(part for part in (text, _upright(drafters), _never(drafters), _needed(imposed)) if part)


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A colour for each drafter; its rows (ride, wait; own, synced) share it and differ in dash and marker."""
    families: dict[str, int] = {}
    count: dict[int, int] = {}
    looks: dict[str, Look] = {}
    for name in sorted(dict.fromkeys(names)):  # by name: the same colour whatever is fastest
        colour = families.setdefault(_VARIANT.sub("", name), len(families)) % COLOURS
        variant = count[colour] = count.get(colour, -1) + 1
        at = min(variant, len(MARKS) - 1)
        looks[name] = Look(key=f"c{colour + 1} v{at + 1}", shape=MARKS[at], words=name)
    return looks


def _section(clips: str, rows: Sequence[Row], looks: Mapping[str, Look]) -> Markup:
    shown = [looks[row.row] for row in rows if row.row in looks]
    imposed = [IMPOSED] if len(shown) < len(rows) else []
    plot = tag(
        "figure",
        lineplot.legend([*shown, *imposed]),
        lineplot.draw(_plot(rows, looks)),
        tag("p", "gamma, drafted tokens an iteration; 0 is without drafts", class_="note"),
        tag("figcaption", reading(rows)),
        class_="wide",
    )
    return tag("section", tag("h2", clips_title(clips)), plot, _table(rows, looks))


def _plot(rows: Sequence[Row], looks: Mapping[str, Look]) -> Plot:
    drafters = [row for row in rows if row.row in looks]
    values = [value for row in rows for value in numbers(row, "values")]
    series = [piece for row in reversed(rows) for piece in _pieces(row, looks, banded=row in drafters[:1])]
    said = "; ".join(f"{row.row}: {', '.join(f'{v:.2f}' for v in numbers(row, 'values'))}" for row in rows)
    gammas = {gamma for row in rows for gamma in numbers(row, "gammas")}
    return Plot(
        series=tuple(series),
        x=Axis.counting(gammas),
        y=Axis.over([1.0, *values], ticks=5),
        said=f"Predicted speed-up by gamma. {said}",
        level=1.0,
        chosen=float(drafters[0].settings["best"]) if drafters else None,
        height=360,
    )


def _pieces(row: Row, looks: Mapping[str, Look], *, banded: bool) -> Iterator[Series]:
    """A row's line, interrupted where a gamma was not predicted."""
    gammas, values = numbers(row, "gammas"), numbers(row, "values")
    breaks = [i for i in range(1, len(gammas)) if gammas[i] != gammas[i - 1] + 1]
    for start, stop in zip([0, *breaks], [*breaks, len(gammas)], strict=True):
        band = None
        if banded and "lows" in row.settings:
            band = numbers(row, "lows")[start:stop], numbers(row, "highs")[start:stop]
        end = f"{row.settings['acceptance']:g}" if row.kind == "imposed" and stop == len(gammas) else ""
        look = looks.get(row.row, IMPOSED)
        yield Series(look=look, xs=gammas[start:stop], ys=values[start:stop], band=band, end=end)


def _table(rows: Sequence[Row], looks: Mapping[str, Look]) -> Markup:
    gammas = _gammas(rows)
    heads = ("drafter", "tau", "best gamma", "speed-up", *(f"gamma {g}" if g == gammas[0] else g for g in gammas))
    body = []
    for row in rows:
        name, *figures = _cells(row, gammas)
        swatch = lineplot.swatch(looks.get(row.row, IMPOSED))
        best = 3 + gammas.index(row.settings["best"])
        cells = [tag("td", tag("b", cell) if i == best else cell) for i, cell in enumerate(figures)]
        spread = _interval(row).strip(" ()")
        cells[2] = tag("td", tag("b", _times(row.value)), tag("small", spread) if spread else None)
        body.append(tag("tr", tag("th", swatch, name, scope="row"), *cells))
    top = tag("thead", tag("tr", *(tag("th", word, scope="col") for word in heads)))
    table = tag("div", tag("table", top, tag("tbody", *body), class_="gammas"), class_="scroll")
    note = (
        f"tau: tokens a pass at the best gamma, 1 without drafts. {DASH}: not predicted. Intervals: 95 %, by sequence."
    )
    return tag("div", table, tag("p", note, " The best gamma is chosen on these very answers.", class_="note"))


def _text_lines(clips: str, rows: Sequence[Row]) -> Iterator[str]:
    about, gammas = rows[0].settings, _gammas(rows)
    yield (
        f"{clips}: predicted from {about['answers']} stored answers and {about['costs']} ({about['machine']}), whole "
        f"answers against {rows[0].baseline}"
    )
    heads = ("drafter", "tau", "best", "speed-up", *(f"gamma {g}" if g == gammas[0] else str(g) for g in gammas))
    lines = [heads, *(_cells(row, gammas) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        yield "  ".join(
            f"{c:<{w}}" if i in (0, 3) else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )


def _cells(row: Row, gammas: Sequence[int]) -> list[str]:
    """Name, tau and best gamma, speed-up there with its interval, speed-ups at all gammas."""
    known = dict(zip(row.settings["gammas"], row.settings["values"], strict=True))
    taus = dict(zip(row.settings["gammas"], row.settings.get("taus", ()), strict=False))
    tau, best = taus.get(row.settings["best"]), row.settings["best"]
    curve = [f"{known[gamma]:.2f}" if gamma in known else DASH for gamma in gammas]
    return [row.row, DASH if tau is None else f"{tau:.2f}", str(best), _times(row.value) + _interval(row), *curve]


def _gammas(rows: Sequence[Row]) -> list[int]:
    return sorted({gamma for row in rows for gamma in row.settings["gammas"]})


def _rank(row: Row) -> tuple[bool, float]:
    return row.kind == "imposed", 0.0 if row.kind == "imposed" else -(row.value or 0.0)


def _times(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}{TIMES}"


def _interval(row: Row) -> str:
    return "" if row.low is None or row.high is None else f" ({row.low:.2f} to {row.high:.2f})"


def _upright(drafters: Sequence[Row]) -> str:
    if not drafters:
        return ""
    gammas = numbers(drafters[0], "gammas")
    drawn = "lows" in drafters[0].settings and any(after - before == 1 for before, after in pairwise(gammas))
    band = "; the band is its interval" if drawn else ""
    return f"The upright line is the best gamma of {drafters[0].row}, the highest{band}."


def _never(drafters: Sequence[Row]) -> str:
    never = [row.row for row in drafters if max(numbers(row, "values")) <= 1.0]
    return f"No gamma is expected to make {listed(never)} faster than the baseline." if never else ""


def _needed(imposed: Sequence[Row]) -> str:
    """The lowest imposed acceptance that gains, and what the thin lines are."""
    if not imposed:
        return ""
    paid = imposed[0].settings["costs_of"]
    text = (
        "The thin lines impose an acceptance on every drafted token, each right on its own, "
        f"{f'at the costs of {paid}' if paid else 'with drafts that cost nothing'}"
    )
    gains = [row for row in imposed if (row.value or 0.0) > 1.0]
    if not gains:
        return f"{text}; none of them gains."
    least = min(gains, key=lambda row: row.settings["acceptance"])
    at = f"{_times(least.value)} at gamma {least.settings['best']}"
    return f"{text}; the lowest that gains is {least.settings['acceptance']:g}, {at}."
