"""The n-gram drafter: variable-order, longest match, over training answers plus the answer so far.

**History.** An answer is read as `[question, BEGIN, y_0, y_1, ...]`, where `question` is a symbol of its own for each
question index and is left out for a free question (index -1). Both symbols are context tokens like any other. So the
first draft (phase 1, no tokens yet) is drawn from answers to the same question; for a question that training does not
know, from the beginnings of all answers.

**Rule.** The next token is the most frequent follower of the longest suffix of the history, of 1 to `order` tokens,
that has a follower in training or in the answer so far; at that length training counts and own counts are added; ties
go to the lowest id. A drafted token extends the history at once, but adds no counts. Where no suffix has a follower
(after EOS; after a token never seen) the draft ends, so drafts vary in length.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from xmsd_jax.decoding.contexts import ROOT, ContextTable, build
from xmsd_jax.decoding.ports import Context, Draft, SomeIds

BEGIN = -1


def question_symbol(question_index: int) -> tuple[int, ...]:
    """Symbols that stand before BEGIN: one for a question of the set, none for a free question (-1)."""
    return (-2 - question_index,) if question_index >= 0 else ()


def real_prefix(ids: SomeIds, vocabulary: int) -> tuple[int, ...]:
    """Cut `ids` before the first one that is no real id: what follows it was never said after a real token."""
    ids = tuple(int(i) for i in ids)
    stop = next((i for i, token in enumerate(ids) if not 0 <= token < vocabulary), len(ids))
    return ids[:stop]


class _Answer:
    """The answer so far, read once: its place in the training table and where its own earlier tokens recur.

    `places[token]`: places p of the answer with y_p = token whose next token is known. `matches[p]`: how many tokens
    ending at p equal the tokens that end the history.
    """

    def __init__(self, question_index: int, state: int) -> None:
        self.question_index = question_index
        self.ids: list[int] = []
        self.state = state
        self.places: dict[int, list[int]] = {}
        self.matches: dict[int, int] = {}

    def append(self, token: int, table: ContextTable) -> None:
        if self.ids:
            self.places.setdefault(self.ids[-1], []).append(len(self.ids) - 1)
        self.ids.append(token)
        self.state = table.step(self.state, token)
        self.matches = {p: self.matches.get(p - 1, 0) + 1 for p in self.places.get(token, ())}


class NGram:
    """`Drafter`: variable-order n-gram table over training answers plus the answer so far (rule: module docstring).

    The training side is fixed at `fit`. One answer is remembered between calls, so that a proposal reads only the
    tokens that are new; it is forgotten as soon as the context is not its continuation, and never changes a draft. Not
    for several threads at once.
    """

    name = "n-gram"

    def __init__(self, table: ContextTable, *, order: int, vocabulary: int) -> None:
        """Use `fit`."""
        self._table = table
        self._order = order
        self._vocabulary = vocabulary
        self._answer = _Answer(-1, self._start(-1))

    @classmethod
    def fit(cls, answers: Mapping[int, Sequence[SomeIds]], *, vocabulary: int, order: int = 8) -> "NGram":
        """Count `answers`: question index (-1: free) -> token ids of training answers, EOS kept.

        `order`: most tokens of context. Ids from `vocabulary` on are never drafted: an answer counts up to the first.
        Raises ValueError on an order or vocabulary below 1.
        """
        if order < 1 or vocabulary < 1:
            raise ValueError(f"order and vocabulary must be at least 1, got {order} and {vocabulary}")
        histories = [
            (*question_symbol(question), BEGIN, *real_prefix(ids, vocabulary))
            for question, of_question in sorted(answers.items())
            for ids in of_question
        ]
        return cls(build(histories, order), order=order, vocabulary=vocabulary)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft up to `gamma` ids, each with the drafted ones before it as context."""
        return Draft(ids=np.array(self._roll_out(self._read(context), gamma), np.int32))

    def _start(self, question_index: int) -> int:
        state = ROOT
        for symbol in (*question_symbol(question_index), BEGIN):
            state = self._table.step(state, symbol)
        return state

    def _read(self, context: Context) -> _Answer:
        """Bring the remembered answer up to the context, from the start where it is another answer."""
        ids, answer, question = context.ids.tolist(), self._answer, context.prompt.question_index
        if question != answer.question_index or ids[: len(answer.ids)] != answer.ids:
            self._answer = answer = _Answer(question, self._start(question))
        for token in ids[len(answer.ids) :]:
            answer.append(token, self._table)
        return answer

    def _roll_out(self, answer: _Answer, gamma: int) -> list[int]:
        table, places, state, matches = self._table, answer.places, answer.state, answer.matches
        best, depth, after = table.best, table.depth, table.after
        drafted: list[int] = []
        for _ in range(gamma):
            token = best[state]
            if matches and max(matches.values()) >= depth[state]:
                token = self._merged(answer.ids, matches, state)
            if token < 0:
                break
            drafted.append(token)
            state = after[state] if token == best[state] else table.step(state, token)
            recurs = places.get(token)
            matches = {p: matches.get(p - 1, 0) + 1 for p in recurs} if recurs else {}
        return drafted

    def _merged(self, ids: list[int], matches: dict[int, int], state: int) -> int:
        """Best follower where the answer so far matches at least as many tokens as training; -1 without any."""
        table, vocabulary = self._table, self._vocabulary
        followers = [(length, ids[p + 1]) for p, length in matches.items() if ids[p + 1] < vocabulary]
        longest = min(max(followers, default=(0, 0))[0], self._order)
        if longest < table.depth[state] or not longest:
            return table.best[state]
        counts: dict[int, int] = {}
        for length, token in followers:
            if length >= longest:
                counts[token] = counts.get(token, 0) + 1
        if longest == table.depth[state]:
            for token in counts:
                counts[token] += table.count(state, token)
            counts.setdefault(table.best[state], table.best_count[state])  # no other token can beat it
        top = max(counts.values())
        return min(token for token, count in counts.items() if count == top)
