"""Stage `evaluate`: every figure at both offsets, anchors that come back, and nothing judged that does not fit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.small_store import HEAD, REAL, WIDTH, write_store
from xmsd_jax.adapters.files import AdapterError, Passport, save_adapter
from xmsd_jax.adapters.kinds import make
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.manifest import Manifest, StoreError
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline import evaluate
from xmsd_jax.pipeline.evaluate import EvaluateConfig, table
from xmsd_jax.pipeline.judged import read_judged
from xmsd_jax.runs import read_results

GAMMA, DRAFT_LEN, ANSWERS = 3, 4, 8
CONTROLS = ("identity(drafter, 0)", "identity(target, 1)")
EARLY, LATE = (CONTROLS[0], "L1"), (CONTROLS[1], "B1")
STATES = {
    "cosine", "accept@0.80", "accept@0.85", "accept@0.90", "accept@0.95", "mse",
    "top1", "top5", "top10", "first_top1", "consecutive",
}  # fmt: skip


def save(folder: Path, kind: str, manifest: Manifest, **changes) -> Path:
    """A fresh adapter of a store."""
    values = {
        "kind": kind, "width": manifest.width, "blocks": None, "pairing": None if kind == "B1" else "index",
        "vocabulary": manifest.vocabulary["real"], "head_fingerprint": manifest.head_fingerprint,
        "revisions": dict(manifest.revisions), "store": "s", **changes,
    }  # fmt: skip
    return save_adapter(folder, make(kind, values["width"]), Passport(**values))


def stores(root: Path, **changes) -> Path:
    write_store(root / "train")
    write_store(root / "test", rows=ANSWERS, seed=1, prefix="test", **changes)
    return root


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Run folder, config and rows of one evaluation."""
    root = tmp_path_factory.mktemp("evaluate")
    store = stores(root / "store")
    manifest = Store.open(store / "train").manifest
    for kind in ("L1", "B1"):
        save(root / "adapters" / kind, kind, manifest)
    config = EvaluateConfig(
        store=store,
        adapters=root / "adapters",
        gamma=GAMMA,
        prefill_draft_len=DRAFT_LEN,
        order=3,
        names={"test": "held-out answers"},
    )
    return root / "run", config, evaluate.run(config, root / "run")


@pytest.fixture
def config(tmp_path) -> EvaluateConfig:
    return EvaluateConfig(store=stores(tmp_path / "store"), gamma=GAMMA, prefill_draft_len=DRAFT_LEN, order=3)


def assert_refused(config: EvaluateConfig, run_dir: Path, told: str, error: type[UserError] = UserError) -> None:
    with pytest.raises(error, match=told) as caught:
        evaluate.run(config, run_dir)
    assert "\n" not in str(caught.value)


def of(rows, name, metric, **settings):
    return [r for r in rows if (r.row, r.metric) == (name, metric) and settings.items() <= dict(r.settings).items()]


@pytest.mark.parametrize("name", [*EARLY, *LATE])
def test_every_adapter_and_control_has_every_figure_of_states_at_both_offsets(judged, name):
    rows = judged[2]
    for metric in STATES:
        assert [row.settings["offset"] for row in of(rows, name, metric)] == [0, 1]
    assert {r.settings["clips"] for r in rows} == {"held-out answers"}
    assert {r.n for r in of(rows, name, "top1")} == {ANSWERS}


def test_each_drafter_has_the_figures_of_its_phase(judged):
    rows = judged[2]
    assert {r.row for r in rows if r.metric == "n_free_offline"} == {"template", "n-gram", *EARLY}
    for name in ("template", "n-gram", *LATE):
        assert [r.settings["gamma"] for r in of(rows, name, "tau_offline")] == [1, 2, 3]
        assert len(of(rows, name, "S_k", how="rolled out, all anchors")) == 1
    assert {r.row for r in rows if r.settings.get("how") == "teacher-forced, all anchors"} == set(LATE)
    assert all(len(r.settings["shares"]) == GAMMA for r in rows if r.metric == "S_k")


