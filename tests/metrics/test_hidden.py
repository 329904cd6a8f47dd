"""Metrics of hidden states, by hand on tiny arrays; offsets and masks said in full."""

import jax.numpy as jnp
import numpy as np
import pytest

from xmsd_jax.metrics import hidden
from xmsd_jax.metrics.counted import ratio_of_sums
from xmsd_jax.metrics.hidden import hidden_metrics, joined, pair_mask

ALL = np.ones((1, 3), bool)


def states(*rows) -> jnp.ndarray:
    return jnp.array([rows], jnp.float32)


def random_states(b: int, t: int, d: int, seed: int = 0) -> tuple[jnp.ndarray, jnp.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(b, t, d)).astype(np.float32)
    return jnp.array(target + rng.normal(0, 0.5, (b, t, d)).astype(np.float32)), jnp.array(target)


def test_offset_0_compares_the_same_position():
    # cosines 0.8, 1 and 0; squared differences (9 + 9)/2, 0 and (1 + 1)/2
    counts = hidden_metrics(states([4, 3], [0, 2], [1, 0]), states([1, 0], [0, 2], [0, 1]), ALL, offset=0)
    assert counts["cosine"][0] == pytest.approx([1.8])
    assert counts["mse"][0] == pytest.approx([10])
    assert {name: bottom.tolist() for name, (_, bottom) in counts.items()} == {name: [3] for name in counts}
    assert list(counts) == ["cosine", "accept@0.80", "accept@0.85", "accept@0.90", "accept@0.95", "mse"]


def test_offset_1_compares_with_the_next_target_state():
    target = states([9, 9], [1, 0], [0, 1])
    counts = hidden_metrics(states([1, 0], [0, 1], [7, 7]), target, np.array([[True, True, False]]), offset=1)
    assert (counts["cosine"][0].tolist(), counts["cosine"][1].tolist()) == ([2.0], [2])
    assert counts["mse"][0].tolist() == [0.0]


def test_a_cosine_at_the_threshold_is_not_above_it():
    predicted, target = states([4, 3], [4, 3], [4, 3]), states([1, 0], [1, 0], [4, 3])
    counts = hidden_metrics(predicted, target, ALL, offset=0)
    assert [counts[f"accept@{t:.2f}"][0].tolist() for t in hidden.THRESHOLDS] == [[1]] * 4


def test_a_zero_state_has_cosine_0():
    counts = hidden_metrics(states([0, 0], [0, 0], [1, 0]), states([1, 0], [0, 0], [2, 0]), ALL, offset=0)
    assert counts["cosine"][0].tolist() == [1.0]


@pytest.mark.parametrize("offset", [0, 1])
def test_joined_batches_are_the_whole_bit_for_bit(offset):
    predicted, target = random_states(9, 7, 33)
    mask = pair_mask(target_len=[7, 1, 2, 7, 5, 6, 0, 3, 7], positions=7, offset=offset)
    whole = hidden_metrics(predicted, target, mask, offset=offset)
    parts = [(0, 4), (4, 5), (5, 9)]
    batches = [hidden_metrics(predicted[i:j], target[i:j], mask[i:j], offset=offset) for i, j in parts]
    for name, sides in joined(batches).items():
        for side, expected in zip(sides, whole[name], strict=True):
            np.testing.assert_array_equal(side, expected)
        assert ratio_of_sums(*sides, sequences=list("aabbbccdd")) == ratio_of_sums(
            *whole[name], sequences=list("aabbbccdd")
        )


def test_bfloat16_states_are_compared_in_float32():
    predicted, target = (x.astype(jnp.bfloat16) for x in random_states(2, 3, 64))
    mask = np.ones((2, 3), bool)
    low = hidden_metrics(predicted, target, mask, offset=0)
    high = hidden_metrics(predicted.astype(jnp.float32), target.astype(jnp.float32), mask, offset=0)
    mixed = hidden_metrics(predicted, target.astype(jnp.float32), mask, offset=0)
    for name in high:
        np.testing.assert_array_equal(low[name][0], high[name][0])
        np.testing.assert_array_equal(mixed[name][0], high[name][0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["predicted", "target"])
def test_a_state_that_is_not_finite_is_refused_with_its_answer_and_padding_may_be_anything(bad, which):
    predicted, target = random_states(3, 4, 8)
    sides = {"predicted": predicted, "target": target}
    sides[which] = sides[which].at[2, 3, 5].set(bad)
    padded = pair_mask(target_len=[4, 4, 3], positions=4, offset=0)
    counts = hidden_metrics(**sides, mask=padded, offset=0)
    clean = hidden_metrics(predicted, target, padded, offset=0)
    np.testing.assert_array_equal(counts["mse"][0], clean["mse"][0])
    with pytest.raises(ValueError, match="nan or inf in answer 2"):
        hidden_metrics(**sides, mask=np.ones((3, 4), bool), offset=0)


def test_index_pairs_need_both_models_and_five_positions():
    mask = pair_mask(target_len=[6, 6, 4, 9], drafter_len=[5, 4, 9, 9], positions=8, offset=0)
    assert mask.sum(1).tolist() == [5, 0, 0, 8]
    assert mask[0].tolist() == [True] * 5 + [False] * 3


def test_offset_1_asks_for_a_next_token_of_the_target():
    # 5 of 6: the next target token exists at all five; 5 of 5: at four, and the answer still counts
    mask = pair_mask(target_len=[6, 5, 8], drafter_len=[5, 5, 8], positions=8, offset=1)
    assert mask.sum(1).tolist() == [5, 4, 7]


@pytest.mark.parametrize(("offset", "kept"), [(0, [3, 1, 0]), (1, [2, 0, 0])])
def test_synced_pairs_are_all_positions_of_the_target(offset, kept):
    assert pair_mask(target_len=[3, 1, 0], positions=4, offset=offset).sum(1).tolist() == kept


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"offset": 2}, "offset must be 0"),
        ({"mask": np.ones((2, 4), bool)}, "mask must be bool"),
        ({"mask": np.ones((3, 4), np.float32)}, "mask must be bool"),
        ({"offset": 1}, "answer 0 keeps the last position"),
        ({"target": jnp.ones((3, 4, 7))}, "with one shape"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, told):
    predicted, target = random_states(3, 4, 8)
    given = {"predicted": predicted, "target": target, "mask": np.ones((3, 4), bool), "offset": 0, **change}
    with pytest.raises(ValueError, match=told) as caught:
        hidden_metrics(**given)
    assert "\n" not in str(caught.value)


def test_lengths_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="one vector each"):
        pair_mask(target_len=[3, 1], drafter_len=[3], positions=4, offset=0)


def test_batches_of_different_metrics_do_not_join():
    one = {"cosine": (np.ones(2), np.ones(2, np.int64))}
    with pytest.raises(ValueError, match="in some only: cosine, mse"):
        joined([one, {"mse": one["cosine"]}])
    assert joined([]) == {}


def test_another_batch_of_the_same_shape_does_not_compile_again():
    predicted, target = random_states(2, 5, 8)
    hidden_metrics(predicted, target, np.ones((2, 5), bool), offset=0)
    traces = hidden._pairs._cache_size()
    hidden_metrics(target, predicted, pair_mask(target_len=[1, 2], positions=5, offset=0), offset=0)
    assert hidden._pairs._cache_size() == traces
