"""The NF4 kernels over small shapes, for CUDA's checkers: every launch there is, each result compared.

compute-sanitizer --tool memcheck python tests/torch_bridge/nf4_under_sanitizer.py
compute-sanitizer --tool racecheck --racecheck-report all python tests/torch_bridge/nf4_under_sanitizer.py

With PYTORCH_NO_CUDA_MEMORY_CACHING=1 every tensor is an allocation of its own, whose ends memcheck sees. Some 20 s
each.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from torch_bridge.nf4 import layout
from torch_bridge.nf4.kernel import MOST_NORMED, kernel_of
from torch_bridge.nf4.op import nf4_expand, nf4_matmul

DEVICE = torch.device("cuda", 0)
SHAPES = ((48, 512), (40, 320), (5, 64), (112, 17 * 256))


def check(rows: int, columns: int, dtype: torch.dtype) -> None:
    """Products of 1 to 16 rows, with and without bias, norm and sum, and the full weight."""
    codes = torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8)
    scales = torch.rand(rows * columns // layout.BLOCK)
    tiles = layout.pack(codes, scales, (rows, columns), dtype).to(DEVICE)
    dense = layout.dequantise(codes, scales, (rows, columns))
    bias = torch.randn(rows, device=DEVICE).bfloat16()
    x = torch.randn(16, columns, device=DEVICE).bfloat16()
    found, expected = nf4_matmul(x, tiles, None, rows), x.cpu().double() @ dense.double().T
    assert (found.cpu().double() - expected).norm() < 3e-3 * expected.norm()
    residual = torch.randn(16, rows, device=DEVICE).bfloat16()
    norm = torch.rand(columns, device=DEVICE).bfloat16() if columns <= MOST_NORMED else None
    both = nf4_matmul(x, tiles, bias, rows, residual, norm, 1e-5)
    for count in (1, 6, 8, 9, 16):
        assert torch.equal(nf4_matmul(x[:count], tiles, bias, rows, residual[:count], norm, 1e-5), both[:count])
        assert torch.equal(nf4_matmul(x[:count], tiles, None, rows), found[:count])
        nf4_matmul(x[:count], tiles, bias, rows)
    assert torch.equal(nf4_expand(tiles, scales.to(DEVICE), rows, columns).cpu(), dense.bfloat16())


if __name__ == "__main__":
    assert kernel_of(DEVICE) is not None, "no kernel: see the warning above"
    torch.manual_seed(0)
    for shape in SHAPES:
        for scale in (torch.float16, torch.float32):
            check(*shape, scale)
    torch.cuda.synchronize()
    print("done")
