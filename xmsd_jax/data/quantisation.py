"""How a model's weights are stored while it computes: the policy that configs hold and manifests record. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from xmsd_jax.config import ConfigError

HEAD = "lm_head"
TOWERS = ("video_tower", "image_tower", "visual_tower")
PROJECTORS = ("multi_modal_projector", "visual_projector", "feature_adaptor")


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Which linear layers of both models are held in 4 bits, and how.

    format: none keeps the pair's dtype; nf4 is bitsandbytes' 4-bit NormalFloat in blocks of 64 weights (QLoRA, arXiv
    2305.14314). double: the blocks' scales are 8-bit numbers themselves. compute: the dtype that a quantised layer
    multiplies in; its result comes back in the pair's dtype. keep: modules that stay as they are, with all that is in
    them, by their full names or the last parts of these (`lm_head`, `model.video_tower`, `layers.0.mlp`).
    """

    format: Literal["none", "nf4"] = "none"
    double: bool = True
    compute: Literal["float32", "bfloat16"] = "bfloat16"
    keep: tuple[str, ...] = (HEAD, *TOWERS, *PROJECTORS)

    def __post_init__(self) -> None:
        """Raise ConfigError for names that can be no module's."""
        if wrong := [name for name in self.keep if not all(name.split("."))]:
            raise ConfigError(
                f"keep: names of modules are needed, such as {HEAD} or model.video_tower, got {wrong[0]!r}"
            )

    def keeps(self, module: str) -> bool:
        """Whether the module of that full name stays as it is."""
        return any(names(entry, module) for entry in self.keep)

    def describe(self, modules: Iterable[str] | None = None) -> str:
        """The policy in words, with all of `keep`, or those entries that are about one of a model's `modules`."""
        if self.format == "none":
            return "none"
        known = None if modules is None else list(modules)
        kept = [entry for entry in self.keep if known is None or any(names(entry, module) for module in known)]
        scales = "double" if self.double else "single"
        return f"{self.format}, {scales}, compute {self.compute}, kept: {', '.join(kept) or 'nothing'}"


def names(entry: str, module: str) -> bool:
    """Whether `entry` is the full name, or the last parts of the name, of `module` or of a module that holds it."""
    wanted, parts = entry.split("."), module.split(".")
    return any(parts[stop - len(wanted) : stop] == wanted for stop in range(len(wanted), len(parts) + 1))
