"""The kernel is compiled once for a source, architecture and torch; without a compiler one line says so, no error."""

import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from torch_bridge.nf4 import build, kernel
from torch_bridge.nf4.build import NotBuilt

NVCC = shutil.which("nvcc")

SUCCEEDS = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != "-o" ]; do shift; done
echo built > "$2"
"""
FAILS = """#!/bin/sh
echo 'kernel.cu(1): error: wrong' >&2
exit 2
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty cache and no compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CUDA_PATH", "")
    monkeypatch.setattr(build, "_USUAL", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    return tmp_path


def compiler(place: Path, text: str) -> Path:
    """A stand-in for nvcc in CUDA_HOME; returns the file in which it writes what it was asked."""
    path, log = place / "cuda" / "bin" / "nvcc", place / "log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(log=log))
    path.chmod(0o755)
    return log


def test_a_library_is_compiled_once(place):
    log = compiler(place, SUCCEEDS)
    path = build.build((9, 0))
    assert path.read_text() == "built\n"
    assert path.parent == place / "cache" / "xmsd"
    assert build.build((9, 0)) == path
    assert len(log.read_text().splitlines()) == 1
    assert "arch=compute_90,code=sm_90" in log.read_text()
    assert list(path.parent.iterdir()) == [path]


def test_another_architecture_source_or_torch_is_another_library(place, monkeypatch):
    keys = {build.key((9, 0)), build.key((8, 0))}
    other = place / "other.cuh"
    other.write_text("// other")
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.add(build.key((9, 0)))
    monkeypatch.setattr(build, "SOURCES", (build.SOURCES[0], other))
    keys.add(build.key((9, 0)))
    assert len(keys) == 4


@pytest.mark.parametrize(("text", "said"), [(None, "no nvcc in CUDA_HOME, PATH"), (FAILS, "error: wrong")])
def test_why_there_is_no_library_is_said_and_nothing_is_left(place, text, said):
    if text:
        compiler(place, text)
    with pytest.raises(NotBuilt, match=said):
        build.build((9, 0))
    cache = place / "cache" / "xmsd"
    assert not cache.exists() or not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(place):
    compiler(place, SUCCEEDS)
    (place / "cache").write_text("a file")
    with pytest.raises(NotBuilt):
        build.build((9, 0))


def test_old_devices_have_no_kernel(place):
    compiler(place, SUCCEEDS)
    with pytest.raises(NotBuilt, match=r"7\.5"):
        build.build((7, 5))


def test_a_device_without_the_kernel_is_told_in_one_line(place, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    kernel._loaded.cache_clear()
    with caplog.at_level(logging.INFO, logger="torch_bridge.nf4.kernel"):
        found = [kernel.kernel_of(torch.device("cuda", 0)) for _ in range(3)]
        compiler(place, SUCCEEDS)  # a file that is no library
        kernel._loaded.cache_clear()
        found.append(kernel.kernel_of(torch.device("cuda", 0)))
    kernel._loaded.cache_clear()
    assert found == [None] * 4
    assert len(caplog.records) == 2
    assert all("stay with bitsandbytes" in record.getMessage() for record in caplog.records)


def test_a_cpu_needs_no_kernel():
    assert kernel.kernel_of(torch.device("cpu")) is None


if NVCC:

    @pytest.mark.slow
    @pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
    def test_the_source_compiles_and_one_variant_at_most_spills_four_registers(capability, tmp_path):
        code = f"-arch=sm_{capability[0]}{capability[1]}"
        command = [str(NVCC), "-std=c++17", "-O3", "-cubin", code, "-Xptxas", "-v", "-o", str(tmp_path / "out")]
        done = subprocess.run([*command, str(build.SOURCES[0])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spilled = sorted(int(number) for number in re.findall(r"(\d+) bytes spill stores", done.stderr))
        assert len(spilled) == 10  # eight of the product, its sum, the expansion
        assert spilled[-2] == 0
        assert spilled[-1] <= 16
