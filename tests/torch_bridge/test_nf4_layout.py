"""Tiles hold bitsandbytes' weights without loss, and the kernel's maps read from them what dequantising gives."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.torch_bridge.nf4_lanes import emulate
from torch_bridge.nf4 import layout
from torch_bridge.nf4.build import SOURCES
from torch_bridge.nf4.kernel import MOST_WARPS, plan

# Whole tiles; ragged rows; ragged columns; less than a tile; two splits of nine warps, the last without columns.
SHAPES = [(16, 256), (40, 512), (32, 320), (5, 64), (16, 17 * 256)]
DTYPES = [torch.float16, torch.float32]


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Random codes, in which every code comes up, and scales that the dtype holds."""
    codes = torch.randint(0, 256, (shape[0] * shape[1] // 2, 1), dtype=torch.uint8)
    return codes, torch.rand(shape[0] * shape[1] // 64).to(dtype).float()


def by_table(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight in float64 with the kernel's numbers for the codes."""
    flat = codes.flatten().long()
    numbers = layout.table().double()[torch.stack([flat >> 4, flat & 15], -1)] / layout.TABLE_FACTOR
    return (numbers.view(-1, 64) * scales.double().view(-1, 1)).view(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_gives_the_packed_bytes_and_scales_back(shape, dtype):
    codes, scales = weight(shape, dtype)
    tiles = layout.pack(codes, scales, shape, dtype)
    assert torch.equal(layout.unpack(tiles, shape), codes)
    assert torch.equal(layout.tile_scales(tiles, shape), scales)
    assert layout.tile_dtype(tiles) == dtype


@pytest.mark.parametrize("count", [1, 8, 9, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_register_maps_give_the_product(shape, count):
    codes, scales = weight(shape)
    x = torch.randn(count, shape[1]).bfloat16()
    found = emulate(x, layout.pack(codes, scales, shape, torch.float16), shape[0])
    expected = x.double() @ by_table(codes, scales, shape).T
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


def test_the_kernels_register_maps_read_float32_scales():
    codes, scales = weight((16, 256), torch.float32)
    scales[:32] *= 1e30
    scales[32:] *= 1e-30
    x = torch.randn(3, 256).bfloat16()
    found = emulate(x, layout.pack(codes, scales, (16, 256), torch.float32), 16)
    np.testing.assert_allclose(found, (x.double() @ by_table(codes, scales, (16, 256)).T).numpy(), rtol=1e-10)


def test_every_code_is_read_right_in_every_column():
    """Row r holds code (column + r) mod 16, and row m of x looks at column m, one at a time."""
    shape = 16, 256
    wanted = (torch.arange(256) + torch.arange(16)[:, None]) % 16
    codes = (wanted[:, ::2] << 4 | wanted[:, 1::2]).to(torch.uint8)
    tiles = layout.pack(codes, torch.ones(64), shape, torch.float16)
    for first in range(0, 256, 16):
        x = torch.zeros(16, 256, dtype=torch.bfloat16)
        x[range(16), range(first, first + 16)] = 1
        found = emulate(x, tiles, 16)
        expected = layout.table().double()[wanted[:, first : first + 16].T] / layout.TABLE_FACTOR
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-14)


def test_a_rows_sums_do_not_depend_on_how_many_rows_there_are():
    codes, scales = weight((16, 512))
    tiles = layout.pack(codes, scales, (16, 512), torch.float16)
    x = torch.randn(16, 512).bfloat16()
    all_rows = emulate(x, tiles, 16)
    for count in range(1, 16):
        assert np.array_equal(emulate(x[:count], tiles, 16), all_rows[:count])


def test_the_tables_rounding_is_small_beside_that_of_the_result():
    """Normal weights: 0.8e-3, and with bfloat16's 1.7e-3 for the result 1.1 times that; without the factor 1.4e-3."""
    codes = torch.tensor(layout.CODES, dtype=torch.float64)
    blocks = torch.randn(4000, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = (blocks / blocks.abs().amax(1, keepdim=True)).flatten()
    nearest = torch.bucketize(flat, (codes[1:] + codes[:-1]) / 2)

    def error(numbers: Tensor) -> float:
        return float((numbers - codes)[nearest].norm() / codes[nearest].norm())

    assert error(layout.table().double() / layout.TABLE_FACTOR) < 0.82e-3
    assert error(codes.to(torch.bfloat16).double()) > 1.3e-3
    nonzero = codes != 0
    assert (((layout.table().double() / layout.TABLE_FACTOR - codes) / codes)[nonzero].abs() < 2**-9).all()


def test_scales_are_kept_in_half_precision_only_where_that_keeps_their_bits():
    fine = torch.tensor([0.0, 6.2e-5, 1.0, 65504.0])
    assert layout.scale_dtype(fine) is torch.float16
    for wrong in (1e-6, 70000.0, float("inf"), float("nan")):
        assert layout.scale_dtype(torch.tensor([1.0, wrong])) is torch.float32


@pytest.mark.parametrize("shape", [(16, 256 + 32), (16, 100)])
def test_blocks_that_run_over_the_end_of_a_row_are_refused(shape):
    codes = torch.zeros(shape[0] * shape[1] // 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="whole blocks of 64 columns"):
        layout.pack(codes, torch.zeros(-(-codes.numel() * 2 // 64)), shape, torch.float16)


def test_a_plan_covers_all_columns_with_no_more_warps_than_fit():
    for columns in range(64, 40_000, 64):
        chosen, slices = plan(columns), -(-columns // 256)
        assert 1 <= chosen.warps <= MOST_WARPS
        assert 0 <= chosen.warps * chosen.splits - slices < chosen.splits


def test_the_kernels_constants_are_those_of_the_layout():
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCES)

    def integer(name: str) -> int:
        found = re.search(rf"constexpr int {name} = (\d+);", source)
        assert found, name
        return int(found[1])

    sizes = {"TILE_ROWS": layout.ROWS, "SLICE": layout.SLICE, "BLOCK": layout.BLOCK, "MOST_WARPS": MOST_WARPS}
    assert {name: integer(name) for name in sizes} == sizes
    found = re.search(r"TABLE_FACTOR = ([\d.]+)f / ([\d.]+)f;", source)
    assert found
    assert float(found[1]) / float(found[2]) == layout.TABLE_FACTOR

    def listed(name: str) -> list[str]:
        found = re.search(rf"{name}\[16\] = \{{(.*?)\}};", source, re.DOTALL)
        assert found, name
        return found[1].split(",")

    bits = [int(word, 16) for word in listed("TABLE")]
    assert bits == [word & 0xFFFF for word in layout.table().view(torch.int16).tolist()]
    assert tuple(float(number.strip().rstrip("f")) for number in listed("CODES")) == layout.CODES
