"""Configurations of the small pair: every dimension a multiple of 64, at most four million parameters each."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from torch_bridge.eventgpt import EventGPTForCausalLM
from torch_bridge.folders import quiet_transformers
from torch_bridge.tiny.vocabulary import TARGET_EXTRA
from torch_bridge.video_llava import VIDEO_FRAMES

IMAGE_SIZE, PATCH = 96, 16
VISION_TOKENS = (IMAGE_SIZE // PATCH) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class PairShape:
    """Sizes of both models; heads have 32 dimensions."""

    width: int = 256
    vocabulary: int = 1024
    target_layers: int = 4
    target_ffn: int = 320
    drafter_layers: int = 3
    drafter_ffn: int = 512
    vision_width: int = 128
    vision_ffn: int = 256
    vision_layers: int = 4
    positions: int = 1024

    @property
    def target_rows(self) -> int:
        """Rows of the target's head: text, `<image> <video> <pad>`, padded to a multiple of 64."""
        return -(-(self.vocabulary + len(TARGET_EXTRA)) // 64) * 64


def vision_config(shape: PairShape) -> CLIPVisionConfig:
    """CLIP ViT at 96 pixels: 36 patches of 16 pixels and CLS."""
    return CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_ffn,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // 32,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=shape.vision_width,
    )


def _llama(shape: PairShape, rows: int, layers: int, ffn: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=shape.width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=shape.width // 32,
        num_key_value_heads=shape.width // 32,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def new_target(shape: PairShape) -> VideoLlavaForConditionalGeneration:
    """A Video-LLaVA with random weights."""
    image, video = shape.vocabulary, shape.vocabulary + 1
    config = VideoLlavaConfig(
        vision_config=vision_config(shape),
        text_config=_llama(shape, shape.target_rows, shape.target_layers, shape.target_ffn),
        image_token_index=image,
        video_token_index=video,
        image_seq_length=VISION_TOKENS - 1,
        video_seq_length=VIDEO_FRAMES * VISION_TOKENS,
        vision_feature_layer=-2,
    )
    return VideoLlavaForConditionalGeneration(config)


def new_drafter(shape: PairShape) -> EventGPTForCausalLM:
    """An EventGPT with random weights, initialised as transformers initialises its Llama and CLIP."""
    config = _llama(shape, shape.vocabulary, shape.drafter_layers, shape.drafter_ffn)
    model = EventGPTForCausalLM(config, vision_config(shape))
    for module in (model.lm_head, model.model.feature_adaptor, *model.model.visual_projector):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=config.initializer_range)
    return model


def save_target(model: VideoLlavaForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder in bfloat16 as `from_pretrained` reads it, with the tokenizer.

    The image tower, which a video never uses, is written as the video tower's copy.
    """
    model.model.image_tower.load_state_dict(model.model.video_tower.state_dict())
    with quiet_transformers():
        model.bfloat16().save_pretrained(folder)
    model.float()
    save_tokenizer(tokenizer, folder, TARGET_EXTRA)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, extra: tuple[str, ...] = ()) -> None:
    """tokenizer.json; the target's also names its placeholders (ids right after the text)."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens(list(extra))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(copy.to_str()), ensure_ascii=False) + "\n")
