"""The drafter: EventGPT (Vicuna + CLIP over event frames), as a `torch_bridge.vlm.VLM`.

Per frame `feature_adaptor(visual_projector(tower))`, once; then the aggregator, which has no weights:
the mean over tokens of every frame, followed by the mean over frames of every token.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from torch_bridge.folders import (
    ModelFolderError,
    load_exactly,
    read_json,
    read_weights,
    text_ids,
    with_bos,
)
from torch_bridge.loaded import LoadedModel
from torch_bridge.pixels import clip_pixels
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.events import EventFrames

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
PROMPT = "{system} USER: <ev_start><event><ev_end>\n{question} ASSISTANT:"
_TOWER = "model.visual_tower.visual_tower."


def aggregate(features: Tensor) -> Tensor:
    """[f, s, d] frame tokens -> [f + s, d]: temporal tokens (means over s), then spatial tokens (means over f)."""
    return torch.cat([features.mean(1), features.mean(0)])


class _Tower(nn.Module):
    """One more level of naming, as the public checkpoints have it."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.visual_tower = CLIPVisionModel(config)


class EventGPTModel(LlamaModel):
    """The Llama with the event path beside it; `forward` is the Llama's own."""

    def __init__(self, config: LlamaConfig, vision: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.visual_tower = _Tower(vision)
        self.visual_projector = nn.Sequential(
            nn.Linear(vision.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.feature_adaptor = nn.Linear(config.hidden_size, config.hidden_size)


class EventGPTForCausalLM(nn.Module):
    """Names of parameters as in the public checkpoint: `model.*` and `lm_head.weight`."""

    def __init__(self, config: LlamaConfig, vision: CLIPVisionConfig) -> None:
        super().__init__()
        self.config, self.vision_config = config, vision
        self.model = EventGPTModel(config, vision)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def event_features(self, pixels: Tensor) -> Tensor:
        """Event frames [b, 3, y, x] -> adapted tokens [b, s, d], CLS kept, no post-norm."""
        tokens = self.model.visual_tower.visual_tower(pixels).last_hidden_state
        return self.model.feature_adaptor(self.model.visual_projector(tokens))


class EventGPT(LoadedModel):
    """An EventGPT in evaluation mode with its tokenizer and the event frames that it reads."""

    def __init__(self, model: EventGPTForCausalLM, folder: Path, event_frames: EventFrames) -> None:
        super().__init__(model, folder, kind="eventgpt", real_vocabulary=int(model.config.vocab_size))
        self.model = model
        self.event_frames = event_frames
        self._image_size = int(model.vision_config.to_dict()["image_size"])

    @property
    def language_model(self) -> LlamaModel:
        """The Llama that reads embeddings and gives post-norm states."""
        return self.model.model

    @property
    def lm_head(self) -> nn.Linear:
        """States -> logits."""
        return self.model.lm_head

    def prompt_pieces(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Text ids before and after the event tokens; the pieces are tokenised apart, BOS once."""
        before, after = PROMPT.split("<event>")
        told = text_ids(self.tokenizer, after.format(question=question))
        return with_bos(self.tokenizer, before.format(system=SYSTEM)), told

    def pixels(self, clip: Clip) -> Tensor:
        """The clip's event frames as float32[f, 3, y, x]."""
        frames = self.event_frames.frames(clip.events, start_us=clip.start_us, stop_us=clip.stop_us)
        return clip_pixels(frames, self._image_size)

    @torch.inference_mode()
    def encode(self, clip: Clip) -> Tensor:
        """Event tokens [f + s, d] (582 for five frames of the 7B model, 578 for one)."""
        return aggregate(self.model.event_features(self.pixels(clip).to(self.device, self.dtype)))


def load_drafter(
    folder: str | Path, *, dtype: str = "float32", device: str = "cpu", event_frames: EventFrames | None = None
) -> EventGPT:
    """Load an EventGPT folder whose checkpoint carries the vision tower; float32 or bfloat16.

    Raises:
        ModelFolderError: a file is missing or damaged, or the weights do not fit config.json.
    """
    folder = Path(folder)
    config = read_json(folder, "config.json")
    if config.get("model_type") != "EventChat_llama":
        raise ModelFolderError(
            f"{folder}/config.json: model_type is not EventChat_llama; give an EventGPT folder as drafter"
        )
    model = _empty_model(folder, config)
    tensors = {name.replace(_TOWER + "vision_model.", _TOWER): t for name, t in read_weights(folder).items()}
    load_exactly(model, tensors, folder)
    return EventGPT(model.to(device, getattr(torch, dtype)), folder, event_frames or EventFrames())


def _empty_model(folder: Path, config: dict[str, Any]) -> EventGPTForCausalLM:
    tower = config.get("mm_visual_tower")
    if not isinstance(tower, str):
        raise ModelFolderError(
            f"{folder}/config.json: mm_visual_tower names the folder of the vision tower's config.json, got {tower!r}; "
            "write that folder's path"
        )
    vision = read_json(folder / tower, "config.json")
    try:
        return EventGPTForCausalLM(llama_config(config), CLIPVisionConfig(**vision))
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFolderError(f"{folder}: config.json gives no model ({reason}); download it again") from error


def llama_config(config: dict[str, Any]) -> LlamaConfig:
    """The Llama part of an EventGPT config.json."""
    own = {"architectures", "model_type", "mm_visual_tower", "event_feature_adaptor"}
    return LlamaConfig(**{key: value for key, value in config.items() if key not in own})


def save_drafter(model: EventGPTForCausalLM, folder: Path, *, dtype: torch.dtype) -> None:
    """Write config.json, the tower's config and the weights under the public names."""
    tower = folder / "clip"
    tower.mkdir(parents=True, exist_ok=True)
    vision = _plain(model.vision_config.to_dict())
    (tower / "config.json").write_text(json.dumps(vision, indent=2, sort_keys=True) + "\n")
    own = {"architectures": ["EventChatModel"], "model_type": "EventChat_llama", "mm_visual_tower": "clip"}
    config = _plain(model.config.to_dict()) | own | {"event_feature_adaptor": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        name.replace(_TOWER, _TOWER + "vision_model."): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Configuration keys that describe the model, not the software that wrote them."""
    software = ("transformers_version", "_name_or_path", "dtype")
    return {key: value for key, value in config.items() if key not in software and value is not None}
