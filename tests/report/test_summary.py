"""What is said follows from the rows: no speed-up without its baseline, no result stronger than its interval."""

import pytest

from tests.report import made_up
from xmsd_jax.metrics.counted import Estimate
from xmsd_jax.report.gallery import ReportError
from xmsd_jax.report.rows import certificate_rows, live_rows, stage_row
from xmsd_jax.report.summary import best, certificate_sentence, findings, summarise, verdict
from xmsd_jax.runs import Row


def speed(row="n-gram", value=1.5, low=1.4, high=1.6, **more):
    return Row(
        **{"row": row, "metric": "speedup", "value": value, "low": low, "high": high, "baseline": "target", **more}
    )


BASE = speed("target", 1.0, 1.0, 1.0)


def test_a_speed_up_without_a_baseline_is_an_error_not_a_number():
    for metric in ("speedup", "decode_speedup", "speed-up of prefill"):
        with pytest.raises(ReportError, match="names no baseline"):
            summarise([BASE, speed(metric=metric, baseline=None)])


def test_a_baseline_must_have_been_measured_on_the_same_clips():
    with pytest.raises(ReportError, match="not measured there; measured: n-gram"):
        summarise([speed()])
    elsewhere = speed(settings={"clips": "other"})
    with pytest.raises(ReportError, match="on 'other'"):
        summarise([BASE, elsewhere])


def test_a_number_of_the_original_study_refers_to_a_baseline_of_its_own_and_stands_apart_from_ours():
    summary = summarise([BASE, speed(kind="original", baseline="the study's target")])
    assert [line.kind for group in summary.groups for line in group.lines] == ["measured"]
    assert [group.baselines for group in summary.originals] == [("the study's target",)]
    with pytest.raises(ReportError, match="names no baseline"):
        summarise([speed(kind="original", baseline=None)])


def test_a_speed_up_over_draft_lengths_names_its_baseline_and_is_no_line_of_the_main_table():
    over = speed(metric="speedup_by_gamma", kind="predicted", settings={"gammas": [0, 1], "values": [1.0, 1.5]})
    (group,) = summarise([BASE, over]).groups
    assert [line.row for line in group.lines] == ["target"]
    with pytest.raises(ReportError, match="names no baseline"):
        summarise([BASE, speed(metric="speedup_by_gamma", baseline=None)])


def test_two_values_for_one_number_are_an_error():
    with pytest.raises(ReportError, match="twice"):
        summarise([BASE, speed(), speed(value=1.6)])


def test_settings_and_kinds_keep_lines_apart_and_label_them():
    rows = [BASE, *(speed(settings={"gamma": g, "dtype": "float32"}) for g in (5, 8)), speed(kind="predicted")]
    (group,) = summarise(rows).groups
    assert [(line.row, line.kind, group.label(line)) for line in group.lines] == [
        ("target", "measured", ""),
        ("n-gram", "measured", "gamma 5"),
        ("n-gram", "measured", "gamma 8"),
        ("n-gram", "predicted", ""),
    ]
    assert group.shared == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (speed(), "faster"),
        (speed(low=0.99), "no difference shown"),
        (speed(value=0.9, low=0.8, high=0.99), "slower than the baseline"),
        (speed(low=None, high=None), "faster here, no interval"),
        (speed(value=0.9, low=None, high=None), "slower here, no interval"),
        (speed(kind="predicted"), ""),
        (speed(value=None), ""),
        (BASE, "baseline"),
    ],
)
def test_the_interval_decides_what_a_speed_up_says(row, words):
    assert verdict(row) == words


def test_the_best_row_is_a_measured_one_and_never_the_baseline():
    rows = [BASE, speed(value=1.2), speed("imposed", 9.0, kind="imposed"), speed("slow", 0.5, 0.4, 0.6)]
    (group,) = summarise(rows).groups
    assert best(group).row == "n-gram"
    (alone,) = summarise([BASE]).groups
    assert best(alone) is None


def test_the_finding_names_row_baseline_interval_and_the_rows_that_lose():
    said = " ".join(findings(summarise(made_up.rows())))
    for words in ("n-gram + ride answers 1.72 times", "target eager", "1.60 to 1.84", "64 answers", "2.64 times"):
        assert words in said
    assert f"Slower than the baseline on {made_up.STREET}: prompt-lookup (0.93 times)." in said


def test_a_run_in_which_nothing_is_faster_says_so():
    said = findings(summarise([BASE, speed(value=1.01, low=0.97), speed("b", 0.8, 0.7, 0.9)]))
    assert said[0].startswith("no drafter is shown to be faster: the best, n-gram")
    assert said[1] == "Slower than the baseline: b (0.80 times)."


def certificate(*, answers=8, ties=(), divergences=(), reason="", row="n-gram", kind="measured"):
    made = {"answers": answers, "tie_count": len(ties), "divergence_count": len(divergences)}
    made |= {"ties": list(ties), "divergences": list(divergences), "reason": reason}
    return certificate_rows(row, made, clips="clips", kind=kind)


def test_the_certificate_adds_up_and_lists_every_difference():
    rows = [*certificate(), *certificate(row="b", ties=[{"position": 3, "margin": 1e-5}])]
    first, second = summarise(rows).certificates
    assert (first.compared, first.divergences, first.ties, first.listed) == (8, 0, 0, ())
    assert (second.compared, second.ties) == (8, 1)
    assert second.listed == ({"verdict": "tie", "position": 3, "margin": 1e-5},)
    assert "16 answers compared, 15 equal" in certificate_sentence([first, second])


def test_a_divergence_fails_in_capitals_and_a_tie_does_not():
    assert "FAILS: 1 of 8 answers" in certificate_sentence(summarise(certificate(divergences=[{}])).certificates)
    assert "all 8 answers" in certificate_sentence(summarise(certificate()).certificates)


def test_what_was_not_compared_is_not_claimed():
    imposed, sampled = certificate(kind="imposed"), certificate(row="b", answers=0, reason="temperature 0.7")
    found = summarise([*imposed, *sampled]).certificates
    assert [c.reason for c in found] == ["imposed", "temperature 0.7"]
    assert "nothing about losslessness" in certificate_sentence(found)
    assert "nothing about losslessness" in certificate_sentence([])


def test_live_rows_name_the_baseline_beside_speed_ups_only():
    figures = {name: Estimate(value=2.0, low=1.5, high=2.5, n=7, clusters=3) for name in ("tau", "speedup")}
    tau, speedup = live_rows("n-gram", figures, clips="c", baseline="target", settings={"gamma": 8})
    assert (tau.baseline, speedup.baseline) == (None, "target")
    assert (speedup.value, speedup.low, speedup.high, speedup.n, speedup.unit) == (2.0, 1.5, 2.5, 7, "x")
    assert tau.settings == {"gamma": 8, "clips": "c"}
    with pytest.raises(ReportError, match="no baseline is named"):
        live_rows("n-gram", figures, clips="c", baseline=None, settings={})


def test_stages_keep_their_order_and_say_what_was_reused():
    stages = summarise([stage_row("clips", 2.5, reused=True), stage_row("extract", 9.0)]).stages
    assert [(s.name, s.seconds, s.reused) for s in stages] == [("clips", 2.5, True), ("extract", 9.0, False)]
