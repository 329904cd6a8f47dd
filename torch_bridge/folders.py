"""Model folders: config.json, safetensors, tokenizer.json. Nothing that is loaded can run code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from xmsd_jax.config import UserError

BOS, EOS = "<s>", "</s>"


class ModelFolderError(UserError):
    """A model folder that cannot be used; the message names the file and the remedy."""


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model folder."""
    path = folder / name
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; give the folder of a downloaded model (it holds {name})")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ModelFolderError(f"{path}: not JSON ({error}); download the model again") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files (one, or shards), by name."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{folder}: holds no .safetensors file; download the weights in that format")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{file}: cannot be read ({error}); download it again") from None
    return tensors


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json; it must know <s> and </s>."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; save the model's fast tokenizer there")
    tokenizer = Tokenizer.from_file(str(path))
    for token in (BOS, EOS):
        if tokenizer.token_to_id(token) is None:
            raise ModelFolderError(f"{path}: has no token {token}; it is not a Llama-like tokenizer")
    return tokenizer


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Fill a model; every missing, unexpected or misshapen name stands in one error."""
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k} is {list(tensors[k].shape)}, needs {list(own[k].shape)}"
        for k in sorted(own.keys() & tensors.keys())
        if own[k].shape != tensors[k].shape
    ]
    if missing or unexpected or shapes:
        raise ModelFolderError(
            f"{where}: weights do not fit config.json; missing: {missing or 'none'}; unexpected: {unexpected or 'none'}; "
            f"shapes: {shapes or 'right'}; use weights and config of one model"
        )
    model.load_state_dict(dict(tensors))


def text_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of a piece of text, int32[t], without special tokens."""
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def model_fingerprint(model: nn.Module, config: Mapping[str, Any]) -> str:
    """SHA-256 over the configuration and all weights: what the states depend on."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
