"""The target: transformers' own `VideoLlavaForConditionalGeneration`, wrapped as a `torch_bridge.vlm.VLM`."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaModel, VideoLlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from torch_bridge.folders import BOS, EOS, ModelFolderError, model_fingerprint, read_json, read_tokenizer, text_ids
from torch_bridge.pixels import clip_pixels
from xmsd_jax.data.clips import Clip

VIDEO_FRAMES = 8
BEFORE_VIDEO, AFTER_VIDEO = "USER: ", "\n{question} ASSISTANT:"


class Target:
    """A Video-LLaVA in evaluation mode with its tokenizer; states are those of its Llama after the final norm."""

    def __init__(self, model: VideoLlavaForConditionalGeneration, folder: Path) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = read_tokenizer(folder)
        self.name = f"video-llava:{folder.name}"
        self.config_dict: dict[str, Any] = model.config.to_dict()
        self.eos_id = int(self.tokenizer.token_to_id(EOS))
        self.real_vocabulary = min(model.config.image_token_index, model.config.video_token_index)
        self._image_size = int(model.config.vision_config.image_size)

    @property
    def language_model(self) -> LlamaModel:
        """The Llama that reads embeddings and gives post-norm states."""
        return self.model.model.language_model

    @property
    def lm_head(self) -> nn.Linear:
        """States -> logits over the padded vocabulary."""
        return self.model.lm_head

    @property
    def width(self) -> int:
        """d, the width of a state."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states."""
        return self.language_model.norm.weight.dtype

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and configuration."""
        return model_fingerprint(self.model, self.config_dict)

    def prompt_pieces(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Text ids before and after the video tokens: `USER: <video>\\n{question} ASSISTANT:`, BOS first."""
        before = np.concatenate([[self.tokenizer.token_to_id(BOS)], text_ids(self.tokenizer, BEFORE_VIDEO)])
        return before.astype(np.int32), text_ids(self.tokenizer, AFTER_VIDEO.format(question=question))

    def pixels(self, clip: Clip) -> Tensor:
        """Eight frames, `linspace(0, n-1, 8)`, as float32[8, 3, y, x]."""
        chosen = np.linspace(0, len(clip.video) - 1, VIDEO_FRAMES).astype(int)
        return clip_pixels(clip.video[chosen], self._image_size)

    @torch.inference_mode()
    def encode(self, clip: Clip) -> Tensor:
        """Video tokens [s, d]: tower layer -2 with CLS, projected, frame after frame (2056 in the 7B model)."""
        pixels = self.pixels(clip).to(self.device, self.dtype)[None]
        return self.model.model.get_video_features(pixels).pooler_output.flatten(0, 1)


def load_target(folder: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Target:
    """Load a `VideoLlavaForConditionalGeneration` folder in float32 or bfloat16."""
    folder = Path(folder)
    if read_json(folder, "config.json").get("model_type") != "video_llava":
        raise ModelFolderError(f"{folder}/config.json: model_type is not video_llava; give a Video-LLaVA folder as target")
    transformers_logging.disable_progress_bar()
    model, info = VideoLlavaForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v and k != "error_msgs"}
    if wrong:
        raise ModelFolderError(f"{folder}: weights do not fit config.json: {wrong}; use weights and config of one model")
    return Target(model.to(device), folder)
