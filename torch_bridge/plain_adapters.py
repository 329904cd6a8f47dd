"""The seven adapters written plainly in PyTorch: the baseline that the training speed of this project is held against.

Formulas, initial values and names of parameters are those of the original study (D = 4096: bottleneck d/16, wide d/4,
feed-forward d/2, 8 heads, 512 positions, alpha 0.1). Dropout lies where the study has it: on attention weights, and
inside and after feed-forward parts. Where PyTorch has several ways to compute the same, the choice is the fastest one
under `torch.compile`, as far as it is known: see `SelfAttention` in `plain_layers`.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from torch_bridge.plain_layers import Attention, BottleneckBlock, Layer, alpha, identity, wide_block
from xmsd_jax.config import ConfigError

POSITIONS = 512


class PlainAdapter(nn.Module):
    """Predicts target states [b, t, d] from `drafter` and `target` [b, t, d], of which it takes those in `reads`.

    `mask` bool[b, t] is True at real positions, which come first; what is predicted at the others means nothing.
    `block_count` is how many blocks a kind has where that can be chosen, else None.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"drafter"})
    block_count: ClassVar[int | None] = None

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See the class."""
        raise NotImplementedError


class PlainL1(PlainAdapter):
    """One bottleneck block, by default, and a LayerNorm."""

    block_count = 1

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BottleneckBlock(width, dropout) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        x = _given(drafter, "drafter")
        for block in self.layers:
            x = block(x)
        return self.final_norm(x)


class PlainL2(PlainAdapter):
    """L1 with three blocks, by default, under another name."""

    block_count = 3

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BottleneckBlock(width, dropout) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        x = _given(drafter, "drafter")
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)


class PlainL3(PlainAdapter):
    """LN, n times `x + alpha_i * [Lin d->d/4, LN, GELU, Drop, Lin d/4->d, Drop](x)` without biases, LN."""

    block_count = 2

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(wide_block(width, dropout) for _ in range(blocks))
        self.alphas = nn.ParameterList(alpha() for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        x = self.input_norm(_given(drafter, "drafter"))
        for block, scale in zip(self.blocks, self.alphas, strict=True):
            x = x + scale * block(x)
        return self.final_norm(x)


class PlainL4(PlainAdapter):
    """One layer that sees all real positions, and `y = h + alpha * (Lin(LN(x)) - h)`; Lin starts as the identity."""

    def __init__(self, width: int, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(width, dropout, attention)])
        self.output_proj = nn.Sequential(nn.LayerNorm(width), identity(width))
        self.alpha = alpha()

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        hidden = _given(drafter, "drafter")
        seen = mask | ~mask.any(-1, keepdim=True)  # an empty row sees everything: numbers, not NaN
        return hidden + self.alpha * (self.output_proj(self.layers[0](hidden, seen)) - hidden)


class _Causal(PlainAdapter):
    """Positions, a causal layer and L4's output rule. Real positions come first: they see no other kind anyway."""

    def __init__(self, width: int, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(POSITIONS, width), std=0.02))
        self.layers = nn.ModuleList([Layer(width, dropout, attention)])
        self.output_norm = nn.LayerNorm(width)
        self.output_proj = identity(width)
        self.alpha = alpha()

    def predict(self, x: Tensor, hidden: Tensor) -> Tensor:
        """From the layer's input without positions, and the states that the output starts from."""
        x = self.layers[0](x + self.pos_embed[: x.shape[1]], None)
        return hidden + self.alpha * (self.output_proj(self.output_norm(x)) - hidden)


class PlainL5(_Causal):
    """Reads the drafter's states, predicts the next target state."""

    def __init__(self, width: int, dropout: float, attention: Attention) -> None:
        super().__init__(width, dropout, attention)
        self.input_norm = nn.LayerNorm(width)

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        hidden = _given(drafter, "drafter")
        return self.predict(self.input_norm(hidden), hidden)


