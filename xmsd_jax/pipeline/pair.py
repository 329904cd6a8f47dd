"""Which pair of models a stage runs: two folders, or the small pair of the package by its name. No torch here."""

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xmsd_jax.config import ConfigError
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.quantisation import Quantisation

TINY = "tiny"
# Configurations, tokenizers and weights: what a model computes depends on these files of its folder.
_DEPENDED_ON = ("*.json", "*.safetensors", "*.bin", "tokenizer.model")


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which models, and how they compute.

    target, drafter: model folders or hub ids (owner/name, owner/name@revision), or "tiny" for the packaged small pair;
    device: "cpu", "cuda", "cuda:1"; threads: of torch on the CPU, None for torch's own choice; two threads on two cores
    that others use as well were five times slower than one. event_frames: what the drafter sees of a clip's events.
    vision_tower: folder or hub id of the drafter's CLIP, where the drafter's config.json names none that is there;
    drafter_adaptor_passes: 2 applies the drafter's feature adaptor twice, as the study did. quantisation: of both
    models; states, head and caches stay in `dtype`.
    """

    target: str = TINY
    drafter: str = TINY
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    event_frames: EventFrames = field(default_factory=EventFrames)
    vision_tower: str | None = None
    drafter_adaptor_passes: Literal[1, 2] = 1
    quantisation: Quantisation = field(default_factory=Quantisation)

    def __post_init__(self) -> None:
        """Raise ConfigError for a device that is neither the CPU nor a numbered GPU, and for no threads."""
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: must be at least 1, or null for torch's own choice, got {self.threads}")
        kind, colon, number = self.device.partition(":")
        if not (self.device in ("cpu", "cuda") or (kind == "cuda" and colon and number.isdecimal())):
            raise ConfigError(f"device: must be cpu, cuda or cuda:N, got {self.device!r}")

    @property
    def rounding(self) -> Literal["float32", "bfloat16"]:
        """The coarsest dtype that the models compute in: by it a certificate judges what is a tie."""
        coarse = self.quantisation.format != "none" and self.quantisation.compute == "bfloat16"
        return "bfloat16" if coarse else self.dtype


def pair_options(config: PairConfig) -> dict[str, Any]:
    """Return the keyword arguments of `torch_bridge.pair.load_pair`.

    Raises:
        ConfigError: a model's folder is missing.
    """
    drafter = model_folder(config, "drafter")
    return {
        "target": model_folder(config, "target"),
        "drafter": drafter,
        "vision_tower": tower_folder(config, drafter),
        "drafter_adaptor_passes": config.drafter_adaptor_passes,
        "dtype": config.dtype,
        "device": config.device,
        "threads": config.threads,
        "event_frames": config.event_frames,
        "quantisation": config.quantisation,
    }


def model_folder(config: PairConfig, which: Literal["target", "drafter"]) -> Path:
    """Return the folder of a model.

    Raises:
        ConfigError: there is no such folder, and no model of the hub has that id.
    """
    from torch_bridge.model_source import ModelFolderError, model_source

    named = getattr(config, which)
    try:
        return model_source(_packaged() / which if named == TINY else named)
    except ModelFolderError as error:
        raise ConfigError(f"pair.{which}: {error}, or {TINY!r}") from error


def tower_folder(config: PairConfig, drafter: Path) -> Path | None:
    """Return the drafter's CLIP folder; None where its config.json names none at all, which loading complains about.

    Raises:
        ConfigError: neither `pair.vision_tower` nor the drafter's config.json leads to a folder.
    """
    from torch_bridge.model_source import ModelFolderError, vision_tower_folder, written_tower

    written = written_tower(drafter)
    if written is None and config.vision_tower is None:
        return None
    try:
        return vision_tower_folder(drafter, written, config.vision_tower)
    except ModelFolderError as error:
        raise ConfigError(f"pair.vision_tower: {error}") from error


def pair_fingerprint(config: PairConfig) -> str:
    """Return the sha256 of both models' files: weights, configurations, tokenizers; nothing is loaded.

    A vision tower that lies outside the drafter's folder counts as a third model.
    """
    drafter = model_folder(config, "drafter")  # first: a missing folder is said before a target is fetched
    folders = {"target": model_folder(config, "target"), "drafter": drafter}
    tower = tower_folder(config, drafter)
    if tower is not None and not tower.resolve().is_relative_to(drafter.resolve()):
        folders["vision_tower"] = tower
    digest = hashlib.sha256()
    for which, folder in folders.items():
        for file in sorted(path for kind in _DEPENDED_ON for path in folder.rglob(kind)):
            digest.update(f"{which}/{file.relative_to(folder).as_posix()}".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _packaged() -> Path:
    spec = importlib.util.find_spec("torch_bridge.tiny")
    if spec is None or spec.origin is None:
        raise ConfigError("pair: the package torch_bridge is not installed; install xmsd again")
    return Path(spec.origin).parent / "weights"
