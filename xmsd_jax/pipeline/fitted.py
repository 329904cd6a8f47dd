"""Text drafters, fitted on the target's answers in a store of the training split."""

from xmsd_jax.data.store import Store
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.ports import Drafter
from xmsd_jax.decoding.text_drafters import PromptLookup, Template


def fit_drafters(store: Store, order: int, vocabulary: int) -> dict[str, Drafter]:
    """Template, n-gram of that order, and prompt lookup (which needs no fitting), by their names."""
    questions, answers = store.read("question"), dict[int, list[list[int]]]()
    for row in range(store.rows):
        answers.setdefault(int(questions[row]), []).append(store.token_ids("target", row).tolist())
    fitted = (
        Template.fit(answers, vocabulary=vocabulary),
        NGram.fit(answers, vocabulary=vocabulary, order=order),
        PromptLookup(vocabulary=vocabulary),
    )
    return {drafter.name: drafter for drafter in fitted}