class PlainB1(PlainL5):
    """L5 on the target's own states."""

    reads = frozenset({"target"})

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        hidden = _given(target, "target")
        return self.predict(self.input_norm(hidden), hidden)


class PlainL5F(_Causal):
    """Both streams: `c = [g; h]`, `w = sigmoid(W c)`, `x = LN(w * g + (1 - w) * h + P c)`; the output starts from h."""

    reads = frozenset({"drafter", "target"})

    def __init__(self, width: int, dropout: float, attention: Attention) -> None:
        super().__init__(width, dropout, attention)
        self.gate = nn.Sequential(nn.Linear(2 * width, width), nn.Sigmoid())
        self.fusion_proj = nn.Linear(2 * width, width)
        self.fusion_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.fusion_proj.weight)
        nn.init.zeros_(self.fusion_proj.bias)

    def forward(self, drafter: Tensor | None, target: Tensor | None, mask: Tensor) -> Tensor:
        """See `PlainAdapter`."""
        own, hidden = _given(drafter, "drafter"), _given(target, "target")
        both = torch.cat([own, hidden], dim=-1)
        gate = self.gate(both)
        return self.predict(self.fusion_norm(gate * own + (1 - gate) * hidden + self.fusion_proj(both)), hidden)


PLAIN: Mapping[str, type[PlainAdapter]] = {
    "L1": PlainL1,
    "L2": PlainL2,
    "L3": PlainL3,
    "L4": PlainL4,
    "L5": PlainL5,
    "B1": PlainB1,
    "L5F": PlainL5F,
}


def make_plain(
    kind: str, width: int, *, blocks: int | None = None, dropout: float = 0.1, attention: Attention = "fused"
) -> PlainAdapter:
    """A freshly initialised adapter in training mode, on torch's default device, from torch's global generator.

    Args:
        kind: L1, L2, L3, L4, L5, B1, L5F.
        width: d of the states, a multiple of 16.
        blocks: of L1, L2, L3; None takes the kind's own number (1, 3, 2).
        dropout: share that is dropped in training.
        attention: how L4, L5, B1, L5F compute it, see `SelfAttention`.

    Raises:
        ConfigError: an unknown kind, a width that does not fit, or blocks where the kind has none.
    """
    if kind not in PLAIN:
        raise ConfigError(f"adapter kind: {kind!r}: no such kind; known: {', '.join(PLAIN)}")
    if width < 16 or width % 16:
        raise ConfigError(f"width: must be a positive multiple of 16 (bottleneck d/16, 8 heads), got {width}")
    own = PLAIN[kind].block_count
    if blocks is not None and (own is None or blocks < 1):
        raise ConfigError(f"blocks: {kind} takes {'at least 1' if own else 'none'}, got {blocks}")
    return PLAIN[kind](width, blocks or own, dropout) if own else PLAIN[kind](width, dropout, attention)


def load_plain(module: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Fill a module, on its own device, with the original's state dict; leading axes of 1 are of no account.

    Raises:
        ConfigError: names missing or unknown, or tensors of another shape, all in one line.
    """
    own = module.state_dict()
    faults = [f"missing {name}" for name in sorted(own.keys() - state.keys())]
    faults += [f"unknown {name}" for name in sorted(state.keys() - own.keys())]
    for name in sorted(own.keys() & state.keys()):
        given, wanted = _without_leading(state[name].shape), _without_leading(tuple(own[name].shape))
        if given != wanted:
            faults.append(f"{name} is {list(state[name].shape)}, needed is {list(own[name].shape)}")
    if faults:
        raise ConfigError(f"state dict: {'; '.join(faults)}; give that of the same kind and width")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.tensor(state[name]).reshape(value.shape))


def _without_leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _given(states: Tensor | None, name: str) -> Tensor:
    if states is None:
        raise ConfigError(f"{name} states: this adapter reads them, got None")
    return states
