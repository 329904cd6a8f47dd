"""A damaged model folder is one clear error that names the file, for both models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import torch_bridge
from torch_bridge.eventgpt import load_drafter
from torch_bridge.folders import BOS, ModelFolderError, model_fingerprint, text_ids, token_id, with_bos
from torch_bridge.video_llava import load_target
from xmsd_jax.config import UserError

WEIGHTS = Path(torch_bridge.__file__).parent / "tiny" / "weights"
LOADERS = {"target": load_target, "drafter": load_drafter}


@pytest.fixture(params=["target", "drafter"])
def which(request) -> str:
    return request.param


@pytest.fixture
def folder(which, tmp_path) -> Path:
    return Path(shutil.copytree(WEIGHTS / which, tmp_path / which))


def refusal(which, folder) -> str:
    with pytest.raises(ModelFolderError) as caught:
        LOADERS[which](folder)
    assert issubclass(caught.type, UserError)  # the command line prints it and exits with 2
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 1200
    return message


def edit(path: Path, **values) -> None:
    """Change keys of a JSON file; a target's language model has its own section."""
    content = json.loads(path.read_text())
    content.get("text_config", content).update(values)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "missing"), ("{'a': 1}", "not JSON"), ("[1]", "no JSON object but list"), ("", "not JSON")],
)
def test_a_config_that_is_no_json_object_is_refused(which, folder, content, says):
    path = folder / "config.json"
    path.unlink() if content is None else path.write_text(content)
    assert says in refusal(which, folder)


def test_a_folder_of_another_model_is_refused(which, folder):
    other = "drafter" if which == "target" else "target"
    assert f"folder as {other}" in refusal(other, folder)


@pytest.mark.parametrize(("content", "says"), [(None, "missing"), ("{}", "no tokenizer"), ("not json", "no tokenizer")])
def test_a_tokenizer_that_cannot_be_read_is_refused(which, folder, content, says):
    path = folder / "tokenizer.json"
    path.unlink() if content is None else path.write_text(content)
    message = refusal(which, folder)
    assert says in message
    assert "tokenizer.json" in message


def test_a_tokenizer_without_the_ends_of_a_text_is_refused(which, folder):
    Tokenizer(models.WordLevel({"<unk>": 0, BOS: 1}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    assert "no token </s>" in refusal(which, folder)


def test_missing_weights_are_refused(which, folder):
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(which, folder)


def test_truncated_weights_are_refused(which, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "download" in refusal(which, folder)


def test_missing_unexpected_and_misshapen_weights_stand_in_one_error(which, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    norms = sorted(name for name in tensors if name.endswith("input_layernorm.weight"))
    tensors["surprise.weight"] = tensors.pop(norms[0])
    head = next(name for name in tensors if name.endswith("lm_head.weight"))
    tensors[head] = tensors[head][:, :64].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    message = refusal(which, folder)
    missing, rest = message.split("missing: ")[1].split("; unexpected: ")
    unexpected, shapes = rest.split("; wrong shape: ")
    assert missing.endswith("layers.0.input_layernorm.weight")
    assert unexpected == "surprise.weight"
    assert "lm_head.weight" in shapes
    assert "64" in shapes


def test_a_long_list_of_missing_weights_is_cut(which, folder):
    edit(folder / "config.json", num_hidden_layers=6)
    message = refusal(which, folder)
    assert " more; unexpected: none; wrong shape: none" in message


@pytest.mark.parametrize("values", [{"hidden_size": "wide"}, {"num_attention_heads": 7}])
def test_a_config_that_describes_no_model_is_refused(which, folder, values):
    edit(folder / "config.json", **values)
    assert next(iter(values)).split("_")[-1] in refusal(which, folder)


def test_a_drafter_without_the_place_of_its_tower_is_refused(tmp_path):
    folder = Path(shutil.copytree(WEIGHTS / "drafter", tmp_path / "drafter"))
    edit(folder / "config.json", mm_visual_tower=None)
    assert "mm_visual_tower" in refusal("drafter", folder)
    edit(folder / "config.json", mm_visual_tower="elsewhere")
    message = refusal("drafter", folder)
    assert "mm_visual_tower is 'elsewhere'" in message
    assert "as vision_tower" in message


def test_loading_leaves_the_logging_of_transformers_as_it_was(folder, which):
    from transformers.utils import logging

    before = logging.get_verbosity()
    LOADERS[which](folder)
    assert logging.get_verbosity() == before
    assert logging.is_progress_bar_enabled()


def test_text_that_opens_a_prompt_begins_with_bos_once():
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "drafter" / "tokenizer.json"))
    told = with_bos(tokenizer, "What is this?").tolist()
    assert told == [token_id(tokenizer, BOS), *text_ids(tokenizer, "What is this?").tolist()]
    assert told.count(1) == 1
    with pytest.raises(ValueError, match="must have the token <none>"):
        token_id(tokenizer, "<none>")


def test_the_fingerprint_depends_on_weights_and_config():
    layer = torch.nn.Linear(3, 2)
    first = model_fingerprint(layer, {"a": 1})
    assert model_fingerprint(layer, {"a": 1}) == first
    assert model_fingerprint(layer, {"a": 2}) != first
    with torch.no_grad():
        layer.bias[0] += 1e-3
    assert model_fingerprint(layer, {"a": 1}) != first
