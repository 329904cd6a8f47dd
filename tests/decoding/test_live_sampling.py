"""The whole loop at T > 0: what comes out is distributed as the target alone, by chi-square over many runs."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare

from tests.decoding.toy import EOS, Sampling, Scripted, ToyVerifier, toy_prompt
from xmsd_jax.decoding.acceptance import softmax
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.text_drafters import RandomDrafter

RUNS = 5_000
TEMPERATURE = 0.8
LENGTH = 4
VERIFIER = {"seed": 1, "vocabulary": 4, "padding": 1, "spread": 0.8}


def expected(verifier: ToyVerifier) -> dict[tuple[int, ...], float]:
    """Probability of every answer of at most LENGTH tokens, by the chain rule."""
    chances = {}
    for ids in product(range(verifier.width), repeat=LENGTH):
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        text, chance = verifier.prompt_ids(toy_prompt()).tolist(), 1.0
        for token in ids:
            chance *= softmax(verifier.logits(text), TEMPERATURE)[token]
            text.append(token)
        chances[ids] = chance
    return chances


def p_value(drawn: list[tuple[int, ...]], chances: dict[tuple[int, ...], float]) -> float:
    """Chi-square; answers expected fewer than 5 times are one cell."""
    counts = Counter(drawn)
    assert counts.keys() <= chances.keys()
    common = [ids for ids, chance in chances.items() if chance * len(drawn) >= 5]
    seen = [counts[ids] for ids in common]
    wanted = [chances[ids] * len(drawn) for ids in common]
    return chisquare([*seen, len(drawn) - sum(seen)], [*wanted, len(drawn) - sum(wanted)]).pvalue


def drafter_of(kind: str, verifier: ToyVerifier, rng: np.random.Generator):
    return {
        "good": lambda: Sampling(verifier, 1.0, rng),
        "adversarial": lambda: Sampling(verifier, -2.0, rng),
        "deterministic": lambda: RandomDrafter(seed=2, vocabulary=verifier.vocabulary),
        "likeliest": lambda: Scripted({0: [1, 3, 0, 1, 3, 0, 1, 3, 0]}),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("good", "none"), ("good", "wait"), ("good", "ride"), ("adversarial", "wait"), ("deterministic", "ride"),
        ("deterministic", "wait"), ("likeliest", "none"),
    ],
)  # fmt: skip
def test_sampled_answers_follow_the_target_alone(kind, mode):
    verifier, rng = ToyVerifier(**VERIFIER), np.random.default_rng([5, *kind.encode(), *mode.encode()])
    drafter = drafter_of(kind, verifier, rng)
    config = LiveConfig(
        gamma=2, max_new_tokens=LENGTH, temperature=TEMPERATURE, prefill_mode=mode,
        prefill_draft_len=0 if mode == "none" else 2,
    )  # fmt: skip
    traces = [decode(verifier, drafter, toy_prompt(), config, rng) for _ in range(RUNS)]
    assert p_value([trace.ids for trace in traces], expected(verifier)) > 1e-3
    assert sum(trace.origins.count("draft") + trace.n_free for trace in traces) > RUNS / 20  # drafts did matter


@pytest.mark.parametrize("mode", ["wait", "ride"])
def test_a_draft_drawn_from_the_targets_own_distribution_is_always_accepted(mode):
    """Ignoring q would lose nothing but speed: each fixed draft is lossless by itself. So the speed is tested too."""
    verifier, rng = ToyVerifier(**{**VERIFIER, "padding": 0}), np.random.default_rng(11)
    drafter = Sampling(verifier, 1 / TEMPERATURE, rng)
    config = LiveConfig(gamma=2, max_new_tokens=8, temperature=TEMPERATURE, prefill_mode=mode, prefill_draft_len=2)
    traces = [decode(verifier, drafter, toy_prompt(), config, rng) for _ in range(300)]
    assert all(trace.n_free == min(2, len(trace.ids)) for trace in traces)
    taken = [(trace, i) for trace in traces for i in trace.iterations]
    assert len(taken) > 50
    assert all(i.accepted == min(len(i.drafted), len(trace.ids) - i.anchor - 1) for trace, i in taken)


def test_target_alone_samples_its_own_distribution():
    verifier, rng = ToyVerifier(**VERIFIER), np.random.default_rng(9)
    drawn = [decode_plain(verifier, toy_prompt(), LENGTH, temperature=TEMPERATURE, rng=rng).ids for _ in range(RUNS)]
    assert p_value(drawn, expected(verifier)) > 1e-3


def test_the_distribution_test_has_the_power_to_see_a_wrong_temperature():
    verifier, rng = ToyVerifier(**VERIFIER), np.random.default_rng(10)
    drawn = [decode_plain(verifier, toy_prompt(), LENGTH, temperature=1.0, rng=rng).ids for _ in range(RUNS)]
    assert p_value(drawn, expected(verifier)) < 1e-3


def test_a_verifier_that_gives_no_logits_is_refused():
    class Silent(ToyVerifier):
        def _read(self, ids, states, logits):
            return super()._read(ids, states, False)

    with pytest.raises(ValueError, match="sampling needs logits"):
        decode(
            Silent(), None, toy_prompt(), LiveConfig(gamma=1, max_new_tokens=2, temperature=1.0),
            np.random.default_rng(0),
        )  # fmt: skip
