"""Which pair of models a stage runs: two folders, or the small pair of the package by its name. No torch here."""

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xmsd_jax.config import ConfigError
from xmsd_jax.data.events import EventFrames

TINY = "tiny"


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which models, and how they compute.

    target, drafter: model folders, or "tiny" for the packaged small pair; device: "cpu", "cuda", "cuda:1";
    threads: of torch on the CPU, None for torch's own choice; two threads on two cores that others use as well were
    five times slower than one. event_frames: what the drafter sees of a clip's events.
    """

    target: str = TINY
    drafter: str = TINY
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    event_frames: EventFrames = field(default_factory=EventFrames)

    def __post_init__(self) -> None:
        """Raise ConfigError for a device that is neither the CPU nor a numbered GPU, and for no threads."""
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: must be at least 1, or null for torch's own choice, got {self.threads}")
        kind, colon, number = self.device.partition(":")
        if not (self.device in ("cpu", "cuda") or (kind == "cuda" and colon and number.isdecimal())):
            raise ConfigError(f"device: must be cpu, cuda or cuda:N, got {self.device!r}")


def pair_options(config: PairConfig) -> dict[str, Any]:
    """Return the keyword arguments of `torch_bridge.pair.load_pair`.

    Raises:
        ConfigError: a model's folder is missing.
    """
    return {
        "target": model_folder(config, "target"),
        "drafter": model_folder(config, "drafter"),
        "dtype": config.dtype,
        "device": config.device,
        "threads": config.threads,
        "event_frames": config.event_frames,
    }


def model_folder(config: PairConfig, which: Literal["target", "drafter"]) -> Path:
    """Return the folder of a model.

    Raises:
        ConfigError: there is no such folder.
    """
    named = getattr(config, which)
    folder = _packaged() / which if named == TINY else Path(named)
    if not folder.is_dir():
        raise ConfigError(f"pair.{which}: {folder}: no such folder; give a model's folder, or {TINY!r}")
    return folder


def pair_fingerprint(config: PairConfig) -> str:
    """Return the sha256 of both models' files: weights, configurations, tokenizers; nothing is loaded."""
    digest = hashlib.sha256()
    for which in ("target", "drafter"):
        folder = model_folder(config, which)
        for file in sorted(path for kind in ("*.json", "*.safetensors") for path in folder.rglob(kind)):
            digest.update(f"{which}/{file.relative_to(folder).as_posix()}".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _packaged() -> Path:
    spec = importlib.util.find_spec("torch_bridge.tiny")
    if spec is None or spec.origin is None:
        raise ConfigError("pair: the package torch_bridge is not installed; install xmsd again")
    return Path(spec.origin).parent / "weights"
