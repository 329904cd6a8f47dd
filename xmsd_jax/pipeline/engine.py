"""How both models decode live: over a static cache, or over one that grows; side by side, or one after the other."""

from dataclasses import dataclass
from typing import Any, Literal

from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.live import Lanes

LIBRARY = "library products"
"""Ends the name of a row of plain decoding by the library's own products."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine under all rows but "target eager".

    cache: `static` reads every pass into memory of fixed size, on a GPU as CUDA graphs over compiled layers; `growing`
    is transformers' own way. lengths: of captured passes; another one is padded to the next. exact: plain decoding and
    verification at one length, so that speculative ids are greedy ids in bfloat16 and NF4 too. compiled: null compiles
    on a GPU. products: of few rows on a GPU, by kernels of our own where they can be built, or by the library. lanes:
    `parallel` runs the drafter model's phase 1 on its own stream, beside the target's prefill.
    """

    cache: Literal["static", "growing"] = "static"
    lengths: tuple[int, ...] = (1, 2, 4, 6, 9)
    exact: bool = False
    compiled: bool | None = None
    products: Literal["fused", "library"] = "fused"
    lanes: Lanes = "serial"

    def __post_init__(self) -> None:
        """Raise ConfigError for passes that cannot be, and for exactness that a growing cache does not have."""
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths: of at least one pass, of 1 token or more, got {list(self.lengths)}")
        if self.exact and self.cache == "growing":
            raise ConfigError("exact: needs passes of one length, which a growing cache has not; set cache to static")

    def session(self, vlm: Any, room: int, *, keep_visual: bool = False) -> Any:
        """A session of a model, with room for an answer; `keep_visual` (static caches): see `StaticSession`."""
        if self.cache == "growing":
            from torch_bridge.vlm import Session

            return Session(vlm)
        from torch_bridge.static_session import StaticSession

        options = {"lengths": self.lengths, "exact": self.exact, "compiled": self.compiled}
        return StaticSession(vlm, room=room, own_products=self.products == "fused", keep_visual=keep_visual, **options)

    def fuses(self, vlm: Any) -> bool:
        """Whether a session of this model multiplies few rows by kernels of our own."""
        from torch_bridge.few_layer import is_dense

        static = self.cache == "static" and self.products == "fused" and vlm.device.type == "cuda"
        return static and (self.replaces(vlm) or all(map(is_dense, vlm.language_model.layers)))

    def replaces(self, vlm: Any) -> bool:
        """Whether it does so in the place of the model's layers: the library's rows need the model once more then."""
        from torch_bridge.nf4.linear import takes_kernel

        static = self.cache == "static" and self.products == "fused" and vlm.device.type == "cuda"
        return static and takes_kernel(vlm.language_model)

    def rows(self, room: int) -> int:
        """Rows of the buffer in which a session with that room holds an answer's states."""
        return room + max(self.lengths) + 1

    def row(self, device: str) -> str:
        """The word that names the row of plain decoding over a static cache."""
        return ("compiled" if device == "cuda" else "static") + (" exact" if self.exact else "")

    @property
    def words(self) -> str:
        """For the settings of a row."""
        if self.cache == "growing":
            return "growing cache"
        return "static cache" + (f", exact at M = {max(self.lengths)}" if self.exact else "")
