"""What a cost file does not say, in words: which drafters are left out, what counts 0, what is interpolated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xmsd_jax.config import UserError
from xmsd_jax.pipeline.cost_file import CostFile
from xmsd_jax.pipeline.rows import DraftRow

ZERO = {
    "vision": "vision is not in {} and counts 0 ms: an answer takes longer, and gains and losses are smaller",
    "host": "host is not in {} and counts 0 ms: an iteration takes longer, and speed-ups are lower",
}


@dataclass(kw_only=True)
class Notices:
    """Collected while rows are predicted. name: of the cost file; gamma: the longest draft; draft_len: k of phase 1."""

    costs: CostFile
    name: str
    gamma: int
    draft_len: int
    _told: dict[str, None] = field(default_factory=dict)
    _short: dict[str, dict[str, None]] = field(default_factory=dict)
    _between: dict[str, dict[str, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start with what holds for every row."""
        self._told |= {ZERO[part].format(self.name): None for part in self.costs.unmeasured()}

    @property
    def told(self) -> list[str]:
        """Each notice once; drafters of which the same is told stand in one."""
        short = [f"{', '.join(names)}: {what}" for what, names in self._short.items()]
        passes = _between(self.costs.verify, range(2, self.gamma + 2))
        between = [f"passes over {ranges(passes)} tokens"] if passes else []
        between += [f"drafts of {gammas} tokens of {', '.join(names)}" for gammas, names in self._between.items()]
        joined = [f"interpolated between measured lengths: {'; '.join(between)}"] if between else []
        return [*self._told, *short, *joined]

    def limit(self, row: DraftRow) -> int:
        """The longest draft of a row."""
        return row.longest(self.gamma)

    def refuse(self, row: DraftRow) -> None:
        """Raise UserError that names what the file lacks for a row that was asked for."""
        if lacking := self.costs.missing(row, self.limit(row), self.draft_len):
            told = f"{self.name}: {row.name} needs {', '.join(lacking)}"
            raise UserError(f"{told}: measure and add it, or leave {row.name} out")

    def leaves_out(self, row: DraftRow) -> bool:
        """Whether a row cannot be predicted; tells why, or at which draft lengths it is not."""
        limit = self.limit(row)
        if lacking := self.costs.missing(row, limit, self.draft_len):
            self._told[f"{row.name} is left out: measure and add to {self.name} {', '.join(lacking)}"] = None
            return True
        known, draft = self.costs.gammas(row, limit), self.costs.draft_of(row)
        if without := [gamma for gamma in range(limit + 1) if gamma not in known]:
            measured = ranges(sorted(draft))
            told = f"not predicted at gamma {ranges(without)}, since the draft was measured at gamma {measured} alone"
            self._short.setdefault(told, {})[str(row.drafter)] = None
        if between := _between(draft, known[1:]):
            self._between.setdefault(ranges(between), {})[str(row.drafter)] = None
        return False

    def without_gamma(self, names: Sequence[str]) -> None:
        """Tell of drafters that are in no row because they have no phase 2."""
        if names:
            example = f"{{prefill: {names[-1]}, drafter: n-gram, prefill_mode: ride}}"
            self._told[f"{', '.join(names)}: phase 1 only, so without a gamma; add rows such as {example}"] = None


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in ascending order, in words: "1 to 4, 6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _between(table: Mapping[int, float], lengths: Sequence[int]) -> list[int]:
    """Those of the lengths that were not measured themselves."""
    return [length for length in lengths if length not in table]
