"""A model is named by a folder or a hub id; what leads nowhere is one clear line. No test here asks the hub."""

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from tests.torch_bridge.public_checkpoint import (
    CLIP_CONFIG,
    clip_weights,
    llama_weights,
    nested,
    write,
    write_checkpoint,
)
from torch_bridge.eventgpt import load_drafter
from torch_bridge.model_source import ModelFolderError, model_name, model_source

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's client, which is offline in every test (tests/conftest.py)."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str) -> Path:
    """The snapshot folder of a model in the cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    folder = repository / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert model_source(tmp_path) == model_source(str(tmp_path)) == tmp_path
    assert model_name(tmp_path / "vicuna") == "vicuna"


@pytest.mark.parametrize("named", ["/absent/model", "./owner/model", "model", "../up/model", "a/b/c", "https://x/y"])
def test_what_is_neither_a_folder_nor_an_id_is_said_without_asking_the_hub(named, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelFolderError, match="no such folder; give a model's folder, or a hub id"):
        model_source(named)


def test_an_id_leads_to_the_cache_when_offline(hub):
    folder = cached(hub, "owner/event-gpt")
    (folder / "model.safetensors").write_bytes(b"")
    assert model_source("owner/event-gpt") == folder
    assert model_source(f"owner/event-gpt@{REVISION}") == folder
    assert model_name(folder) == "owner/event-gpt@0123456789ab"


@pytest.mark.parametrize("named", ["owner/event-gpt", "owner/event-gpt@v2", "owner--x/y"])
def test_an_id_that_cannot_be_had_is_one_line(named, hub):
    with pytest.raises(ModelFolderError) as caught:
        model_source(named)
    message = str(caught.value)
    assert message.startswith(f"{named}: neither a folder, nor in the hub's cache")
    assert "give the folder of a downloaded model" in message
    assert "\n" not in message


@pytest.mark.parametrize("safetensors", [True, False])
def test_only_files_of_the_model_are_fetched_and_pickled_ones_only_in_need(tmp_path, monkeypatch, safetensors):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, set(allow_patterns)))
        if safetensors:
            (tmp_path / "model.safetensors").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_source("owner/name@v1") == tmp_path
    plain = {"*.json", "*.safetensors", "tokenizer.model"}
    expected = [plain] if safetensors else [plain, plain | {"pytorch_model*.bin"}]
    assert asked == [("owner/name", "v1", patterns) for patterns in expected]


def test_a_drafter_and_its_tower_load_by_their_ids(hub, tmp_path):
    write_checkpoint(cached(hub, "owner/event-gpt"), llama_weights())
    write(cached(hub, "owner/clip"), CLIP_CONFIG, nested(clip_weights()), "bin")
    model = load_drafter("owner/event-gpt", vision_tower="owner/clip")
    assert model.name == "eventgpt:owner/event-gpt@0123456789ab"


def test_naming_a_source_loads_no_torch():
    code = "import sys, torch_bridge.model_source; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "huggingface_hub"} & set(json.loads(done.stdout))
