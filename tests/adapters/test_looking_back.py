"""Both forms of attention of a continued position are the attention that is written down here position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import normal
from xmsd_jax.adapters import blocks, looking_back
from xmsd_jax.adapters.interface import Seen
from xmsd_jax.adapters.looking_back import KeyValue, look_at_once, look_by_parts

ANSWERS, ANCHORS, KEPT, CONTINUED, HEADS, WIDTH = 2, 3, 7, 4, 8, 16
FORMS = (look_at_once, look_by_parts)


def key_value(seed: int, *sizes: int) -> KeyValue:
    return KeyValue(normal(*sizes, HEADS, WIDTH, seed=seed), normal(*sizes, HEADS, WIDTH, seed=seed + 1))


def seen(newest: int, anchors: int = ANCHORS) -> Seen:
    """Anchor a sees the first 2 a + 1 kept positions."""
    mask = np.arange(KEPT) < (2 * np.arange(anchors)[:, None] + 1)
    mask = np.broadcast_to(mask, (ANSWERS, anchors, KEPT))
    rolled = key_value(3, ANSWERS, anchors, CONTINUED)
    return Seen(key_value(1, ANSWERS, KEPT), jnp.asarray(mask), rolled, jnp.int32(newest))


def by_hand(query: np.ndarray, given: Seen) -> np.ndarray:
    out = np.zeros_like(query)
    for b, a, h in np.ndindex(*query.shape[:3]):
        far, near = np.asarray(given.kept_mask[b, a]), slice(int(given.newest) + 1)
        key = np.concatenate([given.kept.key[b, far, h], given.rolled.key[b, a, near, h]])
        value = np.concatenate([given.kept.value[b, far, h], given.rolled.value[b, a, near, h]])
        weights = np.exp(key @ query[b, a, h] / np.sqrt(WIDTH))
        out[b, a, h] = weights @ value / weights.sum()
    return out


@pytest.mark.parametrize("look", FORMS)
@pytest.mark.parametrize("newest", [0, 2, CONTINUED - 1])
def test_a_form_is_the_attention_over_what_may_be_seen(look, newest):
    query, given = normal(ANSWERS, ANCHORS, HEADS, WIDTH, seed=7), seen(newest)
    np.testing.assert_allclose(look(query, given), by_hand(np.asarray(query), given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("look", FORMS)
def test_what_may_not_be_seen_changes_no_bit(look):
    query, given = normal(ANSWERS, ANCHORS, HEADS, WIDTH, seed=7), seen(1)
    hidden = ~given.kept_mask.any(1)[..., None, None]
    kept = jax.tree.map(lambda x: jnp.where(hidden, 9.0, x), given.kept)
    rolled = jax.tree.map(lambda x: x.at[:, :, 2:].set(9.0), given.rolled)
    assert hidden.any()
    changed = given._replace(kept=kept, rolled=rolled)
    np.testing.assert_array_equal(look(query, given), look(query, changed))


@pytest.mark.parametrize("look", FORMS)
def test_where_nothing_was_kept_the_position_sees_those_continued_alone(look):
    query, given = normal(ANSWERS, ANCHORS, HEADS, WIDTH, seed=7), seen(1)
    given = given._replace(kept_mask=jnp.zeros_like(given.kept_mask))
    np.testing.assert_allclose(look(query, given), by_hand(np.asarray(query), given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("look", FORMS)
def test_large_scores_stay_finite(look):
    query, given = 1e3 * normal(ANSWERS, ANCHORS, HEADS, WIDTH, seed=7), seen(2)
    assert np.isfinite(look(query, given)).all()


@pytest.mark.parametrize(
    ("anchors", "dtype", "by_parts"),
    [(1, jnp.bfloat16, True), (ANCHORS, jnp.bfloat16, False), (1, jnp.float32, False)],
)
def test_a_live_proposal_in_bfloat16_on_a_gpu_looks_by_parts(monkeypatch, anchors, dtype, by_parts):
    monkeypatch.setattr("xmsd_jax.adapters.attend.BACKENDS", ("gpu", "cpu"))
    taken = []
    for name in ("look_at_once", "look_by_parts"):
        form = getattr(looking_back, name)
        monkeypatch.setattr(blocks, name, lambda *given, name=name, form=form: taken.append(name) or form(*given))
    layer = blocks.TransformerLayer(HEADS * WIDTH, 32, blocks.nnx.Rngs(0))
    given = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, seen(1, anchors))
    x = normal(ANSWERS, anchors, HEADS * WIDTH, seed=5).astype(dtype)
    residual, own = jax.eval_shape(layer.advance, x, given)
    assert taken == ["look_by_parts" if by_parts else "look_at_once"]
    assert residual.y.dtype == own.key.dtype == dtype
