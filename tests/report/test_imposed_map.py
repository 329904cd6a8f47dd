"""The map of imposed acceptances: break-even points by hand, one line a compute, one panel a dtype and N."""

import math
import re

import pytest

from tests.report import made_up
from tests.report.test_page import HOSTILE, Structure
from tests.report.test_study_page import section
from xmsd_jax.pipeline.report import ReportConfig, run
from xmsd_jax.report.columns import DASH, TIMES
from xmsd_jax.report.gallery import ReportError
from xmsd_jax.report.imposed_map import crossing, imposed_markdown, imposed_section, maps
from xmsd_jax.report.page import style
from xmsd_jax.report.summary import summarise
from xmsd_jax.runs import Row

BASE = "target compiled"
SPEEDS = {  # compute: speed-ups at 0.2, 0.4, 0.6, 0.8; L5F crosses 1 half way from 0.4 to 0.6
    "text": (0.95, 1.05, 1.25, 1.6),
    "L5F": (0.7, 0.9, 1.1, 1.4),
    "L4": (0.6, 0.7, 0.8, 0.9),
}
NF4 = {"quantisation": "nf4, double, compute bfloat16, kept: lm_head"}


def points(compute="L5F", speeds=SPEEDS["L5F"], metric="speedup", spread=None, **settings):
    """Rows at 0.2, 0.4, ..; `spread` widens each into an interval."""
    return [
        Row(
            row=f"imposed {a:g} at {compute}", metric=metric, value=v, baseline=BASE, kind="imposed", unit="x",
            low=None if spread is None else v - spread, high=None if spread is None else v + spread,
            settings={"acceptance": a, "compute": compute, "gamma": 5, "dtype": "bfloat16", "quantisation": "none",
                      "max_new_tokens": 50, **settings},
        )
        for a, v in zip((0.2, 0.4, 0.6, 0.8), speeds, strict=False)
    ]  # fmt: skip


def study_points() -> list[Row]:
    """Three computes at N = 50 and 256 in bf16 and at 50 in NF4, both metrics, with intervals."""
    made = []
    for settings, more in (({}, 0.0), ({"max_new_tokens": 256}, 0.08), (NF4, -0.2)):
        for compute, speeds in SPEEDS.items():
            whole = [v + more for v in speeds]
            made += points(compute, whole, spread=0.05, **settings)
            made += points(compute, [1 + 1.3 * (v - 1) for v in whole], "decode_speedup", spread=0.06, **settings)
    return made


def cells(html: str) -> list[list[str]]:
    """The table as text."""
    lines = re.findall(r"<tr>(.*?)</tr>", html[html.index("breaks") :])
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line)] for line in lines]


@pytest.mark.parametrize(
    ("speeds", "at"),
    [
        ((0.7, 0.9, 1.1, 1.4), 0.5),
        ((0.8, 1.2), 0.3),
        ((0.9, 1.0, 1.2), 0.4),
        ((0.9, 1.1, 0.9, 1.1), 0.7),  # from there on it stays
        ((1.0, 1.1), 0.2),
        ((1.0, 0.8, 1.0), 0.6),
        ((0.7, 0.8, 0.9), math.inf),
        ((0.9, 1.1, 0.9), math.inf),
        ((1.1, 1.2), -math.inf),
        ((0.9,), math.inf),
        ((1.2,), -math.inf),
    ],
)
def test_the_crossing_by_hand(speeds, at):
    assert crossing((0.2, 0.4, 0.6, 0.8)[: len(speeds)], speeds) == pytest.approx(at)


def test_break_even_its_interval_and_the_highest_stand_in_both_tables():
    rows = [*points(spread=0.1), *points("text", SPEEDS["text"]), *points("L4", SPEEDS["L4"])]
    wanted = [
        ["bfloat16, N = 50, against target compiled", "L5F", "0.50 (0.40 to 0.60)", f"1.40{TIMES} at 0.8"],
        ["bfloat16, N = 50, against target compiled", "text", "0.30", f"1.60{TIMES} at 0.8"],
        ["bfloat16, N = 50, against target compiled", "L4", "above 0.8", f"0.90{TIMES} at 0.8"],
    ]
    assert cells(imposed_section(rows))[1:] == wanted
    lines = [line for line in imposed_markdown(rows).splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] == wanted
    assert len({len(line) for line in lines}) == 1


def test_an_interval_that_does_not_cross_within_the_points_says_so():
    (line,) = cells(imposed_section(points(speeds=(0.96, 1.01, 1.02, 1.03), spread=0.05)))[1:]
    assert line[2] == "0.36 (below 0.2 to above 0.8)"


