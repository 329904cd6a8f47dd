"""Which pair a stage runs: what is handed to the loading, and which files its fingerprint covers."""

from pathlib import Path

import huggingface_hub
import pytest

from tests.torch_bridge.fake_pair import fake_clip
from tests.torch_bridge.public_checkpoint import (
    CLIP_CONFIG,
    clip_weights,
    llama_weights,
    nested,
    write,
    write_checkpoint,
)
from torch_bridge.eventgpt import load_drafter
from torch_bridge.pair import load_pair
from xmsd_jax.config import ConfigError, load
from xmsd_jax.pipeline.extract import ExtractConfig
from xmsd_jax.pipeline.pair import PairConfig, model_folder, pair_fingerprint, pair_options


@pytest.fixture
def drafter(tmp_path) -> Path:
    """A public checkpoint, whose tower is named by a hub id."""
    return write_checkpoint(tmp_path / "drafter", llama_weights(), "sharded bin")


@pytest.fixture
def tower(tmp_path) -> Path:
    return write(tmp_path / "clip-vit", CLIP_CONFIG, nested(clip_weights()), "bin")


def test_the_config_says_the_tower_and_the_studys_second_pass(tmp_path, drafter, tower):
    path = tmp_path / "extract.yaml"
    named = f"drafter: {drafter}, vision_tower: {tower}, drafter_adaptor_passes: 2, threads: 1"
    path.write_text(f"clips: none\npair: {{{named}}}\n")
    pair = load(ExtractConfig, path).pair
    assert pair.drafter_adaptor_passes == 2
    loaded = load_pair(**pair_options(pair))[1]
    expected = load_drafter(drafter, vision_tower=tower, adaptor_passes=2)
    assert loaded.encode(fake_clip(1)).equal(expected.encode(fake_clip(1)))
    assert loaded.fingerprint == expected.fingerprint
    path.write_text(f"clips: none\npair: {{{named.replace('passes: 2', 'passes: 3')}}}\n")
    with pytest.raises(ConfigError, match="drafter_adaptor_passes"):
        load(ExtractConfig, path)


def test_a_tower_that_is_not_there_is_said_before_anything_is_loaded(drafter, tmp_path):
    for options in ({}, {"vision_tower": str(tmp_path / "absent")}):
        config = PairConfig(drafter=str(drafter), **options)
        for ask in (pair_options, pair_fingerprint):
            with pytest.raises(ConfigError, match=r"^pair\.vision_tower: "):
                ask(config)


def test_the_fingerprint_covers_pickled_shards_the_index_and_the_tower_outside(drafter, tower):
    config = PairConfig(drafter=str(drafter), vision_tower=str(tower))
    seen = {pair_fingerprint(config)}
    assert pair_fingerprint(config) in seen
    changed = (
        drafter / "pytorch_model-00002-of-00003.bin",
        drafter / "pytorch_model.bin.index.json",
        drafter / "tokenizer.json",
        tower / "pytorch_model.bin",
        tower / "config.json",
    )
    for file in changed:
        file.write_bytes(file.read_bytes() + b"\n")
        seen.add(pair_fingerprint(config))
    (drafter / "tokenizer.model").write_bytes(b"pieces")
    assert len(seen | {pair_fingerprint(config)}) == 7


def test_a_tower_inside_the_drafters_folder_counts_once(drafter):
    write(drafter / "clip", CLIP_CONFIG, {}, "safetensors")
    inside = PairConfig(drafter=str(drafter), vision_tower=str(drafter / "clip"))
    before = pair_fingerprint(inside)
    config = (drafter / "config.json").read_text().replace("openai/clip-vit-large-patch14-336", "clip")
    (drafter / "config.json").write_text(config)
    named_by_the_checkpoint = pair_fingerprint(PairConfig(drafter=str(drafter)))
    assert named_by_the_checkpoint == pair_fingerprint(inside) != before


def test_the_tower_that_an_absolute_path_names_counts(drafter, tower):
    config = (drafter / "config.json").read_text().replace("openai/clip-vit-large-patch14-336", str(tower))
    (drafter / "config.json").write_text(config)
    before = pair_fingerprint(PairConfig(drafter=str(drafter)))
    (tower / "pytorch_model.bin").write_bytes(b"other")
    assert pair_fingerprint(PairConfig(drafter=str(drafter))) != before


@pytest.mark.parametrize("which", ["target", "drafter"])
def test_a_model_may_be_a_hub_id(which, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    assert model_folder(PairConfig(**{which: "owner/name"}), which) == tmp_path
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=rf"^pair\.{which}: owner/name: neither a folder, nor in the hub's cache"):
        model_folder(PairConfig(**{which: "owner/name"}), which)
