"""A target and drafters small enough to know everything about: a random trigram model behind the `Verifier` port.

The next token depends on the prompt and the last two tokens, so a wrong token in the cache changes what follows. Its
head is padded, like the real one's, and does emit padding ids now and then. Every promise that the loop makes to a
verifier is asserted here.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from xmsd_jax.data.clips import Clip
from xmsd_jax.data.events import Events
from xmsd_jax.decoding.ports import Context, Draft, Prompt, Verified

EOS = 2


def toy_clip(name: str = "clip") -> Clip:
    events = Events(
        x=np.zeros(1, np.uint16), y=np.zeros(1, np.uint16), p=np.ones(1, np.uint8), t=np.zeros(1, np.int64),
        height=1, width=1,
    )  # fmt: skip
    return Clip(
        name=name, sequence="toy", events=events, video=np.zeros((1, 1, 1, 3), np.uint8),
        frame_times_us=np.zeros(1, np.int64), start_us=0, stop_us=1,
    )  # fmt: skip


CLIP = toy_clip()


def toy_prompt(question_index: int = 0) -> Prompt:
    return Prompt(clip=CLIP, question=f"question {question_index}", question_index=question_index)


class ToyVerifier:
    """`hidden[i]` of a state that emits position t is [t, what was read before it], so that tests see who got what."""

    times: Mapping[str, float] = {"vision": 0.0, "prefill": 0.0}

    def __init__(self, *, seed: int = 0, vocabulary: int = 12, padding: int = 2, spread: float = 2.0) -> None:
        self.vocabulary = vocabulary
        self.width = vocabulary + padding
        self.eos_ids = frozenset({EOS})
        self._table = np.random.default_rng(seed).normal(0, spread, (211, self.width))
        self.prompt_length = 0
        self.cache: list[int] = []
        self.passes: list[tuple[str, int]] = []
        self.synchronized = 0

    def prompt_ids(self, prompt: Prompt) -> np.ndarray:
        return np.array([1, 3 + prompt.question_index % 5, 4, 5], np.int32)

    def logits(self, text: Sequence[int]) -> np.ndarray:
        """What follows the whole text, prompt included."""
        return self._table[(text[-1] * 31 + text[-2] * 7 + text[1] * 3) % len(self._table)]

    def prefill(self, prompt: Prompt, draft_ids: Sequence[int] = (), *, logits: bool = False) -> Verified:
        self.cache = self.prompt_ids(prompt).tolist()
        self.prompt_length = len(self.cache)
        self.passes = [("prefill", len(draft_ids))]
        return self._read(draft_ids, len(draft_ids) + 1, logits)

    def step(self, token: int, *, logits: bool = False) -> Verified:
        self.passes.append(("step", 1))
        return self._read([token], 1, logits)

    def verify(self, ids: Sequence[int], *, logits: bool = False) -> Verified:
        assert len(ids) > 0, "a pass over nothing"
        self.passes.append(("verify", len(ids)))
        return self._read(ids, len(ids), logits)

    def crop(self, count: int) -> None:
        assert 0 < count <= len(self.cache) - self.prompt_length, "cropped nothing, or into the prompt"
        del self.cache[-count:]

    def synchronize(self) -> None:
        self.synchronized += 1

    def _read(self, ids: Sequence[int], states: int, logits: bool) -> Verified:
        assert all(type(i) is int and 0 <= i < self.width for i in ids), "ids must be plain ints of the embedding"
        self.cache.extend(ids)
        capacity = getattr(self, "capacity", None)
        assert capacity is None or len(self.cache) - self.prompt_length <= capacity, "the static cache overran"
        ends = range(len(self.cache) - states + 1, len(self.cache) + 1)
        scores = np.stack([self.logits(self.cache[:end]) for end in ends])
        hidden = np.array([[end - self.prompt_length, self.cache[end - 1]] for end in ends])
        return Verified(ids=scores.argmax(-1).astype(np.int32), hidden=hidden, logits=scores if logits else None)


class CappedVerifier(ToyVerifier):
    """A static cache: room for `capacity` tokens after the prompt."""

    def __init__(self, capacity: int, **settings) -> None:
        super().__init__(**settings)
        self.capacity = capacity


def target_alone(verifier: ToyVerifier, prompt: Prompt, count: int) -> list[int]:
    """Greedy answer, straight from the table: no port, no loop."""
    text = verifier.prompt_ids(prompt).tolist()
    start = len(text)
    while len(text) - start < count and (len(text) == start or text[-1] != EOS):
        text.append(int(verifier.logits(text).argmax()))
    return text[start:]


class Scripted:
    """Drafts the given tokens by position: the right answer, a wrong one, or a mixture; `lengths` cuts by position."""

    name = "scripted"

    def __init__(self, tokens: Mapping[int, Sequence[int]], lengths: Sequence[int] = ()) -> None:
        self.tokens, self.lengths = tokens, lengths
        self.seen: list[Context] = []

    def propose(self, context: Context, gamma: int) -> Draft:
        self.seen.append(context)
        start = len(context.ids)
        length = min(gamma, self.lengths[start % len(self.lengths)]) if self.lengths else gamma
        ids = list(self.tokens[context.prompt.question_index])[start : start + length]
        return Draft(ids=np.array(ids, np.int32))


class Sampling:
    """Draws each id from its own q: `sharpness` > 0 follows the target, < 0 prefers what the target finds unlikely."""

    name = "sampling"

    def __init__(self, verifier: ToyVerifier, sharpness: float, rng: np.random.Generator) -> None:
        self.verifier, self.sharpness, self.rng = verifier, sharpness, rng

    def propose(self, context: Context, gamma: int) -> Draft:
        text = [*context.prompt_ids.tolist(), *context.ids.tolist()]
        ids, q = [], []
        for _ in range(gamma):
            weights = np.exp(self.sharpness * self.verifier.logits(text)[: self.verifier.vocabulary])
            q.append(weights / weights.sum())
            ids.append(int(np.searchsorted(np.cumsum(q[-1]), self.rng.random() * 0.999999)))
            text.append(ids[-1])
        return Draft(ids=np.array(ids, np.int32), q=np.stack(q))
