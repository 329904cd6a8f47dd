"""What float8 states cost: measured on the same answers, with the differences that were committed."""

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.test_evaluate import DRAFT_LEN, GAMMA, save, stores
from xmsd_jax.config import ConfigError
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline import stored_states
from xmsd_jax.pipeline.evaluate import EvaluateConfig
from xmsd_jax.pipeline.stored_states import StoredStatesConfig, state_errors
from xmsd_jax.runs import read_results

RESULTS = Path(__file__).resolve().parents[2] / "results" / "fp8_store"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Rows of a run with one adapter that is not trained: its drafts hang on every bit."""
    root = tmp_path_factory.mktemp("states")
    store = stores(root / "store")
    for kind in ("B1", "L1"):
        save(root / "adapters" / kind, kind, Store.open(store / "train").manifest)
    judged = EvaluateConfig(store=store, gamma=GAMMA, prefill_draft_len=DRAFT_LEN, order=3)
    config = StoredStatesConfig(evaluate=judged, trained_on={"native": root / "adapters"})
    return root, stored_states.run(config, root / "run")


def of(rows, name, metric, **settings):
    return [r for r in rows if (r.row, r.metric) == (name, metric) and settings.items() <= dict(r.settings).items()]


@pytest.mark.parametrize("field", ["drafter_hidden", "target_hidden", "drafter_synced"])
def test_states_keep_their_direction(measured, field):
    metrics = ("state_cosine", "state_cosine_least")
    (mean,), (least,) = (of(measured[1], field, metric, states="float8") for metric in metrics)
    assert 0.9995 < mean.value < 1
    assert 0.999 < least.value < mean.value
    (error,) = of(measured[1], field, "state_relative_error", states="float8")
    (finer,) = of(measured[1], field, "state_relative_error", states="bfloat16")
    assert 0.001 < finer.value < 0.002
    assert 0.02 < error.value < 0.03  # the spacing of e4m3, an eighth to a sixteenth, evenly used
    (share,) = of(measured[1], field, "bytes_share")
    assert share.value == pytest.approx((64 + 1) / 256)


def test_the_head_still_turns_the_targets_states_into_its_tokens(measured):
    """Of made-up states, which are a token's row of the head and a little noise."""
    for form in ("float8", "bfloat16"):
        (share,) = of(measured[1], "target_hidden", "emits_own_token", states=form)
        assert share.value == 1
    assert not of(measured[1], "drafter_hidden", "emits_own_token")


def test_text_drafters_do_not_move_and_others_hardly(measured):
    rows = measured[1]
    for name in ("template", "n-gram", "identity(target, 1)"):
        assert [r.value for r in of(rows, name, "tau_offline_difference")] == [0.0] * GAMMA
    differences = of(rows, "B1", "tau_offline_difference")
    assert [r.settings["gamma"] for r in differences] == [1, 2, 3]
    for row in differences:
        assert abs(row.value) <= 0.05
        assert row.baseline == "native states"
        assert row.low <= row.value <= row.high
    assert of(rows, "L1", "n_free_equal_share")[0].value >= 0.75


def test_the_difference_is_that_of_the_two_taus_beside_it(measured):
    rows = measured[1]
    for gamma in (1, 2, 3):
        taus = [of(rows, "B1", "tau_offline", gamma=gamma, states=form)[0].value for form in ("native", "float8")]
        (difference,) = of(rows, "B1", "tau_offline_difference", gamma=gamma)
        assert difference.value == pytest.approx(taus[1] - taus[0])
        assert difference.settings["trained_on"] == "native"


def test_results_are_written_and_read(measured):
    root, rows = measured
    assert read_results(root / "run")[0] == rows
    assert Store.open(root / "run" / "float8" / "test").manifest.states == "float8"


def test_errors_of_states_by_hand():
    true = np.array([[[3.0, 4.0], [0, 0], [1, 0]]])
    found = np.array([[[3.0, 4.5], [0, 0], [0, 2]]])
    cosine, error = state_errors(true, found)
    np.testing.assert_allclose(cosine, [[27 / (5 * np.sqrt(29.25)), 1, 0]])
    np.testing.assert_allclose(error, [[0.1, 0, np.sqrt(5)]])


def test_a_form_that_is_none_is_refused(tmp_path):
    config = EvaluateConfig(store=tmp_path)
    with pytest.raises(ConfigError, match=r"trained_on.*int4"):
        StoredStatesConfig(evaluate=config, trained_on={"int4": tmp_path})


def test_the_committed_figures_bound_what_float8_costs_the_small_pair():
    """README and the option's help point at these."""
    rows, provenance = read_results(RESULTS)
    held_out = [r for r in rows if r.metric == "tau_offline_difference" and r.settings["clips"] == "test"]
    assert {r.row for r in held_out} == {"template", "n-gram", "identity(target, 1)", "B1", "L5F (synced)"}
    assert {r.settings["trained_on"] for r in held_out} == {"native", "float8"}
    assert max(abs(r.value) for r in held_out) < 0.01
    assert min(r.value for r in rows if r.metric == "state_cosine") > 0.9996
    assert min(r.value for r in rows if r.metric == "emits_own_token") > 0.99
    assert provenance["git"]["dirty"] is False
