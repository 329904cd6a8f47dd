"""Stage `simulate`: from a store and a cost file to table, results and page, and what is lacking told by name."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.pipeline.test_evaluate import save
from tests.report.test_page import Structure
from tests.small_store import write_store
from xmsd_jax import cli
from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline import report, simulate
from xmsd_jax.pipeline.cost_file import CostFile, LaneCosts
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.pipeline.simulate import SimulateConfig
from xmsd_jax.report.columns import DASH, TIMES
from xmsd_jax.report.curves import gamma_groups
from xmsd_jax.runs import read_results, stage_key

COSTS = CostFile(
    machine="a machine", baseline="target eager", vision=1.0, prefill=2.0, decode=10.0,
    verify={2: 20.0, 3: 30.0, 4: 40.0}, draft={"text": {1: 1.0, 2: 2.0}}, early={"text": 3.0}, host=0.5,
)  # fmt: skip
EVERY = dataclasses.replace(
    COSTS,
    draft={"text": {1: 1.0, 3: 2.0}, "control": {1: 1.0, 3: 1.0}, "adapter": {1: 1.0, 2: 2.0}},
    sync={"adapter": 1.0},
    prefill_per_extra=0.5,
    drafter=LaneCosts(vision=1.0, prefill=1.0, step=1.0),
)
DRAFTERS = ("template", "n-gram", "template (ride)", "n-gram (ride)", "identity(target, 1)", "B1", "L5 (synced)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores of two splits, adapters, and a cost file with every part."""
    root = tmp_path_factory.mktemp("simulate")
    write_store(root / "store" / "train")
    write_store(root / "store" / "test", rows=8, seed=1, prefix="test")
    manifest = Store.open(root / "store" / "train").manifest
    save(root / "adapters" / "B1", "B1", manifest)
    save(root / "adapters" / "L1", "L1", manifest)
    save(root / "adapters" / "L5", "L5", manifest, pairing="synced")
    (root / "costs.yaml").write_text(configs.to_yaml(EVERY))
    return root


def config_of(folder, **changes) -> SimulateConfig:
    values = {"store": folder / "store", "costs": folder / "costs.yaml", "adapters": folder / "adapters"}
    return SimulateConfig(**{**values, "gamma": 3, "prefill_draft_len": 4, "order": 3, **changes})


def run_cli(config: SimulateConfig, run_dir: Path) -> int:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "simulate.yaml").write_text(configs.to_yaml(config))
    return cli.main(["simulate", str(run_dir / "simulate.yaml"), "--run-dir", str(run_dir)])


@pytest.fixture(scope="module")
def done(folder):
    """Rows and run folder of a whole run."""
    return simulate.run(config_of(folder, imposed=(0.5, 0.9)), folder / "run"), folder / "run"


@pytest.fixture
def again(done, tmp_path) -> Path:
    """A run folder in which all is judged already."""
    shutil.copytree(done[1] / "evaluation", tmp_path / "again" / "evaluation")
    return tmp_path / "again"


def test_every_drafter_with_a_phase_2_has_a_curve_with_an_interval(done):
    rows, run_dir = done
    assert read_results(run_dir)[0] == rows
    predicted = {row.row: row for row in rows if row.kind == "predicted"}
    assert set(predicted) == set(DRAFTERS)
    for name, row in predicted.items():
        assert row.settings["gammas"] == ([0, 1, 2] if name in ("B1", "L5 (synced)") else [0, 1, 2, 3])
        assert row.low <= row.value <= row.high
        assert len(row.settings["lows"]) == len(row.settings["taus"]) == len(row.settings["values"])
        assert row.settings.get("prefill_draft_len") == (4 if "ride" in name else None)
        assert "ride" in name or row.settings["values"][0] == 1.0
    assert [row.row for row in rows if row.kind == "imposed"] == ["imposed 0.5", "imposed 0.9"]


def test_each_number_says_which_costs_it_is_from(done, folder):
    for row in done[0]:
        assert row.settings["costs"] == "costs.yaml"
        assert row.settings["costs_fingerprint"] == stage_key(EVERY)[:16]
        assert row.settings["machine"] == "a machine"
    assert read_results(done[1])[1]["costs"] == json.loads(json.dumps(configs.dump(EVERY)))


def test_other_costs_are_predicted_from_the_anchors_that_are_there(done, folder, again, capsys):
    """In ride, each draft token makes the prompt longer; nothing is judged again."""
    dearer = folder / "dearer.yaml"
    dearer.write_text(configs.to_yaml(dataclasses.replace(EVERY, prefill_per_extra=50.0)))
    config = config_of(folder, costs=dearer, rows=(DraftRow(drafter="n-gram", prefill_mode="ride"),))
    (row,) = simulate.run(config, again)
    (before,) = [r for r in done[0] if r.row == row.row]
    assert row.value < before.value
    assert "evaluation: reused" in capsys.readouterr().out