def test_the_table_shows_the_controls_beside_the_adapters(judged):
    lines = table(judged[2]).splitlines()
    for name in (*EARLY, *LATE, "template", "n-gram"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1


def test_the_targets_own_state_is_its_own_token_and_not_the_next_one(judged):
    """What looks perfect at offset 0 is leakage: h[t] emits y_t, and a draft from it is worth nothing."""
    _, config, rows = judged
    store = Store.open(config.store / "test")
    hidden, ids = (np.asarray(store.read(f"target_{what}")) for what in ("hidden", "ids"))
    inside = np.arange(ids.shape[1]) < store.read("target_len")[:, None]
    said = np.argmax(hidden @ HEAD[:REAL].T, axis=-1)
    share = (said == ids)[inside].mean()
    assert share > 0.9

    (same, following) = of(rows, "identity(target, 1)", "top1")
    assert same.value == pytest.approx(share)
    assert following.value == pytest.approx((said[:, :-1] == ids[:, 1:])[inside[:, 1:]].mean())
    (cosine, _) = of(rows, "identity(target, 1)", "cosine")
    assert cosine.value == pytest.approx(1.0, abs=1e-6)
    assert of(rows, "identity(target, 1)", "tau_offline", gamma=GAMMA)[0].value < 1.5


def test_anchors_come_back_as_their_rows_say(judged):
    run_dir, config, rows = judged
    store = Store.open(config.store / "test")
    found = read_judged(run_dir / "evaluation", "test", store.manifest)
    assert set(found) == {"template", "n-gram", *EARLY, *LATE}
    for name in ("template", "n-gram", *LATE):
        anchors = found[name].anchors
        assert_array_equal(anchors.target_len, store.read("target_len"))
        counts = anchors.walk(GAMMA)
        told = of(rows, name, "tau_offline", gamma=GAMMA)[0].value
        assert told == pytest.approx(counts.emitted.sum() / counts.iterations.sum())
    for name in EARLY:
        assert found[name].anchors is None
        assert found[name].prefix.drafted == DRAFT_LEN
        assert of(rows, name, "n_free_offline")[0].value == pytest.approx(found[name].prefix.free.mean())
    assert all(found[name].prefix is None for name in LATE)


def test_results_hold_the_rows_and_a_second_run_reuses_them(judged, capsys, monkeypatch):
    run_dir, config, rows = judged
    assert read_results(run_dir)[0] == rows
    monkeypatch.setattr(evaluate, "_judge", lambda *a: pytest.fail("judged again"))
    assert evaluate.run(config, run_dir) == rows
    assert "evaluation: reused" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="judged again"):
        evaluate.run(dataclasses.replace(config, gamma=2), run_dir.with_name("other"))


def test_anchors_of_another_store_or_split_or_none_are_refused(judged, tmp_path):
    run_dir, config, _ = judged
    training, test = (Store.open(config.store / split).manifest for split in ("train", "test"))
    with pytest.raises(UserError, match="the evaluation of another store as test"):
        read_judged(run_dir / "evaluation", "test", training)
    with pytest.raises(UserError, match="no evaluation of split validation"):
        read_judged(run_dir / "evaluation", "validation", test)
    with pytest.raises(UserError, match="run `xmsd evaluate` first"):
        read_judged(tmp_path, "test", test)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": WIDTH // 2}, f"width is {WIDTH // 2}, needed is {WIDTH}"),
        ({"head_fingerprint": "0" * 16}, "head_fingerprint is '0000000000000000'"),
        ({"vocabulary": REAL + 1}, f"vocabulary is {REAL + 1}, needed is {REAL}"),
        ({"revisions": {"target": "9", "drafter": "2"}}, "revisions.target is '9', needed is '1'"),
        ({"revisions": {"target": "1", "drafter": "9"}}, "revisions.drafter is '9', needed is '2'"),
    ],
)
def test_an_adapter_of_something_else_is_refused_in_one_line(config, tmp_path, changes, told):
    manifest = Store.open(config.store / "train").manifest
    save(tmp_path / "adapters", "L1", manifest, **changes)
    assert_refused(dataclasses.replace(config, adapters=tmp_path / "adapters"), tmp_path / "run", told, AdapterError)


def test_an_adapter_that_reads_the_target_alone_fits_with_any_drafter(config, tmp_path):
    manifest = Store.open(config.store / "train").manifest
    save(tmp_path / "adapters", "B1", manifest, revisions={"target": "1", "drafter": "9"})
    assert "B1" in evaluate.load_trained(tmp_path / "adapters", manifest)


def test_a_folder_without_adapters_or_with_one_twice_is_refused(config, tmp_path):
    config = dataclasses.replace(config, adapters=tmp_path / "adapters")
    assert_refused(config, tmp_path / "run", "holds no trained adapter", AdapterError)
    manifest = Store.open(config.store / "train").manifest
    for folder in ("one", "two"):
        save(tmp_path / "adapters" / folder, "L1", manifest)
    assert_refused(config, tmp_path / "run", "holds L1 more than once", AdapterError)


def test_a_state_that_is_not_finite_is_refused_with_its_row(tmp_path):
    def spoil(fields):
        fields["drafter_hidden"][3, 0, 0] = np.nan

    config = EvaluateConfig(store=stores(tmp_path / "store", spoil=spoil), gamma=1, prefill_draft_len=1, order=1)
    assert_refused(config, tmp_path / "run", "test: row 3 of drafter_hidden holds nan or inf", StoreError)
    assert not (tmp_path / "run" / "results.json").exists()


def test_answers_of_another_pair_are_refused(tmp_path):
    store = stores(tmp_path / "store", revisions={"target": "9", "drafter": "2"})
    assert_refused(EvaluateConfig(store=store), tmp_path / "run", "revisions.target is '9', expected '1'", StoreError)


def test_what_was_fitted_on_is_never_judged(config, tmp_path):
    with pytest.raises(ConfigError, match="splits: at least one, not train"):
        dataclasses.replace(config, splits=("test", "train"))
    write_store(config.store / "again", seed=2)
    assert_refused(
        dataclasses.replace(config, splits=("again",)), tmp_path / "run", "train_0.*sequences that nothing was"
    )


@pytest.mark.parametrize("name", ["gamma", "prefill_draft_len", "order"])
def test_sizes_below_one_are_refused(config, name):
    with pytest.raises(ConfigError, match=f"{name}: must be at least 1, got 0"):
        dataclasses.replace(config, **{name: 0})
