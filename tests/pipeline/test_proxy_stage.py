"""Stage `proxy`: the study's rows from its own constants, and ours from measured parts, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from tests.small_store import write_store
from xmsd_jax import cli
from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.text_anchors import FreePrefix
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.pipeline import proxy
from xmsd_jax.pipeline.judged import Judged, write_index, write_judged
from xmsd_jax.pipeline.predicted import write_costs
from xmsd_jax.pipeline.proxy import ProxyConfig
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.runs import read_results

ROW = DraftRow(drafter="n-gram", prefill_mode="wait", gamma=2)
PARTS = Parts(
    vision=0.001, prefill=0.002, decode_step=0.01, verify={2: 0.02, 3: 0.03, 4: 0.04}, draft={1: 0.001, 2: 0.002},
    host=0.0005, adapter=0.003,
)  # fmt: skip
# Answers of 7 and 8 tokens; phase 1 frees 0 and 3. Walks at gamma 2: anchors 0, 3 and 3, 5; at gamma 1: 0, 2, 3, 5 and
# 3, 5.
RIGHT = [[2, 0, 0, 2, 0, 0, -1, -1, -1, -1], [0, 0, 0, 1, 0, 2, 0, -1, -1, -1]]
FREE = [0, 3]


@pytest.fixture
def config(tmp_path) -> ProxyConfig:
    manifest = Store.open(write_store(tmp_path / "store" / "test", rows=2, prefix="test")).manifest
    anchors = Anchors(
        right=np.array(RIGHT, np.int32), gamma=2, target_len=np.array([7, 8], np.int32), free=np.zeros(2, np.int32)
    )
    prefix = FreePrefix(free=np.array(FREE, np.int32), drafted=3)
    evaluation = tmp_path / "evaluation"
    write_judged(evaluation, "test", {"n-gram": Judged(anchors=anchors, prefix=prefix)})
    write_index(evaluation, {"test": manifest}, ["n-gram"])
    write_costs(tmp_path / "costs.json", {"street": {ROW.name: PARTS, "B1": PARTS}}, {})
    return ProxyConfig(
        costs=tmp_path / "costs.json", clips="street", evaluation=evaluation, store=tmp_path / "store", rows=(ROW,)
    )


def run_cli(config: ProxyConfig, folder) -> int:
    (folder / "proxy.yaml").write_text(configs.to_yaml(config))
    return cli.main(["proxy", str(folder / "proxy.yaml"), "--run-dir", str(folder / "run")])


def test_the_study_s_rows_come_from_the_packaged_config(tmp_path, capsys):
    assert cli.main(["proxy", "original/two_phase.yaml", "--run-dir", str(tmp_path)]) == 0
    rows, _ = read_results(tmp_path)
    assert {r.row: round(r.value, 2) for r in rows} == {
        "L1+L5F": 1.54, "L2+L5F": 1.56, "L3+L5F": 1.56, "L4+L5F": 1.55, "L5F-only": 1.45, "B1-only": 1.31,
    }  # fmt: skip
    assert {(r.kind, r.metric, r.baseline) for r in rows} == {("original", "speedup", proxy.STUDY_BASELINE)}
    assert "1.54x (original study's own model" in capsys.readouterr().out


def test_predicted_milliseconds_are_those_worked_out_by_hand(config, tmp_path):
    assert run_cli(config, tmp_path) == 0
    rows, _ = read_results(tmp_path / "run")
    assert {r.kind for r in rows} == {"predicted"}
    assert {r.settings["part"]: r.value for r in rows if r.metric == "part_ms"} == pytest.approx(
        {"vision": 1, "prefill": 2, "lane": 3, "first": 15, "draft": 4, "verify": 60, "host": 1}
    )


def test_the_speed_up_over_gamma_is_that_of_the_walks_worked_out_by_hand(config, tmp_path):
    """Whole answers in ms. Plain: 63 + 73. Drafted: gamma 0: 66 + 76; gamma 1: 92 + 79; gamma 2: 71 + 101."""
    (row,) = [r for r in proxy.run(config, tmp_path / "run") if r.metric == "speedup_by_gamma"]
    assert row.settings["gammas"] == [0, 1, 2]
    assert row.settings["values"] == pytest.approx([136 / 142, 136 / 171, 136 / 172])
    assert (row.settings["best"], row.baseline, row.n) == (0, "target eager", 2)
    assert row.value == pytest.approx(136 / 142)


def test_a_row_that_chooses_its_lengths_is_predicted_by_the_walk_of_its_own_parts(config, tmp_path, capsys):
    """Phase 2 alone, free passes: it asks for 2 at anchors 0, 3 and 0..6 but 3, 5: 2 passes and 5, 10 ms each."""
    row = DraftRow(drafter="n-gram", gamma="auto")
    free = dataclasses.replace(PARTS, verify={2: 0.01, 3: 0.01}, draft={1: 0.0, 2: 0.0}, host=0.0)
    for parts, decode in ((free, 20 + 50), (PARTS, 60 + 70)):  # else every draft costs too much: 6 and 7 plain steps
        write_costs(config.costs, {"street": {row.name: parts}}, {})
        rows = proxy.run(dataclasses.replace(config, rows=(row,), gamma=2), tmp_path / "run")
        (up,) = [r for r in rows if r.metric == "speedup"]
        assert (up.row, up.kind, up.baseline, up.settings["gamma"]) == (
            "n-gram (auto)", "predicted", "target eager", "auto",
        )  # fmt: skip
        assert up.value == pytest.approx((63 + 73) / (6 + decode))
        assert f"n-gram (auto)                gamma chosen: {up.value:.2f}x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": (DraftRow(drafter="template"),)}, "template was not measured; run the benchmark with that row"),
        ({"rows": (DraftRow(drafter="B1"),)}, "B1 was not judged; evaluate it, or leave B1 out"),
        ({"clips": "moon"}, "has no clip set 'moon'; it has street: set clips"),
        ({"split": "validation"}, "not a store"),
    ],
)
def test_what_was_not_measured_or_judged_is_told_in_one_line(config, tmp_path, capsys, changes, told):
    assert run_cli(dataclasses.replace(config, **changes), tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("xmsd: error: ")
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "told"), [("costs.json", "is not a file of measured costs"), ("evaluation/judged.json", "cannot be read")]
)
@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_missing_or_damaged_file_is_told_in_one_line(config, tmp_path, capsys, name, told, content):
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    assert run_cli(config, tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / name}: {told}" in error
    assert error.count("\n") == 1


def test_a_pass_that_was_not_measured_is_not_guessed(config, tmp_path, capsys):
    write_costs(config.costs, {"street": {ROW.name: dataclasses.replace(PARTS, verify={2: 0.02})}}, {})
    assert run_cli(config, tmp_path) == 2
    assert "verify of length 3 was not measured" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"costs": None}, {"evaluation": None}, {"store": None}, {"rows": ()}])
def test_half_of_what_is_needed_is_refused(config, changes):
    with pytest.raises(ConfigError, match="either original, or all of costs"):
        dataclasses.replace(config, **changes)
