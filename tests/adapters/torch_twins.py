"""The seven adapters once more, in PyTorch, from the study's formulas and with the study's names of parameters."""

import torch
from torch import nn

POSITIONS = 512


class BottleneckBlock(nn.Module):
    """x + alpha * Up(Drop(GELU(Down(LN(x)))))."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(d)
        self.down_proj = nn.Linear(d, d // 16, bias=False)
        self.up_proj = nn.Linear(d // 16, d, bias=False)
        self.alpha_param = nn.Parameter(torch.tensor(0.1))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        inner = nn.functional.gelu(self.down_proj(self.layer_norm(x)))
        return x + self.alpha_param * self.up_proj(self.dropout(inner))


class L1(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([BottleneckBlock(d)])
        self.final_norm = nn.LayerNorm(d)

    def forward(self, drafter, target, mask):
        return self.final_norm(self.layers[0](drafter))


class L2(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([BottleneckBlock(d) for _ in range(3)])
        self.final_norm = nn.LayerNorm(d)

    def forward(self, drafter, target, mask):
        for block in self.blocks:
            drafter = block(drafter)
        return self.final_norm(drafter)


class L3(nn.Module):
    """LN, then n times x + alpha_i * [Lin, LN, GELU, Drop, Lin, Drop](x), then LN."""

    def __init__(self, d: int, n: int = 2) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList([self.block(d, d // 4) for _ in range(n)])
        self.alphas = nn.ParameterList([nn.Parameter(torch.tensor([0.1])) for _ in range(n)])
        self.final_norm = nn.LayerNorm(d)

    @staticmethod
    def block(d: int, wide: int) -> nn.Sequential:
        down, up = nn.Linear(d, wide, bias=False), nn.Linear(wide, d, bias=False)
        return nn.Sequential(down, nn.LayerNorm(wide), nn.GELU(), nn.Dropout(0.1), up, nn.Dropout(0.1))

    def forward(self, drafter, target, mask):
        x = self.input_norm(drafter)
        for block, alpha in zip(self.blocks, self.alphas, strict=True):
            x = x + alpha * block(x)
        return self.final_norm(x)


class Layer(nn.Module):
    """A pre-LN transformer layer with 8 heads."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, 8, dropout=0.1, batch_first=True)
        self.ffn_norm = nn.LayerNorm(d)
        ffn = [nn.Linear(d, d // 2), nn.GELU(), nn.Dropout(0.1), nn.Linear(d // 2, d), nn.Dropout(0.1)]
        self.ffn = nn.Sequential(*ffn)

    def forward(self, x, mask, causal):
        y = self.attn_norm(x)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if causal else None
        attended, _ = self.attn(y, y, y, key_padding_mask=~mask, attn_mask=hidden, need_weights=False)
        x = x + attended
        return x + self.ffn(self.ffn_norm(x))


class L4(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(d)])
        self.output_proj = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d))
        self.alpha = nn.Parameter(torch.tensor(0.1))

    def forward(self, drafter, target, mask):
        out = self.output_proj(self.layers[0](drafter, mask, causal=False))
        return drafter + self.alpha * (out - drafter)


class L5(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(d)
        self.pos_embed = nn.Parameter(torch.zeros(1, POSITIONS, d))
        self.layers = nn.ModuleList([Layer(d)])
        self.output_norm = nn.LayerNorm(d)
        self.output_proj = nn.Linear(d, d)
        self.alpha = nn.Parameter(torch.tensor(0.1))

    def forward(self, drafter, target, mask):
        return self.predict(self.input_norm(drafter), drafter, mask)

    def predict(self, x, hidden, mask):
        x = self.layers[0](x + self.pos_embed[:, : x.shape[1]], mask, causal=True)
        return hidden + self.alpha * (self.output_proj(self.output_norm(x)) - hidden)


class B1(L5):
    def forward(self, drafter, target, mask):
        return self.predict(self.input_norm(target), target, mask)


class L5F(L5):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        del self.input_norm
        self.gate = nn.Sequential(nn.Linear(2 * d, d), nn.Sigmoid())
        self.fusion_proj = nn.Linear(2 * d, d)
        self.fusion_norm = nn.LayerNorm(d)

    def forward(self, drafter, target, mask):
        both = torch.cat([drafter, target], dim=-1)
        gate = self.gate(both)
        x = self.fusion_norm(gate * drafter + (1 - gate) * target + self.fusion_proj(both))
        return self.predict(x, target, mask)


TWINS = {twin.__name__: twin for twin in (L1, L2, L3, L4, L5, B1, L5F)}


def random_twin(kind: str, d: int, **more: int) -> nn.Module:
    """A twin in evaluation mode, with every parameter random."""
    twin = TWINS[kind](d, **more).eval()
    generator = torch.Generator().manual_seed(5)
    for name, value in twin.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        scaled = noise / value.shape[1] ** 0.5 if value.ndim == 2 else 0.5 + 0.3 * noise
        value.data.copy_(0.3 * noise if name == "pos_embed" else scaled)
    return twin


def state_dict(twin: nn.Module) -> dict:
    return {name: value.numpy() for name, value in twin.state_dict().items()}
