"""Acceptance: greedy by hand; sampling keeps the target's distribution, whatever the draft."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from xmsd_jax.decoding.acceptance import accept_greedy, accept_one, accept_sampled, sample, softmax

DRAWS = 100_000
P = np.array([0.05, 0.4, 0.25, 0.0, 0.2, 0.1])
Q = {
    "good": np.array([0.06, 0.38, 0.26, 0.0, 0.2, 0.1]),
    "bad": np.full(6, 1 / 6),
    "adversarial": np.array([0.7, 0.01, 0.01, 0.27, 0.005, 0.005]),
}


def p_value(drawn: np.ndarray, p: np.ndarray) -> float:
    """Chi-square against p; what has probability 0 must never be drawn."""
    counts = np.bincount(drawn, minlength=len(p))
    assert counts[p == 0].sum() == 0
    return chisquare(counts[p > 0], p[p > 0] * len(drawn)).pvalue


@pytest.mark.parametrize(
    ("draft", "target", "n"),
    [([], [5], 0), ([5], [5, 1], 1), ([4], [5, 1], 0), ([5, 1, 2], [5, 1, 3, 2], 2), ([5, 1, 2], [5, 1], 2)],
)
def test_the_longest_matching_prefix_is_accepted(draft, target, n):
    assert accept_greedy(draft, target) == n


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_greedy_prefix_matches_and_cannot_be_longer(draft, target):
    n = accept_greedy(draft, target)
    assert draft[:n] == target[:n]
    assert n == min(len(draft), len(target)) or draft[n] != target[n]


def test_softmax_is_that_of_scaled_logits():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    assert softmax(logits, 1.0) == pytest.approx(np.exp(logits))
    assert softmax(logits, 0.5)[0] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert softmax(np.array([1e4, 0.0, -np.inf]), 1.0) == pytest.approx([1, 0, 0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_softmax_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature > 0"):
        softmax(np.zeros(3), temperature)


@pytest.mark.parametrize("row", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_softmax_refuses_logits_without_a_finite_top(row):
    with pytest.raises(ValueError, match="finite"):
        softmax(np.array(row), 1.0)


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(sum))
def test_sample_never_returns_an_id_of_weight_zero(uniform, weights):
    assert weights[sample(np.array(weights), uniform)] > 0


@pytest.mark.parametrize("kind", Q)
def test_a_draft_drawn_from_q_leaves_the_targets_distribution(kind):
    rng = np.random.default_rng(1)
    drafted = rng.choice(6, size=DRAWS, p=Q[kind]).tolist()
    emitted = np.array([accept_one(d, Q[kind], P, rng)[1] for d in drafted])
    assert p_value(emitted, P) > 1e-3


@pytest.mark.parametrize("drafted", [1, 0, 3], ids=["good", "bad", "impossible"])
def test_a_deterministic_draft_leaves_the_targets_distribution(drafted):
    rng = np.random.default_rng(2)
    emitted = np.array([accept_one(drafted, None, P, rng)[1] for _ in range(DRAWS)])
    assert p_value(emitted, P) > 1e-3


def test_the_distribution_test_has_the_power_to_see_a_lossy_rule():
    rng = np.random.default_rng(3)
    drafted = rng.choice(6, size=DRAWS, p=Q["good"])
    resampled = rng.choice(6, size=DRAWS, p=P)  # a rejection that samples p and not the residual
    kept = rng.random(DRAWS) < np.minimum(1, P[drafted] / Q["good"][drafted])
    assert p_value(np.where(kept, drafted, resampled), P) < 1e-3


def test_acceptance_rates_are_those_of_the_formula():
    rng = np.random.default_rng(4)
    q = Q["bad"]
    drafted = rng.choice(6, size=DRAWS, p=q).tolist()
    rate = np.mean([accept_one(d, q, P, rng)[0] for d in drafted])
    assert rate == pytest.approx(np.minimum(P, q).sum(), abs=0.005)  # Leviathan et al. 2023, theorem 3.5
    rate = np.mean([accept_one(2, None, P, rng)[0] for _ in range(DRAWS)])
    assert rate == pytest.approx(P[2], abs=0.005)


@pytest.mark.parametrize("drawn", [True, False], ids=["from q", "deterministic"])
def test_every_position_of_a_longer_draft_follows_its_own_distribution(drawn):
    rng = np.random.default_rng(5)
    p = np.stack([P, P[::-1], np.roll(P, 2)])
    q = np.stack([Q["bad"], Q["good"]]) if drawn else None
    first, second, third = [], [], []
    for _ in range(DRAWS // 4):
        ids = [1, 4] if q is None else [int(rng.choice(6, p=row)) for row in q]
        n, token = accept_sampled(ids, q, p, rng)
        text = [*ids[:n], token]
        first.append(text[0])
        second.extend(text[1:2])
        third.extend(text[2:3])
    for tokens, row in zip((first, second, third), p, strict=True):
        assert len(tokens) > 500
        assert p_value(np.array(tokens), row) > 1e-3


def test_a_certain_token_is_always_accepted_and_its_rival_never():
    p = np.array([0.0, 1.0, 0.0])
    rng = np.random.default_rng(6)
    for q in (None, np.array([0.3, 0.3, 0.4])):
        assert all(accept_one(1, q, p, rng) == (True, 1) for _ in range(500))
        assert all(accept_one(0, q, p, rng) == (False, 1) for _ in range(500))


class Highest(np.random.Generator):
    """Draws just below 1: where p(d) was rounded below 1, this rejects it."""

    def random(self) -> float:
        return float(np.nextafter(1.0, 0.0))


@pytest.mark.parametrize("q", [None, np.array([0.0, 1.0])])
def test_an_empty_residual_falls_back_to_the_target(q):
    p = np.array([0.0, 1.0 - 1e-15])
    assert accept_one(1, q, p, Highest(np.random.PCG64())) == (False, 1)


def test_an_id_that_q_cannot_have_drawn_is_refused():
    with pytest.raises(ValueError, match=r"q > 0, got q\[1\] = 0"):
        accept_one(1, np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.random.default_rng(0))


def test_a_narrower_q_has_no_probability_on_the_ids_it_lacks():
    rng = np.random.default_rng(7)
    q = np.array([0.5, 0.5])
    p = np.array([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])
    drafted = rng.integers(2, size=20_000).tolist()
    emitted = np.array([d if n else t for d in drafted for n, t in [accept_sampled([d], q[None], p, rng)]])
    assert p_value(emitted, p[0]) > 1e-3


@pytest.mark.parametrize(
    ("q", "rows", "what"),
    [(None, 2, "g \\+ 1"), (np.ones((1, 3)) / 3, 3, "per drafted id"), (np.ones((2, 4)), 3, "q must")],
)
def test_shapes_that_do_not_fit_are_refused(q, rows, what):
    with pytest.raises(ValueError, match=what):
        accept_sampled([0, 1], q, np.full((rows, 3), 1 / 3), np.random.default_rng(0))
