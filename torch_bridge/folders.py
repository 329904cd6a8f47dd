"""Model folders: config.json, safetensors, tokenizer.json. Nothing that is loaded can run code."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.utils import logging as transformers_logging

from torch_bridge.model_source import ModelFolderError
from torch_bridge.tokenizer_model import llama_tokenizer

BOS, EOS = "<s>", "</s>"
_HASHED_AT_ONCE = 1 << 20  # numbers; what stays in a cache is hashed three times as fast as a whole tensor


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelFolderError: no such file, or one that holds something else.
    """
    path = folder / name
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; give the folder of a downloaded model (it holds {name})")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ModelFolderError(f"{path}: not JSON ({error}); download the model again") from None
    if not isinstance(found, dict):
        raise ModelFolderError(f"{path}: holds no JSON object but {type(found).__name__}; download the model again")
    return found


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json, else its Llama-like tokenizer.model.

    Raises:
        ModelFolderError: both are missing, or it cannot be read, or does not know <s> and </s>.
    """
    path, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    if not path.is_file():
        if not slow.is_file():
            raise ModelFolderError(f"{path}: missing, and no tokenizer.model; save the model's fast tokenizer there")
        path = slow
    try:
        tokenizer = llama_tokenizer(path) if path == slow else Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ModelFolderError(f"{path}: no tokenizer ({error}); download it again") from None
    for token in (BOS, EOS):
        if tokenizer.token_to_id(token) is None:
            raise ModelFolderError(f"{path}: has no token {token}; it is not a Llama-like tokenizer")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the tokenizer must have."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer must have the token {token}, it has none; use a Llama-like tokenizer")
    return number


def with_bos(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of the text that opens a prompt, int32[t]: BOS, then the text."""
    return np.concatenate([np.asarray([token_id(tokenizer, BOS)], np.int32), text_ids(tokenizer, text)])


def misfit(
    where: Path, *, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str]
) -> ModelFolderError:
    """The error about weights that do not fit their config.json; long lists are cut."""
    return ModelFolderError(
        f"{where}: weights do not fit config.json; missing: {_listed(missing)}; unexpected: {_listed(unexpected)}; "
        f"wrong shape: {_listed(shapes)}; use weights and config of one model"
    )


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and load reports: what matters in them becomes an error of ours."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def text_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of a piece of text, int32[t], without special tokens."""
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def model_fingerprint(model: nn.Module, config: Mapping[str, Any]) -> str:
    """SHA-256 over the configuration and all weights: what the states depend on."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        for part in tensor.detach().flatten().split(_HASHED_AT_ONCE):
            digest.update(part.to("cpu", torch.float32).numpy())
    return digest.hexdigest()
