"""Products with NF4 tiles: dequantise-and-multiply for any input, under torch.compile, and with the kernel on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.torch_bridge.test_nf4_layout import SHAPES, weight
from torch_bridge.nf4 import layout
from torch_bridge.nf4.kernel import MOST_NORMED
from torch_bridge.nf4.op import nf4_expand, nf4_matmul

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def packed(shape: tuple[int, int], dtype=torch.float16, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Tiles of a random weight, and that weight in float64."""
    codes, scales = weight(shape, dtype)
    dense = layout.dequantise(codes, scales, shape).double()
    return layout.pack(codes, scales, shape, dtype).to(device), dense.to(device)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, 8, 9, 16, 17, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_dequantise_and_multiply(shape, count, device):
    tiles, dense = packed(shape, device=device)
    x = torch.randn(count, shape[1], device=device).bfloat16()
    bias = torch.randn(shape[0], device=device).bfloat16()
    assert relative(nf4_matmul(x, tiles, None, shape[0]), x.double() @ dense.T) < 2.5e-3
    assert relative(nf4_matmul(x, tiles, bias, shape[0]), x.double() @ dense.T + bias.double()) < 2.5e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 7, 16])
@pytest.mark.parametrize("shape", [(48, 512), (40, 4096), (32, 320), (5, 64)])
def test_a_norm_before_and_a_sum_after_are_parts_of_the_product(shape, count, device):
    tiles, dense = packed(shape, device=device)
    sizes = (count, shape[1]), (count, shape[0]), (shape[1],), (shape[0],)
    x, residual, norm, bias = (torch.randn(size, device=device).bfloat16() for size in sizes)
    x *= torch.logspace(-2, 3, count, device=device)[:, None]
    inputs = x.double()
    inputs = inputs * (inputs.pow(2).mean(-1, keepdim=True) + 0.25).rsqrt() * norm.double()
    found = nf4_matmul(x, tiles, bias, shape[0], residual, norm, 0.25)
    expected = inputs @ dense.T + bias.double() + residual.double()
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-2


