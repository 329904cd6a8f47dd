"""Stage `extract`: reuse, continuation, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline.fake_loading import load_fakes
from tests.torch_bridge.fake_pair import fake_clips
from torch_bridge.pair import load_pair
from xmsd_jax.config import ConfigError, UserError, find, load
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline import extract
from xmsd_jax.pipeline.extract import ExtractConfig
from xmsd_jax.pipeline.pair import PairConfig, model_folder, pair_fingerprint, pair_options


@pytest.fixture
def config(tmp_path):
    fake_clips(tmp_path / "clips", {"train": 2, "test": 1})
    return ExtractConfig(clips=tmp_path / "clips", questions=(0, 1, 2), max_new_tokens=6, batch=2, shard_rows=6)


@pytest.fixture
def loaded(monkeypatch):
    """The fake pair in place of model folders; counts how often it is loaded."""
    return load_fakes(monkeypatch)


def test_each_split_becomes_a_store(config, loaded, tmp_path, capsys):
    paths = extract.run(config, tmp_path / "run")
    assert list(paths) == ["train", "test"]
    assert Store.open(paths["train"]).rows == 6
    assert Store.open(paths["test"]).rows == 3
    assert Store.open(paths["test"]).manifest.inputs["event_frames"]["n"] == 5
    assert Store.open(paths["test"]).manifest.inputs["drafter_adaptor_passes"] == 1
    figures = extract.summary(Store.open(paths["train"]))
    assert 0 < figures["target_len"] <= 6
    assert 0 <= figures["same_position"] <= 1
    assert "train: 6 answers" in capsys.readouterr().out


def test_a_second_run_reuses_the_store_without_loading_a_model(config, loaded, tmp_path):
    first = extract.run(config, tmp_path / "run")
    assert extract.run(config, tmp_path / "run") == first
    assert len(loaded) == 1
    extract.run(config, tmp_path / "run", fresh=True)
    assert len(loaded) == 2


def test_hours_of_work_are_replaced_only_when_asked_to(config, loaded, tmp_path):
    path = extract.run(config, tmp_path / "run")["train"]
    other = ExtractConfig(clips=config.clips, questions=(5,), max_new_tokens=6)
    for changed in (other, replace(config, pair=PairConfig(drafter_adaptor_passes=2))):
        with pytest.raises(UserError, match=r"other settings.*--fresh"):
            extract.run(changed, tmp_path / "run")
    assert Store.open(path).rows == 6
    assert Store.open(extract.run(other, tmp_path / "run", fresh=True)["train"]).rows == 2


def test_an_unknown_split_is_found_before_a_model_is_loaded(config, loaded, tmp_path):
    wrong = ExtractConfig(clips=config.clips, splits=("train", "dev"))
    with pytest.raises(UserError, match="no split 'dev'"):
        extract.run(wrong, tmp_path / "run")
    assert not loaded


@pytest.mark.parametrize(
    "change", [{"batch": 0}, {"shard_rows": -1}, {"questions": ()}, {"questions": (1, 1)}, {"questions": (10,)}]
)
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        ExtractConfig(clips=Path("clips"), **change)


@pytest.mark.parametrize("which", ["target", "drafter"])
def test_a_missing_model_folder_is_named(which, tmp_path):
    pair = PairConfig(**{which: str(tmp_path / "absent")})
    with pytest.raises(ConfigError, match=f"pair.{which}.*absent"):
        model_folder(pair, which)


def test_the_pairs_fingerprint_follows_the_content_of_its_files(tmp_path):
    for which in ("target", "drafter"):
        (tmp_path / which).mkdir()
        (tmp_path / which / "config.json").write_text("{}")
    pair = PairConfig(target=str(tmp_path / "target"), drafter=str(tmp_path / "drafter"))
    before = pair_fingerprint(pair)
    assert pair_fingerprint(pair) == before
    (tmp_path / "drafter" / "model.safetensors").write_bytes(b"1")
    assert pair_fingerprint(pair) != before


def test_a_gpu_that_is_not_there_is_said_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    pair = PairConfig(target=str(tmp_path), drafter=str(tmp_path), device="cuda")
    with pytest.raises(ConfigError, match=r"pair\.device"):
        load_pair(**pair_options(pair))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", ""])
def test_a_device_is_the_cpu_or_a_gpu(device):
    with pytest.raises(ConfigError, match="device"):
        PairConfig(device=device)


@pytest.mark.parametrize(
    ("changes", "quantised", "same"),
    [
        ({"drafter_device": "cuda:1"}, False, True),
        ({"drafter_device": "cpu"}, False, False),
        ({"expand": "never"}, False, True),
        ({"expand": "never"}, True, False),
    ],
)
def test_a_store_goes_on_with_settings_that_change_no_number(config, changes, quantised, same):
    """Another GPU of the same kind does not; a drafter on the CPU does, and so may full weights in place of 4 bits."""
    pair = replace(config.pair, device="cuda:0", quantisation=Quantisation(format="nf4" if quantised else "none"))
    one, folder = replace(config, pair=pair), ClipFolder.open(config.clips)
    assert (extract._key(one, folder) == extract._key(replace(one, **changes), folder)) is same


def test_the_packaged_config_loads():
    assert load(ExtractConfig, find("extract/small.yaml")).pair == PairConfig(threads=1)
