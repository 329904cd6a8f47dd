"""The losslessness certificate: is speculative text the target's own, token by token?

Reference: target-only decoding with the same weights, dtype and kernels, M = 1. A pass over several tokens may round
differently from single steps, so where the target's two best tokens are as good as equal either choice is its own: such
a first difference is a *tie*, listed and counted. After it the two texts are different answers, so nothing later is
compared. Any other difference fails.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xmsd_jax.decoding.ports import SomeIds

Dtype = Literal["float32", "bfloat16"]
FP32_MARGIN = 1e-4
BF16_ULPS = 2
_BF16_FRACTION_BITS = 7
_BF16_SMALLEST_EXPONENT = -126


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One answer against its reference. `position` is that of the first difference, None where all is equal.

    `margin` is the reference's top logit minus its runner-up there, `allowed` the largest margin that is a tie; None
    where unknown. `expected` and `got` are the two ids, None past the end of a text.
    """

    answer: str
    verdict: Literal["equal", "tie", "divergence"]
    position: int | None = None
    expected: int | None = None
    got: int | None = None
    margin: float | None = None
    allowed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a run over `answers` texts has proved.

    `ties` and `divergences` list every answer that is not equal. `reason` says why a certificate does not apply, and is
    empty where it does.
    """

    answers: int
    equal: int
    ties: tuple[Comparison, ...] = ()
    divergences: tuple[Comparison, ...] = ()
    reason: str = ""

    @property
    def status(self) -> Literal["passed", "failed", "not applicable"]:
        """A certificate over no answers proves nothing: it fails."""
        if self.reason:
            return "not applicable"
        return "failed" if self.divergences or not self.answers else "passed"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the status and the counts."""
        return {
            "status": self.status,
            "answers": self.answers,
            "equal": self.equal,
            "tie_count": len(self.ties),
            "divergence_count": len(self.divergences),
            "ties": [vars(c) for c in self.ties],
            "divergences": [vars(c) for c in self.divergences],
            "reason": self.reason,
        }


def tie_margin(dtype: Dtype, top_logit: float) -> float:
    """Largest top-2 margin that counts as a tie: 1e-4 in fp32, 2 ulp of the top logit in bf16."""
    if dtype == "float32":
        return FP32_MARGIN
    if dtype != "bfloat16":
        raise ValueError(f"a certificate is defined for float32 and bfloat16, got {dtype!r}")
    exponent = math.frexp(top_logit)[1] - 1 if top_logit else _BF16_SMALLEST_EXPONENT
    return BF16_ULPS * math.ldexp(1.0, max(exponent, _BF16_SMALLEST_EXPONENT) - _BF16_FRACTION_BITS)


def first_difference(reference_ids: SomeIds, ids: SomeIds) -> int | None:
    """Position of the first difference: the end of the shorter text if it begins the other; None if equal."""
    for position, (expected, got) in enumerate(zip(reference_ids, ids, strict=False)):
        if expected != got:
            return position
    return None if len(reference_ids) == len(ids) else min(len(reference_ids), len(ids))


def compare(
    reference_ids: SomeIds,
    ids: SomeIds,
    *,
    dtype: Dtype,
    margins: Sequence[float] | None = None,
    top_logits: Sequence[float] | None = None,
    answer: str = "",
) -> Comparison:
    """Compare one answer with its reference.

    `margins` and `top_logits` are the reference's, one a token (`decode_plain(..., margins=True)`); without them, and
    where one text simply ends before the other, a difference is a divergence. `answer` names the answer in lists.
    """
    position = first_difference(reference_ids, ids)
    if position is None:
        return Comparison(answer=answer, verdict="equal")
    margin = allowed = None
    inside = position < min(len(reference_ids), len(ids))
    if inside and margins is not None and top_logits is not None:
        margin, allowed = float(margins[position]), tie_margin(dtype, float(top_logits[position]))
    tie = margin is not None and allowed is not None and margin <= allowed
    return Comparison(
        answer=answer,
        verdict="tie" if tie else "divergence",
        position=position,
        expected=int(reference_ids[position]) if position < len(reference_ids) else None,
        got=int(ids[position]) if position < len(ids) else None,
        margin=margin,
        allowed=allowed,
    )


def certify(comparisons: Iterable[Comparison]) -> Certificate:
    """Sum up the comparisons of a run."""
    comparisons = list(comparisons)
    ties = tuple(c for c in comparisons if c.verdict == "tie")
    divergences = tuple(c for c in comparisons if c.verdict == "divergence")
    return Certificate(
        answers=len(comparisons),
        equal=len(comparisons) - len(ties) - len(divergences),
        ties=ties,
        divergences=divergences,
    )


def not_applicable(reason: str) -> Certificate:
    """Return the certificate of a row that has none: replayed or imposed drafts, temperature above 0."""
    return Certificate(answers=0, equal=0, reason=reason)
