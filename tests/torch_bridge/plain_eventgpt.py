"""EventGPT's forward in plain torch operations, from a checkpoint's tensors: what the loaded model is compared with."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu, softmax

from tests.torch_bridge.public_checkpoint import (
    CLIP_HEADS,
    CLIP_LAYERS,
    CLIP_WIDTH,
    HEADS,
    LAYERS,
    LN_EPS,
    PATCH,
    RMS_EPS,
    THETA,
)

Weights = Mapping[str, Tensor]


@torch.inference_mode()
def logits(llama: Weights, clip: Weights, pixels: Tensor, before: Tensor, after: Tensor, passes: int = 1) -> Tensor:
    """Event frames [f, 3, y, x] between two pieces of ids -> logits [s, v] of every position."""
    table = llama["model.embed_tokens.weight"]
    row = torch.cat([table[before], event_tokens(llama, clip, pixels, passes), table[after]])
    return linear(states(llama, row), llama["lm_head.weight"])


def event_tokens(llama: Weights, clip: Weights, pixels: Tensor, passes: int = 1) -> Tensor:
    """[f, 3, y, x] -> [f + s, d]: tower, projector, adaptor; then means over tokens, then means over frames."""
    frames = []
    for frame in pixels:
        x = tower(clip, frame)
        x = gelu(affine(llama, "model.visual_projector.0", x))
        x = affine(llama, "model.visual_projector.2", x)
        for _ in range(passes):
            x = affine(llama, "model.feature_adaptor", x)
        frames.append(x)
    per_frame = [x.mean(dim=0) for x in frames]
    per_place = torch.stack(frames).mean(dim=0)
    return torch.cat([torch.stack(per_frame), per_place])


def affine(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def tower(clip: Weights, frame: Tensor) -> Tensor:
    """One image [3, y, x] -> [1 + patches, w]: CLS first, no norm at the end."""
    kernel = clip["embeddings.patch_embedding.weight"]
    patches = frame.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # channel, row, column, y, x
    rows = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1) @ kernel.flatten(1).T
    x = torch.cat([clip["embeddings.class_embedding"][None], rows]) + clip["embeddings.position_embedding.weight"]
    x = clip_norm(clip, "pre_layrnorm", x)
    for layer in range(CLIP_LAYERS):
        at = f"encoder.layers.{layer}."
        y = clip_norm(clip, f"{at}layer_norm1", x)
        q, k, v = (split(affine(clip, f"{at}self_attn.{kind}_proj", y), CLIP_HEADS) for kind in "qkv")
        x = x + affine(clip, f"{at}self_attn.out_proj", attention(q, k, v))
        y = affine(clip, f"{at}mlp.fc1", clip_norm(clip, f"{at}layer_norm2", x))
        x = x + affine(clip, f"{at}mlp.fc2", y * torch.sigmoid(1.702 * y))
    return x


def clip_norm(clip: Weights, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, (CLIP_WIDTH,), clip[f"{name}.weight"], clip[f"{name}.bias"], LN_EPS)


def states(llama: Weights, x: Tensor) -> Tensor:
    """Embeddings [s, d] -> post-norm states [s, d] of a causal Llama."""
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        y = rms_norm(x, llama[f"{at}input_layernorm.weight"])
        q, k, v = (split(linear(y, llama[f"{at}self_attn.{kind}_proj.weight"]), HEADS) for kind in "qkv")
        x = x + linear(attention(turned(q), turned(k), v, causal=True), llama[f"{at}self_attn.o_proj.weight"])
        y = rms_norm(x, llama[f"{at}post_attention_layernorm.weight"])
        gated = silu(linear(y, llama[f"{at}mlp.gate_proj.weight"])) * linear(y, llama[f"{at}mlp.up_proj.weight"])
        x = x + linear(gated, llama[f"{at}mlp.down_proj.weight"])
    return rms_norm(x, llama["model.norm.weight"])


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS)


def split(x: Tensor, heads: int) -> Tensor:
    """[s, d] -> [heads, s, d / heads]."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    return (softmax(scores, dim=-1) @ v).transpose(0, 1).flatten(1)


def turned(x: Tensor) -> Tensor:
    """Rotary positions: the dimension pair (i, i + half) of position p is turned by p * theta ** (-i / half)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * THETA ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
