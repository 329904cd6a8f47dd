"""The training side of the n-gram drafter: every context of up to `order` tokens, as an automaton in flat arrays.

A context is present when at least one token follows it somewhere in training. Presence is closed under taking suffixes
and under dropping the last token, so the longest present context of a growing history is found by walking states, one
step a token, as in Aho and Corasick (1975): a state is a context, its link the same context without its first token.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROOT = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class ContextTable:
    """States 0..n-1 (0 is the empty context) and the tokens that follow them.

    Per state: `depth` (tokens of context), `link` (state without the first token), `first` (n + 1 entries: state s owns
    the entries `first[s]..first[s+1]-1` below), `best` (most frequent follower, ties by lowest id; -1 at the root),
    `best_count`, `after` (the state once `best` has been read). Per entry, sorted by token: `tokens`, `counts`, `to`.
    `array` and not numpy: reading one element costs 20 ns instead of 100.
    """

    depth: array
    link: array
    first: array
    best: array
    best_count: array
    after: array
    tokens: array
    counts: array
    to: array

    def step(self, state: int, token: int) -> int:
        """State of the longest present context once `token` has been read in `state`."""
        while True:
            entry = self.find(state, token)
            if entry >= 0:
                return self.to[entry]
            if state == ROOT:
                return ROOT
            state = self.link[state]

    def find(self, state: int, token: int) -> int:
        """Entry of `token` among the followers of `state`, or -1."""
        stop = self.first[state + 1]
        entry = bisect_left(self.tokens, token, self.first[state], stop)
        return entry if entry < stop and self.tokens[entry] == token else -1

    def count(self, state: int, token: int) -> int:
        """How often `token` followed `state` in training."""
        entry = self.find(state, token)
        return self.counts[entry] if entry >= 0 else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Text:
    """All histories end to end. `pieces` int64[n]: tokens numbered densely (`ids[pieces]` are the tokens themselves).

    `places` int64[n]: place within its history; `is_last` bool[n]: nothing follows.
    """

    ids: NDArray[np.int64]
    pieces: NDArray[np.int64]
    places: NDArray[np.int64]
    is_last: NDArray[np.bool_]

    @classmethod
    def of(cls, histories: Sequence[Sequence[int]]) -> "_Text":
        tokens = np.concatenate([np.empty(0, np.int64), *(np.asarray(h, np.int64) for h in histories)])
        lengths = np.array([len(h) for h in histories], np.int64)
        places = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids, pieces = np.unique(tokens, return_inverse=True)
        return cls(ids=ids, pieces=pieces, places=places, is_last=places == np.repeat(lengths, lengths) - 1)

    def keys(self, numbers: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pair each number with the token at `at`, as one int64 that sorts by number, then token id."""
        return numbers * max(len(self.ids), 1) + self.pieces[at]


def build(histories: Sequence[Sequence[int]], order: int) -> ContextTable:
    """Count all contexts of 1..order tokens of `histories` (int sequences) with what followed them.

    Sorting by whole arrays, one pass an order: 2 M tokens take seconds, and no Python object is kept per context.
    """
    text = _Text.of(histories)
    deepest = _states(text, order)
    n = int(deepest.max(initial=ROOT)) + 1
    depth, link = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for k in range(1, order + 1):
        own = deepest[k] != deepest[k - 1]
        depth[deepest[k][own]] = k
        link[deepest[k][own]] = deepest[k - 1][own]
    entries = [_entries(text, deepest, depth, k) for k in range(order + 1)]
    states, follower, counts, to = (np.concatenate(columns) for columns in zip(*entries, strict=True))
    return _pack(depth, link, states, follower, counts, to)


def _states(text: _Text, order: int) -> NDArray[np.int64]:
    """Number the present contexts: [order + 1, n], the deepest state of at most k tokens that ends at each place."""
    deepest = np.zeros((order + 1, len(text.pieces)), np.int64)
    ends = np.zeros(len(text.pieces), np.int64)  # number of the context of k tokens that ends here, followed or not
    states = 1
    for k in range(1, order + 1):
        whole = np.flatnonzero(text.places >= k - 1)
        before = ends[whole - 1] if k > 1 else np.zeros_like(whole)
        ends = np.full(len(text.pieces), -1, np.int64)
        ends[whole] = np.unique(text.keys(before, whole), return_inverse=True)[1]
        present = np.unique(ends[whole[~text.is_last[whole]]])
        found = np.isin(ends, present)
        deepest[k] = np.where(found, states + np.searchsorted(present, ends), deepest[k - 1])
        states += len(present)
    return deepest


def _entries(
    text: _Text, deepest: NDArray[np.int64], depth: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], ...]:
    """Count followers of the contexts of k tokens: columns state, token, count, next state; by state, then token."""
    at = np.flatnonzero(text.places >= k)  # the follower's place; at k = 0 a history's first token follows the root
    states = deepest[k][at - 1] if k else np.full(len(at), ROOT, np.int64)
    at, states = at[depth[states] == k], states[depth[states] == k]
    _, where, counts = np.unique(text.keys(states, at), return_index=True, return_counts=True)
    to = deepest[min(k + 1, len(deepest) - 1)][at[where]]
    return states[where], text.ids[text.pieces[at[where]]], counts, to


def _pack(
    depth: NDArray[np.int64],
    link: NDArray[np.int64],
    states: NDArray[np.int64],
    follower: NDArray[np.int64],
    counts: NDArray[np.int64],
    to: NDArray[np.int64],
) -> ContextTable:
    """Find the best follower of each state and store everything as C ints."""
    n = len(depth)
    first = np.searchsorted(states, np.arange(n + 1))
    ranked = np.lexsort((follower, -counts, states))
    top = ranked[first[1:n]]  # the root never drafts: a guess without any context is noise
    best, best_count, after = np.full(n, -1, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    best[1:], best_count[1:], after[1:] = follower[top], counts[top], to[top]
    columns = {
        "depth": depth, "link": link, "first": first, "best": best, "best_count": best_count, "after": after,
        "tokens": follower, "counts": counts, "to": to,
    }  # fmt: skip
    return ContextTable(**{name: array("i", column.astype(np.intc).tobytes()) for name, column in columns.items()})
