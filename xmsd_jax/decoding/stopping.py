"""Stop rules, shared by the live loop and the target-only reference: an answer ends at EOS (kept) or at its length."""

from collections.abc import Sequence, Set

from xmsd_jax.decoding.trace import Origin, Stop


class Answer:
    """The tokens of an answer in the making; once `stop` is set, further tokens are dropped."""

    def __init__(self, *, eos_ids: Set[int], max_new_tokens: int) -> None:
        """Start an empty answer; `max_new_tokens` is at least 1."""
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
        return count
