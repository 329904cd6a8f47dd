"""Folders as they are on the hub: names of every age, shards, the padded head; the true geometry without weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jax import numpy as jnp
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

import torch_bridge
from torch_bridge.answers import Batch
from torch_bridge.folders import ModelFolderError
from torch_bridge.overlap import to_numpy
from torch_bridge.quantize import dense_weight
from torch_bridge.tiny.models import PairShape, new_target, save_target
from torch_bridge.video_llava import load_target, video_tokens
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import UserError
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.store_layout import keep_head, read_head

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(torch_bridge.__file__).parent / "tiny" / "weights" / "target"


def today(name: str) -> str:
    """The module's own name."""
    name = re.sub(r"^language_model\.lm_head", "lm_head", name)
    name = re.sub(r"^language_model\.model", "model.language_model", name)
    return re.sub(r"^((image|video)_tower|multi_modal_projector)", r"model.\1", name)


def legacy(name: str) -> str:
    """The name in the public checkpoint, which is from a time when CLIP's model had one more level."""
    return re.sub(r"^(image|video)_tower\.", r"\1_tower.vision_model.", name)


@pytest.fixture(scope="module")
def target():
    return load_target(FOLDER)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "target"))


def renamed(folder: Path, rename, shards: int) -> None:
    """Write the weights under other names, in float16 as the public ones are, in so many files with their index."""
    tensors = {rename(name): t.half() for name, t in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = names[number::shards]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("rename", "shows"), [
    (legacy, "video_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"),
    (today, "model.language_model.layers.0.self_attn.q_proj.weight"),
])  # fmt: skip
def test_checkpoints_of_every_age_are_the_same_model(target, folder, rename, shows):
    renamed(folder, rename, shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert shows in index
    assert len(set(index.values())) == 3
    loaded = load_target(folder)
    # float16 keeps what bfloat16 held, but for the smallest numbers
    for name, tensor in target.model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, atol=1e-7, rtol=1e-3)
    clip = davis_clips()[0]
    told = [Batch(model, [clip], QUESTIONS[:2]).answer(12).ids for model in (target, loaded)]
    assert torch.equal(*told)


def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        load_target(tmp_path / "absent")


def test_a_shard_that_is_missing_is_named(folder):
    renamed(folder, legacy, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="model-00002-of-00002"):
        load_target(folder)


def test_the_true_geometry_is_2056_video_tokens_of_4096():
    """Of the public configuration, on the meta device: shapes alone, no weights."""
    config = VideoLlavaConfig(text_config=LlamaConfig(vocab_size=32064))
    with torch.device("meta"):
        model = VideoLlavaForConditionalGeneration(config)
        seen = video_tokens(model, torch.zeros(1, 8, 3, 224, 224))
    assert seen.shape == (1, 2056, 4096)
    assert config.video_seq_length == 2056 == 8 * (16 * 16 + 1)
    assert model.lm_head.weight.shape == (32064, 4096)
    assert (config.image_token_index, config.video_token_index) == (32000, 32001)
    assert config.vision_config.to_dict()["image_size"] == 224


@pytest.fixture(scope="module")
def padded_folder(tmp_path_factory) -> Path:
    """A target with the public vocabulary: 32000 real ids of 32064 rows."""
    root = tmp_path_factory.mktemp("padded")
    shape = PairShape(width=64, vocabulary=32000, target_layers=1, target_ffn=64, vision_width=64, vision_ffn=64,
                      vision_layers=2)  # fmt: skip
    torch.manual_seed(0)
    model = new_target(shape)
    save_target(model, load_target(FOLDER).tokenizer, root / "target")
    return root / "target"


def test_ids_from_32000_on_are_never_drafted(padded_folder):
    padded = load_target(padded_folder)
    assert (padded.real_vocabulary, padded.lm_head.out_features) == (32000, 32064)
    weight = padded.lm_head.weight.detach()
    states = torch.cat([weight[32010:32013], weight[31999:32001]])
    assert (states @ weight.T).argmax(-1).tolist() == [32010, 32011, 32012, 31999, 32000]
    head = TokenHead.of(jnp.asarray(weight.numpy()), padded.real_vocabulary)
    drafted = np.asarray(head.ids(jnp.asarray(states.numpy())))
    assert drafted.max() < 32000
    assert drafted[3] == 31999


@pytest.mark.parametrize("keep", [Quantisation().keep, ("video_tower", "image_tower")])
def test_the_head_that_is_exported_has_all_rows_whether_it_is_quantised_or_not(padded_folder, tmp_path, keep):
    target = load_target(padded_folder, quantisation=Quantisation(format="nf4", keep=keep))
    quantised = type(target.lm_head).__name__ == "Linear4bit"
    assert quantised is ("lm_head" not in keep)
    keep_head(tmp_path, to_numpy(dense_weight(target.lm_head)))
    exported, states = torch.from_numpy(np.array(read_head(tmp_path))), torch.randn(3, target.width)
    assert exported.shape == (32064, target.width)
    with torch.inference_mode():
        torch.testing.assert_close(
            states @ exported.T, target.lm_head(states), atol=0.02 if quantised else 1e-5, rtol=0
        )
