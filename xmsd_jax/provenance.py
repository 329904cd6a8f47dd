"""Where a number comes from: commit, versions, machine, command. Reads, imports nothing heavy."""

import datetime
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    "xmsd",
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "av",
)


def provenance(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a reader needs to make the same number again: JSON values only; None where it cannot be known.

    Args:
        command: the command line; by default that of this process (its program by name, not by path).
    """
    argv = list(command) if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "date_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": argv,
        "git": _git(),
        "python": platform.python_version(),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that tracks this very file, else None (installed from a wheel).

    A copy of a clean checkout without its history, on another machine, is told its commit by XMSD_COMMIT.
    """
    here = Path(__file__).resolve()
    if _output("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name) is None:
        named = os.environ.get("XMSD_COMMIT")
        return {"commit": named, "dirty": False} if named else None
    commit = _output("git", "-C", str(here.parent), "rev-parse", "HEAD")
    status = _output("git", "-C", str(here.parent), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)} if commit else None


@functools.cache
def _gpus() -> list[str]:
    """Name and driver of each NVIDIA GPU, asked of the driver, so that no framework is loaded for it."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return listed.splitlines() if listed else []


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    """Standard output of a command, stripped; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
