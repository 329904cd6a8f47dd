"""Tables as text: every number and every word that must stand beside it."""

import csv
import io
import json

from tests.report import made_up, made_up_study
from xmsd_jax.report.columns import COLUMNS, DASH, TIMES, number
from xmsd_jax.report.summary import summarise
from xmsd_jax.report.tables import csv_text, markdown
from xmsd_jax.runs import Row


def lines_of(rows, start):
    return [
        line
        for line in markdown(summarise(rows)).splitlines()
        if line.startswith("|") and line.split(" | ")[0].strip("| ") == start
    ]


def test_every_row_of_results_is_in_the_csv_and_reads_back():
    rows = made_up.rows()
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(read) == len(rows)
    for line, row in zip(read, rows, strict=True):
        assert (line["row"], line["metric"], line["kind"]) == (row.row, row.metric, row.kind)
        assert line["value"] == ("" if row.value is None else repr(row.value))
        assert json.loads(line["settings"]) == row.settings


def test_every_line_of_every_clip_set_is_in_the_markdown():
    for name in ("target eager", "prompt-lookup", "template", "n-gram + ride", "n-gram + wait"):
        assert len(lines_of(made_up.rows(), name)) == 2
    assert len(lines_of(made_up.rows(), "n-gram")) == 3  # measured twice, predicted once


def test_the_markdown_is_a_table_in_which_all_lines_have_all_columns():
    table = [line for line in markdown(summarise(made_up.rows())).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {len(COLUMNS) + 2}


def test_a_speed_up_stands_beside_its_interval_and_verdict():
    assert f"0.93{TIMES} (0.90 to 0.96{TIMES}) slower than the baseline" in lines_of(made_up.rows(), "prompt-lookup")[0]
    assert "no difference shown" in lines_of(made_up.rows(), "template")[0]
    assert "faster here, no interval" in lines_of(made_up.rows(), "n-gram")[-1]


def test_a_number_that_was_not_measured_says_so_beside_itself():
    words = {"predicted": "predicted, not run", "imposed": "acceptance imposed", "extrapolated": "extrapolated"}
    words["replayed"] = "replayed from stored answers"
    for kind, said in words.items():
        (line,) = lines_of([Row(row="a", metric="tau", value=3.0, kind=kind)], "a")
        assert f"3.00 {said}" in line


def test_what_does_not_apply_is_a_dash_and_never_a_zero():
    (line,) = lines_of([Row(row="a", metric="n_free", value=None), Row(row="a", metric="tau", value=2.0)], "a")
    assert DASH in line
    assert "0.0" not in line


def test_names_cannot_break_the_table_or_become_html():
    text = markdown(summarise([Row(row="a|<img src=x>", metric="tau", value=2.0)]))
    assert "a\\|&lt;img src=x>" in text


def test_the_studys_own_model_is_a_table_of_its_own_that_names_its_baseline():
    text = markdown(summarise([*made_up.rows(), *made_up_study.original_rows()]))
    ours, _, study = text.partition("**The study's own model")
    assert "original study" not in ours
    assert "Its baseline: the study's target." in study
    assert f"1.56{TIMES} original study" in study


def test_milliseconds_keep_three_figures():
    column = next(c for c in COLUMNS if c.metric == "decode_ms")
    assert [number(v, column) for v in (182.4, 18.24, 1.824, 0.0182, None)] == ["182", "18.2", "1.82", "0.02", DASH]
