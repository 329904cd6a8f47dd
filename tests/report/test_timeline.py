"""The timeline draws the spans of a few answers on one scale, and counts what it draws."""

import re

import pytest

from tests.report import made_up, made_up_study
from tests.report.made_up_study import spans_of
from tests.report.test_page import HOSTILE, Structure
from xmsd_jax.report.gallery import ReportError, StoredTrace, read_traces
from xmsd_jax.report.summary import summarise
from xmsd_jax.report.timeline import Drawn, chosen, reading, timeline_section
from xmsd_jax.report.timeline import spans_of as read_spans


def stored(row="n-gram", *, clip="c", origins=("target",) * 3, iterations=(), **more):
    trace = {"ids": list(range(len(origins))), "origins": list(origins), "iterations": list(iterations), **more}
    return StoredTrace(row=row, clip=clip, sequence="s", question="What?", trace=trace)


def span(lane, part, start, stop):
    return {"lane": lane, "part": part, "start": start, "stop": stop}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    run_dir = made_up_study.write_study(tmp_path_factory.mktemp("study"))
    return summarise(made_up_study.study_rows()), read_traces(run_dir)


def test_the_fastest_the_baseline_and_a_two_phase_row_are_drawn_over_one_answer(study):
    drawn = chosen(*study)
    assert [d.trace.row for d in drawn] == [made_up.BASELINE, "n-gram", "L2+L5F"]
    assert {d.trace.clip for d in drawn} == {"scene-003"}


def test_a_row_without_spans_is_not_drawn_and_without_any_there_is_no_section(study):
    summary, _ = study
    assert timeline_section(summary, {"n-gram": [stored()], "L1": [stored("L1", spans=[])]}) is None
    assert timeline_section(summary, {}) is None


def test_all_rows_share_one_scale_and_the_shortest_span_stays_visible(study):
    html = timeline_section(*study)
    Structure(html)
    widths = [float(w) for w in re.findall(r'<rect x="[\d.]+%" y="8%" width="([\d.]+)%"', html)]
    assert min(widths) >= 0.3
    vision = re.findall(r'<rect x="0.00%" y="8%" width="([\d.]+)%" height="84%" class="part vision outlined">', html)
    assert len(set(vision[:2])) == 1  # the same milliseconds, the same width
    assert html.count("track scale") == 1


def test_the_reading_counts_busy_time_passes_and_total(study):
    drawn = chosen(*study)
    two = drawn[-1]
    spans = spans_of("L2+L5F")
    busy = 1000 * sum(s["stop"] - s["start"] for s in spans if s["lane"] == "drafter")
    total = 1000 * max(s["stop"] for s in spans)
    said = reading(drawn)
    assert f"drafter busy {busy:.1f}\xa0ms, 14 passes of the target for 37 tokens, {total:.0f}\xa0ms in total" in said
    assert "37 passes of the target for 37 tokens" in said
    assert two.passes == 1 + 1 + 12


def test_spans_that_overlap_count_once():
    trace = stored(spans=[span("target", "a", 0, 2), span("target", "b", 1, 3), span("drafter", "c", 0, 1)])
    drawn = Drawn(trace=trace, spans=read_spans(trace))
    assert (drawn.busy("target"), drawn.busy("drafter"), drawn.busy("host"), drawn.stop) == (3.0, 1.0, 0.0, 3.0)


def test_passes_are_one_a_token_without_drafts_and_one_an_iteration_with():
    whole = [span("target", "decode", 0, 1)]
    plain, speculative = stored(spans=whole), stored(iterations=[{}], spans=whole)
    assert [Drawn(trace=t, spans=read_spans(t)).passes for t in (plain, speculative)] == [3, 2]


@pytest.mark.parametrize(
    "bad",
    [span("elsewhere", "a", 0, 1), span("target", "a", 2, 1), span("target", "a", -1, 1), span("target", "a", "x", 1),
     {"lane": "target"}, 7],
)  # fmt: skip
def test_what_is_no_span_is_an_error_that_names_the_trace(bad):
    with pytest.raises(ReportError, match=r"clip 'c', row 'n-gram': a span is"):
        read_spans(stored(spans=[bad]))


def test_hostile_parts_and_rows_stay_text():
    trace = stored(HOSTILE, clip=HOSTILE, spans=[span("target", HOSTILE, 0, 1)])
    html = timeline_section(summarise([]), {HOSTILE: [trace]})
    structure = Structure(html)
    assert not {"script", "img"} & {tag for tag, _ in structure.tags}
    assert HOSTILE in structure.texts
