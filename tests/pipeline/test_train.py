"""Stage `train`: what it exports fits what it learned from; reuse, continuation, refusals."""

import dataclasses
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.small_store import HEAD, WIDTH, write_store
from xmsd_jax.adapters.files import AdapterError, check_fits, load_adapter, named_parameters, read_passport
from xmsd_jax.config import ConfigError, load, packaged_configs
from xmsd_jax.data import store_layout
from xmsd_jax.data.store import Store, StoreError
from xmsd_jax.pipeline import train
from xmsd_jax.pipeline.train import TrainConfig
from xmsd_jax.runs import Run
from xmsd_jax.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch=8, gamma=2, prefill_draft_len=4)


@pytest.fixture
def config(tmp_path):
    return TrainConfig(store=write_store(tmp_path / "store" / "train"), kind="L1", validation_share=0.3, recipe=RECIPE)


def exported(folder) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in named_parameters(load_adapter(folder).adapter).items()}


@pytest.mark.parametrize(
    ("kind", "pairing", "metric", "title"),
    [("L2", "index", "n_free", "L2"), ("L5F", "synced", "tau", "L5F (synced)"), ("B1", None, "tau", "B1")],
)
def test_the_export_says_what_it_is_and_what_it_learned_from(config, tmp_path, capsys, kind, pairing, metric, title):
    config = dataclasses.replace(config, kind=kind, pairing=pairing)
    folder = train.run(config, tmp_path / "run")
    passport, manifest = load_adapter(folder).passport, Store.open(config.store).manifest
    assert (passport.kind, passport.width, passport.pairing) == (kind, WIDTH, pairing)
    assert passport.blocks == (3 if kind == "L2" else None)
    assert passport.store == manifest.fingerprint
    check_fits(load_adapter(folder), {"head_fingerprint": manifest.head_fingerprint}, where="its store")

    history = json.loads((folder.parent / "history.json").read_text())
    assert (history["kind"], history["accepted"], history["epochs"]) == (kind, metric, [1, 2])
    assert history["chosen"]["value"] == history[f"validation_{metric}"][history["chosen"]["epoch"] - 1]
    assert passport.training["epoch"] == history["chosen"]["epoch"]
    assert passport.training["recipe"]["epochs"] == 2
    assert "jax" in passport.training["software"]

    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in logged if line.get("train") == title] == [1, 2]
    assert all(metric in line for line in logged if "epoch" in line)
    assert list((folder.parent / "tensorboard").glob("events*"))
    assert not (folder.parent / "checkpoints").exists()
    assert f"{title}: epoch " in capsys.readouterr().out.splitlines()[-1]


def test_a_second_run_reuses_the_adapter_and_another_recipe_does_not(config, tmp_path, capsys):
    folder = train.run(config, tmp_path / "run")
    before = exported(folder)
    capsys.readouterr()
    train.run(config, tmp_path / "run")
    assert "train: reused" in capsys.readouterr().out
    other = dataclasses.replace(config, recipe=dataclasses.replace(RECIPE, seed=1))
    train.run(other, tmp_path / "run")
    assert "reused" not in capsys.readouterr().out
    assert any((before[name] != value).any() for name, value in exported(folder).items())


def test_a_stage_that_was_cut_off_continues_to_the_same_bits(config, tmp_path, monkeypatch):
    def broken_save(*args):
        raise KeyboardInterrupt

    folder = train.run(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(train, "save_adapter", broken_save)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, tmp_path / "run")
    again = train.run(config, tmp_path / "run")
    for name, value in exported(folder).items():
        assert_array_equal(exported(again)[name], value)
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert logged.count('"epoch"') == 2, "no epoch was trained twice"


