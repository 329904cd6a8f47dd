"""A drafter that knows the target's answer and is right as often as it is told: what an acceptance would be worth."""

import zlib
from collections.abc import Sequence

import numpy as np

from xmsd_jax.decoding.imposed import conditional
from xmsd_jax.decoding.ports import Context, Draft, Drafter, DrafterLane, Prompt
from xmsd_jax.decoding.replayed import Answers, lookup


class Oracle:
    """`Drafter`: d_j is the target's own token with probability a_j, where d_1..d_{j-1} are right; else a wrong id.

    The profile a_1, a_2, ... holds in both phases (in phase 1 for d_0, d_1, ...). Draws are independent and depend on
    the seed, the clip's name, the question, the anchor and j alone, so that an offline walk sees the same drafts. A
    wrong id is a real one, the next after the right id. A token that is no real id cannot be drafted, and what lies
    past the end of the answer has no right id: both are misses.

    With `compute` the row pays for a drafter that exists: its `propose` runs on the same context and its ids are thrown
    away; a draft is as long as the one that was computed, and `lane` is its lane. The oracle itself takes some 15
    microseconds a proposal.
    """

    def __init__(
        self,
        answers: Answers,
        profile: float | Sequence[float],
        seed: int,
        *,
        vocabulary: int,
        compute: Drafter | None = None,
        name: str = "oracle",
    ) -> None:
        """Impose an acceptance.

        Args:
            answers: the target's answer to each prompt.
            profile: a_1..a_g, the last one repeated; a number imposes it on every drafted token.
            seed: of the draws.
            vocabulary: number of real ids, at least 2.
            compute: the drafter whose time is paid; None drafts for nothing.
            name: row name.

        Raises:
            ValueError: a profile that is empty or not of probabilities, fewer than 2 real ids.
        """
        if vocabulary < 2:
            raise ValueError(f"a wrong id needs a vocabulary of at least 2, got {vocabulary}")
        conditional(profile, 0)
        self.name = name
        self._answer_to, self._profile, self._seed = lookup(answers), profile, seed
        self._vocabulary, self._compute = vocabulary, compute

    @property
    def lane(self) -> DrafterLane | None:
        """The drafter model that `compute` reads, if any."""
        return getattr(self._compute, "lane", None)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft `gamma` ids. Raises ValueError if the context is not a beginning of the prompt's answer."""
        if self._compute is not None:
            gamma = len(self._compute.propose(context, gamma).ids)
        answer = np.asarray(self._answer_to(context.prompt), np.int32)
        known = len(context.ids)
        if not np.array_equal(context.ids, answer[:known]):
            raise ValueError(
                f"oracle {self.name!r} knows an answer that begins {answer[:known].tolist()}, got "
                f"{context.ids.tolist()}; give it this target's answers, or replay them (Replayed)"
            )
        right = np.zeros(gamma, np.int32)
        ahead = answer[known : known + gamma]
        right[: len(ahead)] = ahead
        hits = self._hits(context.prompt, known, gamma) & (right < self._vocabulary)
        return Draft(ids=np.where(hits, right, (right + 1) % self._vocabulary).astype(np.int32))

    def _hits(self, prompt: Prompt, known: int, gamma: int) -> np.ndarray:
        """Which of the drafted tokens are to be right: bool[gamma]; a shorter draft has the same beginning."""
        asked = zlib.crc32(f"{prompt.clip.name}\n{prompt.question}".encode())
        draws = np.random.default_rng([self._seed, asked, known]).random(gamma)
        return draws < conditional(self._profile, gamma)
