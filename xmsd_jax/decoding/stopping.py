"""Stop rules, shared by the live loop and the target-only reference: an answer ends at EOS (kept) or at its length."""

from collections.abc import Callable, Sequence, Set

from xmsd_jax.decoding.trace import Origin, Stop

Listener = Callable[[Sequence[int], Origin], None]
"""Hears of tokens as they become part of an answer, with where they came from; the same origin may come in portions."""


class Answer:
    """The tokens of an answer in the making; once `stop` is set, further tokens are dropped."""

    def __init__(self, *, eos_ids: Set[int], max_new_tokens: int, listener: Listener | None = None) -> None:
        """Start an empty answer; `max_new_tokens` is at least 1."""
        self._listener = listener
        self._eos_ids = eos_ids
        self._max_new_tokens = max_new_tokens
        self.ids: list[int] = []
        self.origins: list[Origin] = []
        self.stop: Stop | None = None

    def emit(self, tokens: Sequence[int], origin: Origin) -> int:
        """Append tokens until the answer stops; returns how many became part of it."""
        count = 0
        for token in tokens:
            if self.stop is not None:
                break
            self.ids.append(token)
            self.origins.append(origin)
            count += 1
            if token in self._eos_ids:
                self.stop = "eos"
            elif len(self.ids) == self._max_new_tokens:
                self.stop = "length"
        if count and self._listener is not None:
            self._listener(tokens[:count], origin)
        return count
