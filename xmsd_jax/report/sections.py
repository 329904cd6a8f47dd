"""The sections of the page that show numbers: tables, charts with a sentence of reading, certificate, provenance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from xmsd_jax.report import charts
from xmsd_jax.report.certified import Certificate, certificate_sentence
from xmsd_jax.report.columns import COLUMNS, DASH, KIND_WORDS, TIMES, Column, bounds, number
from xmsd_jax.report.gallery import ORIGINS, StoredTrace
from xmsd_jax.report.markup import Markup, tag
from xmsd_jax.report.summary import Group, Line, Stage, best, is_speed_up, verdict
from xmsd_jax.report.tables import baseline_note, group_title, remarks, shown_columns
from xmsd_jax.runs import Row


def group_section(group: Group) -> Markup:
    """One set of clips: heading, table, note on the baseline, speed chart, time chart."""
    shown = [speed_figure(group), time_figure(group)]
    spread = any(cell.low is not None for line in group.lines for cell in line.cells.values())
    note = tag("p", baseline_note(group), f" {_INTERVALS if spread else _NO_INTERVALS}", class_="note")
    return tag("div", tag("h3", group_title(group)), main_table(group), note, *shown, class_="group")


def main_table(group: Group) -> Markup:
    """The lines of a group; on a narrow screen style.css turns each into a card, with `data-label` as headings."""
    columns = shown_columns(group)
    heads = [
        tag("th", text.replace("-", "\N{NON-BREAKING HYPHEN}"), scope="col")
        for text in ("Drafter", *(c.heading for c in columns), "Kind")
    ]
    body = [_table_line(group, line, columns) for line in group.lines]
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="main")


def speed_figure(group: Group) -> Markup | None:
    """Speed-ups with intervals, and how to read them."""
    chart = charts.speed_chart(group)
    if chart is None:
        return None
    cells = [line.cells["speedup"] for line in group.lines if line.value("speedup")]
    verdicts = Counter(words for cell in cells if (words := verdict(cell)) not in ("", "baseline"))
    counted = "; ".join(f"{count} {words}" for words, count in verdicts.items()) or "nothing measured"
    spread = any(cell.low is not None for cell in cells)
    whiskers = "the whisker is the interval, and one that crosses the line shows no difference"
    without = "there is no interval here, so that small differences say nothing"
    reading = (
        f"A bar to the right of the line at 1{TIMES} is faster than the baseline, to the left slower; "
        f"{whiskers if spread else without}. By whole answer: {counted}."
    )
    return _figure("Speed-up against the baseline", chart, reading)


def time_figure(group: Group) -> Markup | None:
    """Where the milliseconds of an answer go, and what that bounds."""
    metrics = [f"{part.key}_ms" for part in charts.TIME_PARTS]
    lines = [line for line in group.lines if all(line.value(m) is not None for m in metrics)]
    bars = [_time_bar(group, line) for line in lines]
    chart = charts.stacked_chart(bars, charts.TIME_PARTS)
    if chart is None:
        return None
    return _figure("Where the time of an answer goes", chart, _time_reading(group, lines))


def origin_figure(traces: Mapping[str, Sequence[StoredTrace]], order: Sequence[str]) -> Markup | None:
    """Share of tokens by origin for each row that has traces."""
    rows = [row for row in order if traces.get(row)]
    counts = {row: Counter(o for trace in traces[row] for o in trace.trace["origins"]) for row in rows}
    shares = {row: {o: c[o] / max(1, c.total()) for o in ORIGINS} for row, c in counts.items()}
    bars = [
        charts.Bar(label=row, amounts=share, note=f"{100 * (1 - share['target']):.0f} %", remark="from drafts")
        for row, share in shares.items()
    ]
    chart = charts.stacked_chart(bars, charts.ORIGIN_PARTS, full=1.0)
    if chart is None:
        return None
    row, share = min(shares.items(), key=lambda item: item[1]["target"])
    reading = (
        f"Over all answers: in {row}, {100 * share['prefill-draft']:.0f} % of the tokens came free in the prefill, "
        f"{100 * share['draft']:.0f} % were accepted drafts, and {100 * share['target']:.0f} % the target's own. "
        "The target has checked each of them, whatever its colour."
    )
    return _figure("Where the tokens come from", chart, reading)


def certificate_section(certificates: Sequence[Certificate]) -> Markup:
    """What was compared with target-only decoding, row by row, and each differing token."""
    heads = [tag("th", heading, scope="col") for heading in ("Drafter", *_COUNTS, "Clips", "Outcome")]
    body = [_certificate_line(c) for c in certificates]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="main") if body else None
    listed = [(c, entry) for c in certificates for entry in c.listed]
    return tag(
        "section",
        tag("h2", "Certificate"),
        tag("p", certificate_sentence(certificates)),
        table,
        _listed_tokens(listed) if listed else None,
        tag("p", _TIE_NOTE, class_="note"),
        id="certificate",
    )


def stage_section(stages: Sequence[Stage]) -> Markup | None:
    """Seconds of each stage of the run."""
    if not stages:
        return None
    body = [
        tag(
            "tr", tag("th", s.name, scope="row"), tag("td", f"{s.seconds:.1f} s{' (reused, not run again)' * s.reused}")
        )
        for s in stages
    ]
    spent = sum(s.seconds for s in stages if not s.reused)
    total = tag("tr", tag("th", "this run", scope="row"), tag("td", tag("b", f"{spent:.1f} s")))
    return tag("div", tag("h3", "Seconds per stage"), tag("table", tag("tbody", *body, total), class_="pairs"))


def provenance_section(provenance: Mapping[str, Any]) -> Markup:
    """All that is known of where the numbers come from."""
    body = [
        tag("tr", tag("th", key.replace("_", " "), scope="row"), tag("td", plain(value)))
        for key, value in provenance.items()
        if value not in (None, [], {}, "")
    ]
    return tag("div", tag("h3", "Provenance"), tag("table", tag("tbody", *body), class_="pairs"))


def all_rows(rows: Sequence[Row]) -> Markup:
    """Every row of results.json, folded away."""
    heads = ("row", "metric", "value", "low", "high", "n", "unit", "baseline", "kind", "settings")
    body = [tag("tr", *(tag("td", _raw(getattr(row, head))) for head in heads)) for row in rows]
    head = tag("thead", tag("tr", *(tag("th", h, scope="col") for h in heads)))
    table = tag("div", tag("table", head, tag("tbody", *body), class_="plain all"), class_="scroll")
    return tag("details", tag("summary", f"All {len(rows)} numbers of this run"), table)


def plain(value: Any) -> str:
    """A JSON value as words: lists of command words by spaces, pairs as "key value"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(plain(v) for v in value)
    return (
        {True: "yes", False: "no", None: DASH}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )


