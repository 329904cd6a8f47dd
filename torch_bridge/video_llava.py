"""The target: transformers' own `VideoLlavaForConditionalGeneration`, wrapped as a `torch_bridge.vlm.VLM`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import LlamaModel, VideoLlavaForConditionalGeneration

from torch_bridge.folders import (
    ModelFolderError,
    misfit,
    quiet_transformers,
    read_json,
    text_ids,
    with_bos,
)
from torch_bridge.loaded import LoadedModel
from torch_bridge.model_source import model_source
from torch_bridge.pixels import clip_pixels
from torch_bridge.quantize import place
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.quantisation import Quantisation

VIDEO_FRAMES = 8
BEFORE_VIDEO, AFTER_VIDEO = "USER: ", "\n{question} ASSISTANT:"


def video_tokens(model: VideoLlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Frames [b, f, 3, y, x] -> video tokens [b, s, d]: tower layer -2 with CLS, projected, frame after frame."""
    output: Any = model.model.get_video_features(pixels)
    features: Tensor = output.pooler_output
    return features.reshape(len(pixels), -1, features.shape[-1])


def chosen_frames(count: int) -> np.ndarray:
    """Which of a video's frames are seen, int64[8]: `linspace(0, count - 1, 8)` cut to whole numbers, as in the study.

    transformers' own examples take `arange(0, count, count / 8)`, which never sees the last frames.
    """
    return np.linspace(0, count - 1, VIDEO_FRAMES).astype(np.int64)


class Target(LoadedModel):
    """A Video-LLaVA in evaluation mode with its tokenizer; states are those of its Llama after the final norm."""

    def __init__(self, model: VideoLlavaForConditionalGeneration, folder: Path) -> None:
        real = min(model.config.image_token_index, model.config.video_token_index)
        super().__init__(model, folder, kind="video-llava", real_vocabulary=real)
        self.model = model
        self._image_size = int(model.config.to_dict()["vision_config"]["image_size"])

    @property
    def language_model(self) -> LlamaModel:
        """The Llama that reads embeddings and gives post-norm states."""
        return self.model.model.language_model

    @property
    def lm_head(self) -> nn.Linear:
        """States -> logits over the padded vocabulary."""
        return self.model.lm_head

    def prompt_pieces(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Text ids before and after the video tokens: `USER: <video>\\n{question} ASSISTANT:`, BOS first."""
        after = text_ids(self.tokenizer, AFTER_VIDEO.format(question=question))
        return with_bos(self.tokenizer, BEFORE_VIDEO), after

    def pixels(self, clip: Clip, device: torch.device | None = None) -> Tensor:
        """The eight chosen frames as float32[8, 3, y, x]."""
        return clip_pixels(clip.video, self._image_size, chosen_frames(len(clip.video)), device)

    def visual(self, pixels: Tensor) -> Tensor:
        """Frames [c, f, 3, y, x] -> video tokens [c, s, d] (2056 in the 7B model)."""
        return video_tokens(self.model, pixels)


def load_target(
    folder: str | Path, *, dtype: str = "float32", device: str = "cpu", quantisation: Quantisation | None = None
) -> Target:
    """Load a `VideoLlavaForConditionalGeneration` in float32 or bfloat16; `quantisation` of none by default.

    `folder` may be a hub id, see `model_source`. Names of weights may be those of any age of the format.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit config.json, or a quantisation that its layers
            do not allow.
    """
    folder = model_source(folder)
    config = read_json(folder, "config.json")
    if config.get("model_type") != "video_llava":
        raise ModelFolderError(
            f"{folder}/config.json: model_type is not video_llava; give a Video-LLaVA folder as target"
        )
    if config.get("quantization_config"):
        raise ModelFolderError(
            f"{folder}/config.json: has a quantization_config, its weights cannot be cast or quantised anew; give the "
            "full checkpoint and choose its format by pair.quantisation"
        )
    model, info = _from_pretrained(folder, getattr(torch, dtype))
    faults = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if faults:
        missing, unexpected = (faults.pop(kind, []) for kind in ("missing_keys", "unexpected_keys"))
        rest = [name for names in faults.values() for name in names]
        raise misfit(folder, missing=missing, unexpected=unexpected, shapes=rest)
    place(model, quantisation or Quantisation(), dtype=getattr(torch, dtype), device=torch.device(device))
    return Target(model, folder)


def _from_pretrained(folder: Path, dtype: torch.dtype) -> tuple[VideoLlavaForConditionalGeneration, dict[str, Any]]:
    """The model, and what transformers found wrong with its weights, by kind."""
    load: Any = VideoLlavaForConditionalGeneration.from_pretrained
    try:
        with quiet_transformers():
            return load(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # then they are reported with the rest
                output_loading_info=True,
            )
    except (SafetensorError, StrictDataclassError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFolderError(f"{folder}: cannot be loaded ({reason}); download the model again") from error
