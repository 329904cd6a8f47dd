"""EventGPT checkpoints on disk: keys of config.json, names of weights, with and without the vision tower."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from torch_bridge.folders import ModelFolderError, read_json
from torch_bridge.weights import Part, WeightFiles

MODEL_TYPE = "EventChat_llama"
TOWER = "model.visual_tower.visual_tower."
_NESTED = "vision_model."
# Buffers that old versions of transformers wrote and new ones compute.
_COMPUTED = (".position_ids", ".rotary_emb.inv_freq")
# What a whole CLIPModel holds beside its vision tower.
_TEXT_SIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
_SOFTWARE = {"architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "torch_dtype"}
_OLD_ROTARY = {"rope_theta", "rope_scaling"}


def eventgpt_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ModelFolderError: it is missing, is another model's, or asks for a part that is not built here.
    """
    config = read_json(folder, "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise ModelFolderError(
            f"{folder}/config.json: model_type is not {MODEL_TYPE}; give an EventGPT folder as drafter"
        )
    if config.get("use_event_qformer"):
        raise ModelFolderError(
            f"{folder}/config.json: use_event_qformer is set, and only the published EventGPT without it is built "
            "here; give that checkpoint"
        )
    return config


def llama_config(config: dict[str, Any], where: Path) -> LlamaConfig:
    """The Llama part of an EventGPT config.json; keys of its training are passed over."""
    known = (LlamaConfig().to_dict().keys() | _OLD_ROTARY) - _SOFTWARE
    return _made(LlamaConfig, {key: value for key, value in config.items() if key in known}, where)


def vision_config(tower: Path) -> CLIPVisionConfig:
    """The vision tower's configuration, from a CLIPVisionModel's folder or a whole CLIPModel's.

    Raises:
        ModelFolderError: config.json is missing, or describes no such model.
    """
    config = read_json(tower, "config.json")
    if "vision_config" in config:
        config = config["vision_config"] | (config.get("vision_config_dict") or {})
    known = CLIPVisionConfig().to_dict().keys() - _SOFTWARE
    return _made(CLIPVisionConfig, {key: value for key, value in config.items() if key in known}, tower)


def _made(kind: Any, values: dict[str, Any], where: Path) -> Any:
    try:
        return kind(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise no_model(where, error) from error


def no_model(where: Path, error: Exception) -> ModelFolderError:
    """The error about a config.json from which no model can be built."""
    reason = " ".join(str(error).split())
    return ModelFolderError(f"{where}: config.json gives no model ({reason}); download it again")


def weight_parts(folder: Path, tower: Path) -> list[Part]:
    """The checkpoint's weights under our names; where it holds no vision tower, those of the CLIP folder too."""
    checkpoint = WeightFiles(folder)
    names = {name: _flat(name) for name in checkpoint.stored if not name.endswith(_COMPUTED)}
    parts = [Part(files=checkpoint, names=names)]
    if not any(name.startswith(TOWER) for name in names):
        parts.append(_tower_part(tower))
    return parts


def _tower_part(tower: Path) -> Part:
    files = WeightFiles(tower)
    # with a dot before it, as `embeddings.position_ids` and a bare `position_ids` end alike
    own = [n for n in files.stored if not n.startswith(_TEXT_SIDE) and not f".{n}".endswith(_COMPUTED)]
    return Part(files=files, names={name: TOWER + name.removeprefix(_NESTED) for name in own})


def _flat(name: str) -> str:
    """Old checkpoints nest the tower's weights once more than transformers 5 does."""
    return TOWER + name.removeprefix(TOWER).removeprefix(_NESTED) if name.startswith(TOWER) else name


def save_drafter(model: nn.Module, folder: Path, *, dtype: torch.dtype) -> None:
    """Write config.json, the tower's config and the weights under the public names, the tower nested as of old.

    The tokenizer is the caller's.
    """
    config: Any = model.config
    vision: Any = model.vision_config
    tower = folder / "clip"
    tower.mkdir(parents=True, exist_ok=True)
    _write(tower / "config.json", _plain(vision.to_dict()))
    tensors = {
        name.replace(TOWER, TOWER + _NESTED): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    own = {"architectures": ["EventChatModel"], "model_type": MODEL_TYPE, "mm_visual_tower": "clip"}
    adaptor = {"event_feature_adaptor": any("feature_adaptor" in name for name in tensors)}
    _write(folder / "config.json", _plain(config.to_dict()) | own | adaptor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Configuration keys that describe the model, not the software that wrote them."""
    software = ("transformers_version", "_name_or_path", "dtype")
    return {key: value for key, value in config.items() if key not in software and value is not None}
