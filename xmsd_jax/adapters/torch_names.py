"""Checkpoints of the original study (PyTorch state dicts) to and from the adapters here, value for value.

A state dict comes as a mapping from its names to numpy arrays, so that this module needs no torch. What differs is
naming and layout: PyTorch's Linear weights are [out, in], kernels here [in, out].
"""

import re
from collections.abc import Mapping

import numpy as np

from xmsd_jax.adapters.files import AdapterError, assign, named_parameters, named_shapes, parameter_faults
from xmsd_jax.adapters.interface import Adapter
from xmsd_jax.adapters.kinds import KINDS, kind_of, outline
from xmsd_jax.config import ConfigError

# Prefixes of our names -> the original's; `#` is a block's number. Other prefixes are the same in both.
_LAYER = {
    "layer.attn_norm.": "layers.0.attn_norm.",
    "layer.qkv.": "layers.0.attn.in_proj_",
    "layer.out.": "layers.0.attn.out_proj.",
    "layer.ffn_norm.": "layers.0.ffn_norm.",
    "layer.ffn_in.": "layers.0.ffn.0.",
    "layer.ffn_out.": "layers.0.ffn.3.",
    "output.alpha": "alpha",
}
_EAGLE = {**_LAYER, "output.norm.": "output_norm.", "output.proj.": "output_proj."}
_BOTTLENECK = {"norm.": "layer_norm.", "down.": "down_proj.", "up.": "up_proj.", "alpha": "alpha_param"}
PREFIXES: Mapping[str, Mapping[str, str]] = {
    "L1": {f"blocks.#.{ours}": f"layers.#.{theirs}" for ours, theirs in _BOTTLENECK.items()},
    "L2": {f"blocks.#.{ours}": f"blocks.#.{theirs}" for ours, theirs in _BOTTLENECK.items()},
    "L3": {
        "blocks.#.down.": "blocks.#.0.",
        "blocks.#.norm.": "blocks.#.1.",
        "blocks.#.up.": "blocks.#.4.",
        "blocks.#.alpha": "alphas.#",
    },
    "L4": {**_LAYER, "output.norm.": "output_proj.0.", "output.proj.": "output_proj.1."},
    "L5": _EAGLE,
    "B1": _EAGLE,
    "L5F": {**_EAGLE, "gate.": "gate.0.", "fusion.": "fusion_proj."},
}
GIVE_WIDTH = ("final_norm.weight", "final_norm.bias", "layers.0.attn_norm.weight", "layers.0.attn_norm.bias")
REMEDY = "give the state dict of the original's {kind}, without wrappers around its names"


def original_name(kind: str, ours: str) -> str:
    """The original's name of a parameter: ("L1", "blocks.0.up.kernel") -> "layers.0.up_proj.weight"."""
    number = re.search(r"\.(\d+)\.", ours)
    name = re.sub(r"\.\d+\.", ".#.", ours)
    prefix = next((prefix for prefix in PREFIXES[kind] if name.startswith(prefix)), "")
    name = PREFIXES[kind].get(prefix, "") + name.removeprefix(prefix)
    return re.sub(r"(kernel|scale)$", "weight", name).replace("#", number[1] if number else "")


def from_torch(kind: str, tensors: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter whose parameters are those of a checkpoint of the original.

    Width, and L3's number of blocks, come from the tensors. Alphas may be scalars or [1]; `pos_embed` may have a
    leading axis of 1.

    Args:
        kind: L1, L2, L3, L4, L5, B1, L5F.
        tensors: the state dict.

    Raises:
        AdapterError: names missing or unknown, tensors misshaped or not finite, all in one line.
        ConfigError: an unknown kind, or one that the original does not have.
    """
    _check_is_original(kind)
    width = next((tensors[name].shape[0] for name in GIVE_WIDTH if name in tensors and tensors[name].ndim == 1), None)
    try:
        adapter = outline(kind, width or 16, blocks=_blocks(kind, tensors))  # 16: for its names alone
    except ConfigError as error:
        raise AdapterError(f"checkpoint of {kind}: {error}; {REMEDY.format(kind=kind)}") from None
    shapes = named_shapes(adapter)
    wanted = {original_name(kind, ours): _allowed(ours, shape) for ours, shape in shapes.items()}
    if width is None:
        wanted = {name: (tensors[name].shape,) if name in tensors else () for name in wanted}
    faults = parameter_faults(tensors, wanted)
    if width is None:
        faults.append(f"the width is unknown: {' and '.join(n for n in wanted if n in GIVE_WIDTH)} must be vectors")
    if faults:
        raise AdapterError(f"checkpoint of {kind}: {'; '.join(faults)}; {REMEDY.format(kind=kind)}")
    turned = {ours: _turned(ours, tensors[original_name(kind, ours)]).reshape(shape) for ours, shape in shapes.items()}
    assign(adapter, turned, f"checkpoint of {kind}")
    return adapter


def to_torch(adapter: Adapter, kind: str) -> dict[str, np.ndarray]:
    """The state dict of the original for an adapter: copies; alphas are scalars, `pos_embed` is [512, d].

    Raises:
        AdapterError: the adapter is not of that kind, or has a number of blocks that the original never had.
        ConfigError: an unknown kind, or one that the original does not have.
    """
    _check_is_original(kind)
    blocks = len(getattr(adapter, "blocks", ())) or None
    is_kind = adapter.facts == KINDS[kind].facts and set(named_shapes(adapter)) == _names(kind, blocks)
    if not is_kind or (kind != "L3" and blocks != KINDS[kind].blocks):
        own = type(adapter).__name__ + (f" of {blocks} blocks" if blocks else "")
        raise AdapterError(f"state dict of {kind}: needs an adapter as the original has it, got {own}")
    values = {ours: np.array(value) for ours, value in named_parameters(adapter).items()}
    return {original_name(kind, ours): np.array(_turned(ours, value), order="C") for ours, value in values.items()}


def _check_is_original(kind: str) -> None:
    kind_of(kind)
    if kind not in PREFIXES:
        raise ConfigError(f"adapter kind: {kind!r}: the original has no such adapter; it has {', '.join(PREFIXES)}")


def _blocks(kind: str, tensors: Mapping[str, np.ndarray]) -> int | None:
    """Blocks by their numbers in the names; only L3 was trained with different ones."""
    numbers = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    return (len(numbers) or KINDS[kind].blocks) if kind == "L3" else KINDS[kind].blocks


def _names(kind: str, blocks: int | None) -> set[str]:
    return set(named_shapes(outline(kind, 16, blocks=blocks if KINDS[kind].blocks else None)))


def _turned(ours: str, value: np.ndarray) -> np.ndarray:
    return value.T if ours.endswith("kernel") else value


def _allowed(ours: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes that the original's tensor may have; the first is the one that errors name."""
    if ours.endswith("kernel"):
        return (shape[::-1],)
    return (shape, (1, *shape)) if ours.endswith(("alpha", "pos_embed")) else (shape,)
