"""What both models of a pair have once they are loaded from a folder: tokenizer, head, facts, fingerprint."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel

from torch_bridge.folders import EOS, model_fingerprint, read_json, read_tokenizer, token_id
from torch_bridge.footprint import Footprint, footprint
from torch_bridge.model_source import model_name
from torch_bridge.quantize import quantised
from xmsd_jax.data.clips import Clip

FRAMES = 64  # through a tower at once: a GPU is busy with them, and what a layer makes of them takes little memory


class LoadedModel(ABC):
    """A model in evaluation mode; with `prompt_pieces`, `pixels` and `visual` it is a `torch_bridge.vlm.VLM`."""

    def __init__(self, model: nn.Module, folder: Path, *, kind: str, real_vocabulary: int) -> None:
        """Read the folder's tokenizer and configuration; `kind` names the architecture in tables."""
        self._model = model.eval().requires_grad_(False)
        self.tokenizer = read_tokenizer(folder)
        self.config_dict: dict[str, Any] = read_json(folder, "config.json")
        self.name = f"{kind}:{model_name(folder)}"
        self.eos_id = token_id(self.tokenizer, EOS)
        self.real_vocabulary = real_vocabulary

    @property
    @abstractmethod
    def language_model(self) -> LlamaModel:
        """The Llama that reads embeddings and gives post-norm states."""

    @property
    @abstractmethod
    def lm_head(self) -> nn.Linear:
        """States -> logits over the (padded) vocabulary."""

    @abstractmethod
    def pixels(self, clip: Clip, device: torch.device | None = None) -> Tensor:
        """What the model looks at of a clip, on the host or made on a device."""

    @abstractmethod
    def visual(self, pixels: Tensor) -> Tensor:
        """Frames of clips [c, f, 3, y, x], on the device -> what stands at their visual places, [c, s, d]."""

    def look(self, pixels: Tensor) -> Tensor:
        """What stands at the visual place, [s, d]."""
        return self.look_all([pixels])[0]

    @torch.inference_mode()
    def look_all(self, pixels: Sequence[Tensor]) -> Tensor:
        """The same of several clips, [c, s, d]: their frames pass the tower together, at most FRAMES at once."""
        counts = [len(frames) for frames in pixels]
        if len(set(counts)) > 1:
            raise ValueError(
                f"clips of a batch must show equally many frames; received {counts}: use batch 1, or clips of one kind"
            )
        step = max(1, FRAMES // counts[0])
        groups = [torch.stack([*pixels[first : first + step]]) for first in range(0, len(pixels), step)]
        return torch.cat([self.visual(group.to(self.device, self.dtype)) for group in groups])

    def encode(self, clip: Clip) -> Tensor:
        """The same, of a clip."""
        return self.look(self.pixels(clip))

    @property
    def width(self) -> int:
        """d, the width of a state."""
        return self.lm_head.in_features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states."""
        return self.language_model.norm.weight.dtype

    @property
    def quantisation(self) -> str:
        """The policy of a quantised model in words, else "none"."""
        found = quantised(self._model)
        return "none" if found is None else found.policy

    @property
    def footprint(self) -> Footprint:
        """The bytes of the weights, by part."""
        return footprint(self._model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights and configuration file: the same under every version of transformers.

        Of a quantised model: of its full weights, the policy and the configuration file; the same on every device.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        found = quantised(self._model)
        if found is None:
            return model_fingerprint(self._model, self.config_dict)
        known = [found.weights, found.policy, self.config_dict]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
