"""A drafter that knows the target's answer and is right as often as it is told: what an acceptance would be worth."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xmsd_jax.decoding.imposed import conditional
from xmsd_jax.decoding.ports import Context, Draft, Drafter, DrafterLane, Prompt
from xmsd_jax.decoding.replayed import Answers, lookup

_AT_ONCE = 32  # ids of a draft whose draws are made before the answer begins


class _Known(NamedTuple):
    """An answer, and a draw for each of the first ids drafted at each of its anchors, float64[n + 1, 32]."""

    prompt: Prompt
    answer: np.ndarray
    draws: np.ndarray


class Oracle:
    """`Drafter`: d_j is the target's own token with probability a_j, where d_1..d_{j-1} are right; else a wrong id.

    The profile a_1, a_2, ... holds in both phases (in phase 1 for d_0, d_1, ...). Draws are independent and depend on
    the seed, the clip's name, the question, the anchor and j alone, so that an offline walk sees the same drafts. A
    wrong id is a real one, the next after the right id. A token that is no real id cannot be drafted, and what lies
    past the end of the answer has no right id: both are misses.

    With `compute` the row pays for a drafter that exists: its `propose` runs on the same context and its ids are thrown
    away; a draft is as long as the one that was computed, and `lane` is its lane. The oracle itself takes some 5
    microseconds a proposal: what it needs of an answer is made at the answer's first one.
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
        self._accepted = conditional(profile, _AT_ONCE)
        self.name = name
        self._answer_to, self._profile, self._seed = lookup(answers), profile, seed
        self._vocabulary, self._compute = vocabulary, compute
        self._last: _Known | None = None

    @property
    def lane(self) -> DrafterLane | None:
        """The drafter model that `compute` reads, if any."""
        return getattr(self._compute, "lane", None)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft `gamma` ids. Raises ValueError if the context is not a beginning of the prompt's answer."""
        if self._compute is not None:
            gamma = len(self._compute.propose(context, gamma).ids)
        answer, known = self._known(context.prompt).answer, len(context.ids)
        if not np.array_equal(context.ids, answer[:known]):
            raise ValueError(
                f"oracle {self.name!r} knows an answer that begins {answer[:known].tolist()}, got "
                f"{context.ids.tolist()}; give it this target's answers, or replay them (Replayed)"
            )
        right = np.zeros(gamma, np.int32)
        ahead = answer[known : known + gamma]
        right[: len(ahead)] = ahead
        hits = self._hits(context.prompt, known, gamma) & (right < self._vocabulary)
        right += ~hits
        return Draft(ids=right % self._vocabulary)

    def _known(self, prompt: Prompt) -> _Known:
        """The answer to a prompt, and its draws."""
        if self._last is None or self._last.prompt is not prompt:
            answer = np.asarray(self._answer_to(prompt), np.int32)
            draws = self._generator(prompt).random((len(answer) + 1, _AT_ONCE))
            self._last = _Known(prompt, answer, draws)
        return self._last

    def _hits(self, prompt: Prompt, known: int, gamma: int) -> np.ndarray:
        """Which of the drafted tokens are to be right: bool[gamma]; a shorter draft has the same beginning."""
        hits = self._known(prompt).draws[known, :gamma] < self._accepted[:gamma]
        if gamma <= _AT_ONCE:
            return hits
        more = self._generator(prompt, known).random(gamma - _AT_ONCE)
        return np.concatenate([hits, more < conditional(self._profile, gamma)[_AT_ONCE:]])

    def _generator(self, prompt: Prompt, *place: int) -> np.random.Generator:
        asked = zlib.crc32(f"{prompt.clip.name}\n{prompt.question}".encode())
        # Their count too: numpy takes [a, b] and [a, b, 0] for the same seed.
        return np.random.default_rng([self._seed, asked, len(place), *place])
