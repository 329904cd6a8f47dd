"""Recorded answers behind a verifier's true compute: wall clock is the inner target's, decisions are the record's.

An inner target with random weights reads the same prompt and the same ids as it would in a live run, pass by pass; only
the ids that its states emit are replaced. So a text drafter, which sees nothing but ids, has exactly the acceptance
that it has with the target whose answers were recorded. Rows made so are of kind "replayed"; a certificate does not
apply.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from xmsd_jax.decoding.ports import LateIds, Prompt, SomeIds, Verified, Verifier
from xmsd_jax.shapes import TokenIds

Answers = Callable[[Prompt], SomeIds] | Mapping[str, SomeIds]
"""The answer to a prompt, y_0..y_{L-1} with the EOS that it ended with, if any: a function, or by name of the clip."""


def lookup(answers: Answers) -> Callable[[Prompt], SomeIds]:
    """Answers as a function of the prompt, which raises KeyError naming a clip without one."""
    if not isinstance(answers, Mapping):
        return answers

    def answer(prompt: Prompt) -> SomeIds:
        if prompt.clip.name not in answers:
            raise KeyError(f"each prompt needs a recorded answer, got none for clip {prompt.clip.name!r}; record it")
        return answers[prompt.clip.name]

    return answer


class Replayed:
    """`Verifier` at T = 0 around another: the state after the prompt and k answer tokens emits the recorded y_k.

    - What the target would say after a WRONG drafted token is not on record. y_k of that position is emitted; the loop
      discards it, as it discards all that follows a rejected id.
    - A pass may read past the end of the answer: its states there emit the last recorded id, again and again (the EOS,
      if there is one). The loop drops them: it stops at the EOS, or at `max_new_tokens`, which must not exceed an
      answer that was cut off before its EOS. A pass that BEGINS past the end is refused, since it would decode what no
      target said.
    - `hidden` are the inner target's own states. With random weights they mean nothing, so an adapter that reads them
      has its true compute and no acceptance of its own (`oracle.Oracle` imposes one).
    - Optional attributes of the port pass through: there is a `capacity` only if the inner verifier has one.
    """

    def __init__(self, verifier: Verifier, answers: Answers) -> None:
        """Replay `answers` over the compute of `verifier`."""
        self._inner = verifier
        self._answer_to = lookup(answers)
        self._answer = np.empty(0, np.int32)
        self._read = 0

    @property
    def eos_ids(self) -> frozenset[int]:
        """The inner target's; recorded answers end with one of them, or were cut off."""
        return self._inner.eos_ids

    @property
    def vocabulary(self) -> int:
        """Number of the inner target's real ids."""
        return self._inner.vocabulary

    @property
    def times(self) -> Mapping[str, float]:
        """The inner target's."""
        return self._inner.times

    @property
    def capacity(self) -> int | None:
        """The inner target's; AttributeError, as of any verifier without one, where it has none."""
        return self._inner.capacity  # type: ignore[attr-defined]

    def prompt_ids(self, prompt: Prompt) -> TokenIds:
        """The inner target's text ids of the prompt."""
        return self._inner.prompt_ids(prompt)

    def prefill(self, prompt: Prompt, draft_ids: LateIds = (), *, logits: bool = False) -> Verified:
        """Read the prompt and `draft_ids`: emits y_0..y_k of the prompt's recorded answer.

        Raises ValueError for an answer that this target cannot have given, and where logits are asked for.
        """
        self._refuse(logits)
        self._answer = self._checked(np.asarray(self._answer_to(prompt), np.int32))
        verified = self._inner.prefill(prompt, draft_ids)
        self._read = len(verified.ids) - 1  # ids that a function gives later are known here at last
        return self._emit(verified, 0)

    def step(self, token: int, *, logits: bool = False) -> Verified:
        """Read one token."""
        start = self._advance(1, logits)
        return self._emit(self._inner.step(token), start)

    def verify(self, ids: Sequence[int], *, logits: bool = False) -> Verified:
        """Read `ids` in one pass."""
        start = self._advance(len(ids), logits)
        return self._emit(self._inner.verify(ids), start)

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens read, here and in the inner target's cache."""
        self._inner.crop(count)
        self._read -= count

    def synchronize(self) -> None:
        """Wait for the inner target's device."""
        self._inner.synchronize()

    def _advance(self, count: int, logits: bool) -> int:
        """Count tokens as read; returns the position that the first of their states emits."""
        self._refuse(logits)
        if self._read >= len(self._answer):
            raise ValueError(
                f"a replay ends with the recorded answer, {len(self._answer)} tokens, asked to go on after "
                f"{self._read}; set max_new_tokens to no more than what was recorded"
            )
        self._read += count
        return self._read - count + 1

    def _emit(self, verified: Verified, start: int) -> Verified:
        ids = self._answer[start : start + len(verified.ids)]
        if len(ids) < len(verified.ids):
            ids = np.concatenate([ids, np.full(len(verified.ids) - len(ids), self._answer[-1], np.int32)])
        return Verified(ids=ids, hidden=verified.hidden)

    def _checked(self, answer: TokenIds) -> TokenIds:
        if not len(answer) or answer.min() < 0 or answer.max() >= self.vocabulary:
            raise ValueError(
                f"a recorded answer holds at least one id, all real (0..{self.vocabulary - 1}), got {answer.tolist()}; "
                "replay answers of a target with this vocabulary"
            )
        if not self.eos_ids.isdisjoint(answer[:-1].tolist()):
            raise ValueError(f"an answer ends at its first EOS ({sorted(self.eos_ids)}), got {answer.tolist()}; cut it")
        return answer

    @staticmethod
    def _refuse(logits: bool) -> None:
        if logits:
            raise ValueError("a replay holds ids and no logits, asked for logits; set temperature 0 and no margins")
