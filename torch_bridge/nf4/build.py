"""The kernel's shared library: compiled by nvcc when it is first wanted, then kept in the user's cache folder.

nvcc and a plain C interface: about three seconds, against a minute for an extension that includes torch's headers.
The library holds code for one architecture and brings its own CUDA runtime, which shares the device with torch's.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.cu", "lanes.cuh"))  # the first includes the others
LEAST_CAPABILITY = (8, 0)  # products of bfloat16
_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC")
_USUAL = Path("/usr/local/cuda")
_PATIENCE = 300  # seconds


class NotBuilt(Exception):
    """Why there is no kernel: no compiler, a device too old, or what the compiler said."""


def build(capability: tuple[int, int]) -> Path:
    """The shared library for devices of `capability`, from the cache or compiled now.

    Raises:
        NotBuilt: the capability is below 8.0, there is no nvcc, it failed, or no folder can be written.
    """
    if capability < LEAST_CAPABILITY:
        raise NotBuilt(f"the device has capability {capability[0]}.{capability[1]}, the kernel needs 8.0")
    try:
        path = cache_folder(os.environ) / f"nf4-{key(capability)}.so"
        if not path.exists():
            _compile(find_nvcc(os.environ), capability, path)
    except OSError as error:
        raise NotBuilt(str(error)) from None
    return path


def key(capability: tuple[int, int]) -> str:
    """What a library depends on: source, flags, architecture and torch's version, hashed."""
    parts = (*(path.read_text(encoding="utf-8") for path in SOURCES), *_FLAGS, str(capability), torch.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cache_folder(environment: Mapping[str, str]) -> Path:
    """The folder of built libraries: `xmsd` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xmsd"


def find_nvcc(environment: Mapping[str, str]) -> Path:
    """The compiler: of CUDA_HOME, of the PATH, or where CUDA is usually installed.

    Raises:
        NotBuilt: it is in none of them.
    """
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    on_path = shutil.which("nvcc", path=environment.get("PATH"))
    places = [*([Path(home) / "bin" / "nvcc"] if home else []), *([Path(on_path)] if on_path else [])]
    for place in (*places, _USUAL / "bin" / "nvcc"):
        if os.access(place, os.X_OK):
            return place
    raise NotBuilt(f"no nvcc in CUDA_HOME, PATH or {_USUAL}: install the CUDA toolkit")


def _compile(nvcc: Path, capability: tuple[int, int], path: Path) -> None:
    """Compile beside the final place and move it there: two processes that build at once do not meet."""
    architecture = f"{capability[0]}{capability[1]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        code = f"arch=compute_{architecture},code=sm_{architecture}"
        command = [str(nvcc), *_FLAGS, "-gencode", code, "-o", str(made), str(SOURCES[0])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise NotBuilt(f"nvcc took more than {_PATIENCE} s: {' '.join(command)}") from None
        if done.returncode or not made.exists():
            raise NotBuilt(f"nvcc failed ({' '.join(command)}): {(done.stderr or done.stdout).strip()[-500:]}")
        os.replace(made, path)
