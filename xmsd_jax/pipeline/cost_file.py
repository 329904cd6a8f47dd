"""A cost file: the milliseconds of one machine, by part, written by hand or from a measurement; strict YAML.

What was not measured is left out, and `missing` names it for each row that needs it: nothing is guessed, and a length
between two measured ones is interpolated, never one outside them (`xmsd_jax.decoding.cost`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from xmsd_jax.config import ConfigError, find, load
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.pipeline.costs import steps
from xmsd_jax.pipeline.rows import DRAFTERS, IDENTITIES, TEXT, DraftRow

T = TypeVar("T")
KINDS = ("text", "control", "adapter")
"""Of drafters: the entry of a kind stands for each drafter of it that has none of its own."""
MS = 1e-3


@dataclass(frozen=True, kw_only=True)
class LaneCosts:
    """Milliseconds of the drafter model: its vision tower, its prefill, one step of its own answer."""

    vision: float
    prefill: float
    step: float


@dataclass(frozen=True, kw_only=True)
class CostFile:
    """Measured milliseconds.

    machine: what was measured, in words. baseline: the plain decoding that `decode` is of, as tables name it.
    vision, prefill: of the target, once an answer; decode: one token of plain decoding. verify: M -> one pass over M
    tokens. draft: drafter or kind (text, control, adapter) -> gamma -> drafting gamma tokens, once an iteration. sync:
    drafter or kind -> the drafter model's pass over newly accepted tokens, once an iteration. early: drafter or kind
    -> its call in phase 1. host: the loop's own time of an iteration. prefill_per_extra: each draft token that rides
    on the prompt. drafter: the drafter model. Null or no entry: not measured.
    """

    machine: str
    baseline: str
    prefill: float
    decode: float
    verify: dict[int, float]
    vision: float | None = None
    draft: dict[str, dict[int, float]] = field(default_factory=dict)
    sync: dict[str, float] = field(default_factory=dict)
    early: dict[str, float] = field(default_factory=dict)
    host: float | None = None
    prefill_per_extra: float | None = None
    drafter: LaneCosts | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown drafter, a length below 1, a negative time, and a free plain step."""
        for name in ("draft", "sync", "early"):
            for key in getattr(self, name):
                _check_drafter(name, key)
        for where, value in _times(self):
            if value < 0:
                raise ConfigError(f"{where}: must be milliseconds >= 0, got {value}; measure it, or leave it out")
        for where, table in (("verify", self.verify), *((f"draft.{name}", t) for name, t in self.draft.items())):
            if any(length < 1 for length in table):
                raise ConfigError(f"{where}: a length must be at least 1, got {min(table)}")
        if not self.decode:
            raise ConfigError("decode: must be above 0, the milliseconds of one token of plain decoding")

    def missing(self, row: DraftRow, gamma: int, draft_len: int) -> list[str]:
        """What this file lacks for a row, each as the entry to add; empty where nothing is lacking.

        gamma: the longest draft of phase 2; one measured length within 1..gamma is enough. draft_len: k of phase 1.
        """
        names, lane = [name for name in (row.drafter, row.first) if name], self.drafter is None
        drafted = row.drafter is None or len(self.gammas(row, gamma)) > 1
        lacking = {
            _entry("draft", row.drafter, f" at a gamma of 1 to {gamma}" if self.draft_of(row) else ""): not drafted,
            _entry("sync", row.drafter): _syncs(row) and _of(self.sync, row.drafter) is None,
            _entry("early", row.first): row.first is not None and _of(self.early, row.first) is None,
            "prefill_per_extra": row.prefill_mode == "ride" and self.prefill_per_extra is None,
            f"verify at M = {draft_len}": row.prefill_mode == "wait" and not _covered(self.verify, [draft_len]),
            "drafter (vision, prefill, step)": lane and any(_reads_drafter(name) for name in names),
        }
        return [entry for entry, lacks in lacking.items() if lacks]

    def gammas(self, row: DraftRow, gamma: int) -> list[int]:
        """Draft lengths 0..gamma that the row can be predicted at: 0, and those between two measured ones."""
        return [0, *_covered(self.draft_of(row), range(1, gamma + 1))]

    def draft_of(self, row: DraftRow) -> dict[int, float]:
        """Milliseconds of the row's draft in phase 2, by its length; empty where it has none or none was measured."""
        return _of(self.draft, row.drafter) or {}

    def parts(self, row: DraftRow | None = None) -> Parts:
        """Seconds for the cost model; without a row those of the target alone. What is not in the file counts 0."""
        own = {} if row is None else self._of_row(row)
        return Parts(
            vision=(self.vision or 0.0) * MS,
            prefill=self.prefill * MS,
            decode_step=self.decode * MS,
            verify=_seconds(self.verify),
            host=(self.host or 0.0) * MS,
            prefill_per_extra=(self.prefill_per_extra or 0.0) * MS,
            **own,
        )

    def _of_row(self, row: DraftRow) -> dict[str, Any]:
        found: dict[str, Any] = {"draft": _seconds(self.draft_of(row))}
        found["adapter"] = (_of(self.early, row.first) or 0.0) * MS
        found["sync"] = (_of(self.sync, row.drafter) or 0.0) * MS if _syncs(row) else 0.0
        if self.drafter is not None and any(_reads_drafter(name) for name in (row.drafter, row.first) if name):
            found |= {"drafter_vision": self.drafter.vision * MS, "drafter_prefill": self.drafter.prefill * MS}
            found["drafter_step"] = self.drafter.step * MS if steps(row) else 0.0
        return found

    def unmeasured(self) -> list[str]:
        """Parts that every row has and that are not in the file: they count 0."""
        return [name for name in ("vision", "host") if getattr(self, name) is None]


