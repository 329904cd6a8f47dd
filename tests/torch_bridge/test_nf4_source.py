"""The kernel's own source, compiled for the CPU with a thread for every thread of the grid, multiplies right.

Its inline assembly alone is replaced (loads, the matrix instruction, barriers). So addresses, sums, padding and splits
are tested where there is no GPU; what only a GPU shows is speed and the assembly itself.
"""

import ctypes
import platform
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.torch_bridge.test_nf4_layout import SHAPES, by_table, weight
from torch_bridge.nf4 import layout
from torch_bridge.nf4.build import SOURCES
from torch_bridge.nf4.kernel import Around, Kernel, declared, plan

COMPILER = shutil.which("g++")
LEAST_VERSION = 12  # has barriers of C++20 and _Float16
HEADER = Path(__file__).with_name("cuda_on_cpu.h")
EPSILON = 0.5  # of norms: so large that leaving it out is seen
LAST_PLACE = 2.0**-8  # rounding to bfloat16, relative
REPLACED = {
    "void wait_for_previous()": "",
    "void let_next_begin()": "",
    "uint4 stream(": "return *at;",
    "uint2 stream(": "return *at;",
    "unsigned stream(": "return *at;",
    "uint4 fresh(": "return *at;",
    "void multiply_add(": "cpu_multiply_add(d, a, b0, b1);",
}
SHARED = "extern __shared__ __align__(16) unsigned char table[];"


def compiles() -> bool:
    """Whether there is a compiler that knows the header's C++; these tests exist only where there is."""
    if COMPILER is None or platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    told = subprocess.run([COMPILER, "-dumpversion"], capture_output=True, text=True).stdout.split(".")[0]
    return told.strip().isdigit() and int(told) >= LEAST_VERSION


