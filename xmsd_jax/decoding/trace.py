"""What one decoded answer leaves behind: tokens with their origins, iterations, seconds. Goes to JSON and back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xmsd_jax.decoding.ports import Span

Origin = Literal["prefill-draft", "draft", "target"]
Stop = Literal["eos", "length"]


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One draft and its verification at anchor t: `accepted` of the `drafted` ids stood, `emitted` tokens came out.

    At the end of an answer both counts cover only tokens that are part of it.
    """

    anchor: int
    drafted: tuple[int, ...]
    accepted: int
    emitted: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One answer.

    `origins[i]` says where token i came from: an accepted phase-1 draft, an accepted draft, or the target itself.
    `prefill_drafted`: the phase-1 draft (empty without phase 1), of which the first `n_free` ids stood.
    `seconds`, wall clock, synchronised: `vision`, `prefill` (the drafter's lane and phase 1's drafting included, which
    are also told apart as `prefill_draft`), `first` (the checking pass of `wait`: T_first; 0 otherwise) and `decode` =
    `draft` + `verify` + `host` (phase 2: drafter, of which `sync` is the drafter model's passes; target passes with
    crops; bookkeeping). vision + prefill + first + decode is the answer. `spans`: the same as a timeline of both lanes.
    `margins`, `top_logits`: per token, when asked for: top logit minus runner-up, and the top logit.
    """

    ids: tuple[int, ...]
    origins: tuple[Origin, ...]
    stop: Stop
    iterations: tuple[Iteration, ...] = ()
    n_free: int = 0
    prefill_drafted: tuple[int, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    margins: tuple[float, ...] | None = None
    top_logits: tuple[float, ...] | None = None

    @property
    def emitted(self) -> int:
        """Tokens emitted by iterations: neither the free prefix nor the target's token after the prefill."""
        return sum(i.emitted for i in self.iterations)

    @property
    def tau(self) -> float | None:
        """Tokens per iteration of this answer, None without one. Over answers: sum both, then divide."""
        return self.emitted / len(self.iterations) if self.iterations else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trace":
        """Rebuild an equal trace from `to_json` values. Raises ValueError naming a key that is missing or unknown."""
        values = dict(values)
        try:
            rows = [{**row, "drafted": tuple(row["drafted"])} for row in values.pop("iterations")]
            spans = tuple(Span(**span) for span in values.pop("spans", ()))
            tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            return cls(**{**values, **tuples}, iterations=tuple(Iteration(**row) for row in rows), spans=spans)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a trace must hold what Trace.to_json writes, got {sorted(values)}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value
