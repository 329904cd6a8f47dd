"""The section that shows one answer of a few rows as time passes: what the target and the drafter did, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xmsd_jax.report import charts
from xmsd_jax.report.gallery import ReportError, StoredTrace
from xmsd_jax.report.lineplot import Axis
from xmsd_jax.report.markup import Markup, join, tag
from xmsd_jax.report.summary import Group, Summary

LANES = {"target": "target", "drafter": "drafter", "host": "host"}
MOST = 3
"""Rows that are drawn: the fastest, the baseline, one of two phases."""
_THIN = 0.3  # per cent of the width that the shortest span gets, so that it stays visible
_WIDE = 1.0  # per cent of the width from which a span gets an outline


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one lane did from `start` to `stop`, in seconds from the start of the answer."""

    lane: str
    part: str
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One answer with its spans."""

    trace: StoredTrace
    spans: tuple[Span, ...]

    @property
    def stop(self) -> float:
        """Seconds until the last span ends."""
        return max(span.stop for span in self.spans)

    def busy(self, lane: str) -> float:
        """Seconds in which a lane did something; spans that overlap count once."""
        total, until = 0.0, 0.0
        for span in sorted((s for s in self.spans if s.lane == lane), key=lambda s: s.start):
            total += max(0.0, span.stop - max(span.start, until))
            until = max(until, span.stop)
        return total

    @property
    def passes(self) -> int:
        """Passes of the target: the prefill, the first check of `wait`, one an iteration or one a token without any.

        A pass without drafts gives one token of the target's own, and the prefill or the first check gives the first.
        """
        trace = self.trace.trace
        own = sum(origin == "target" for origin in trace["origins"])
        first = any(span.lane == "target" and span.part == "first" for span in self.spans)
        return 1 + first + (len(trace.get("iterations") or ()) or max(0, own - 1))


def timeline_section(summary: Summary, traces: Mapping[str, Sequence[StoredTrace]]) -> Markup | None:
    """A handful of answers on one time scale; None where no stored trace has spans."""
    drawn = chosen(summary, traces)
    if not drawn:
        return None
    axis = Axis.over([0.0, *(1000.0 * d.stop for d in drawn)], ticks=4)
    parts = charts.parts_of(span.part for d in drawn for span in d.spans)
    blocks = [_answer(d, axis, parts) for d in drawn]
    figure = tag(
        "figure",
        tag("h4", _title(drawn)),
        charts.legend(parts),
        tag("div", *blocks, _scale(axis), class_="chart timeline"),
        tag("figcaption", reading(drawn)),
        class_="wide",
    )
    return tag("section", tag("h2", "Timeline"), figure, id="timeline")


def chosen(summary: Summary, traces: Mapping[str, Sequence[StoredTrace]]) -> list[Drawn]:
    """The rows to draw, in the order of the main table, each with an answer that all of them gave if there is one."""
    known = {row: made for row, stored in traces.items() if (made := [d for t in stored if (d := _drawn(t))])}
    rows = _rows(summary, known)
    common = set.intersection(*({_answered(d) for d in known[row]} for row in rows)) if rows else set()
    return [next((d for d in known[row] if _answered(d) in common), known[row][0]) for row in rows]


def reading(drawn: Sequence[Drawn]) -> str:
    """Busy milliseconds of each lane, passes of the target and the total, row by row."""
    sentences = [
        f"{d.trace.row}: target busy {_ms(d.busy('target'))}, {_drafter(d)}, {_passes(d)} of the target for "
        f"{len(d.trace.trace['ids'])} tokens, {_ms(d.stop)} in total."
        for d in drawn
    ]
    return " ".join((*sentences, "One answer each; the shortest spans are drawn wider than they are, to be seen."))


def spans_of(trace: StoredTrace) -> tuple[Span, ...]:
    """The spans of a stored trace, none where it has none. Raises ReportError for one that is not a span."""
    try:
        return tuple(_span(entry) for entry in trace.trace.get("spans") or ())
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ReportError(
            f"trace of clip {trace.clip!r}, row {trace.row!r}: a span is a lane of {tuple(LANES)}, a part, and start "
            f"<= stop in seconds, got {error}; run the benchmark again"
        ) from error


def _span(entry: Mapping[str, Any]) -> Span:
    span = Span(lane=entry["lane"], part=str(entry["part"]), start=float(entry["start"]), stop=float(entry["stop"]))
    if span.lane not in LANES or not 0 <= span.start <= span.stop < float("inf"):
        raise ValueError(dict(entry))
    return span


def _drawn(trace: StoredTrace) -> Drawn | None:
    spans = spans_of(trace)
    return Drawn(trace=trace, spans=spans) if spans and max(s.stop for s in spans) > 0 else None


def _rows(summary: Summary, known: Mapping[str, Sequence[Drawn]]) -> list[str]:
    """The fastest row, the baseline and the fastest of two phases, as far as they have spans; else the first rows."""
    group = summary.groups[0] if summary.groups else Group(clips="", lines=())
    order = list(dict.fromkeys(line.row for line in group.lines if line.row in known))
    order += [row for row in known if row not in order]
    speed = {line.row: line.value("speedup") or 0.0 for line in group.lines if line.kind == "measured"}
    ranked = sorted((r for r in order if r not in group.baselines), key=lambda r: -speed.get(r, 0.0))
    two = [row for row in ranked if any(_two_phases(d.trace) for d in known[row])]
    # a row of two drafters shows most, and one that the drafter model works for
    two.sort(key=lambda row: (row in ranked[:1], "+" not in row, not _runs_drafter(known[row][0])))
    base = [row for row in order if row in group.baselines]
    wanted = {*ranked[:1], *base[:1], *two[:1]}
    wanted |= set([row for row in order if row not in wanted][: MOST - len(wanted)])
    return [row for row in order if row in wanted]


def _runs_drafter(drawn: Drawn) -> bool:
    """Whether the drafter model itself was run, and not only what drafts from its states."""
    return any(span.part.startswith("drafter") for span in drawn.spans)


def _two_phases(trace: StoredTrace) -> bool:
    return bool(trace.trace.get("prefill_drafted") and trace.trace.get("iterations"))


def _answered(drawn: Drawn) -> tuple[str, str]:
    return drawn.trace.clip, drawn.trace.question


def _title(drawn: Sequence[Drawn]) -> str:
    answers = {_answered(d) for d in drawn}
    return f"One answer: {answers.pop()[1]}" if len(answers) == 1 else "One answer of each row (not the same one)"


def _answer(drawn: Drawn, axis: Axis, parts: Sequence[charts.Part]) -> Markup:
    """Name, a track a lane, total."""
    lanes = [lane for lane in LANES if any(span.lane == lane for span in drawn.spans)]
    tracks = [_track(drawn, lane, axis, parts) for lane in lanes]
    name = tag("h5", drawn.trace.row, tag("small", f"{_ms(drawn.stop)}, {_passes(drawn)}, clip {drawn.trace.clip}"))
    return tag("div", name, *tracks, class_="answered")


def _track(drawn: Drawn, lane: str, axis: Axis, parts: Sequence[charts.Part]) -> Markup:
    class_ = {part.key: part.class_ for part in parts}
    grid = [tag("line", x1=_at(axis, t), x2=_at(axis, t), y1=0, y2="100%", class_="grid") for t in axis.ticks]
    rects = [_rect(span, axis, class_[span.part]) for span in drawn.spans if span.lane == lane]
    said = f"{drawn.trace.row}, {LANES[lane]}: busy {_ms(drawn.busy(lane))} in {len(rects)} spans"
    height = 12 if lane == "host" else 24
    picture = tag("svg", *grid, *rects, role="img", aria_label=said, width="100%", height=height)
    name = tag("div", LANES[lane], class_="lane")
    return tag("div", name, tag("div", picture, class_="picture"), class_="track")


def _rect(span: Span, axis: Axis, class_: str) -> Markup:
    start, stop = axis.at(1000.0 * span.start), axis.at(1000.0 * span.stop)
    width = max(stop - start, _THIN)
    size = {"x": f"{start:.2f}%", "y": "8%", "width": f"{width:.2f}%", "height": "84%"}
    outline = " outlined" if width >= _WIDE else ""
    return join(
        tag("rect", **size, class_=f"part {class_}{outline}"),
        tag("rect", tag("title", f"{span.part} {_ms(span.stop - span.start)}"), **size, class_=f"over {class_}"),
    )


def _scale(axis: Axis) -> Markup:
    """Tick labels under the tracks; the last one names the unit, so that they fit a phone."""
    labels = [tag("text", f"{tick:g}", x=_at(axis, tick), y=12, text_anchor="middle") for tick in axis.ticks[:-1]]
    labels.append(tag("text", f"{axis.high:g} ms", x="100%", y=12, text_anchor="end"))
    picture = tag("svg", *labels, width="100%", height=18, aria_hidden="true")
    return tag("div", tag("div", class_="lane"), tag("div", picture, class_="picture"), class_="track scale")


def _at(axis: Axis, value: float) -> str:
    return f"{axis.at(value):.2f}%"


def _drafter(drawn: Drawn) -> str:
    busy = drawn.busy("drafter")
    return f"drafter busy {_ms(busy)}" if busy else "no drafter at work"


def _passes(drawn: Drawn) -> str:
    return f"{drawn.passes} pass{'' if drawn.passes == 1 else 'es'}"


def _ms(seconds: float) -> str:
    value = 1000.0 * seconds
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}ms"
