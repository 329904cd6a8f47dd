"""The bytes that a loaded model's weights take, by part, with what quantisation adds to them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_bridge.joined_4bit import Joined4bit
from torch_bridge.nf4.linear import FusedNF4Linear, ParallelNF4, is_fused
from xmsd_jax.data.quantisation import HEAD, PROJECTORS, TOWERS, names

PARTS = ("linears", "norms", "embeddings", "head", "towers", "projector", "tables")
_BY_NAME = {"head": (HEAD,), "towers": TOWERS, "projector": PROJECTORS}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Bytes of one part: `weights`, and `scales`, the quantisation state of those that are quantised."""

    weights: int = 0
    scales: int = 0

    @property
    def total(self) -> int:
        """All bytes of the part."""
        return self.weights + self.scales


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes by part: the language model's linears, norms and embeddings, head, towers, projector, and buffers."""

    parts: Mapping[str, Part]

    @property
    def total(self) -> int:
        """All bytes of the model."""
        return sum(part.total for part in self.parts.values())

    def __str__(self) -> str:
        told = [f"{name} {_shown(p.weights)}{_scales(p)}" for name, p in self.parts.items() if p.total]
        return f"{_shown(self.total)} = {' + '.join(told)}"

    def to_json(self) -> dict[str, dict[str, int]]:
        """Bytes as JSON values, for results."""
        return {name: {"weights": part.weights, "scales": part.scales} for name, part in self.parts.items()}


def footprint(model: nn.Module) -> Footprint:
    """Count parameters, buffers and quantisation states; memory that several share is counted once."""
    sums = {name: {"weights": 0, "scales": 0} for name in PARTS}
    seen: set[tuple[str, int]] = set()
    for part, kind, tensor in _held(model):
        place = (str(tensor.device), tensor.data_ptr())
        if place not in seen:
            seen.add(place)
            sums[part][kind] += tensor.numel() * tensor.element_size()
    return Footprint(parts={name: Part(**found) for name, found in sums.items()})


def _held(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            part = _part(name, module)
            yield part, "weights", parameter.data
            if own == "weight":
                yield from ((part, "scales", tensor) for tensor in _state(getattr(parameter, "quant_state", None)))
        for own, buffer in module.named_buffers(recurse=False):
            yield _part(name, module) if own == "tiles" else "tables", "weights", buffer
        if is_fused(module) or isinstance(module, Joined4bit):
            yield from ((_part(name, module), "scales", tensor) for tensor in _state(module.quant_state))


def _part(name: str, module: nn.Module) -> str:
    for part, entries in _BY_NAME.items():
        if any(names(entry, name) for entry in entries):
            return part
    if isinstance(module, nn.Embedding):
        return "embeddings"
    return "linears" if isinstance(module, nn.Linear | FusedNF4Linear | ParallelNF4 | Joined4bit) else "norms"


def _state(state: Any) -> Iterator[Tensor]:
    """The tensors of a bitsandbytes QuantState, and of the one inside it when scales are quantised themselves."""
    while state is not None:
        for name in ("absmax", "code", "offset"):
            if isinstance(value := getattr(state, name, None), Tensor):
                yield value
        state = getattr(state, "state2", None)


def _shown(size: int) -> str:
    unit, word = next(((u, w) for u, w in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u), (1, "B"))
    return f"{size / unit:.2f} {word}"


def _scales(part: Part) -> str:
    return f" (+ {_shown(part.scales)} of scales)" if part.scales else ""