def test_there_is_a_panel_a_dtype_and_n_and_a_line_a_compute():
    (one,) = maps(study_points())
    assert [panel.title for panel in one.panels] == ["bfloat16, N = 50", "bfloat16, N = 256", "bfloat16, nf4, N = 50"]
    assert [[curve.name for curve in panel.curves] for panel in one.panels] == [list(SPEEDS)] * 3
    drawn = imposed_section(study_points())
    assert len(re.findall(r'class="panel"', drawn)) == 6  # whole answer and decoding alone
    assert len(re.findall(r'class="curve c\d v\d"', drawn.replace("<line", ""))) >= 18
    assert f"1{TIMES} is {BASE}" in drawn


def test_lines_that_differ_in_more_than_the_compute_are_told_apart():
    (one,) = maps([*points(), *points(gamma=8), *points("text", SPEEDS["text"])])
    assert [curve.name for curve in one.panels[0].curves] == ["L5F (gamma 5)", "L5F (gamma 8)", "text"]
    assert len({(look.key, look.shape) for look in one.looks.values()}) == 3


def test_the_ring_is_where_the_line_crosses_one_and_whiskers_are_the_intervals():
    drawn = imposed_section(points(spread=0.1))  # axes 0.2..0.8 and 0.6..1.6
    ring = re.findall(r'<svg x="([\d.]+)%" y="([\d.]+)%" class="open"><path d="[^"]*" class="mark even">', drawn)
    assert ring == [("50.00", "60.00")]
    assert f'y1="{ring[0][1]}%" y2="{ring[0][1]}%" class="one"' in drawn
    whiskers = re.findall(r'<polyline points="([^"]*)" class="curve c1 imposed">', drawn)
    assert whiskers[0] == "0.00,100.00 0.00,80.00"
    assert len(whiskers) == 4
    assert 'class="curve c1 imposed"' not in imposed_section(points())


def test_points_stay_out_of_the_main_table_and_must_name_their_baseline():
    rows = [*made_up.rows(), *points()]
    assert summarise(rows).groups == summarise(made_up.rows()).groups
    nameless = [Row(**{**vars(row), "baseline": None}) for row in points()]
    with pytest.raises(ReportError, match="names no baseline"):
        summarise(nameless)


def test_a_point_that_is_there_twice_is_refused():
    with pytest.raises(ReportError, match=r"speedup at the imposed acceptance 0\.2 of L5F twice"):
        maps([*points(), *points()])


def test_a_run_without_such_rows_has_no_such_section():
    rows = made_up.rows()
    predicted = [Row(row="imposed 0.5", metric="speedup_by_gamma", value=1.0, kind="imposed", baseline=BASE,
                     settings={"acceptance": 0.5, "gammas": [1], "values": [1.0]})]  # fmt: skip
    for found in (rows, predicted, [Row(**{**vars(row), "kind": "measured"}) for row in points()]):
        assert imposed_section(found) is None
        assert imposed_markdown(found) == ""


def test_a_metric_without_points_has_a_dash():
    rows = [*points(), *points("text", SPEEDS["text"]), *points("text", SPEEDS["text"], "decode_speedup")]
    assert [line[2:4] for line in cells(imposed_section(rows))[1:]] == [["0.50", DASH], ["0.30", "0.30"]]


def test_the_reading_names_who_needs_least_and_who_does_not_get_there():
    said = imposed_section([*points(), *points("text", SPEEDS["text"]), *points("L4", SPEEDS["L4"])])
    assert "The least is asked of text (bfloat16, N = 50): 0.30. The most, of those that break even, of L5F" in said
    assert "No measured acceptance makes L4 (bfloat16, N = 50) as fast as the baseline." in said


def test_the_section_is_on_the_page_and_in_the_markdown_and_text_stays_text(tmp_path):
    hostile = points(HOSTILE, clips=HOSTILE, dtype=HOSTILE)
    made_up.write_run(tmp_path, [*made_up.rows(), *study_points(), *hostile])
    run(ReportConfig(), tmp_path)
    html = (tmp_path / "report.html").read_text()
    structure = Structure(html)
    assert "<script" not in html
    assert HOSTILE in structure.texts
    assert f">1{TIMES} is {BASE}<" in section(html, "imposed")
    text = (tmp_path / "report.md").read_text()
    assert "Break-even, whole answer" in text
    assert "<script" not in text.replace("&lt;", "")


def test_every_class_that_is_drawn_has_a_style():
    drawn = Structure(imposed_section(study_points())).tags
    classes = {name for _, a in drawn for name in (a.get("class") or "").split()}
    marked = {name for name in classes if re.fullmatch(r"c\d|v[23]|even|imposed|breaks", name)}
    assert {"c1", "c2", "c3", "v2", "v3", "even", "imposed", "breaks"} <= marked
    assert all(re.search(rf"\.{name}\b", style()) for name in marked)
