"""The sections of a whole study: each shows what its rows say, and none is there without rows."""

import csv
import json
import re

import pytest

from tests.report import made_up, made_up_study
from tests.report.made_up_study import DRAFTERS, GAMMA, SPLIT
from tests.report.test_page import HOSTILE, Structure
from xmsd_jax.pipeline.report import ReportConfig, run
from xmsd_jax.report import curves, offline, predicted, training
from xmsd_jax.report.columns import TIMES
from xmsd_jax.report.gallery import ReportError
from xmsd_jax.report.page import style
from xmsd_jax.report.reading import gathered, listed, signed
from xmsd_jax.runs import Row

SECTIONS = ("results", "offline", "predicted", "training", "timeline", "certificate", "meanings", "ground")
FURTHER = SECTIONS[1:5]


def made(run_dir, rows=None):
    made_up_study.write_study(run_dir, rows)
    run(ReportConfig(), run_dir)
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("made-up-study")


@pytest.fixture(scope="module")
def html(run_dir):
    return made(run_dir)


def section(html, name):
    return html[html.index(f'id="{name}"') :].partition("</section>")[0]


def table_line(part, row):
    """Cells of a line of a table as text."""
    (line,) = re.findall(rf'<tr><th scope="row">{re.escape(row)}(?:<small>[^<]*</small>)?</th>(.*?)</tr>', part)
    return [" ".join(re.findall(r">([^<]+)<", cell)) for cell in re.findall(r"<td.*?</td>", line)]


def test_the_sections_come_in_their_order_and_close(html):
    ids = [a["id"] for tag, a in Structure(html).tags if tag == "section" and "id" in a]
    assert tuple(ids) == SECTIONS


