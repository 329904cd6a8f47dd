"""The study: each adapter is trained once and named as rows name it; training curves become rows."""

import dataclasses
import json

import pytest

from xmsd_jax.config import ConfigError, load
from xmsd_jax.pipeline.benchmark import ClipSet, LiveSettings
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.pipeline.study import Plan, StudyConfig, check_plans, stage_markers, stage_rows, stages, training_rows
from xmsd_jax.runs import Run

B1_AND_L1 = LiveSettings(
    clips=(ClipSet(name="c", split="test"),),
    rows=(
        DraftRow(drafter="n-gram"),
        DraftRow(drafter="identity(target, 1)"),
        DraftRow(prefill="L1", drafter="B1", prefill_mode="ride"),
    ),
)


@pytest.mark.parametrize(
    ("given", "name", "stage"),
    [
        ({"kind": "L1"}, "L1", "adapters/L1"),
        ({"kind": "B1"}, "B1", "adapters/B1"),
        ({"kind": "L5"}, "L5 (own)", "adapters/L5_own"),
        ({"kind": "L5", "pairing": "synced"}, "L5 (synced)", "adapters/L5_synced"),
        ({"kind": "L5F", "pairing": "index"}, "L5F (own)", "adapters/L5F_own"),
    ],
)
def test_a_plan_is_named_as_its_row_and_has_its_own_folder(given, name, stage):
    plan = load(Plan, given)
    assert (plan.name, plan.stage) == (name, stage)


def test_rows_need_their_adapters_but_controls_are_never_trained():
    check_plans((Plan(kind="B1"), Plan(kind="L1"), Plan(kind="L4")), B1_AND_L1)
    with pytest.raises(ConfigError, match=r"missing \['L1'\]"):
        check_plans((Plan(kind="B1"),), B1_AND_L1)


def test_no_adapter_is_trained_twice():
    with pytest.raises(ConfigError, match="each is trained once"):
        check_plans((Plan(kind="B1"), Plan(kind="L1"), Plan(kind="L1")), B1_AND_L1)
    own, synced = Plan(kind="L5"), Plan(kind="L5", pairing="synced")
    check_plans((own, synced), dataclasses.replace(B1_AND_L1, rows=B1_AND_L1.rows[:1]))


def test_a_study_checks_its_plans_and_names_its_stages(tmp_path):
    config = StudyConfig(clips=tmp_path, store=tmp_path, adapters=(Plan(kind="B1"), Plan(kind="L1")), live=B1_AND_L1)
    assert stages(config) == ("adapters/B1", "adapters/L1", "evaluation", "live")
    with pytest.raises(ConfigError, match="missing"):
        dataclasses.replace(config, adapters=())


def test_a_training_gives_one_curve_a_series_with_the_value_of_the_chosen_epoch(tmp_path):
    plan = Plan(kind="L1")
    history = {
        "accepted": "n_free", "chosen": {"epoch": 2}, "epochs": [1, 2, 3],
        "training_loss": [3.0, 2.0, 1.0], "validation_loss": [3.5, 2.5, 2.6], "validation_n_free": [0.0, 1.5, 1.0],
    }  # fmt: skip
    folder = tmp_path / plan.stage
    folder.mkdir(parents=True)
    (folder / "history.json").write_text(json.dumps(history))
    rows = training_rows(Run(path=tmp_path), (plan,))
    assert {(r.row, r.metric, r.n) for r in rows} == {("L1", "training_curve", 3)}
    assert {r.settings["series"]: r.value for r in rows} == {
        "training loss": 2.0, "validation loss": 2.5, "validation n_free": 1.5,
    }  # fmt: skip
    assert all((r.settings["epochs"], r.settings["chosen"]) == ([1, 2, 3], 2) for r in rows)
    assert [r.settings["values"] for r in rows] == [history[k] for k in list(history)[3:]]


def test_a_stage_whose_marker_did_not_change_was_reused(tmp_path):
    run = Run(path=tmp_path)
    with run.stage("clips", "key"):
        pass
    before = stage_markers(run, ("clips", "live"))
    assert before["live"] == {}
    with run.stage("live", "key"):
        pass
    rows = stage_rows(run, before)
    assert {r.row: r.settings["reused"] for r in rows} == {"clips": True, "live": False}
