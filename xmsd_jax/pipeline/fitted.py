"""Text drafters, fitted on the target's answers in a store of the training split, or on what the small one learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from xmsd_jax.data.answers import target_answer
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store
from xmsd_jax.data.world import sample_facts, sample_place, scene_rng
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.ports import Drafter, SomeIds
from xmsd_jax.decoding.text_drafters import PromptLookup, Template

# Of configs/tiny/pair.yaml: the first 200 of the 4,000 places that the shipped weights were trained on.
TAUGHT_SEED, TAUGHT_SPLIT, TAUGHT_PLACES = 7, "pair-train", 200


def fit_drafters(store: Store, order: int, vocabulary: int) -> dict[str, Drafter]:
    """Template, n-gram of that order, and prompt lookup (which needs no fitting), by their names."""
    questions, answers = store.read("question"), dict[int, list[list[int]]]()
    for row in range(store.rows):
        answers.setdefault(int(questions[row]), []).append(store.token_ids("target", row).tolist())
    return fit_answers(answers, order, vocabulary)


def fit_taught(tokenizer: Any, eos_id: int, order: int, vocabulary: int) -> dict[str, Drafter]:
    """The same, fitted on sentences that the small target was taught, which are not its own answers.

    They are written from the facts of scenes that it was trained on; none is rendered, so it takes half a second.
    """
    places = [sample_place(TAUGHT_SEED, TAUGHT_SPLIT, number) for number in range(TAUGHT_PLACES)]
    facts = [sample_facts(place, scene_rng(place, 0)) for place in places]
    taught = {}
    for question in range(len(QUESTIONS)):
        texts = [" " + target_answer(scene, question) for scene in facts]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        taught[question] = [[*one.ids, eos_id] for one in encoded]
    return fit_answers(taught, order, vocabulary)


def fit_answers(answers: Mapping[int, Sequence[SomeIds]], order: int, vocabulary: int) -> dict[str, Drafter]:
    """The same, fitted on answers by question index."""
    fitted = (
        Template.fit(answers, vocabulary=vocabulary),
        NGram.fit(answers, vocabulary=vocabulary, order=order),
        PromptLookup(vocabulary=vocabulary),
    )
    return {drafter.name: drafter for drafter in fitted}
