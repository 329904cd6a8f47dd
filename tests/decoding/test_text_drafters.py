"""Template, prompt lookup and random; and what no text drafter may see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.toy import toy_prompt
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.ports import Context, Draft
from xmsd_jax.decoding.text_drafters import PromptLookup, RandomDrafter, Template
from xmsd_jax.decoding.walk import walk

VOCABULARY = 6
TRAINING = {0: [[3, 4, 5, 2], [3, 4, 4, 2], [3, 5, 5, 2]], 1: [[5, 4, 2]]}
TEXT_DRAFTERS = {
    "template": lambda: Template.fit(TRAINING, vocabulary=VOCABULARY),
    "n-gram": lambda: NGram.fit(TRAINING, vocabulary=VOCABULARY),
    "prompt-lookup": lambda: PromptLookup(vocabulary=VOCABULARY),
    "random": lambda: RandomDrafter(seed=3, vocabulary=VOCABULARY),
}
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=20)


def context(ids, question: int = 0, prompt_ids=()) -> Context:
    return Context(prompt=toy_prompt(question), ids=np.array(ids, np.int32), prompt_ids=np.array(prompt_ids, np.int32))


class Recorder:
    """Passes proposals on, and keeps the drafts by anchor."""

    name = "recorder"

    def __init__(self, drafter) -> None:
        self.drafter = drafter
        self.drafts: dict[int, list[int]] = {}

    def propose(self, context: Context, gamma: int) -> Draft:
        draft = self.drafter.propose(context, gamma)
        self.drafts[len(context.ids) - 1] = draft.ids.tolist()
        return draft


def test_the_template_is_the_most_common_answer_and_goes_by_position():
    drafter = Template.fit({0: [[3, 4], [5, 5, 5, 5], [5, 5, 5, 5]]}, vocabulary=VOCABULARY)
    assert drafter.propose(context([]), 3).ids.tolist() == [5, 5, 5]
    assert drafter.propose(context([1, 1, 1]), 3).ids.tolist() == [5]
    assert drafter.propose(context([1] * 9), 3).ids.tolist() == []


def test_equally_common_templates_go_to_the_lowest_ids():
    drafter = Template.fit({0: [[4, 3], [3, 5], [3, 4, 1]]}, vocabulary=VOCABULARY)
    assert drafter.propose(context([]), 5).ids.tolist() == [3, 4, 1]


@pytest.mark.parametrize("question", [-1, 2])
def test_a_question_without_training_answers_has_no_template(question):
    drafter = Template.fit({0: [[3]], 2: []}, vocabulary=VOCABULARY)
    assert drafter.propose(context([], question), 5).ids.tolist() == []


def test_a_template_ends_before_an_id_that_is_not_real():
    drafter = Template.fit({0: [[3, VOCABULARY, 4]]}, vocabulary=VOCABULARY)
    assert drafter.propose(context([]), 5).ids.tolist() == [3]
    assert drafter.propose(context([3]), 5).ids.tolist() == []


@pytest.mark.parametrize(
    ("prompt_ids", "ids", "gamma", "drafted"),
    [
        ([1, 3, 4, 5, 3, 4], [], 2, [5, 3]),  # two tokens match
        ([1, 3, 4, 5, 0], [3, 4, 5], 9, [0, 3, 4, 5]),  # three tokens match; cut at the end of the text
        ([4, 1, 3, 4, 2], [3, 4], 1, [2]),  # the longer match beats the earlier one
        ([4, 1, 4, 2], [4], 1, [1]),  # of equal length the earliest wins
        ([1, 3], [5], 4, []),
        ([], [], 4, []),
        ([3, VOCABULARY, 4], [3], 4, []),  # no id that is not real
    ],
)
def test_prompt_lookup_copies_what_followed_the_longest_earliest_match(prompt_ids, ids, gamma, drafted):
    drafter = PromptLookup(vocabulary=VOCABULARY)
    assert drafter.propose(context(ids, prompt_ids=prompt_ids), gamma).ids.tolist() == drafted


def test_prompt_lookup_refuses_a_match_of_nothing():
    with pytest.raises(ValueError, match="longest >= 1"):
        PromptLookup(vocabulary=VOCABULARY, longest=0)


def test_random_drafts_are_real_ids_and_the_same_for_the_same_place():
    drafter = RandomDrafter(seed=3, vocabulary=VOCABULARY)
    drafts = [drafter.propose(context([1] * n), 50).ids for n in range(20)]
    assert set(np.concatenate(drafts).tolist()) == set(range(VOCABULARY))
    assert not np.array_equal(drafts[0], drafts[1])
    np.testing.assert_array_equal(drafter.propose(context([2] * 4), 50).ids, drafts[4])


@pytest.mark.parametrize("kind", TEXT_DRAFTERS)
@given(IDS, IDS, st.integers(0, 18))
def test_a_draft_does_not_change_with_tokens_after_its_anchor(kind, ids, tail, cut):
    """Leakage guard: the walk of a perturbed answer gives the same drafts at all anchors up to the perturbation."""
    known = ids[: min(cut, len(ids) - 1) + 1]
    perturbed = [*known, *tail]
    drafts = []
    for answer in (ids, perturbed):
        recorder = Recorder(TEXT_DRAFTERS[kind]())
        for anchor in range(len(known)):  # a walk from each anchor, so that none is jumped over
            walk(answer, recorder, toy_prompt(), 4, start=anchor, prompt_ids=[1, 3, 5])
        drafts.append({t: draft for t, draft in recorder.drafts.items() if t < len(known)})
    shared = drafts[0].keys() & drafts[1].keys()
    assert {t: drafts[0][t] for t in shared} == {t: drafts[1][t] for t in shared}


@pytest.mark.parametrize("kind", TEXT_DRAFTERS)
@given(st.lists(IDS, max_size=4), IDS)
def test_a_draft_does_not_change_with_other_test_answers(kind, others, ids):
    drafter, fresh = TEXT_DRAFTERS[kind](), TEXT_DRAFTERS[kind]()
    for other in others:
        walk(other, drafter, toy_prompt(), 4, prompt_ids=[1, 3, 5])
    asked = context(ids, prompt_ids=[1, 3, 5])
    assert drafter.propose(asked, 6).ids.tolist() == fresh.propose(asked, 6).ids.tolist()