_COUNTS = ("Answers compared", "Divergences", "Ties")
_INTERVALS = "Intervals are 95\N{NO-BREAK SPACE}%, resampled over whole sequences."
_NO_INTERVALS = "There are no intervals: they resample whole sequences, and these clips are of one."
_TIE_NOTE = (
    "Each answer is compared token by token with the answer that the target gives alone, with the same weights, data "
    "type and kernels. A tie is a first difference at which the two best tokens of the target are as good as equal (at "
    "most 2 units in the last place in bfloat16, 1e-4 in float32). Any other difference fails the run."
)


def _table_line(group: Group, line: Line, columns: Sequence[Column]) -> Markup:
    label = group.label(line)
    name = tag("th", line.row, tag("small", label) if label else None, scope="row")
    cells = [_cell(line.cells.get(c.metric), c) for c in columns]
    kind = tag("td", KIND_WORDS.get(line.kind, line.kind), data_label="Kind", class_="kind")
    is_baseline = line.row in group.baselines
    return tag("tr", name, *cells, kind, class_="baseline" if is_baseline else None)


def _cell(cell: Row | None, column: Column) -> Markup:
    """A number, its interval, and the words that must stand beside it."""
    if cell is None or cell.value is None:
        return tag("td", tag("span", DASH, aria_label="does not apply"), data_label=column.heading, class_="number")
    spread = "" if cell.row == cell.baseline else bounds(cell, column)
    words = [tag("em", w, class_=_word_class(cell, w)) for w in remarks(cell)]
    inside = tag("span", tag("b", number(cell.value, column)), tag("small", spread) if spread else None, *words)
    return tag("td", inside, data_label=column.heading, class_="number")


