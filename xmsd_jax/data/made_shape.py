"""Sizes of a pair with random weights (`torch_bridge.made_pair`); by default those of the public 7B models."""

from dataclasses import dataclass

from xmsd_jax.config import ConfigError

TARGET_EXTRA = 2  # ids of `<image>` and `<video>`, right after the text


@dataclass(frozen=True, kw_only=True)
class MadeShape:
    """By default Video-LLaVA-7B and EventGPT-7B: two Vicuna-7B with CLIP ViT-L/14 at 224 and at 336 pixels.

    width, layers, heads, ffn: of both Llamas. vocabulary: ids that both share, the drafter's head; target_vocabulary:
    rows of the target's padded head. tower_*: of both CLIPs; patch, target_image, drafter_image: pixels of a side.
    """

    width: int = 4096
    layers: int = 32
    heads: int = 32
    ffn: int = 11008
    vocabulary: int = 32000
    target_vocabulary: int = 32064
    tower_width: int = 1024
    tower_layers: int = 24
    tower_heads: int = 16
    tower_ffn: int = 4096
    patch: int = 14
    target_image: int = 224
    drafter_image: int = 336

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that give no model."""
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.tower_layers < 2:
            raise ConfigError(f"tower_layers: must be at least 2 (layer -2 is read), got {self.tower_layers}")
        for whole, part in (
            ("width", "heads"), ("tower_width", "tower_heads"), ("target_image", "patch"), ("drafter_image", "patch"),
        ):  # fmt: skip
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{whole}: must be a multiple of {part}, got {getattr(self, whole)} and {getattr(self, part)}"
                )
        if self.width // self.heads % 2:
            raise ConfigError(f"heads: rotary embeddings need an even width a head, got {self.width // self.heads}")
        if self.target_vocabulary < self.vocabulary + TARGET_EXTRA:
            raise ConfigError(
                f"target_vocabulary: must hold the text and {TARGET_EXTRA} placeholders, at least "
                f"{self.vocabulary + TARGET_EXTRA}, got {self.target_vocabulary}"
            )

    @property
    def target_frame_tokens(self) -> int:
        """Tokens that the target's tower gives of a picture, CLS included (257)."""
        return (self.target_image // self.patch) ** 2 + 1

    @property
    def drafter_frame_tokens(self) -> int:
        """Tokens that the drafter's tower gives of an event frame, CLS included (577)."""
        return (self.drafter_image // self.patch) ** 2 + 1
