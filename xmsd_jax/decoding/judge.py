"""Between ports and arithmetic: refuses bad drafts, and applies the acceptance rule of the temperature in use."""

import numpy as np

from xmsd_jax.decoding.acceptance import Probabilities, accept_greedy, accept_one, accept_sampled, softmax, widened
from xmsd_jax.decoding.ports import Draft, Verified


def no_draft() -> Draft:
    """Return an empty draft: the target goes on by itself."""
    return Draft(ids=np.empty(0, np.int32))


def split(draft: Draft, count: int) -> tuple[Draft, Draft]:
    """Split into the first `count` ids (with their q rows) and the rest."""
    q = draft.q
    return (
        Draft(ids=draft.ids[:count], q=None if q is None else q[:count]),
        Draft(ids=draft.ids[count:], q=None if q is None else q[count:]),
    )


def check_draft(draft: Draft, *, name: str, asked: int, vocabulary: int) -> None:
    """Raise ValueError on a draft that is too long, or that holds ids which are not real tokens."""
    if len(draft.ids) > asked:
        raise ValueError(f"drafter {name!r} was asked for at most {asked} ids, got {len(draft.ids)}; cut its draft")
    strange = [i for i in draft.ids.tolist() if not 0 <= i < vocabulary]
    if strange:
        raise ValueError(
            f"drafter {name!r} must draft real ids, 0..{vocabulary - 1}, got {strange}; mask the other rows of its head"
        )


class Judge:
    """Decides which drafted ids stand: the longest greedy match at T = 0, lossless rejection sampling at T > 0."""

    def __init__(self, *, temperature: float, rng: np.random.Generator | None) -> None:
        """Raise ValueError at temperature > 0 without an rng."""
        if temperature > 0 and rng is None:
            raise ValueError(f"sampling at temperature {temperature} needs a seeded rng, got None; pass one")
        self.sampled = temperature > 0
        self._temperature = temperature
        self._rng = rng

    def all(self, draft: Draft, verified: Verified) -> tuple[int, int]:
        """Judge g ids against the g + 1 states that follow each prefix: (n accepted, the token after them)."""
        if self._rng is None or not self.sampled:
            n = accept_greedy(draft.ids.tolist(), verified.ids.tolist())
            return n, int(verified.ids[n])
        return accept_sampled(draft.ids.tolist(), draft.q, self._distributions(verified), self._rng)

    def first(self, draft: Draft, verified: Verified) -> tuple[bool, int]:
        """Judge one id against the state that emits its position: (accepted, the token that stands there)."""
        drafted = int(draft.ids[0])
        if self._rng is None or not self.sampled:
            own = int(verified.ids[0])
            return drafted == own, own
        p = self._distributions(verified)
        q = widened(draft.q, 1, p.shape[-1])
        return accept_one(drafted, None if q is None else q[0], p[0], self._rng)

    def _distributions(self, verified: Verified) -> Probabilities:
        if verified.logits is None:
            raise ValueError("sampling needs logits, got none; the verifier must return them when asked")
        return softmax(verified.logits, self._temperature)
