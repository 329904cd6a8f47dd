"""Stage `sweep`: the grid, its programs, the ranking, and the best adapter."""

import dataclasses
import json

import pytest

from tests.small_store import write_store
from xmsd_jax.adapters.files import load_adapter
from xmsd_jax.config import ConfigError, UserError, load, packaged_configs
from xmsd_jax.pipeline import sweep
from xmsd_jax.pipeline.sweep import SweepConfig, grouped, told
from xmsd_jax.pipeline.train import TrainConfig
from xmsd_jax.runs import read_results
from xmsd_jax.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch=8, gamma=2, prefill_draft_len=4, select="loss")


@pytest.fixture
def base(tmp_path):
    return TrainConfig(store=write_store(tmp_path / "store" / "train"), kind="L1", validation_share=0.6, recipe=RECIPE)


def test_a_grid_is_ranked_with_intervals_and_the_best_is_exported(base, tmp_path, capsys):
    config = SweepConfig(base=base, grid={"recipe.learning_rate": (1e-4, 1e-2, 1e30), "recipe.seed": (0, 1)})
    best = sweep.run(config, tmp_path / "run")
    rows, provenance = read_results(tmp_path / "run")
    assert [row.settings["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.settings["recipe.learning_rate"] for row in rows] == [1e-2, 1e-2, 1e-4, 1e-4, 1e30, 1e30]
    alive = rows[:4]
    assert [row.value for row in alive] == sorted(row.value for row in alive)
    assert all(row.low <= row.value <= row.high for row in alive)
    assert all(row.value == pytest.approx(row.settings["validation_loss"], rel=1e-5) for row in alive)
    assert all(row.value is None and "epoch 1" in row.settings["died"] for row in rows[4:])
    assert provenance["config"]["grid"]["recipe.seed"] == [0, 1]
    passport = load_adapter(best / "adapter").passport
    assert passport.training["recipe"]["learning_rate"] == 1e-2
    assert passport.training["value"] == pytest.approx(rows[0].value, rel=1e-5)
    printed = capsys.readouterr().out
    assert "dead: loss not finite" in printed
    assert f"best: {rows[0].row}" in printed

    sweep.run(config, tmp_path / "run")
    assert "group_1_of_1: reused" in capsys.readouterr().out


def test_members_of_unequal_shape_are_trained_one_program_after_the_other(base, tmp_path):
    config = SweepConfig(base=base, grid={"blocks": (1, 2), "recipe.batch": (4, 8), "recipe.dropout": (0.0, 0.1)})
    assert [len(group) for group in grouped(config)] == [2, 2, 2, 2]
    best = sweep.run(dataclasses.replace(config, grid={"blocks": (1, 2)}), tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["sweep"] for line in logged if "sweep" in line} == {"blocks 1", "blocks 2"}
    assert load_adapter(best / "adapter").passport.blocks in (1, 2)


def test_a_sweep_by_accepted_tokens_ranks_the_most_first(base, tmp_path):
    recipe = dataclasses.replace(RECIPE, select="accepted", loss="next")
    config = SweepConfig(
        base=dataclasses.replace(base, kind="B1", pairing=None, recipe=recipe),
        grid={"recipe.token_weight": (0.1, 1.0), "recipe.learning_rate": (1e-4, 3e-3)},
    )
    sweep.run(config, tmp_path / "run")
    rows = read_results(tmp_path / "run")[0]
    assert {row.metric for row in rows} == {"tau"}
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True)
    assert all(row.low <= row.value <= row.high for row in rows)


def test_a_grid_of_dead_members_is_one_error(base, tmp_path):
    with pytest.raises(UserError, match="smaller learning rates"):
        sweep.run(SweepConfig(base=base, grid={"recipe.learning_rate": (1e30,)}), tmp_path / "run")


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ({}, "at least one field"),
        ({"recipe.seed": ()}, "at least one field"),
        ({"recipe.learning_rat": (1.0,)}, "no such field; known: .*learning_rate"),
        ({"kind": (1.0,)}, "is not a number"),
        ({"kind.deep": (1.0,)}, "has no fields"),
        ({"recipe.batch": (1.5,)}, "whole numbers"),
        ({"recipe.dropout": (1.0,)}, "less than 1"),
        ({"recipe.token_weight": (0.1,)}, "do not compare"),
    ],
)
def test_an_impossible_grid_is_refused_before_anything_runs(base, grid, problem):
    with pytest.raises(ConfigError, match=problem):
        SweepConfig(base=base, grid=grid)


def test_a_member_is_named_by_what_it_sets():
    assert told({"recipe.learning_rate": 1e-3, "blocks": 2}) == "learning_rate 0.001, blocks 2"


def test_packaged_sweeps_load():
    found = sorted((packaged_configs() / "sweep").glob("*.yaml"))
    assert found
    for path in found:
        assert load(SweepConfig, path).members()