def test_several_adapters_are_trained_in_one_run(config, tmp_path):
    run = Run.open(tmp_path / "run", config)
    configs = [dataclasses.replace(config, kind=kind) for kind in ("L1", "L3")]
    folders = [train.train_adapter(one, run, name=f"adapters/{one.kind}") for one in configs]
    assert [read_passport(folder).kind for folder in folders] == ["L1", "L3"]
    assert folders[1] == tmp_path / "run" / "adapters" / "L3" / "adapter"


def test_a_validation_store_takes_the_place_of_a_share(config, tmp_path):
    held_out = write_store(tmp_path / "store" / "validation", rows=8, seed=1, prefix="validation")
    config = dataclasses.replace(config, validation=held_out)
    training, validation = train.training_sources(config, Store.open(config.store), Store.open(held_out))
    assert (len(training.index), len(validation.index)) == (16, 8)
    train.run(config, tmp_path / "run")


def test_a_validation_store_of_other_models_is_refused(config, tmp_path):
    other = write_store(tmp_path / "store" / "other", revisions={"target": "9", "drafter": "2"}, prefix="other")
    with pytest.raises(StoreError, match=r"revisions.target is '9', expected '1'"):
        train.run(dataclasses.replace(config, validation=other), tmp_path / "run")


def test_a_state_that_is_not_finite_stops_the_stage_with_its_row(config, tmp_path):
    def spoil(fields):
        fields["drafter_hidden"][3, 0, 0] = np.nan

    bad = write_store(tmp_path / "bad" / "train", spoil=spoil)
    with pytest.raises(StoreError, match="row 3 of drafter_hidden holds nan or inf"):
        train.run(dataclasses.replace(config, store=bad), tmp_path / "run")
    assert not (tmp_path / "run" / "train" / "adapter").exists()


def test_a_head_that_is_not_the_stores_is_refused(config, tmp_path):
    root = config.store.parent
    (root / store_layout.HEAD).unlink()
    store_layout.keep_head(root, HEAD + 1)
    with pytest.raises(StoreError, match="fingerprint"):
        train.run(config, tmp_path / "run")


def test_an_adapter_does_not_fit_the_store_of_another_head(config, tmp_path):
    saved = load_adapter(train.run(config, tmp_path / "run"))
    with pytest.raises(AdapterError, match="head_fingerprint"):
        check_fits(saved, {"head_fingerprint": "0" * 16, "width": WIDTH}, where="another store")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "L9"}, "no such kind; known: L1"),
        ({"kind": "B1", "pairing": "index"}, "pairing: B1 reads no drafter states"),
        ({"kind": "L4", "pairing": "synced"}, "pairing: L4 drafts before the target"),
        ({"kind": "L4", "blocks": 2}, "blocks: L4 takes none, got 2"),
        ({"kind": "L1", "blocks": 0}, "blocks: L1 takes at least 1, got 0"),
        ({"kind": "L1", "recipe": {"loss": "next"}}, "loss: next is for kinds"),
        ({"kind": "L1", "validation_share": 1.0}, "validation_share"),
    ],
)
def test_settings_that_a_kind_does_not_have_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        load(TrainConfig, {"store": "somewhere", **changes})


def test_the_pairing_is_that_of_the_study_unless_said_otherwise():
    assert TrainConfig(store=".", kind="L5").pairing == "index"
    assert TrainConfig(store=".", kind="B1").pairing is None


@pytest.mark.parametrize("path", sorted(packaged_configs().glob("train/*.yaml")), ids=lambda path: path.stem)
def test_packaged_configs_load_and_are_named_by_what_they_train(path):
    config = load(TrainConfig, path)
    expected = config.title.replace(" (", "_").replace(")", "")
    assert path.stem == expected
    assert config.validation is not None


def test_the_study_s_own_settings_are_the_default_but_for_its_cosine_and_its_choice_by_loss():
    config = load(TrainConfig, packaged_configs() / "original" / "train.yaml")
    assert config.recipe == Recipe(cosine_epochs=100, select="loss", prefill_draft_len=7)
    assert config.blocks == 3
