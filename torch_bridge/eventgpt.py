"""The drafter: EventGPT (Vicuna + CLIP over event frames), as a `torch_bridge.vlm.VLM`.

Per frame `feature_adaptor(visual_projector(tower))`, the adaptor once (or twice, as the study had it); then the
aggregator, which has no weights:
the mean over tokens of every frame, followed by the mean over frames of every token.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from torch_bridge.eventgpt_files import (
    eventgpt_config,
    llama_config,
    no_model,
    vision_config,
    weight_parts,
)
from torch_bridge.folders import text_ids, with_bos
from torch_bridge.loaded import LoadedModel
from torch_bridge.model_source import model_source, vision_tower_folder
from torch_bridge.pixels import clip_pixels
from torch_bridge.quantize import place
from torch_bridge.weights import fill
from xmsd_jax.config import ConfigError
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.quantisation import Quantisation

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
PROMPT = "{system} USER: <ev_start><event><ev_end>\n{question} ASSISTANT:"


def aggregate(features: Tensor) -> Tensor:
    """[..., f, s, d] frame tokens -> [..., f + s, d]: temporal tokens (means over s), then spatial ones (over f)."""
    return torch.cat([features.mean(-2), features.mean(-3)], dim=-2)


class _Tower(nn.Module):
    """One more level of naming, as the public checkpoints have it."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.visual_tower = CLIPVisionModel(config)


class EventGPTModel(LlamaModel):
    """The Llama with the event path beside it; `forward` is the Llama's own."""

    def __init__(self, config: LlamaConfig, vision: CLIPVisionConfig, *, adaptor: bool = True) -> None:
        super().__init__(config)
        self.visual_tower = _Tower(vision)
        self.visual_projector = nn.Sequential(
            nn.Linear(vision.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.feature_adaptor = nn.Linear(config.hidden_size, config.hidden_size) if adaptor else nn.Identity()


class EventGPTForCausalLM(nn.Module):
    """Names of parameters as in the public checkpoint: `model.*` and `lm_head.weight`.

    adaptor: whether it has a `feature_adaptor` (`event_feature_adaptor` in config.json). adaptor_passes: 1 is EventGPT;
    2 is what the study ran: it applied the adaptor to features that had gone through it (there after the aggregator,
    which is the same, as means and affine maps commute).
    """

    def __init__(
        self, config: LlamaConfig, vision: CLIPVisionConfig, *, adaptor: bool = True, adaptor_passes: int = 1
    ) -> None:
        super().__init__()
        self.config, self.vision_config, self.adaptor_passes = config, vision, adaptor_passes
        self.model = EventGPTModel(config, vision, adaptor=adaptor)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def event_features(self, pixels: Tensor) -> Tensor:
        """Event frames [b, 3, y, x] -> adapted tokens [b, s, d], CLS kept, no post-norm."""
        tokens = self.model.visual_tower.visual_tower(pixels).last_hidden_state
        features = self.model.visual_projector(tokens)
        for _ in range(self.adaptor_passes):
            features = self.model.feature_adaptor(features)
        return features

    def event_tokens(self, pixels: Tensor) -> Tensor:
        """Event frames of clips [c, f, 3, y, x] -> [c, f + s, d]: each clip's own, aggregated."""
        return aggregate(self.event_features(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))


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

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights and configuration file, and of the adaptor's passes unless there is one."""
        passes = self.model.adaptor_passes
        own = super().fingerprint
        return own if passes == 1 else hashlib.sha256(f"{own} adaptor_passes={passes}".encode()).hexdigest()

    def prompt_pieces(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Text ids before and after the event tokens; the pieces are tokenised apart, BOS once."""
        before, after = PROMPT.split("<event>")
        told = text_ids(self.tokenizer, after.format(question=question))
        return with_bos(self.tokenizer, before.format(system=SYSTEM)), told

    def pixels(self, clip: Clip, device: torch.device | None = None) -> Tensor:
        """The clip's event frames as float32[f, 3, y, x]."""
        return clip_pixels(clip.event_frames(self.event_frames), self._image_size, device=device)

    def visual(self, pixels: Tensor) -> Tensor:
        """Frames [c, f, 3, y, x] -> event tokens [c, f + s, d] (582 for five frames of the 7B model, 578 for one)."""
        return self.model.event_tokens(pixels)


def load_drafter(
    folder: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    event_frames: EventFrames | None = None,
    vision_tower: str | Path | None = None,
    adaptor_passes: int = 1,
    quantisation: Quantisation | None = None,
) -> EventGPT:
    """Load an EventGPT checkpoint of the public format in float32 or bfloat16.

    Args:
        folder: the checkpoint, or its hub id: config.json, tokenizer and weights (safetensors or `.bin`, also sharded).
        dtype: "float32" or "bfloat16"; the tables of the rotary embedding stay float32.
        device: "cpu", "cuda" or "cuda:1".
        event_frames: what it sees of a clip's events; five frames by default.
        vision_tower: the folder or hub id of its CLIP where config.json names none that is there. It gives the tower's
            configuration, and its weights where the checkpoint holds none.
        adaptor_passes: 2 for the study's figures, see `EventGPTForCausalLM`.
        quantisation: which layers are held in 4 bits; none by default.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit config.json.
    """
    folder = model_source(folder)
    config = eventgpt_config(folder)
    tower = vision_tower_folder(folder, config.get("mm_visual_tower"), vision_tower)
    model = _unfilled(config, folder, tower, adaptor_passes)
    fill(model, weight_parts(folder, tower), dtype=getattr(torch, dtype), where=folder)
    place(model, quantisation or Quantisation(), dtype=getattr(torch, dtype), device=torch.device(device))
    return EventGPT(model, folder, event_frames or EventFrames())


def _unfilled(config: dict[str, Any], folder: Path, tower: Path, adaptor_passes: int) -> EventGPTForCausalLM:
    """The model without weights: parameters on the meta device, buffers that no checkpoint holds on the CPU."""
    llama, vision = llama_config(config, folder), vision_config(tower)
    adaptor = bool(config.get("event_feature_adaptor"))
    if adaptor_passes not in (1, 2) or (adaptor_passes == 2 and not adaptor):
        raise ConfigError(
            "adaptor_passes: must be 1, or 2 for a model with an event_feature_adaptor; got "
            f"{adaptor_passes} for {folder}, whose event_feature_adaptor is {adaptor}"
        )
    try:
        with torch.device("meta"):
            model = EventGPTForCausalLM(llama, vision, adaptor=adaptor, adaptor_passes=adaptor_passes)
        compute_buffers(model, llama)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise no_model(folder, error) from error
    return model


def compute_buffers(model: nn.Module, llama: LlamaConfig) -> None:
    """Compute what no checkpoint holds, after a construction on the meta device: rotary frequencies, position ids."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRotaryEmbedding):
            model.set_submodule(name, LlamaRotaryEmbedding(llama))
        elif isinstance(module, CLIPVisionEmbeddings):
            module.register_buffer("position_ids", torch.arange(module.num_positions)[None], persistent=False)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"every buffer must be computed, {left} are not; this version of transformers has new ones")
