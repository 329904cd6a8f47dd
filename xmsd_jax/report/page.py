"""The whole page: one HTML file that asks nothing of any other machine, and runs no script."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from xmsd_jax.report import sections
from xmsd_jax.report.cards import gallery_section
from xmsd_jax.report.charts import patterns
from xmsd_jax.report.gallery import Card, StoredTrace
from xmsd_jax.report.markup import Markup, join, tag
from xmsd_jax.report.summary import Summary, findings

# The browser itself is told to fetch nothing: pictures are data URIs, the one style sheet is inline.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(
    *,
    title: str,
    summary: Summary,
    provenance: Mapping[str, Any],
    traces: Mapping[str, Sequence[StoredTrace]],
    cards: Sequence[Card],
    run_dir: Path,
) -> str:
    """Render the report of one run.

    Args:
        title: of the page.
        summary: of the rows of results.json.
        provenance: of results.json.
        traces: row -> traces.
        cards: of the gallery, in the order in which they are shown; their pictures lie in `run_dir`/gallery.
        run_dir: the run folder.
    """
    order = list(dict.fromkeys(line.row for group in summary.groups for line in group.lines))
    shown = [card for card in cards if card.clip == cards[0].clip][:3]
    more = [card for card in cards if card not in shown]
    body = [
        patterns(),
        tag("header", *_lead(title, summary, provenance)),
        tag(
            "main",
            gallery_section(run_dir, shown, "One clip, answered") if shown else None,
            *_results(summary, traces, order),
            gallery_section(run_dir, more, "More answers") if more else None,
            *_ground(summary, provenance),
        ),
        tag("footer", tag("p", "Made by xmsd from results.json, traces and gallery of one run.")),
    ]
    return f"<!doctype html>\n{tag('html', _head(title), tag('body', *body), lang='en')}\n"


def style() -> str:
    """The style sheet, from the package's data."""
    return (files("xmsd_jax.report") / "style.css").read_text(encoding="utf-8")


def _head(title: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style())),
    )


def _lead(title: str, summary: Summary, provenance: Mapping[str, Any]) -> list[Markup | None]:
    """Title, what was run, the main result in words, and its key figures."""
    first, *others = findings(summary)
    figures = sections.headline(summary.groups[0]) if summary.groups else []
    tiles = [tag("li", tag("b", value), tag("span", words)) for value, words in figures]
    return [
        tag("h1", title),
        tag("p", _what_was_run(provenance), class_="run"),
        tag("p", first, class_="lead"),
        *(tag("p", sentence, class_="also") for sentence in others),
        tag("ul", *tiles, class_="tiles") if tiles else None,
    ]


def _what_was_run(provenance: Mapping[str, Any]) -> Markup:
    """Date, machine, commit and command in one line."""
    git = provenance.get("git") or {}
    commit = f"commit {git['commit'][:10]}{' with changes' * bool(git.get('dirty'))}" if git.get("commit") else None
    gpus, cores = provenance.get("gpus") or [], provenance.get("cores")
    machine = ", ".join(gpus) if gpus else provenance.get("cpu")
    date = str(provenance.get("date_utc", ""))[:16].replace("T", " ")
    known = (f"{date} UTC" if date else None, machine, f"{cores} cores" if cores and not gpus else None, commit)
    words = " · ".join(str(part) for part in known if part)
    command = provenance.get("command")
    return join(words, tag("br"), tag("code", sections.plain(command))) if command else join(words)


def _results(
    summary: Summary, traces: Mapping[str, Sequence[StoredTrace]], order: Sequence[str]
) -> list[Markup | None]:
    groups = [sections.group_section(group) for group in summary.groups]
    origins = sections.origin_figure(traces, order)
    return [tag("section", tag("h2", "Results"), *groups, origins, id="results")]


def _ground(summary: Summary, provenance: Mapping[str, Any]) -> list[Markup | None]:
    """What the results rest on: certificate, meanings, provenance, every number."""
    ground = tag("div", sections.stage_section(summary.stages), sections.provenance_section(provenance), class_="two")
    return [
        sections.certificate_section(summary.certificates),
        tag("section", tag("h2", "What the numbers mean"), tag("dl", *_MEANINGS), id="meanings"),
        tag("section", tag("h2", "Ground"), ground, sections.all_rows(summary.rows), id="ground"),
    ]


_MEANINGS = tuple(
    join(tag("dt", term), tag("dd", meaning))
    for term, meaning in (
        (
            "Iterations",
            "Passes of the target that check a draft, after the prefill, per answer; plain decoding has none.",
        ),
        (
            "Tokens per iteration, τ",
            "Tokens that the iterations gave, divided by their number; plain decoding gives one a pass.",
        ),
        ("Free tokens", "Tokens drafted before or beside the prefill and found right, counted from the first one."),
        (
            "Vision, prefill, decode",
            "Milliseconds per answer. Prefill holds the drafting for it; decode holds everything after it: drafting, "
            "checking, the loop itself.",
        ),
        (
            "Speed-up",
            "Sum of the baseline's seconds divided by the sum of this row's, over the same answers. The baseline is "
            "the best row without speculation on the same machine, and is named.",
        ),
        (
            "Interval",
            "95 %, percentile bootstrap that draws whole sequences, since clips of one sequence resemble each other. "
            "With one sequence there is none.",
        ),
        (
            "Dash",
            "The number does not apply: no free tokens without prefill drafts, no iterations without drafts.",
        ),
    )
)