@pytest.mark.parametrize("device", DEVICES)
def test_a_sum_after_a_wide_weight_is_part_of_the_sum_of_its_parts(device):
    tiles, dense = packed((48, 17 * 256), device=device)
    x, residual = torch.randn(3, 17 * 256, device=device).bfloat16(), torch.randn(3, 48, device=device).bfloat16()
    assert relative(nf4_matmul(x, tiles, None, 48, residual), x.double() @ dense.T + residual.double()) < 2.5e-3


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_not_contiguous_or_not_aligned_give_the_same_bits(device):
    tiles, _ = packed((32, 256), device=device)
    x = torch.randn(4, 256, device=device).bfloat16()
    expected = nf4_matmul(x, tiles, None, 32)
    wide = torch.full((4, 600), float("nan"), device=device).bfloat16()
    wide[:, 1:257] = x
    for same in (wide[:, 1:257], x.T.contiguous().T, torch.cat([x.new_zeros(1), x.flatten()])[1:].view(4, 256)):
        assert torch.equal(nf4_matmul(same, tiles, None, 32), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_leading_dimensions_are_kept(device):
    tiles, _ = packed((32, 256), device=device)
    x = torch.randn(2, 3, 256, device=device).bfloat16()
    flat = nf4_matmul(x.view(6, 256), tiles, None, 32)
    assert torch.equal(nf4_matmul(x, tiles, None, 32), flat.view(2, 3, 32))
    assert nf4_matmul(x[:0], tiles, None, 32).shape == (0, 3, 32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_come_through_in_their_row_alone(value, device):
    tiles, dense = packed((32, 512), device=device)
    x = torch.randn(3, 512, device=device).bfloat16()
    clean = nf4_matmul(x, tiles, None, 32)
    x[1, 300] = value
    found = nf4_matmul(x, tiles, None, 32)
    expected = (x.double() @ dense.T)[1]
    assert torch.equal(found[1].isnan(), expected.isnan())
    infinite = expected.isinf()
    assert torch.equal(found[1][infinite].double(), expected[infinite])
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1e-30, 70000.0, 1e30])
def test_large_and_small_inputs_and_scales_come_right(size, device):
    shape = 32, 256
    codes, scales = weight(shape)
    for x_size, scale_size in ((size, 1.0), (1.0, size), (size, 1 / size)):
        own = scales * scale_size
        tiles = layout.pack(codes, own, shape, layout.scale_dtype(own)).to(device)
        x = (torch.randn(2, 256) * x_size).bfloat16()
        expected = x.double() @ layout.dequantise(codes, own, shape).double().T
        assert relative(nf4_matmul(x.to(device), tiles, None, 32).cpu(), expected) < 2.5e-3


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_of_scale_zero_give_zero(device):
    codes, scales = weight((16, 256))
    tiles = layout.pack(codes, scales * 0, (16, 256), torch.float16).to(device)
    found = nf4_matmul(torch.randn(5, 256, device=device).bfloat16(), tiles, None, 16)
    assert (found == 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_expanded_weight_is_that_of_bitsandbytes(device):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    shape = 48, 320
    data, state = quantize_4bit(torch.randn(shape, device=device).bfloat16(), quant_type="nf4", blocksize=64)
    tiles = layout.pack(data, state.absmax, shape, torch.float16)
    assert torch.equal(nf4_expand(tiles, state.absmax, *shape), dequantize_4bit(data, state))


def test_the_operations_are_known_to_torch():
    tiles, _ = packed((32, 256))
    x, bias = torch.randn(3, 256).bfloat16(), torch.randn(32).bfloat16()
    tests = ("test_schema", "test_faketensor")
    for operation, given in (
        (nf4_matmul, (x, tiles, bias, 32)),
        (nf4_matmul, (x[None], tiles, None, 32)),
        (nf4_matmul, (x[None], tiles, None, 32, torch.randn(1, 3, 32).bfloat16(), torch.rand(256).bfloat16(), 1e-5)),
        (nf4_expand, (tiles, torch.rand(32 * 4), 32, 256)),
    ):
        assert torch.library.opcheck(operation, given, test_utils=tests) == dict.fromkeys(tests, "SUCCESS")


@pytest.mark.parametrize(
    ("x", "rows", "said"),
    [
        (torch.zeros(65, 256).bfloat16(), 32, "up to 64 rows"),
        (torch.zeros(1, 256), 32, "bfloat16"),
        (torch.zeros(1, 512).bfloat16(), 32, "tiles of a weight"),
        (torch.zeros(1, 256).bfloat16(), 64, "tiles of a weight"),
    ],
)
def test_what_does_not_fit_is_refused(x, rows, said):
    tiles, _ = packed((32, 256))
    with pytest.raises(ValueError, match=said):
        nf4_matmul(x, tiles, None, rows)
    with pytest.raises(ValueError, match="bias"):
        nf4_matmul(torch.zeros(1, 256).bfloat16(), tiles, torch.zeros(3).bfloat16(), 32)
    with pytest.raises(ValueError, match="residual"):
        nf4_matmul(torch.zeros(1, 256).bfloat16(), tiles, None, 32, torch.zeros(32).bfloat16())
    with pytest.raises(ValueError, match="norm's weight"):
        nf4_matmul(torch.zeros(1, 256).bfloat16(), tiles, None, 32, norm=torch.zeros(256))
    wide, _ = packed((16, 17 * 256))
    with pytest.raises(ValueError, match="normalise them before"):
        nf4_matmul(torch.zeros(1, 17 * 256).bfloat16(), wide, None, 16, norm=torch.zeros(17 * 256).bfloat16())


if torch.cuda.is_available():

    @pytest.mark.parametrize("shape", [(48, 512), (32, 17 * 256)])
    def test_a_rows_bits_are_the_same_for_every_number_of_rows(shape):
        tiles, _ = packed(shape, device="cuda")
        x = torch.randn(40, shape[1], device="cuda").bfloat16()
        residual = torch.randn(40, shape[0], device="cuda").bfloat16()
        norm = torch.rand(shape[1], device="cuda").bfloat16() if shape[1] <= MOST_NORMED else None
        for own, scale in ((None, None), (residual, norm)):
            expected = nf4_matmul(x, tiles, None, shape[0], own, scale, 1e-5)
            for count in (*range(1, 17), 33, 40):
                for first in range(0, 41 - count, 3):
                    some = slice(first, first + count)
                    added = None if own is None else own[some]
                    assert torch.equal(nf4_matmul(x[some], tiles, None, shape[0], added, scale, 1e-5), expected[some])

    def test_a_captured_graph_gives_the_same_bits():
        tiles, _ = packed((32, 17 * 256), device="cuda")
        x = torch.randn(3, 17 * 256, device="cuda").bfloat16()
        expected = nf4_matmul(x, tiles, None, 32)
        held, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = nf4_matmul(held, tiles, None, 32)
        held.copy_(x)
        graph.replay()
        assert torch.equal(found, expected)