def read_cost_file(source: Path, gamma: int) -> CostFile:
    """Read a cost file, by its path or as a packaged one, for draft lengths up to `gamma`.

    Raises:
        ConfigError: no such file, one that does not fit, or passes over 2..gamma + 1 tokens that are not covered.
    """
    path = find(str(source), "costs")
    costs = load(CostFile, path)
    for length in (2, gamma + 1):
        if not _covered(costs.verify, [length]):
            measured = ", ".join(map(str, sorted(costs.verify))) or "none"
            remedy = f", or set gamma to {max(costs.verify) - 1}" if max(costs.verify, default=0) > 2 < length else ""
            raise ConfigError(
                f"{path}: verify: a pass over {length} tokens was not measured (measured: {measured}); add it{remedy}"
            )
    return costs


def _times(costs: CostFile) -> Iterable[tuple[str, float]]:
    """All milliseconds of a file, with the fields that they stand in."""
    for name in ("vision", "prefill", "decode", "host", "prefill_per_extra"):
        yield name, getattr(costs, name) or 0.0
    for name in ("verify", "sync", "early"):
        yield from ((f"{name}.{key}", value) for key, value in getattr(costs, name).items())
    for name, table in costs.draft.items():
        yield from ((f"draft.{name}.{gamma}", value) for gamma, value in table.items())
    if costs.drafter is not None:
        yield from ((f"drafter.{name}", value) for name, value in vars(costs.drafter).items())


def _check_drafter(where: str, name: str) -> None:
    known = (*KINDS, *DRAFTERS)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        told = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{where}.{name}: is no drafter and no kind of drafters; {told}")


def _kind(name: str) -> str:
    return "text" if name in TEXT else "control" if name in IDENTITIES else "adapter"


def _of(table: Mapping[str, T], name: str | None) -> T | None:
    """The entry of a drafter, else that of its kind."""
    return None if name is None else table.get(name, table.get(_kind(name)))


def _entry(table: str, name: str | None, what: str = "") -> str:
    return "" if name is None else f"{table}.{name} (or {table}.{_kind(name)}){what}"


def _reads_drafter(name: str) -> bool:
    """Whether it drafts from the drafter model's states."""
    return name not in (*TEXT, "identity(target, 1)", "B1")


def _syncs(row: DraftRow) -> bool:
    """Whether the drafter model reads the accepted tokens in each iteration."""
    return (row.drafter or "").endswith("(synced)")


def _covered(table: Mapping[int, float], lengths: Iterable[int]) -> list[int]:
    """Those of the lengths that were measured or lie between two that were."""
    return [n for n in lengths if table and min(table) <= n <= max(table)]


def _seconds(table: Mapping[int, float]) -> dict[int, float]:
    return {length: value * MS for length, value in table.items()}
