"""The parts of the plain PyTorch adapters, with the original study's names, initial values and places of dropout."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS, ALPHA = 8, 0.1
Attention = Literal["fused", "matmul"]


def alpha() -> nn.Parameter:
    """A learnable scale that starts at 0.1."""
    return nn.Parameter(torch.tensor(ALPHA))


def identity(width: int) -> nn.Linear:
    """A square Linear that starts as the identity."""
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class BottleneckBlock(nn.Module):
    """`x + alpha * Up(Drop(GELU(Down(LN(x)))))`, d -> d/16 -> d, no biases; Up starts at zero."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.down_proj = nn.Linear(width, width // 16, bias=False)
        self.up_proj = nn.Linear(width // 16, width, bias=False)
        self.alpha_param = alpha()
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_normal_(self.down_proj.weight, nonlinearity="linear")
        nn.init.zeros_(self.up_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The block, [b, t, d] to [b, t, d]."""
        inner = functional.gelu(self.down_proj(self.layer_norm(x)))
        return x + self.alpha_param * self.up_proj(self.dropout(inner))


def wide_block(width: int, dropout: float) -> nn.Sequential:
    """Lin d->d/4, LN, GELU, Drop, Lin d/4->d, Drop, no biases; the second Lin starts at zero."""
    down, up = nn.Linear(width, width // 4, bias=False), nn.Linear(width // 4, width, bias=False)
    nn.init.kaiming_normal_(down.weight)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, nn.LayerNorm(width // 4), nn.GELU(), nn.Dropout(dropout), up, nn.Dropout(dropout))


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention`'s sum over 8 heads, with its names, computed in one of two ways.

    "fused" is `scaled_dot_product_attention`. At width 4096 a head is 512 wide: of the fused CUDA kernels only the
    memory-efficient one takes that. "matmul" is the textbook's product, softmax, product, which a compiler can fuse
    with what is around it, and which short answers may run faster with.
    """

    def __init__(self, width: int, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.dropout, self.attention = dropout, attention
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[b, t, d] to [b, t, d]: each position sees those in `mask` bool[b, t], or without one, itself and before."""
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attend = _fused if self.attention == "fused" else _matmul
        attended = attend(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """One pre-LN transformer layer, its feed-forward part d/2 wide."""

    def __init__(self, width: int, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.attn = SelfAttention(width, dropout, attention)
        self.ffn_norm = nn.LayerNorm(width)
        inner, outer = nn.Linear(width, width // 2), nn.Linear(width // 2, width)
        self.ffn = nn.Sequential(inner, nn.GELU(), nn.Dropout(dropout), outer, nn.Dropout(dropout))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `SelfAttention` for the mask."""
        x = x + self.attn(self.attn_norm(x), mask)
        return x + self.ffn(self.ffn_norm(x))


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    seen = None if mask is None else mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, is_causal=mask is None
    )


def _matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    square = scores.shape[-2:]
    seen = torch.ones(square, dtype=torch.bool, device=scores.device).tril() if mask is None else mask[:, None, None, :]
    weights = functional.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    return functional.dropout(weights, dropout) @ value
