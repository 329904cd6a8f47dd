"""Ids and margins of the head against numpy, and its refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import HEAD_ROWS, VOCABULARY, WIDTH, head, normal
from xmsd_jax.adapters.token_head import TokenHead


def test_ids_and_margins_are_those_of_numpy():
    hidden = normal(2, 5, WIDTH, seed=4)
    ids, margins = head().ids_and_margins(hidden)
    logits = np.asarray(hidden) @ np.asarray(head().weight).T
    ranked = np.sort(logits[..., :VOCABULARY], -1)
    np.testing.assert_array_equal(ids, logits[..., :VOCABULARY].argmax(-1))
    np.testing.assert_array_equal(ids, head().ids(hidden))
    np.testing.assert_allclose(margins, ranked[..., -1] - ranked[..., -2], atol=1e-5)
    assert ids.dtype == jnp.int32


def test_a_tie_has_no_margin_and_goes_to_the_lower_id():
    weight = jnp.zeros((4, WIDTH)).at[1:3].set(1.0)
    ids, margins = TokenHead.of(weight, 4).ids_and_margins(jnp.ones((1, WIDTH)))
    assert (int(ids[0]), float(margins[0])) == (1, 0.0)


def test_padding_has_no_logit():
    logits = head().logits(normal(3, WIDTH))
    assert np.isneginf(logits[:, VOCABULARY:]).all()
    assert np.isfinite(logits[:, :VOCABULARY]).all()


@pytest.mark.parametrize("vocabulary", [0, -1, HEAD_ROWS + 1])
def test_a_vocabulary_that_the_head_does_not_have_is_refused(vocabulary):
    with pytest.raises(ValueError, match=f"within the head's {HEAD_ROWS} rows, got {vocabulary}"):
        TokenHead.of(head().weight, vocabulary)


def test_it_is_a_pytree_of_two_arrays():
    assert [leaf.shape for leaf in jax.tree.leaves(head())] == [(HEAD_ROWS, WIDTH), ()]
