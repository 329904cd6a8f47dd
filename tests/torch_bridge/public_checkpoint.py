"""Small random checkpoints in the format of the public EventGPT, written by name and shape, without our classes.

Names, keys and files are those of checkpoints that old versions of transformers wrote: a nested vision tower, buffers
among the weights, `rope_theta` at the top of config.json, keys of the training run.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import torch_bridge

TOKENIZER = Path(torch_bridge.__file__).parent / "tiny" / "weights" / "drafter" / "tokenizer.json"
TOWER = "model.visual_tower.visual_tower."
WIDTH, FFN, LAYERS, HEADS, VOCABULARY, THETA, RMS_EPS = 48, 80, 2, 4, 1024, 5000.0, 1e-5
CLIP_WIDTH, CLIP_FFN, CLIP_LAYERS, CLIP_HEADS, IMAGE, PATCH, LN_EPS = 32, 64, 2, 4, 28, 14, 1e-5
LLAMA_CONFIG = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["EventChatModel"], "model_type": "EventChat_llama",
    "mm_visual_tower": "openai/clip-vit-large-patch14-336", "event_feature_adaptor": True, "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
    "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": FFN, "max_position_embeddings": 256,
    "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS, "pretraining_tp": 1,
    "rms_norm_eps": RMS_EPS, "rope_scaling": None, "rope_theta": THETA, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": False, "vocab_size": VOCABULARY,
    "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False, "mm_use_im_patch_token": False,
}  # fmt: skip
CLIP_CONFIG = {
    "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_act": "quick_gelu",
    "hidden_size": CLIP_WIDTH, "intermediate_size": CLIP_FFN, "num_hidden_layers": CLIP_LAYERS,
    "num_attention_heads": CLIP_HEADS, "image_size": IMAGE, "patch_size": PATCH, "layer_norm_eps": LN_EPS,
    "projection_dim": 24, "dropout": 0.0, "torch_dtype": "float32",
}  # fmt: skip


def llama_weights(width: int = WIDTH, ffn: int = FFN, vocabulary: int = VOCABULARY) -> dict[str, Tensor]:
    """The language model, the projector and the adaptor; wide values make every step of the forward count."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{kind}_proj.weight": (width, width) for kind in "qkvo"}
        shapes |= {f"{at}mlp.{kind}_proj.weight": (ffn, width) for kind in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, ffn)}
        shapes |= {f"{at}{kind}_layernorm.weight": (width,) for kind in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    for name, into in (("visual_projector.0", CLIP_WIDTH), ("visual_projector.2", width), ("feature_adaptor", width)):
        shapes |= {f"model.{name}.weight": (width, into), f"model.{name}.bias": (width,)}
    return _random(shapes, 1)


def clip_weights(image: int = IMAGE) -> dict[str, Tensor]:
    """A vision tower under the flat names of transformers 5."""
    wide, ffn, patches = CLIP_WIDTH, CLIP_FFN, (image // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (wide,),
        "embeddings.patch_embedding.weight": (wide, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": (patches + 1, wide),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{name}.{kind}": (wide,) for kind in ("weight", "bias")}
    for layer in range(CLIP_LAYERS):
        at = f"encoder.layers.{layer}."
        linear = {f"self_attn.{kind}": (wide, wide) for kind in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, (out, into) in (linear | {"mlp.fc1": (ffn, wide), "mlp.fc2": (wide, ffn)}).items():
            shapes |= {f"{at}{name}.weight": (out, into), f"{at}{name}.bias": (out,)}
        shapes |= {f"{at}layer_norm{n}.{kind}": (wide,) for n in (1, 2) for kind in ("weight", "bias")}
    return _random(shapes, 2)


def _random(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: 0.15 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def nested(tower: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """As before transformers 5: one level more, and a buffer of whole numbers among the weights."""
    rows = len(tower["embeddings.position_embedding.weight"])
    buffer = {"embeddings.position_ids": torch.arange(rows)[None]}
    return {f"{prefix}vision_model.{name}": tensor for name, tensor in (dict(tower) | buffer).items()}


def old_buffers() -> dict[str, Tensor]:
    """What old Llamas wrote beside their weights; the values are wrong on purpose: they must not be used."""
    return {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(6) for n in range(LAYERS)}


def write(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor], files: str) -> Path:
    """A model folder; `files` is "safetensors", "bin", "sharded safetensors", "sharded bin" or "old bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    kind = files.split()[-1]
    single = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    if not files.startswith("sharded"):
        _save(tensors, folder / single, zipped=files != "old bin")
        return folder
    stem, suffix = single.split(".")
    weight_map = {name: f"{stem}-{1 + number % 3:05}-of-00003.{suffix}" for number, name in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        _save({name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}, folder / shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / f"{single}.index.json").write_text(json.dumps(index))
    return folder


def _save(tensors: Mapping[str, Tensor], path: Path, *, zipped: bool = True) -> None:
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        torch.save(dict(tensors), path, _use_new_zipfile_serialization=zipped)


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], files: str = "safetensors", **keys: object) -> Path:
    """An EventGPT folder with a tokenizer; `keys` replace keys of its config.json."""
    write(folder, LLAMA_CONFIG | keys, tensors, files)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder
