"""The n-gram drafter against its rule, spelled out by brute force."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.toy import toy_prompt
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.ports import Context

VOCABULARY = 5
TOKENS = st.integers(0, VOCABULARY)  # one id more than there are real ones
TEXTS = st.lists(TOKENS, max_size=12)
ANSWERS = st.dictionaries(st.integers(-1, 2), st.lists(TEXTS, max_size=5), max_size=3)


def context(ids, question: int = 0) -> Context:
    return Context(prompt=toy_prompt(question), ids=np.array(ids, np.int32))


def history(question: int, ids) -> tuple:
    return (*([f"question {question}"] if question >= 0 else []), "begin", *ids)


def followers(text: tuple, suffix: tuple) -> list[int]:
    """Real tokens that follow the suffix in the text."""
    n = len(suffix)
    after = [text[i + n] for i in range(len(text) - n) if text[i : i + n] == suffix]
    return [token for token in after if isinstance(token, int) and token < VOCABULARY]


def by_the_rule(answers, question: int, ids, gamma: int, order: int) -> list[int]:
    cut = {q: [a[: a.index(VOCABULARY)] if VOCABULARY in a else a for a in of] for q, of in answers.items()}
    texts = [history(q, a) for q, of in cut.items() for a in of]
    own = now = history(question, ids)
    drafted: list[int] = []
    while len(drafted) < gamma:
        for n in range(min(order, len(now)), 0, -1):
            counts = Counter(t for text in (*texts, own) for t in followers(text, now[-n:]))
            if counts:
                break
        else:
            return drafted
        drafted.append(min(counts, key=lambda token: (-counts[token], token)))
        now = (*now, drafted[-1])
    return drafted


@given(ANSWERS, st.integers(-1, 3), TEXTS, st.integers(1, 9), st.integers(1, 5))
def test_a_draft_is_the_rolled_out_longest_match(answers, question, ids, gamma, order):
    drafter = NGram.fit(answers, vocabulary=VOCABULARY, order=order)
    drafted = drafter.propose(context(ids, question), gamma).ids
    assert drafted.dtype == np.int32
    assert drafted.tolist() == by_the_rule(answers, question, ids, gamma, order)


@given(ANSWERS, st.lists(st.integers(0, 1), min_size=5, max_size=60), st.integers(1, 8))
def test_long_repetitive_answers_follow_the_rule_at_every_anchor(answers, ids, order):
    drafter = NGram.fit(answers, vocabulary=VOCABULARY, order=order)
    for t in range(0, len(ids), 3):
        assert drafter.propose(context(ids[:t]), 8).ids.tolist() == by_the_rule(answers, 0, ids[:t], 8, order)


@given(ANSWERS, st.lists(st.tuples(st.integers(-1, 1), TEXTS), max_size=8))
def test_a_draft_does_not_depend_on_what_was_asked_before(answers, calls):
    used = NGram.fit(answers, vocabulary=VOCABULARY, order=4)
    for question, ids in calls:
        fresh = NGram.fit(answers, vocabulary=VOCABULARY, order=4)
        asked = context(ids, question)
        assert used.propose(asked, 6).ids.tolist() == fresh.propose(asked, 6).ids.tolist()


def test_without_tokens_the_draft_begins_an_answer_to_the_same_question():
    drafter = NGram.fit({0: [[3, 1, 2]], 1: [[4, 4, 2]] * 5}, vocabulary=VOCABULARY)
    assert drafter.propose(context([], 0), 8).ids.tolist() == [3, 1, 2]
    assert drafter.propose(context([], 1), 2).ids.tolist() == [4, 4]


@pytest.mark.parametrize("question", [-1, 7], ids=["free", "unknown"])
def test_a_question_without_answers_begins_like_most_answers(question):
    drafter = NGram.fit({0: [[3, 1, 2]], 1: [[4, 4, 2]] * 5}, vocabulary=VOCABULARY)
    assert drafter.propose(context([], question), 2).ids.tolist() == [4, 4]


def test_without_training_the_answer_so_far_is_the_table():
    drafter = NGram.fit({}, vocabulary=VOCABULARY)
    assert drafter.propose(context([]), 5).ids.tolist() == []
    assert drafter.propose(context([1, 3, 4, 1]), 4).ids.tolist() == [3, 4, 1, 3]


def test_equal_counts_go_to_the_lowest_id_and_own_counts_break_them():
    drafter = NGram.fit({0: [[1, 4], [1, 3]]}, vocabulary=VOCABULARY, order=1)
    assert drafter.propose(context([1]), 1).ids.tolist() == [3]
    assert drafter.propose(context([1, 4, 1]), 1).ids.tolist() == [4]


@pytest.mark.parametrize("bad", [{"order": 0, "vocabulary": 5}, {"order": 8, "vocabulary": 0}])
def test_an_order_or_vocabulary_below_one_is_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        NGram.fit({0: [[1]]}, **bad)
