"""The whole page: one HTML file that asks nothing of any other machine, and runs no script."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from xmsd_jax.report import sections
from xmsd_jax.report.cards import gallery_section
from xmsd_jax.report.charts import patterns
from xmsd_jax.report.gallery import Card, StoredTrace
from xmsd_jax.report.imposed_map import imposed_section
from xmsd_jax.report.markup import Markup, join, tag
from xmsd_jax.report.meanings import meanings
from xmsd_jax.report.offline import offline_section
from xmsd_jax.report.predicted import predicted_section
from xmsd_jax.report.summary import Summary, findings
from xmsd_jax.report.timeline import timeline_section
from xmsd_jax.report.training import training_section

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
    offline, predicted = offline_section(summary.rows), predicted_section(summary)
    terms = meanings(offline=offline is not None, predicted=predicted is not None)
    body = [
        patterns(),
        tag("header", *_lead(title, summary, provenance)),
        tag(
            "main",
            gallery_section(run_dir, shown, "One clip, answered") if shown else None,
            _results(summary, traces, order),
            offline,
            predicted,
            imposed_section(summary.rows),
            training_section(summary.rows),
            timeline_section(summary, traces),
            gallery_section(run_dir, more, "More answers") if more else None,
            sections.certificate_section(summary.certificates),
            terms,
            _ground(summary, provenance),
        ),
        tag("footer", tag("p", "Made by xmsd from results.json, traces and gallery of one run.")),
    ]
    return f"<!doctype html>\n{tag('html', head(title), tag('body', *body), lang='en')}\n"


def style() -> str:
    """The style sheet, from the package's data."""
    return (files("xmsd_jax.report") / "style.css").read_text(encoding="utf-8")


def head(title: str) -> Markup:
    """The head of a page: the browser is told to fetch nothing; the style sheet is inline."""
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
        tag("p", what_was_run(provenance), class_="run"),
        tag("p", first, class_="lead"),
        *(tag("p", sentence, class_="also") for sentence in others),
        tag("ul", *tiles, class_="tiles") if tiles else None,
    ]


def what_was_run(provenance: Mapping[str, Any]) -> Markup:
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


def _results(summary: Summary, traces: Mapping[str, Sequence[StoredTrace]], order: Sequence[str]) -> Markup | None:
    """Tables and charts of what was run, None where nothing was."""
    groups = [sections.group_section(group) for group in summary.groups]
    origins = sections.origin_figure(traces, order)
    return tag("section", tag("h2", "Results"), *groups, origins, id="results") if groups or origins else None


def _ground(summary: Summary, provenance: Mapping[str, Any]) -> Markup:
    """What the results rest on: seconds, provenance, every number."""
    ground = tag("div", sections.stage_section(summary.stages), sections.provenance_section(provenance), class_="two")
    return tag("section", tag("h2", "Ground"), ground, sections.all_rows(summary.rows), id="ground")
