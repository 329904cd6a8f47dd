"""Both models of a pair with random weights at any size, the public 7B ones by default, without a file of weights.

For measuring speed and memory: what such a pair answers means nothing. Its parameters are drawn on the device they stay
on, module by module, then placed as loaded ones are (`torch_bridge.quantize`): beside the models that are done, the
device holds one in full precision. Every state is finite: each product keeps the variance of what it is given. The
heads' row of `</s>` is zero, so every answer runs to its limit.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from torch_bridge.eventgpt import EventGPT, EventGPTForCausalLM, compute_buffers
from torch_bridge.made_tokenizer import SPECIAL, made_tokenizer
from torch_bridge.quantize import place
from torch_bridge.video_llava import VIDEO_FRAMES, Target
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.data.quantisation import Quantisation

POSITIONS = 4096
EOS_ID = SPECIAL.index("</s>")


class MadeTarget(Target):
    """A target of random weights, which its shape and seed identify: they are not hashed."""

    made: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the weights were drawn by."""
        return self.made


class MadeEventGPT(EventGPT):
    """A drafter of random weights, which its shape and seed identify: they are not hashed."""

    made: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the weights were drawn by."""
        return self.made


def made_pair(
    shape: MadeShape,
    quantisation: Quantisation,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[Target, EventGPT]:
    """A target and a drafter of this shape on one device, in `dtype` or in 4 bits; the same for the same seed.

    Raises:
        ConfigError: a vocabulary too small for the prompts, or sides that the quantisation cannot take.
    """
    how = {"device": device, "dtype": dtype, "seed": seed}
    return made_target(shape, quantisation, **how), made_drafter(shape, quantisation, **how)


def made_target(
    shape: MadeShape, quantisation: Quantisation, *, device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Target:
    """The target of such a pair alone. Raises ConfigError as `made_pair`."""
    how = _How(shape, quantisation, torch.device(device), dtype, seed)
    model = _placed(unfilled_target(shape), how, seed)
    with tempfile.TemporaryDirectory() as scratch:
        made = MadeTarget(model, _folder(Path(scratch) / "target" / how.name, model.config, shape, True))
    made.made = how.digest("target")
    return made


def made_drafter(
    shape: MadeShape, quantisation: Quantisation, *, device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> EventGPT:
    """The drafter of such a pair alone. Raises ConfigError as `made_pair`."""
    how = _How(shape, quantisation, torch.device(device), dtype, seed)
    model = _placed(unfilled_drafter(shape), how, seed + 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder(Path(scratch) / "drafter" / how.name, model.config, shape, False)
        made = MadeEventGPT(model, folder, EventFrames())
    made.made = how.digest("drafter")
    return made


class _How(NamedTuple):
    """By what a pair's weights are drawn and held."""

    shape: MadeShape
    quantisation: Quantisation
    device: torch.device
    dtype: torch.dtype
    seed: int

    @property
    def name(self) -> str:
        """Of a model's folder."""
        return f"made-{self.shape.layers}x{self.shape.width}"

    def digest(self, which: str) -> str:
        """What identifies one of the two models."""
        facts = [repr(self.shape), str(self.dtype), repr(self.quantisation), self.seed]
        return _digest([which, *facts, self.device.type, torch.__version__])


def _placed(model: Any, how: _How, seed: int) -> Any:
    """Draw a model's parameters on the device, and quantise them there."""
    draws = torch.Generator(how.device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            _fill(module, how.device, how.dtype, draws)
        model.lm_head.weight[EOS_ID] = 0
    return place(model, how.quantisation, dtype=how.dtype, device=how.device, weights=f"random, seed {seed}")


def _fill(module: nn.Module, device: torch.device, dtype: torch.dtype, draws: torch.Generator) -> None:
    """Draw what a module itself holds: norms are one, biases zero, the rest keeps the variance of its input."""
    for name, old in list(module.named_parameters(recurse=False)):
        new = torch.empty(old.shape, dtype=dtype, device=device)
        if new.ndim == 1:
            new.fill_(1.0 if name == "weight" else 0.0)
        else:
            inputs = new[0].numel() if isinstance(module, nn.Linear | nn.Conv2d) else 1
            new.normal_(std=inputs**-0.5, generator=draws)
        setattr(module, name, nn.Parameter(new, requires_grad=False))


def unfilled_target(shape: MadeShape) -> VideoLlavaForConditionalGeneration:
    """The target with its parameters on the meta device: shapes without numbers."""
    llama = _llama(shape, shape.target_vocabulary)
    config = VideoLlavaConfig(
        vision_config=_clip(shape, shape.target_image),
        text_config=llama,
        image_token_index=shape.vocabulary,
        video_token_index=shape.vocabulary + 1,
        image_seq_length=shape.target_frame_tokens - 1,
        video_seq_length=VIDEO_FRAMES * shape.target_frame_tokens,
        vision_feature_layer=-2,
    )
    with torch.device("meta"):
        model = VideoLlavaForConditionalGeneration(config)
    compute_buffers(model, llama)
    return model


def unfilled_drafter(shape: MadeShape) -> EventGPTForCausalLM:
    """The drafter with its parameters on the meta device: shapes without numbers."""
    with torch.device("meta"):
        model = EventGPTForCausalLM(_llama(shape, shape.vocabulary), _clip(shape, shape.drafter_image))
    compute_buffers(model, model.config)
    return model


def _llama(shape: MadeShape, rows: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=EOS_ID,
    )


def _clip(shape: MadeShape, image: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=shape.tower_width,
        intermediate_size=shape.tower_ffn,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_heads,
        image_size=image,
        patch_size=shape.patch,
        projection_dim=shape.tower_width,
    )


def _folder(folder: Path, config: Any, shape: MadeShape, is_target: bool) -> Path:
    """What `LoadedModel` reads beside weights."""
    tokenizer: Tokenizer = made_tokenizer(shape.vocabulary, placeholders=is_target)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kept: Mapping[str, Any] = {key: value for key, value in config.to_dict().items() if key != "transformers_version"}
    (folder / "config.json").write_text(json.dumps({**kept, "weights": "random"}, default=str))
    return folder


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