def for_cpu() -> str:
    """The source as one file, with the bodies of its functions in assembly replaced."""
    main, included = (path.read_text(encoding="utf-8") for path in SOURCES)
    source = main.replace(f'#include "{SOURCES[1].name}"', included.replace("#pragma once", ""))
    for signature, body in REPLACED.items():
        begin = source.index("{", source.index(f"__device__ {signature}"))
        end = source.index("\n}\n", begin)
        source = f"{source[:begin]}{{ {body} {source[end + 1 :]}"
    assert "asm" not in source
    assert SHARED in source
    return source.replace(SHARED, "unsigned char* const table = on_cpu::block->memory();")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("cpu")
    (folder / "kernel.cpp").write_text(for_cpu())
    for name in ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"):
        (folder / name).write_text(f'#include "{HEADER}"\n')
    flags = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-pthread"]
    command = [str(COMPILER), *flags, "-I", str(folder), "-o", str(folder / "kernel.so"), str(folder / "kernel.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = declared(ctypes.CDLL(str(folder / "kernel.so")))
    assert found.nf4_prepare() == 0
    return found


def multiply(
    library: Any,
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    rows: int,
    *,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
) -> Tensor:
    """y, in memory that held NaN; the device has as many processors as the weight has splits."""
    (count, columns), chosen = x.shape, plan(x.shape[1])
    y = torch.full((count, rows), float("nan"), dtype=torch.bfloat16)
    partial = torch.full((chosen.splits, count, rows), float("nan"))
    code = library.nf4_multiply(
        *(None if one is None else one.data_ptr() for one in (x, tiles, bias, residual, norm, y)),
        *(None if chosen.splits == 1 else partial.data_ptr(), EPSILON),
        *(count, rows, columns, layout.tile_dtype(tiles).itemsize, chosen.warps, chosen.splits, chosen.splits, 1, None),
    )
    assert code == 0
    return y


if compiles():

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("shape", [*SHAPES, (112, 256)])
    def test_the_source_multiplies_right_and_a_row_keeps_its_bits(library, shape, dtype):
        codes, scales = weight(shape, dtype)
        tiles, dense = layout.pack(codes, scales, shape, dtype), by_table(codes, scales, shape)
        x, bias = torch.randn(16, shape[1]).bfloat16(), torch.randn(shape[0]).bfloat16()
        full = multiply(library, x, tiles, None, shape[0])
        expected = x.double() @ dense.T
        assert ((full.double() - expected).abs() <= LAST_PLACE * expected.abs() + 1e-5).all()
        for count in (1, 8, 9):
            assert torch.equal(multiply(library, x[:count], tiles, None, shape[0]), full[:count])
        found, expected = multiply(library, x, tiles, bias, shape[0]).double(), expected + bias.double()
        assert ((found - expected).abs() <= LAST_PLACE * expected.abs() + 1e-5).all()

    @pytest.mark.parametrize("shape", [*SHAPES, (112, 256)])
    def test_the_source_normalises_and_adds_and_a_row_keeps_its_bits(library, shape):
        codes, scales = weight(shape, torch.float16)
        tiles, dense = layout.pack(codes, scales, shape, torch.float16), by_table(codes, scales, shape)
        x, residual, norm = (torch.randn(*size).bfloat16() for size in ((16, shape[1]), (16, shape[0]), (shape[1],)))
        x *= torch.logspace(-2, 3, 16)[:, None]
        added = {"residual": residual} if plan(shape[1]).splits > 1 else {"residual": residual, "norm": norm}
        full, inputs = multiply(library, x, tiles, None, shape[0], **added), x.double()
        if "norm" in added:
            inputs = inputs * (inputs.pow(2).mean(1, keepdim=True) + EPSILON).rsqrt() * norm.double()
        expected = inputs @ dense.T + residual.double()
        # The products of x and the norm's weight are rounded too: a sum of many such errors, of either sign.
        error = LAST_PLACE * (expected.abs() + 3 * (inputs**2 @ dense.T**2).sqrt()) + 1e-5
        assert ((full.double() - expected).abs() <= error).all()
        for count in (1, 8, 9):
            some = {name: one[:count].clone() if name == "residual" else one for name, one in added.items()}
            assert torch.equal(multiply(library, x[:count], tiles, None, shape[0], **some), full[:count])

    @pytest.mark.parametrize("count", [3, 40])
    @pytest.mark.parametrize("shape", [(40, 512), (16, 17 * 256)])
    def test_the_launcher_hands_over_what_the_library_asks_for(library, monkeypatch, shape, count):
        """Tensors, sizes and the plan in their order, and more than 16 rows by several launches."""
        monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=None))
        codes, scales = weight(shape, torch.float16)
        tiles, dense = layout.pack(codes, scales, shape, torch.float16), by_table(codes, scales, shape)
        sizes = (count, shape[1]), (shape[0],), (count, shape[0]), (shape[1],)
        x, bias, residual, norm = (torch.randn(*size).bfloat16() for size in sizes)
        around = Around(bias, residual, norm if plan(shape[1]).splits == 1 else None, EPSILON)
        found = Kernel(library=library, processors=4, overlap=False).multiply(x, tiles, shape[0], around)
        inputs = x.double()
        if around.norm is not None:
            inputs = inputs * (inputs.pow(2).mean(1, keepdim=True) + EPSILON).rsqrt() * norm.double()
        expected = inputs @ dense.T + bias.double() + residual.double()
        assert ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max() < 4e-3

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_source_expands_the_weight(library, shape):
        codes, scales = weight(shape, torch.float32)
        tiles = layout.pack(codes, scales, shape, torch.float16)
        found = torch.full(shape, float("nan"), dtype=torch.bfloat16)
        addresses = tiles.data_ptr(), scales.data_ptr(), found.data_ptr()
        assert library.nf4_expand_weight(*addresses, *shape, tiles.shape[-1], None) == 0
        assert torch.equal(found, layout.dequantise(codes, scales, shape).bfloat16())
