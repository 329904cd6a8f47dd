"""Text-only drafters beside the n-gram: the control rows that every table carries."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from xmsd_jax.decoding.ngram import real_prefix
from xmsd_jax.decoding.ports import Context, Draft, SomeIds


class Template:
    """`Drafter`: the most common training answer to the question, position by position, whatever was said so far.

    At anchor t it drafts the template's own tokens t+1..t+gamma. A question without training answers gets no draft.
    """

    name = "template"

    def __init__(self, templates: Mapping[int, SomeIds]) -> None:
        """Take the template of each question index; `fit` chooses them."""
        self._templates = {question: np.array(ids, np.int32) for question, ids in templates.items()}

    @classmethod
    def fit(cls, answers: Mapping[int, Sequence[SomeIds]], *, vocabulary: int) -> "Template":
        """Choose per question the most common whole answer; ties go to the lowest ids, first token first.

        `answers`: question index -> token ids of training answers, EOS kept. The template ends before the first id
        that is not below `vocabulary`.
        """
        templates = {}
        for question, of_question in answers.items():
            counts = Counter(tuple(int(i) for i in ids) for ids in of_question)
            if counts:
                top = max(counts.values())
                templates[question] = real_prefix(min(a for a, n in counts.items() if n == top), vocabulary)
        return cls(templates)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft the template's tokens at the next `gamma` positions, fewer at its end."""
        template = self._templates.get(context.prompt.question_index, np.empty(0, np.int32))
        start = len(context.ids)
        return Draft(ids=template[start : start + gamma])


class PromptLookup:
    """`Drafter`: copies what followed the last tokens where they stood before, in the prompt or the answer so far.

    Saxena (2023), "Prompt Lookup Decoding"; the rule is that of transformers' `prompt_lookup_num_tokens`: the last n
    tokens are searched for n = `longest` down to 1, the EARLIEST place with a token after it wins, and up to gamma
    tokens are copied, fewer at the end of the text. Needs no training data.
    """

    name = "prompt-lookup"

    def __init__(self, *, vocabulary: int, longest: int = 3) -> None:
        """Raise ValueError on `longest` below 1."""
        if longest < 1:
            raise ValueError(f"prompt lookup needs longest >= 1, got {longest}")
        self._vocabulary = vocabulary
        self._longest = longest

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft up to `gamma` copied ids, cut before the first that is no real id."""
        text = [*context.prompt_ids.tolist(), *context.ids.tolist()]
        for n in range(min(self._longest, len(text) - 1), 0, -1):
            tail = text[-n:]
            for start in range(len(text) - n):
                if text[start : start + n] == tail:
                    copied = text[start + n : start + n + gamma]
                    return Draft(ids=np.array(real_prefix(copied, self._vocabulary), np.int32))
        return Draft(ids=np.empty(0, np.int32))


class RandomDrafter:
    """`Drafter`: uniform random real ids, the worst case that must still be lossless.

    The draft depends on the seed, the question and the position alone, so that an offline walk sees the same drafts.
    """

    name = "random"

    def __init__(self, *, seed: int, vocabulary: int) -> None:
        """Draft ids in 0..vocabulary-1."""
        self._seed = seed
        self._vocabulary = vocabulary

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft `gamma` random ids as a deterministic draft (q = None)."""
        rng = np.random.default_rng([self._seed, context.prompt.question_index + 1, len(context.ids)])
        return Draft(ids=rng.integers(self._vocabulary, size=gamma, dtype=np.int32))
