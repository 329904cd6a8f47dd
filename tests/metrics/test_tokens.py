"""Token metrics of the LM head: ranks against a full sort, masks, runs; by hand where it fits a line."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmsd_jax.metrics.hidden import joined, pair_mask
from xmsd_jax.metrics.tokens import MISS, free_of_k, rank_metrics, token_metrics, token_ranks

V = 6


def shown(*ids) -> jnp.ndarray:
    """States that a one-hot head reads as these ids: [1, t, V]."""
    return jnp.eye(V, dtype=jnp.float32)[np.array([ids])]


def value(side) -> float:
    return float(side[0].sum() / side[1].sum())


def random_case(b: int, t: int, v: int = 40, d: int = 8, seed: int = 0):
    rng = np.random.default_rng(seed)
    return (
        jnp.array(rng.normal(size=(b, t, d)), jnp.float32),
        jnp.array(rng.normal(size=(v, d)), jnp.float32),
        jnp.array(rng.integers(v, size=(b, t)), jnp.int32),
    )


def test_offset_0_asks_for_the_token_of_the_same_position_offset_1_for_the_next():
    ids = jnp.array([[1, 2, 3]], jnp.int32)
    head = jnp.eye(V, dtype=jnp.float32)
    same = token_metrics(shown(1, 2, 0), head, ids, np.ones((1, 3), bool), vocabulary=V, offset=0)
    assert (same["top1"][0].tolist(), same["top1"][1].tolist()) == ([2], [3])
    following = token_metrics(shown(2, 3, 0), head, ids, np.array([[True, True, False]]), vocabulary=V, offset=1)
    assert (following["top1"][0].tolist(), following["top1"][1].tolist()) == ([2], [2])


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([1, 3, 256]))
def test_the_rank_is_the_place_in_a_stable_full_sort(seed, vocabulary, chunk):
    predicted, head, ids = random_case(2, 3, seed=seed)
    head = jnp.round(head)  # ties
    predicted = jnp.round(predicted)
    ranks, _ = token_ranks(
        predicted, head, ids, np.ones((2, 3), bool), vocabulary=vocabulary, offset=0, chunk=chunk
    )  # fmt: skip
    logits = np.asarray(predicted) @ np.asarray(head)[:vocabulary].T  # whole numbers: exact
    order = np.argsort(-logits, axis=-1, kind="stable")
    for place in np.ndindex(2, 3):
        token = int(ids[place])
        expected = order[place].tolist().index(token) if token < vocabulary else MISS
        assert ranks[place] == expected


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rank_0_is_the_argmax_also_between_equal_logits(dtype):
    predicted, head, _ = random_case(4, 5, v=12)
    predicted, head = predicted.astype(dtype), jnp.concatenate([head, head]).astype(dtype)  # every id has a twin
    logits = jnp.einsum("btd,vd->btv", predicted, head, precision="highest", preferred_element_type=jnp.float32)
    kept = np.ones((4, 5), bool)
    best, _ = token_ranks(predicted, head, logits.argmax(-1).astype(jnp.int32), kept, vocabulary=24, offset=0)
    assert not best.any()
    twin, _ = token_ranks(predicted, head, (logits.argmax(-1) + 12).astype(jnp.int32), kept, vocabulary=24, offset=0)
    assert (twin == 1).all()


def test_columns_past_the_vocabulary_are_never_ranked_and_such_a_token_is_a_miss():
    head = jnp.concatenate([jnp.eye(V), 100 * jnp.ones((2, V))]).astype(jnp.float32)
    ids = jnp.array([[1, V, V + 1, -1]], jnp.int32)
    ranks, kept = token_ranks(shown(1, 1, 1, 1), head, ids, np.ones((1, 4), bool), vocabulary=V, offset=0)
    assert ranks.tolist() == [[0, MISS, MISS, MISS]]
    counts = rank_metrics(ranks, kept)
    assert (counts["top10"][0].tolist(), counts["top10"][1].tolist()) == ([1], [4])


def test_runs_first_hits_and_free_tokens_by_hand():
    # ranks of four answers: two right then wrong; first wrong; all three kept right; no kept pair at all
    ranks = np.array([[0, 0, 4, 0], [7, 0, 0, 0], [0, 0, 0, 9], [0, 0, 0, 0]], np.int32)
    kept = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    counts = rank_metrics(ranks, kept)
    assert counts["top1"][0].tolist() == [3, 3, 3, 0]
    assert counts["top5"][0].tolist() == [4, 3, 3, 0]
    assert counts["top10"][0].tolist() == [4, 4, 3, 0]
    assert counts["consecutive"][0].tolist() == [2, 0, 3, 0]
    assert counts["consecutive"][1].tolist() == counts["first_top1"][1].tolist() == [1, 1, 1, 0]
    assert value(counts["first_top1"]) == pytest.approx(2 / 3)
    assert value(free_of_k(ranks, kept, 2)) == pytest.approx(4 / 3)
    assert value(free_of_k(ranks, kept, 7)) == value(counts["consecutive"])
    with pytest.raises(ValueError, match="at least 1 drafted token, got k = 0"):
        free_of_k(ranks, kept, 0)


def test_a_pair_that_is_left_out_neither_adds_to_a_run_nor_ends_it():
    ranks, kept = np.array([[5, 0, 5, 0]]), np.array([[False, True, False, True]])
    assert rank_metrics(ranks, kept)["consecutive"][0].tolist() == [2]
    assert rank_metrics(ranks, kept)["first_top1"][0].tolist() == [1]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("chunk", [4, 256])
def test_joined_batches_are_the_whole_bit_for_bit_in_any_chunk(offset, chunk):
    predicted, head, ids = random_case(9, 7)
    mask = pair_mask(target_len=[7, 1, 2, 7, 5, 6, 0, 3, 7], positions=7, offset=offset)
    given = {"vocabulary": 39, "offset": offset}
    whole = token_metrics(predicted, head, ids, mask, **given)
    batches = [
        token_metrics(predicted[i:j], head, ids[i:j], mask[i:j], **given, chunk=chunk)
        for i, j in [(0, 4), (4, 5), (5, 9)]
    ]
    for name, sides in joined(batches).items():
        for side, expected in zip(sides, whole[name], strict=True):
            np.testing.assert_array_equal(side, expected)


def test_states_and_head_of_two_dtypes_meet_in_float32():
    predicted, head, ids = random_case(2, 3)
    low = predicted.astype(jnp.bfloat16)
    kept = np.ones((2, 3), bool)
    mixed, _ = token_ranks(low, head, ids, kept, vocabulary=40, offset=0)
    plain, _ = token_ranks(low.astype(jnp.float32), head, ids, kept, vocabulary=40, offset=0)
    np.testing.assert_array_equal(mixed, plain)


def test_a_state_that_is_not_finite_is_refused_with_its_answer_and_padding_may_be_anything():
    predicted, head, ids = random_case(3, 4)
    predicted = predicted.at[1, 3, 0].set(jnp.nan)
    padded = pair_mask(target_len=[4, 3, 4], positions=4, offset=0)
    assert token_ranks(predicted, head, ids, padded, vocabulary=40, offset=0)[0][1, 3] == MISS
    with pytest.raises(ValueError, match="nan or inf in answer 1"):
        token_ranks(predicted, head, ids, np.ones((3, 4), bool), vocabulary=40, offset=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocabulary": 41}, "vocabulary <= 40"),
        ({"vocabulary": 0}, "1 <= vocabulary"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"offset": 3}, "offset must be 0"),
        ({"head": jnp.ones((40, 9))}, r"head \[v, d\]"),
        ({"target_ids": jnp.ones((3, 5), jnp.int32)}, r"target_ids \[b, t\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, told):
    predicted, head, ids = random_case(3, 4)
    given = {"predicted": predicted, "head": head, "target_ids": ids, "mask": np.ones((3, 4), bool)}
    with pytest.raises(ValueError, match=told):
        token_metrics(**{**given, "vocabulary": 40, "offset": 0, **change})
