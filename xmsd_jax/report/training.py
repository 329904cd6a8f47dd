"""The section on how adapters were trained: losses by epoch, the chosen epoch, and the validation τ beside them."""

from collections.abc import Sequence

from xmsd_jax.report import lineplot
from xmsd_jax.report.lineplot import Axis, Look, Plot, Series
from xmsd_jax.report.markup import Markup, tag
from xmsd_jax.report.reading import gathered, listed, name_of, numbers, of_metric
from xmsd_jax.report.summary import Group, Line
from xmsd_jax.runs import Row

TRAIN, VALIDATION, TAU = "training loss", "validation loss", "validation tau"
LOOKS = {
    TRAIN: Look(key="train", shape="none", words=TRAIN),
    VALIDATION: Look(key="validation", shape="dot", words=VALIDATION),
    TAU: Look(key="tau", shape="triangle", words="validation τ (own axis)"),
}
CHOSEN = Look(key="choice", shape="none", words="epoch of the exported checkpoint")


def training_groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Rows of training curves: a line an adapter, a cell a series."""
    known = [row for row in of_metric(rows, "training_curve") if row.settings.get("series") in LOOKS]
    return gathered(known, lambda row: str(row.settings["series"]), apart=("series", "chosen"))


def training_section(rows: Sequence[Row]) -> Markup | None:
    """Curves of every adapter, None where the run trained none."""
    figures = [_figure(group) for group in training_groups(rows)]
    return tag("section", tag("h2", "Training"), *figures, id="training") if figures else None


def reading(group: Group) -> str:
    """What a loss does not say, and the adapters whose lowest loss is not at the chosen epoch."""
    text = (
        "A loss is not acceptance: it measures states, not tokens that stand. Losses of L1-L4 and of the EAGLE types "
        "(L5, B1, L5F) are different sums and do not compare."
    )
    known = {name_of(group, line): (lowest(line), chosen(line)) for line in group.lines}
    both = {name: pair for name, pair in known.items() if None not in pair}
    if not both:
        return text
    other = [f"{name} (lowest at {low:g}, chosen {choice:g})" for name, (low, choice) in both.items() if low != choice]
    if not other:
        whom = "The one adapter" if len(both) == 1 else f"Each of the {len(both)} adapters"
        return f"{text} {whom} was exported at the epoch of its lowest loss."
    return f"{text} Exported at another epoch than that of the lowest loss: {listed(other, most=8)}."


def lowest(line: Line) -> float | None:
    """Epoch of the lowest validation loss, or of the lowest training loss where there is no validation."""
    row = line.cells.get(VALIDATION) or line.cells.get(TRAIN)
    if row is None:
        return None
    values = numbers(row, "values")
    return min(zip(values, numbers(row, "epochs", count=len(values)), strict=True))[1]


def chosen(line: Line) -> float | None:
    """Epoch of the exported checkpoint, as the first series that names it says."""
    found = (row.settings.get("chosen") for row in line.cells.values())
    return next((float(e) for e in found if isinstance(e, int | float) and not isinstance(e, bool)), None)


def _figure(group: Group) -> Markup:
    present = [look for name, look in LOOKS.items() if any(name in line.cells for line in group.lines)]
    looks = [*present, *([CHOSEN] if any(chosen(line) is not None for line in group.lines) else [])]
    grid = lineplot.panels(*(_panel(group, line) for line in group.lines))
    title = tag("h4", "Loss by epoch" + (f" · {group.clips}" if group.clips else ""))
    return tag("figure", title, lineplot.legend(looks), grid, tag("figcaption", reading(group)), class_="wide")


def _panel(group: Group, line: Line) -> Markup:
    """Losses above, τ below where there is one; the chosen epoch through both."""
    label = group.label(line)
    title = tag("h5", line.row, tag("small", label) if label else None)
    losses = [name for name in (TRAIN, VALIDATION) if name in line.cells]
    plots = [_plot(line, losses, "loss", 130)] if losses else []
    plots += [_plot(line, [TAU], "τ", 64)] if TAU in line.cells else []
    return tag("div", title, *plots, _caption(line), class_="panel")


def _plot(line: Line, names: Sequence[str], words: str, height: int) -> Markup:
    series = tuple(_series(name, line.cells[name]) for name in names)
    epochs = [x for name in line.cells for x in numbers(line.cells[name], "epochs")]
    choice = chosen(line)
    said = "; ".join(f"{s.look.words}: {', '.join(f'{y:.4g}' for y in s.ys)}" for s in series)
    plot = Plot(
        series=series,
        x=Axis.counting(epochs if choice is None else [*epochs, choice]),
        y=Axis.over([y for s in series for y in s.ys], ticks=3 if height > 100 else 2),
        said=f"{line.row}, by epoch: {said}",
        chosen=choice,
        height=height,
    )
    return tag("div", tag("small", words, class_="axis"), lineplot.draw(plot), class_="scaled")


def _series(name: str, row: Row) -> Series:
    ys = numbers(row, "values")
    return Series(look=LOOKS[name], xs=numbers(row, "epochs", count=len(ys)), ys=ys)


def _caption(line: Line) -> Markup:
    """Chosen epoch and best values in figures."""
    words = [f"epoch {choice:g} exported"] if (choice := chosen(line)) is not None else []
    row = line.cells.get(VALIDATION) or line.cells.get(TRAIN)
    if row is not None:
        words.append(f"lowest {row.settings['series']} {row.value:.4g} at {lowest(line):g}")
    if TAU in line.cells:
        words.append(f"best validation τ {line.cells[TAU].value:.2f}")
    return tag("p", "; ".join(words), class_="figure")