def test_the_table_and_the_notices_are_printed(folder, again, capsys):
    assert run_cli(config_of(folder, imposed=(0.5,)), again) == 0
    printed = capsys.readouterr().out
    (line,) = re.findall(r"^B1 .*", printed, re.M)
    spread = rf"\d\.\d\d{TIMES} \(\d\.\d\d to \d\.\d\d\)"
    assert re.fullmatch(rf"B1 +\d\.\d\d +\d +{spread} +1\.00( +\d\.\d\d){{2}} +{DASH}", line)
    assert "predicted from 8 stored answers and costs.yaml (a machine), whole answers against target eager" in printed
    assert "notice: B1, L5 (synced): not predicted at gamma 3, since the draft was measured at gamma 1 to 2" in printed
    assert "notice: identity(drafter, 0), L1: phase 1 only, so without a gamma" in printed
    assert "drafts of 2 tokens of template, n-gram, identity(target, 1)" in printed


def test_the_page_asks_nothing_of_any_other_machine_and_shows_each_line(done):
    html = (done[1] / "simulate.html").read_text(encoding="utf-8")
    page = Structure(html)
    assert not {"script", "link", "iframe", "img", "base", "form"} & {name for name, _ in page.tags}
    assert not re.findall(r"https?://", html)
    for name in (*DRAFTERS, "imposed 0.5", "imposed 0.9"):
        assert name in page.texts
    assert "nothing here was run" in html
    assert "prefers-color-scheme: dark" in html
    thin = [a for t, a in page.tags if t == "polyline" and a["class"] == "curve imposed"]
    assert len(thin) == 2


def test_the_report_of_the_run_shows_no_imposed_line_as_a_prediction(done, tmp_path):
    shown = [line.row for group in gamma_groups(done[0]) for line in group.lines]
    assert sorted(shown) == sorted(DRAFTERS)
    assert report.run(report.ReportConfig(source=done[1]), tmp_path).exists()


def test_a_drafter_without_costs_is_left_out_by_name_or_refused_where_it_was_asked_for(folder, again, capsys):
    (folder / "bare.yaml").write_text(configs.to_yaml(COSTS))
    config = config_of(folder, costs=folder / "bare.yaml")
    rows = simulate.run(config, again)
    assert {row.row for row in rows} == {"template", "n-gram"}
    told = read_results(again)[1]["notices"]
    assert "B1 is left out: measure and add to bare.yaml draft.B1 (or draft.adapter)" in told
    assert "n-gram (ride) is left out: measure and add to bare.yaml prefill_per_extra" in told
    capsys.readouterr()
    assert run_cli(dataclasses.replace(config, rows=(DraftRow(drafter="B1"),)), again) == 2
    error = capsys.readouterr().err
    assert error == (
        "xmsd: error: bare.yaml: B1 needs draft.B1 (or draft.adapter): measure and add it, or leave B1 out\n"
    )


def test_without_any_drafter_there_is_an_error_and_no_page_unless_acceptances_are_imposed(folder, again):
    (folder / "none.yaml").write_text(configs.to_yaml(dataclasses.replace(COSTS, draft={}, host=None)))
    config = config_of(folder, costs=folder / "none.yaml")
    with pytest.raises(UserError, match=r"no drafter can be predicted: host is not in none\.yaml"):
        simulate.run(config, again)
    assert not (again / "simulate.html").exists()
    rows = simulate.run(dataclasses.replace(config, imposed=(0.5,)), again)
    assert [row.row for row in rows] == ["imposed 0.5"]
    assert "No drafter was predicted" in (again / "simulate.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gamma": 4}, "costs.yaml: verify: a pass over 5 tokens was not measured (measured: 2, 3, 4); add it, or set"),
        ({"rows": (DraftRow(drafter="L5 (own)"),)}, "rows: L5 (own) was not found"),
        (
            {"costs": "nowhere.yaml"},
            "nowhere.yaml: no such config file; give a path, or a packaged one: costs/demo_cpu",
        ),
        ({"splits": ("moon",)}, "not a store"),
    ],
)
def test_what_is_lacking_is_told_in_one_line(folder, again, capsys, changes, told):
    assert run_cli(dataclasses.replace(config_of(folder), **changes), again) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("xmsd: error: ")
    assert told in error


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"imposed": (0.5, 1.5)}, "imposed: an acceptance is a probability 0..1, got 1.5"),
        ({"imposed_like": "L1"}, "drafter: 'L1' is none of"),
        ({"rows": (DraftRow(prefill="L1", prefill_mode="ride"),)}, "rows: L1 drafts in phase 1 only"),
        ({"rows": (DraftRow(drafter="n-gram", gamma="auto"),)}, "shows every gamma up to the longest; leave gamma out"),
        ({"rows": (DraftRow(drafter="n-gram", gamma=9),)}, "n-gram: gamma 9 is above the longest draft, 3"),
        ({"gamma": 0}, "gamma: must be at least 1"),
        ({"splits": ("train",)}, "splits: at least one, not train"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(folder, changes, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        config_of(folder, **changes)
