"""Weights on their device in the dtype asked for, or in NF4 through bitsandbytes; what they take there.

A model is quantised layer by layer: beside the model on the host, the device holds the layers that are done and one
that is being done. bitsandbytes is imported when a model is quantised, which takes seconds.

Three traps on this road are closed here:
- transformers' `llm_int8_skip_modules` replaces the default list, so that naming the towers quantises the head. Here
  `Quantisation.keep` is the whole list, and the head is in it unless it is taken out.
- On CPUs with AVX512-BF16 the first forward packs the weights anew, in place: it drops the double quantisation, rounds
  scales to bfloat16, computes in bfloat16 whatever was asked for, and a later `state_dict()` or `save_pretrained()`
  spoils both the file and the live model. The packing is switched off: every CPU dequantises and multiplies.
- A row whose length is no multiple of the block shares a scale with the next one, and some kernels want both sides so:
  such layers are refused.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from torch_bridge.folders import model_fingerprint
from xmsd_jax.config import ConfigError
from xmsd_jax.data.quantisation import Quantisation, names

BLOCK = 64
_RECORD = "_xmsd_quantised"


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What is remembered of a quantised model: the policy in words, and the hash of its full weights."""

    policy: str
    weights: str


def place(
    model: nn.Module, policy: Quantisation, *, dtype: torch.dtype, device: torch.device, weights: str | None = None
) -> nn.Module:
    """Bring a loaded model to `device`: its parameters in `dtype`, or in 4 bits where `policy` says so.

    Buffers keep their dtype (tables of rotary embeddings are float32). The model itself is changed and returned.
    `weights` identifies the full weights where the caller knows what does; else they are hashed.

    Raises:
        ConfigError: a layer to quantise has a side that is no multiple of 64, or none is left to quantise.
        ValueError: the model is quantised already.
    """
    if quantised(model) is not None or any(is_4bit(module) for module in model.modules()):
        raise ValueError(
            "a model is placed once, from its full weights; this one is quantised already and its weights cannot be "
            "cast: load the model again"
        )
    if policy.format != "none":
        _quantise(model, policy, dtype, device, weights)
    for module in model.modules():
        if not is_4bit(module):
            _move(module, dtype, device)
    return model


def quantised(model: nn.Module) -> Quantised | None:
    """What `place` remembered of a model that it quantised; None for any other."""
    return getattr(model, _RECORD, None)


def check_kept(policy: Quantisation, models: Iterable[nn.Module]) -> None:
    """Raise ConfigError for an entry of `keep` that names nothing in any of the models, unless it is a default."""
    known = {name for model in models for name, _ in model.named_modules()}
    usual = Quantisation().keep
    for entry in policy.keep:
        if entry not in usual and not any(names(entry, name) for name in known):
            raise ConfigError(
                f"pair.quantisation.keep: {entry!r} names no module of the pair; give a full name such as "
                "model.language_model.layers.0, or its last parts"
            )


def dense_weight(linear: nn.Linear) -> Tensor:
    """The weight of a linear layer as [out, in], whether it is quantised or not; without gradient."""
    weight: Any = linear.weight
    if not is_4bit(linear):
        return weight.detach()
    return _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)


def _quantise(
    model: nn.Module, policy: Quantisation, dtype: torch.dtype, device: torch.device, weights: str | None
) -> None:
    """Replace every linear layer that the policy does not keep; the plain `nn.Linear` alone, as transformers does."""
    found = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = [name for name in found if not policy.keeps(name)]
    _check_sizes({name: found[name] for name in chosen})
    # Before anything changes: what comes out of quantisation may differ between devices and versions.
    known = weights or model_fingerprint(model, {})
    words = policy.describe(name for name, _ in model.named_modules())
    for name in chosen:
        model.set_submodule(name, _nf4(found.pop(name), policy, dtype, device))
    setattr(model, _RECORD, Quantised(policy=words, weights=known))


def _check_sizes(chosen: dict[str, nn.Linear]) -> None:
    if not chosen:
        raise ConfigError("pair.quantisation.keep: leaves no layer to quantise; keep less, or set the format to none")
    wrong = {name: m for name, m in chosen.items() if m.in_features % BLOCK or m.out_features % BLOCK}
    if wrong:
        name, module = next(iter(wrong.items()))
        raise ConfigError(
            f"pair.quantisation: nf4 needs sides that are multiples of {BLOCK}; {name} is "
            f"[{module.out_features}, {module.in_features}] ({len(wrong)} of {len(chosen)} layers do not fit): name "
            "such layers in quantisation.keep, or set the format to none"
        )


def _nf4(linear: nn.Linear, policy: Quantisation, dtype: torch.dtype, device: torch.device) -> nn.Module:
    library = _bitsandbytes()
    new = library.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=getattr(torch, policy.compute),
        compress_statistics=policy.double,
        quant_type=policy.format,
        device="meta",
    )
    new.weight = library.nn.Params4bit(
        linear.weight.detach().to(device, dtype),
        requires_grad=False,
        blocksize=BLOCK,
        compress_statistics=policy.double,
        quant_type=policy.format,
        module=new,
    ).to(device)
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach().to(device, dtype), requires_grad=False)
    new.support_avx512bf16_for_cpu = False
    return new.train(linear.training)


def _move(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Bring what a module itself holds, without its children."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else parameter.dtype)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))


def is_4bit(module: nn.Module) -> bool:
    """Whether bitsandbytes holds the module's weight; asked without importing it."""
    return type(getattr(module, "weight", None)).__name__ == "Params4bit"


def in_own_order(layer: Any) -> bool:
    """Whether a 4-bit layer's codes lie row by row, and no block of one scale belongs to two rows."""
    state = layer.weight.quant_state
    if state is None or getattr(state, "packing_format_for_cpu", False):
        return False
    return tuple(state.shape) == (layer.out_features, layer.in_features) and layer.in_features % state.blocksize == 0


def _bitsandbytes() -> Any:
    """The library, without its remark that an optional CPU kernel is not installed (it is never used here)."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(
            f"pair.quantisation: nf4 needs bitsandbytes, which cannot be imported ({error}); pip install 'xmsd[nf4]'"
        ) from None
    finally:
        logger.setLevel(before)