def _word_class(cell: Row, word: str) -> str:
    return f"verdict {charts.verdict_class(word)}" if is_speed_up(cell) and word not in KIND_WORDS.values() else "kind"


def _time_bar(group: Group, line: Line) -> charts.Bar:
    amounts = {part.key: line.value(f"{part.key}_ms") or 0.0 for part in charts.TIME_PARTS}
    whole = number(sum(amounts.values()), _MS)
    parts = " + ".join(number(amount, _MS) for amount in amounts.values())
    return charts.Bar(label=line.row, detail=group.label(line), amounts=amounts, note=f"{whole} ms", remark=parts)


def _time_reading(group: Group, lines: Sequence[Line]) -> str:
    """Amdahl's bound: only decoding can shrink."""
    line = next((line for line in lines if line.row in group.baselines), lines[0])
    vision, prefill, decode = (line.value(f"{part.key}_ms") or 0.0 for part in charts.TIME_PARTS)
    whole = vision + prefill + decode
    share = f"{100 * decode / whole:.0f} %"
    text = f"Of the {number(whole, _MS)} ms that {line.row} takes for an answer, {share} is decoding, "
    if vision + prefill <= 0:
        return text + "the part that speculation can shorten."
    return (
        f"{text}the part that speculation can shorten: with decoding for nothing, an answer would come "
        f"{whole / (vision + prefill):.1f} times as fast, and no more."
    )


def _certificate_line(c: Certificate) -> Markup:
    """Counts, clips and outcome; a reason and dashes where there is no certificate."""
    fails = c.divergences or not c.compared  # a certificate over no answers proves nothing
    outcome = tag("em", "FAILS" if fails else "holds, with ties" if c.ties else "holds", class_=_outcome_class(fails))
    counts = (DASH,) * 3 if c.reason else (c.compared, c.divergences, c.ties)
    cells = [tag("td", n, data_label=h, class_="number") for n, h in zip(counts, _COUNTS, strict=True)]
    cells += [tag("td", c.clips or "all", data_label="Clips", class_="clips")]
    cells += [tag("td", f"not applicable: {c.reason}" if c.reason else outcome, data_label="Outcome", class_="kind")]
    return tag("tr", tag("th", c.row, scope="row"), *cells)


def _outcome_class(fails: bool | int) -> str:
    return f"verdict {'slower' if fails else 'faster'}"


def _listed_tokens(listed: Sequence[tuple[Certificate, Mapping[str, Any]]]) -> Markup:
    """Every tie and divergence, with all that was noted of it."""
    keys = list(dict.fromkeys(key for _, entry in listed for key in entry))
    head = tag("tr", *(tag("th", k.replace("_", " "), scope="col") for k in ("drafter", *keys)))
    body = [tag("tr", tag("td", c.row), *(tag("td", _raw(entry.get(k))) for k in keys)) for c, entry in listed]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="plain all")
    return tag(
        "details", tag("summary", f"{len(listed)} differing tokens, one by one"), tag("div", table, class_="scroll")
    )


def _raw(value: Any) -> str:
    """One value of the list of all numbers; long lists are folded, the CSV keeps them."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_raw(inner)}" for key, inner in value.items())
    if _is_list_of_numbers(value):
        return f"[{len(value)} number{'' if len(value) == 1 else 's'}]"
    return f"{value:.6g}" if isinstance(value, float) else plain(value)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, int | float | None) for v in value)


def _figure(title: str, chart: Markup, reading: str) -> Markup:
    return tag("figure", tag("h4", title), chart, tag("figcaption", reading), class_="wide")


_MS = next(column for column in COLUMNS if column.metric == "decode_ms")


def headline(group: Group) -> list[tuple[str, str]]:
    """Key figures of the headline group's best row: (number, words)."""
    top = best(group)
    if top is None:
        return []
    line = next(line for line in group.lines if line.cells.get("speedup") is top)
    wanted = (
        ("speedup", f"whole answer, {top.row} against {top.baseline}"),
        ("decode_speedup", "decoding alone"),
        ("tau", "tokens per pass of the target"),
        ("n_free", "tokens free in the prefill, per answer"),
    )
    column = {c.metric: c for c in COLUMNS}
    return [(number(line.value(m), column[m]), words) for m, words in wanted if line.value(m) is not None]
