"""Names of drafters and rows: which drafter a config means, and what its row is called in every table."""

from dataclasses import dataclass
from typing import Literal

from xmsd_jax.config import ConfigError

Mode = Literal["none", "ride", "wait"]
TEXT = ("prompt-lookup", "template", "n-gram")
IDENTITIES = ("identity(drafter, 0)", "identity(target, 1)")
PHASE_1 = ("identity(drafter, 0)", "L1", "L2", "L3", "L4")
PHASE_2 = ("identity(target, 1)", "L5 (own)", "L5 (synced)", "B1", "L5F (own)", "L5F (synced)")
DRAFTERS = (*TEXT, *PHASE_1, *PHASE_2)


def drafter_name(kind: str, pairing: str | None) -> str:
    """Name of a trained adapter: "L5 (own)" learned from index pairs, "L5 (synced)" from synced ones; "L2"; "B1"."""
    mode = {None: "", "index": " (own)", "synced": " (synced)"}[pairing]
    return kind + mode if f"{kind}{mode}" in PHASE_2 else kind


def folder_name(name: str) -> str:
    """A drafter's name as a folder: "L5 (own)" -> "L5_own"."""
    return "".join(c if c.isalnum() else "_" for c in name).strip("_").replace("__", "_")


@dataclass(frozen=True, kw_only=True)
class DraftRow:
    """One row of the ladder: who drafts in phase 2, who in phase 1, and how.

    drafter: of phase 2; null decodes plainly after phase 1. prefill: of phase 1; null takes `drafter`.
    prefill_mode: none (no phase 1), ride or wait. gamma: of this row; null takes that of the ladder; auto chooses at
    each iteration, by the row's measured times, among 0 and the measured lengths up to that of the ladder.
    """

    drafter: str | None = None
    prefill: str | None = None
    prefill_mode: Mode = "none"
    gamma: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a drafter that there is not, or that does not work in its phase."""
        for phase, name, allowed in (
            ("drafter", self.drafter, (*TEXT, *PHASE_2)),
            ("prefill", self.prefill, (*TEXT, *PHASE_1)),
        ):
            if name is not None and name not in allowed:
                raise ConfigError(f"{phase}: {name!r} is none of {', '.join(allowed)}")
        if (self.first is None) != (self.prefill_mode == "none"):
            raise ConfigError(
                f"prefill_mode: {self.prefill_mode} does not go with drafter {self.drafter} and prefill "
                f"{self.prefill}; a row drafts in phase 1 (ride or wait, by a text drafter or an adapter L1..L4) or not"
            )
        if isinstance(self.gamma, int) and self.gamma < 1:
            raise ConfigError(f"gamma: must be at least 1, or auto, got {self.gamma}")
        if self.auto and self.drafter is None:
            raise ConfigError("gamma: auto chooses how much a drafter of phase 2 drafts; name one in drafter")
        if self.drafter is None and self.prefill is None:
            raise ConfigError("a row needs a drafter, a prefill drafter, or both")

    @property
    def first(self) -> str | None:
        """Who drafts in phase 1; None without one."""
        if self.prefill is not None:
            return self.prefill
        return self.drafter if self.prefill_mode != "none" and self.drafter in TEXT else None

    @property
    def auto(self) -> bool:
        """Whether the draft length is chosen before each iteration."""
        return self.gamma == "auto"

    def longest(self, gamma: int) -> int:
        """The longest draft of phase 2 in a ladder of `gamma`."""
        return self.gamma if isinstance(self.gamma, int) else gamma

    @property
    def name(self) -> str:
        """The row's name in tables and traces."""
        auto = ("auto",) if self.auto else ()
        if self.prefill is None:
            modes = () if self.prefill_mode == "none" else (self.prefill_mode,)
            return _marked(str(self.drafter), *modes, *auto)
        return self.prefill if self.drafter is None else _marked(f"{self.prefill}+{self.drafter}", *auto)


def _marked(name: str, *marks: str) -> str:
    """Add marks in a bracket, as in "n-gram (ride, auto)"; into the drafter's own one: "L5F (synced, auto)"."""
    if not marks:
        return name
    head, bracket, inside = name.partition(" (")
    return f"{head} ({', '.join((inside.removesuffix(')'), *marks) if bracket else marks)})"
