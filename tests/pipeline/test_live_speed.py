"""Stage `benchmark` of the live engine, whole, on a CPU: decisions are the record's, ratios are of one run."""

import json
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch

from torch_bridge.made_pair import made_target
from xmsd_jax import config as configs
from xmsd_jax.cli import STAGES, stage_module
from xmsd_jax.config import ConfigError
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.pipeline import live_speed
from xmsd_jax.pipeline.engine import EngineConfig
from xmsd_jax.pipeline.live_speed import Imposed, LiveSpeedConfig
from xmsd_jax.pipeline.live_speed_parts import Bench
from xmsd_jax.pipeline.live_speed_rows import ASKED, result_rows, table
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.runs import read_results

TOKENS = 16


def packaged(name: str) -> LiveSpeedConfig:
    return configs.load(LiveSpeedConfig, configs.find(f"benchmark/{name}.yaml"))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Answers that resemble each other: three texts, each with one word changed."""
    draws = np.random.default_rng(0)
    texts = draws.integers(3, 256, (3, TOKENS))
    answers = []
    for number in range(16):
        answer = texts[number % 3].copy()
        answer[draws.integers(TOKENS)] = draws.integers(3, 256)
        answers.append(answer.tolist())
    path = tmp_path_factory.mktemp("record") / "answers.json"
    path.write_text(json.dumps({"question": "What are the key elements in this scene?", "video_llava_ids": answers}))
    return path


@pytest.fixture(scope="module")
def measured(record, tmp_path_factory):
    small, path = packaged("live_small"), tmp_path_factory.mktemp("live")
    config = replace(
        small,
        recorded=replace(small.recorded, fit=record, test=record),
        imposed=replace(small.imposed, acceptances=(0.5, 1.0), rows=small.imposed.rows[1:]),
        rows=small.rows[2:],
        engine=EngineConfig(lanes="parallel"),
        replayed_answers=3,
    )
    return config, path, live_speed.run(config, path)


def of(rows, metric, **wanted):
    return [r for r in rows if r.metric == metric and all(r.settings.get(k) == v for k, v in wanted.items())]


def test_each_part_gives_its_figures(measured):
    config, path, rows = measured
    made = {row.metric for row in rows}
    assert {figure.split()[0] for format, figure in ASKED if format == "none"} <= made
    assert {"pass_ms", "products_ms", "beside_kappa", "exact_cost", "exact_divergences", "part_ms"} <= made
    assert {row.settings["M"] for row in of(rows, "pass_ms") if row.row == "target static"} == set(config.passes)
    assert all(row.settings["weights"] == "random" for row in rows)
    stored, about = read_results(path)
    assert stored == rows
    assert about["weights"] == "random"
    assert configs.dump(config) == about["config"]
    assert "asked: at most 5, at full size" in table(rows), "no verdict on a small pair"


def test_replayed_rows_are_told_apart_and_carry_no_certificate(measured):
    _, _, rows = measured
    ladder = [row for row in rows if row.settings.get("clips") == "recorded answers" and row.metric == "speedup"]
    assert {row.kind for row in ladder} == {"replayed"}
    assert {row.row for row in ladder} >= {"target eager", "target static", "n-gram", "n-gram (ride, auto)"}
    assert not of(rows, "divergences")
    assert not of(rows, "answers_compared")
    assert not [row for row in of(rows, "walk_differs") if row.value]


def test_an_imposed_acceptance_is_what_the_walk_counts(measured):
    """All drafts right: an answer takes as many passes as drafts fit into it, whoever pays."""
    config, _, rows = measured
    found = of(rows, "iterations", acceptance=1.0, max_new_tokens=TOKENS)
    assert {row.row: row.value for row in found} == {"B1": 3.0, "L5F (synced)": 3.0}
    some = of(rows, "tau", acceptance=0.5)
    assert len(some) == 3, "two rows, and one of them on long answers too"
    assert all(1.0 < row.value < 3.5 for row in some)
    assert {row.kind for row in some} == {"imposed"}
    assert {row.value for row in of(rows, "n_free", acceptance=1.0, compute="L4")} == {config.prefill_draft_len}


def test_what_is_predicted_is_on_disk_before_anything_is_decoded(measured, monkeypatch):
    config, path, _ = measured
    costs = json.loads((path / "replayed_none" / "costs.json").read_text())
    assert costs["baseline"] == "target static"
    assert set(costs["sets"]["recorded answers"]) == {row.name for row in config.rows}
    predicted, _ = read_results(path / "replayed_none" / "predicted")
    assert {row.kind for row in of(predicted, "part_ms")} == {"predicted"}
    assert (path / "replayed_none" / "predicted" / "results.json").stat().st_mtime_ns < (
        path / "replayed_none" / "numbers.json"
    ).stat().st_mtime_ns


def test_4_bit_rows_stand_beside_the_librarys_own_products(record, tmp_path, monkeypatch):
    """On a GPU a second target multiplies as the library does; here it is made to be there."""
    small = packaged("live_small")
    config = replace(
        small,
        recorded=replace(small.recorded, fit=record, test=record),
        formats=("nf4",),
        dtype="bfloat16",
        parts=("passes", "replayed", "exact"),
        quantised_rows=(DraftRow(drafter="n-gram", prefill_mode="ride"),),
        replayed_answers=3,
        quantised_exact_answers=3,
    )
    how = {"device": "cpu", "dtype": torch.bfloat16}
    monkeypatch.setattr(
        Bench, "library_target", cached_property(lambda b: made_target(config.shape, b.quantisation, **how))
    )
    Bench.library_target.__set_name__(Bench, "library_target")
    rows = live_speed.run(config, tmp_path)
    library = "target static, library products"
    assert {figure.split()[0] for format, figure in ASKED if format == "nf4"} <= {row.metric for row in rows}
    assert {row.row for row in of(rows, "products_ms")} == {"linear layers", "linear layers, library products"}
    over = {row.row: row for row in of(rows, "speedup_over_library") if row.kind == "replayed"}
    assert set(over) == {"target eager", "target static", library, "n-gram (ride)"}
    assert {row.baseline for row in over.values()} == {library}
    assert over[library].value == 1
    assert {row.row for row in of(rows, "token_ms")} == {"target static", library}
    eager = [row for row in rows if row.row == "target eager" and row.kind == "replayed"]
    assert {row.settings["repeats"] for row in eager} == {1}
    assert {"speedup", "speedup_over_library"} <= {row.metric for row in eager}
    assert {row.settings["repeats"] for row in over.values()} == {1, 3}
    assert [row.settings["answers"] for row in of(rows, "exact_divergences")] == [3]


def test_a_baseline_is_repeated_as_often_as_what_is_measured_against_it(record, tmp_path):
    """Over a growing cache the eager row is the baseline, not just a slow row beside it."""
    small = packaged("live_small")
    config = replace(
        small,
        recorded=replace(small.recorded, fit=record, test=record),
        engine=EngineConfig(cache="growing"),
        parts=("replayed",),
        rows=small.rows[2:3],
        replayed_answers=3,
    )
    ladder = [row for row in of(live_speed.run(config, tmp_path), "speedup") if row.kind == "replayed"]
    assert {(row.row, row.baseline, row.settings["repeats"]) for row in ladder} == {
        ("target eager", "target eager", 3), ("n-gram", "target eager", 3),
    }  # fmt: skip


def test_finished_parts_are_read_again(measured, monkeypatch):
    config, path, rows = measured
    monkeypatch.setattr("torch_bridge.made_pair.made_pair", lambda *_, **__: pytest.fail("a pair was made"))
    assert live_speed.run(config, path) == rows


def test_without_a_record_the_replay_is_left_out_and_said(tmp_path, capsys, measured):
    config = replace(packaged("live_small"), parts=("replayed", "beside"))
    rows = live_speed.run(config, tmp_path)
    assert "no recorded answers; give --recorded.fit FILE" in capsys.readouterr().out
    assert {row.row for row in rows} == {"both lanes"}


def test_the_full_config_is_of_true_shapes_and_gets_verdicts(measured):
    full, small = packaged("live"), measured[0]
    assert full.shape == MadeShape()
    assert full.formats == ("none", "nf4")
    found = {"none": {"passes": json.loads((measured[1] / "passes_none" / "numbers.json").read_text())}}
    assert any(row.settings.get("reached") is not None for row in result_rows(found, full))
    assert not any("reached" in row.settings for row in result_rows(found, small))
    assert set(full.quantised_rows) <= set(full.rows)
    assert full.measured("nf4")[-2:] == ["imposed50", "exact"]


def test_the_command_line_finds_the_stage_by_its_field():
    entry = STAGES["benchmark"]
    assert stage_module(entry, {"imposed"}) == (live_speed, LiveSpeedConfig)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"repeats": 2}, "at least 3"),
        ({"rows": (DraftRow(drafter="n-gram"), DraftRow(drafter="n-gram"))}, "each row once"),
        ({"formats": ()}, "at least one"),
        ({"gamma": 0}, "gamma: must be at least 1"),
    ],
)
def test_what_cannot_be_timed_is_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        replace(packaged("live_small"), **change)


@pytest.mark.parametrize("wrong", [{"acceptances": (1.5,)}, {"acceptances": ()}, {"lengths": (1,)}, {"answers": 0}])
def test_what_cannot_be_imposed_is_refused(wrong):
    with pytest.raises(ConfigError, match="got"):
        Imposed(**wrong)


def test_dense_rows_stand_beside_the_librarys_products_of_the_same_target(record, tmp_path, monkeypatch):
    """On a GPU dense layers are multiplied in two ways over the same weights; here as if."""
    small = packaged("live_small")
    config = replace(
        small,
        recorded=replace(small.recorded, fit=record, test=record),
        parts=("passes", "replayed"),
        rows=(DraftRow(drafter="n-gram", prefill_mode="ride"),),
        replayed_answers=3,
    )
    monkeypatch.setattr(EngineConfig, "fuses", lambda self, _: self.products == "fused")
    rows = live_speed.run(config, tmp_path)
    library = "target static, library products"
    assert {row.row for row in of(rows, "products_ms")} == {"linear layers", "linear layers, library products"}
    assert {row.row for row in of(rows, "token_ms")} == {"target static", library}
    assert {row.settings["M"] for row in of(rows, "pass_ms") if row.row == library} == set(config.passes)
    for metric in ("speedup", "decode_speedup"):
        plain = [row for row in of(rows, metric) if row.row == library and row.kind == "replayed"]
        quickest = {row.baseline for row in plain}
        assert quickest <= {"target eager", "target static", library}, "a row that does not draft; here they are alike"
        assert plain
    over = {row.row: row.baseline for row in of(rows, "speedup_over_library") if row.kind == "replayed"}
    assert over["n-gram (ride)"] == library
