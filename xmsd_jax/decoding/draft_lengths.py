"""How many tokens phase 2 drafts at each iteration: always the same number, or what pays best by measured times.

**Rule** (`Adaptive`). Of the allowed lengths g, 0 included, take the one with the most expected tokens a second:

    (1 + a + ... + a^g) / (T_draft[g] + T_sync + T_verify[g+1] + T_host)    against    1 / T_dec    for g = 0,

the expectation of Leviathan et al. 2023, equation 1, with a the estimated chance that a drafted token is right where
all before it were. Ties go to the shorter draft. A drafter that goes along its OWN answer pays a step per emitted
token, which is added to the time of a draft.

**Estimate.** a = (prior.right + right) / (prior.right + prior.wrong + judged), over the drafted tokens that were
judged: an iteration that accepts n of m drafted ones adds n right of min(n + 1, m) judged, since nothing is learnt of
what follows a wrong token. One number for all positions, because an answer has some fifteen iterations: on 275 recorded
7B answers an estimate of its own for the first position was never faster, and up to 10 % slower.

**Forgetting.** Each iteration, drafted or not, multiplies `right` and `judged` by `memory`. So while nothing is drafted
the estimate drifts back to the prior, and as soon as that would pay again, a draft is tried ("and back"): after j plain
steps what is known weighs memory^j. The default prior, three right of four with the weight of 4/3 tokens, is hopeful
(what never drafts learns nothing) and light (one wrong token brings 0.75 down to 0.43, two to 0.30).

**What is lost where no draft is ever right.** After m judged wrong tokens (forgetting included) a draft is tried only
if its time is below 1/(1-a) plain steps, so it wastes at most a/(1-a) = right / (wrong + m) of one. It adds 1 to m, by
which ln(wrong + m) rises by at least wrong ln(1 + 1/wrong) / right of that waste; it falls by at most -ln(memory) an
iteration. With the defaults n tokens waste at most 0.111 n + 8.9 plain steps, WHATEVER the times. The worst times that
a search found waste 9 % of an answer of 50 tokens and 6 % of one of 256.

Nothing is drawn and nothing outlives an answer (`begin`): the same answer gives the same lengths in any order of
answers, which is what the offline walk relies on. A draft that came out empty tells nothing, as a plain step does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from xmsd_jax.decoding.cost import Parts

MEMORY = 0.95
"""What is left of the evidence after an iteration: a memory of 20 iterations, about one answer of 50 tokens."""


class DraftLengths(Protocol):
    """Says how many tokens to draft, iteration by iteration of one answer."""

    def begin(self) -> None:
        """Start a new answer: forget the last one."""
        ...

    def choose(self, most: int) -> int:
        """Tokens to draft now, 0..most; 0 is a plain step of the target."""
        ...

    def tell(self, asked: int, drafted: int, accepted: int) -> None:
        """Report the iteration: of `asked` tokens the drafter gave `drafted`, of which `accepted` stood."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """`DraftLengths`: always `gamma`, where so many are allowed."""

    gamma: int

    def begin(self) -> None:
        """Nothing to forget."""

    def choose(self, most: int) -> int:
        """Return gamma, or `most` if that is less."""
        return min(self.gamma, most)

    def tell(self, asked: int, drafted: int, accepted: int) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is believed before an answer: so many right and wrong drafted tokens (a Beta prior's pseudo-counts)."""

    right: float = 1.0
    wrong: float = 1 / 3

    def __post_init__(self) -> None:
        """Raise ValueError on a count that is not positive: no evidence could move the estimate then."""
        if not (self.right > 0 and self.wrong > 0):
            raise ValueError(f"a prior needs right and wrong counts above 0, got {self.right} and {self.wrong}")


class Adaptive:
    """`DraftLengths`: the length that pays best by measured times and the acceptance so far (module docstring)."""

    def __init__(
        self,
        parts: Parts,
        gammas: Sequence[int],
        *,
        own: bool = False,
        prior: Prior | None = None,
        memory: float = MEMORY,
    ) -> None:
        """Look the times up once.

        Args:
            parts: measured seconds: decode_step, and draft, verify, sync and host of the allowed lengths.
            gammas: the draft lengths allowed beside 0, each at least 1.
            own: whether the drafter goes along its own answer, a `drafter_step` per emitted token.
            prior: of the acceptance, for example learnt in training; None takes the default.
            memory: above 0, at most 1: what is left of the evidence after an iteration.

        Raises:
            ValueError: no length, one below 1, or a memory out of range.
            UserError: `parts` lacks a length.
        """
        if not gammas or min(gammas) < 1 or not 0 < memory <= 1:
            raise ValueError(f"needs draft lengths of 1 or more and a memory in (0, 1], got {gammas} and {memory}")
        self.gammas = tuple(sorted(set(gammas)))
        self._prior, self._memory = Prior() if prior is None else prior, memory
        self._plain, self._step = parts.decode_step, parts.drafter_step if own else 0.0
        fixed = parts.sync + parts.host
        self._seconds = {g: parts.draft_seconds(g) + fixed + parts.verify_seconds(g + 1) for g in self.gammas}
        self.begin()

    @property
    def acceptance(self) -> float:
        """a: the estimated chance that a drafted token is right where all before it were."""
        return (self._prior.right + self._right) / (self._prior.right + self._prior.wrong + self._judged)

    def begin(self) -> None:
        """Go back to the prior."""
        self._right = self._judged = 0.0

    def choose(self, most: int) -> int:
        """Return the allowed length of at most `most` with the most expected tokens a second, or 0."""
        likely, best, tokens, seconds = self.acceptance, 0, 1.0, self._plain
        for gamma in self.gammas:
            if gamma > most:
                break
            expected = (1 - likely ** (gamma + 1)) / (1 - likely)
            needed = self._seconds[gamma] + expected * self._step
            if expected * seconds > tokens * needed:
                best, tokens, seconds = gamma, expected, needed
        return best

    def tell(self, asked: int, drafted: int, accepted: int) -> None:
        """Forget a little, then count what was judged."""
        self._right = self._right * self._memory + accepted
        self._judged = self._judged * self._memory + min(accepted + 1, drafted)


def measured_gammas(parts: Parts, most: int) -> list[int]:
    """Draft lengths up to `most` at which draft and pass were both measured, so that no time is interpolated."""
    return sorted(gamma for gamma in parts.draft if gamma <= most and gamma + 1 in parts.verify)