def test_a_run_without_such_rows_has_no_such_section(tmp_path):
    made_up.write_run(tmp_path)
    run(ReportConfig(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    for name in FURTHER:
        assert f'id="{name}"' not in page
    assert "Teacher-forced" not in page
    assert "Predicted parts" not in page


@pytest.mark.parametrize(
    ("name", "rows"),
    [("offline", made_up_study.share_rows), ("offline", made_up_study.offline_rows),
     ("offline", made_up_study.gamma_rows), ("predicted", made_up_study.part_rows),
     ("predicted", made_up_study.original_rows), ("training", made_up_study.training_rows)],
)  # fmt: skip
def test_each_kind_of_row_makes_its_section_alone(tmp_path, name, rows):
    made_up.write_run(tmp_path, rows())
    run(ReportConfig(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    Structure(page)
    assert [other for other in FURTHER if f'id="{other}"' in page] == [name]


def test_no_figure_or_table_body_is_empty(html):
    assert not re.search(r"<(figure|tbody|ul|dl|h[2-5])[^>]*></\1>", html)


def test_every_line_of_a_section_has_every_drafter_in_the_order_of_the_rows(html):
    part = section(html, "offline")
    titles = re.findall(r"<h5>([^<]+)</h5>", part)
    assert titles == [*DRAFTERS, *DRAFTERS]  # S_k, then speed-up over gamma


def test_first_and_last_share_stand_in_figures_under_each_curve(html):
    part = section(html, "offline")
    for row in made_up_study.share_rows():
        shares = row.settings["shares"]
        panel = part[part.index(f"<h5>{row.row}</h5>") :].partition('<div class="panel">')[0]
        short = curves.LOOKS[row.settings["how"]].short
        assert re.search(rf"</svg>{short}</th><td>{shares[0]:.3f}</td><td>{shares[-1]:.3f}</td>", panel)
    assert part.count("rolled out, visited anchors</li>") == 1  # the legend, once


def test_each_series_of_shares_has_a_marker_and_a_dash_of_its_own():
    assert len({look.shape for look in curves.LOOKS.values()}) == len(curves.LOOKS)


def test_the_reading_of_shares_names_the_widest_gap_and_the_live_curve_that_differs(html):
    part = section(html, "offline")
    rows = {(r.row, r.settings["how"]): r.settings["shares"] for r in made_up_study.share_rows()}
    gaps = {
        row: rows[row, curves.FORCED][-1] - rows[row, curves.ROLLED][-1] for row, how in rows if how == curves.FORCED
    }
    widest = max(gaps, key=gaps.__getitem__)
    assert f"The widest gap is that of {widest}: all {GAMMA} tokens are right at " in part
    assert f"{100 * rows[widest, curves.FORCED][-1]:.1f}\N{NO-BREAK SPACE}% of the anchors teacher-forced" in part
    assert "for 7 of 8 drafters that ran live; the farthest apart is L5F (synced)" in part


def test_live_that_coincides_is_said_to():
    same = [
        Row(row="n-gram", metric="S_k", value=0.5, settings={"how": how, "shares": [0.5, 0.25]})
        for how in (curves.VISITED, curves.LIVE)
    ]
    said = curves.share_reading(curves.share_groups(same)[0])
    assert "Live coincides with the offline walk over visited anchors for the one drafter that ran live." in said
    assert "widest gap" not in said


def test_the_offline_table_shows_the_own_offset_and_the_live_gamma(html):
    part = section(html, "offline")
    rows = {(r.row, r.metric, r.settings.get("offset"), r.settings.get("gamma")): r.value
            for r in made_up_study.offline_rows()}  # fmt: skip
    cells = table_line(part, "L2")
    wanted = [f"{rows['L2', 'cosine', 0, None]:.3f}", f"{100 * rows['L2', 'accept@0.90', 0, None]:.1f}\xa0%"]
    wanted += [f"{100 * rows['L2', 'top1', offset, None]:.1f}\xa0%" for offset in (0, 1)]
    assert [cell.split(" ")[0] for cell in cells[:4]] == wanted
    b1 = table_line(part, "B1")
    assert b1[2].startswith(f"{100 * rows['B1', 'top1', 1, None]:.1f}\xa0%")
    assert b1[-1].startswith(f"{rows['B1', 'tau_offline', None, GAMMA]:.2f} ")
    assert f">Walk τ, gamma {GAMMA}</th>" in part
    assert table_line(part, "template")[0] == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("row", "known", "own"),
    [("L1", (0, 1), 0), ("L4 (again)", (0, 1), 0), ("identity(drafter, 0)", (1, 0), 0),
     ("identity(target, 1)", (0, 1), 1), ("L5", (0, 1), 1), ("L1+L5F", (0, 1), 1), ("B1", (0, 1), 1), ("B1", (0,), 0)],
)  # fmt: skip
def test_the_own_offset_is_that_of_the_drafters_kind(row, known, own):
    assert offline.own_offset(row, known) == own


def test_the_walk_is_shown_at_the_live_gamma_else_at_the_longest():
    walks = [Row(row="a", metric="tau_offline", value=float(g), settings={"gamma": g}) for g in (1, 3, 5)]
    live = [Row(row=name, metric="tau", value=2.0, settings={"gamma": 3}) for name in ("a", "b")]
    (line,) = offline.table_groups(walks)[0].lines

    def shown(rows, name="a"):
        return offline.chosen_cells(line, offline.live_gammas(rows, name))["tau_offline"].value

    assert (shown(live), shown([]), shown(live[1:])) == (3.0, 5.0, 3.0)
    both = offline.offline_table(offline.table_groups([*walks, Row(**{**vars(walks[0]), "row": "c"})])[0], live)
    assert "gamma 3</small>" in both
    assert "gamma 1</small>" in both


def test_accept_is_never_called_acceptance(html):
    assert "a measure of states and not of accepted tokens" in section(html, "offline")
    assert "not acceptance" in section(html, "meanings")


def test_the_best_gamma_and_the_baseline_of_predictions_are_named(html):
    part = section(html, "offline")
    for row in made_up_study.gamma_rows():
        assert f"<b>{row.value:.2f}{TIMES}</b> at gamma {row.settings['best']}</p>" in part
    assert f"against {made_up.BASELINE}; nothing here was run" in part
    assert "No gamma is predicted to make identity(drafter, 0) faster than the baseline." in part


def test_totals_and_deviations_are_those_of_the_parts(html):
    part = section(html, "predicted")
    rows = made_up_study.part_rows()
    total = {kind: sum(r.value for r in rows if (r.row, r.kind) == ("B1", kind)) for kind in ("predicted", "measured")}
    assert f"<b>{signed(100 * (total['predicted'] / total['measured'] - 1))}\xa0%</b>" in part
    assert f"{total['predicted']:.0f}\xa0ms against {total['measured']:.0f}\xa0ms; mostly verify" in part
    assert part.count("predicted, not run") == 1  # L1 has no clock


def test_the_reading_of_predictions_gives_median_and_worst():
    values = {"a": (110, 100), "b": (98, 100), "c": (101, 100)}
    rows = [
        Row(row=row, metric="part_ms", value=value, kind=kind, settings={"part": "verify"})
        for row, pair in values.items()
        for kind, value in zip(("predicted", "measured"), pair, strict=True)
    ]
    said = predicted.reading(predicted.part_groups(rows)[0])
    assert "Over 3 rows" in said
    assert "2.0\xa0% in the median and by at most 10.0\xa0% (a, predicted too high)" in said


def test_a_part_of_another_name_is_drawn_too():
    rows = [
        Row(row="a", metric="part_ms", value=1.0, kind=kind, settings={"part": part})
        for kind in ("predicted", "measured")
        for part in ("verify", HOSTILE)
    ]
    (pair,) = predicted.pairs(predicted.part_groups(rows)[0])
    assert pair.totals == (2.0, 2.0)


def test_the_studys_own_model_stands_apart(html):
    apart = section(html, "predicted").partition("own model")[2]
    for row, value in made_up_study.ORIGINAL.items():
        assert f"{value:.2f}{TIMES}" in table_line(apart, row)[0]
    assert "Its baseline: the study's target." in apart
    assert "original study" not in section(html, "results")


def test_training_marks_the_chosen_epoch_and_names_who_was_chosen_past_the_lowest_loss(html):
    part = section(html, "training")
    assert re.findall(r"<h5>([^<]+)</h5>", part) == list(made_up_study.TRAINED)
    assert part.count('class="chosen"') == len(made_up_study.TRAINED) + 2  # two have a plot of tau too
    assert "A loss is not acceptance" in part
    assert re.search(r"than that of the lowest loss: B1 \(lowest at \d+, chosen 31\) and L5F \(lowest at \d+, ", part)


def test_training_chosen_at_the_lowest_loss_is_said_to():
    settings = {"series": training.VALIDATION, "epochs": [1, 2, 3], "values": [3.0, 1.0, 2.0], "chosen": 2}
    rows = [Row(row="L1", metric="training_curve", value=1.0, settings=settings)]
    said = training.reading(training.training_groups(rows)[0])
    assert "The one adapter was exported at the epoch of its lowest loss." in said


@pytest.mark.parametrize(
    ("metric", "settings"),
    [("S_k", {"how": curves.ROLLED}), ("S_k", {"how": curves.ROLLED, "shares": ["x"]}),
     ("S_k", {"how": curves.ROLLED, "shares": [0.5], "lows": [0.1, 0.2], "highs": [1.0, 1.0]}),
     ("training_curve", {"series": training.TRAIN, "epochs": [1], "values": [1.0, 2.0]}),
     ("speedup_by_gamma", {"gammas": [0, 1], "values": [1.0]})],
)  # fmt: skip
def test_a_row_without_its_list_is_an_error_that_names_it(tmp_path, metric, settings):
    row = Row(row="odd one", metric=metric, value=0.5, baseline="target", settings=settings)
    made_up.write_run(tmp_path, [row])
    with pytest.raises(ReportError, match=f"{metric} of 'odd one' needs"):
        run(ReportConfig(), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_lists_are_folded_on_the_page_and_whole_in_the_csv(html, run_dir):
    ground = section(html, "ground")
    assert "shares [5 numbers]" in ground
    assert "epochs [38 numbers]" in ground
    assert all(len(cell) < 400 for cell in re.findall(r"<td>([^<]*)</td>", ground))
    with (run_dir / "report.csv").open() as file:
        read = [json.loads(line["settings"]) for line in csv.DictReader(file) if line["metric"] == "S_k"]
    assert read == [dict(row.settings) for row in made_up_study.share_rows()]


def test_hostile_text_stays_text_in_every_section(tmp_path):
    rows = [
        Row(**{**vars(row), "row": HOSTILE, "settings": {**row.settings, "clips": HOSTILE}})
        for kind in (made_up_study.share_rows, made_up_study.offline_rows, made_up_study.gamma_rows)
        for row in kind()
        if row.row == "B1"
    ]
    rows += [Row(row=HOSTILE, metric="part_ms", value=1.0, settings={"part": HOSTILE, "clips": HOSTILE})]
    rows += [Row(row=HOSTILE, metric="speedup", value=1.0, kind="original", baseline=HOSTILE)]
    rows += [Row(**{**vars(row), "row": HOSTILE}) for row in made_up_study.training_rows() if row.row == "B1"]
    page = made(tmp_path, [*made_up_study.study_rows(), *rows])
    structure = Structure(page)
    assert "<script" not in page
    assert all("onerror" not in attributes for _, attributes in structure.tags)
    assert sum(tag == "img" for tag, _ in structure.tags) == 4
    assert structure.texts.count(HOSTILE) >= 6


def test_every_class_that_is_drawn_has_a_style(html):
    drawn = {
        a["class"] for tag, a in Structure(html).tags if tag in ("rect", "polyline", "polygon", "path") and "class" in a
    }
    kinds = {name.split()[1] for name in drawn if name.split()[0] in ("curve", "mark", "part") and "gain" not in name}
    assert all(re.search(rf"\.{kind}\b", style()) for kind in kinds)


def test_rows_of_one_drafter_share_a_line_and_a_claimed_cell_opens_another():
    rows = [Row(row="a", metric=m, value=1.0, settings={"gamma": g}) for m, g in (("x", 3), ("y", 3), ("x", 5))]
    (group,) = gathered(rows, lambda row: row.metric)
    assert [(list(line.cells), group.label(line)) for line in group.lines] == [
        (["x", "y"], "gamma 3"),
        (["x"], "gamma 5"),
    ]


def test_words_are_joined_and_signs_are_real():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdef"), most=4) == "a, b, c, d and 2 more"
    assert (signed(-1.25), signed(2.0), signed(-0.01)) == ("\N{MINUS SIGN}1.2", "+2.0", "0.0")


def test_the_split_is_a_heading(html):
    assert f"<h3>{SPLIT[0].upper()}{SPLIT[1:]}</h3>" in section(html, "offline")
