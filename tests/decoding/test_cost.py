"""The cost model by hand, part by part, and what it refuses to guess."""

import json

import numpy as np
import pytest

from xmsd_jax.config import UserError
from xmsd_jax.decoding.cost import Parts, baseline, best_gamma, predict
from xmsd_jax.metrics.acceptance import Anchors

PARTS = Parts(
    vision=1.0, prefill=10.0, decode_step=2.0, verify={2: 2.5, 6: 4.5, 9: 6.0}, draft={1: 0.25, 5: 0.75},
    sync=0.5, host=0.125, prefill_per_extra=0.25, drafter_vision=0.5, drafter_prefill=4.0, drafter_step=1.0,
    adapter=0.25,
)  # fmt: skip
LENGTHS, ITERATIONS, FREE = [50, 20, 1], [12, 6, 0], [3, 0, 1]
NAMES = ["vision", "prefill", "lane", "first", "draft", "sync", "verify", "host"]


def parts(**changes) -> Parts:
    return Parts(**{**vars(PARTS), **changes})


def predicted(given: Parts = PARTS, **changes) -> dict[str, list[float]]:
    asked = {"target_len": LENGTHS, "iterations": ITERATIONS, "n_free": FREE, "gamma": 5, **changes}
    return {name: seconds.tolist() for name, seconds in predict(given, **asked).items()}


def test_the_baseline_decodes_all_but_the_first_token():
    assert baseline(PARTS, [50, 20, 1]).tolist() == [11 + 98, 11 + 38, 11]


def test_an_iteration_pays_draft_sync_host_and_a_pass_over_gamma_plus_one_tokens():
    found = predicted()
    assert list(found) == NAMES
    assert found["draft"] == [12 * 0.75, 6 * 0.75, 0]
    assert found["sync"] == [6, 3, 0]
    assert found["verify"] == [12 * 4.5, 6 * 4.5, 0]
    assert found["host"] == [1.5, 0.75, 0]
    assert (found["vision"], found["prefill"], found["first"]) == ([1.0] * 3, [10.0] * 3, [0.0] * 3)


def test_serial_lanes_pay_the_drafters_prompt_in_full_and_without_phase_1_no_adapter():
    assert predicted()["lane"] == [4.5] * 3


def test_ride_lengthens_the_prefill_and_has_no_first_pass():
    found = predicted(prefill_mode="ride", prefill_draft_len=4)
    assert found["prefill"] == [11.0] * 3
    assert found["lane"] == [4.5 + 4 * 1.0 + 0.25] * 3
    assert found["first"] == [0.0] * 3


def test_wait_pays_one_pass_over_the_drafted_tokens_where_it_took_place():
    passed = np.array([True, False, False])
    found = predicted(prefill_mode="wait", prefill_draft_len=4, first_pass=passed)
    assert found["first"] == [3.5, 0, 0]  # halfway between 2 and 6 tokens
    assert found["prefill"] == [10.0] * 3


@pytest.mark.parametrize(("steps", "delay"), [(4, 0.0), (8, 0.75), (20, 12.75)])
def test_parallel_lanes_delay_the_target_only_by_what_is_longer_and_slow_its_prefill(steps, delay):
    beside = parts(lanes="parallel", kappa=0.1)
    found = predicted(beside, prefill_mode="wait", prefill_draft_len=steps, first_pass=np.zeros(3, bool))
    assert found["prefill"] == pytest.approx([11.0] * 3)
    assert found["lane"] == pytest.approx([delay] * 3)


def test_without_a_drafter_lane_there_is_no_contention():
    alone = parts(lanes="parallel", kappa=0.1, drafter_vision=0.0, drafter_prefill=0.0)
    assert predicted(alone)["prefill"] == [10.0] * 3


def test_gamma_0_decodes_what_phase_1_left_one_token_a_pass():
    found = predicted(gamma=0, prefill_mode="ride", prefill_draft_len=4)
    assert found["verify"] == [(50 - 1 - 3) * 2.0, 19 * 2.0, 0]
    assert [found[name] for name in ("draft", "sync", "host")] == [[0.0] * 3] * 3
    assert found["lane"] == [8.75] * 3


def test_gamma_0_without_a_drafter_is_the_baseline():
    alone = parts(drafter_vision=0.0, drafter_prefill=0.0)
    found = predict(alone, target_len=LENGTHS, iterations=[0] * 3, n_free=[0] * 3, gamma=0)
    np.testing.assert_allclose(sum(found.values()), baseline(alone, LENGTHS))


@pytest.mark.parametrize(("length", "seconds"), [(2, 2.5), (4, 3.5), (6, 4.5), (7, 5.0), (9, 6.0)])
def test_passes_between_measured_ones_are_interpolated(length, seconds):
    assert PARTS.verify_seconds(length) == pytest.approx(seconds)


@pytest.mark.parametrize("length", [1, 10])
def test_nothing_outside_what_was_measured_is_predicted(length):
    with pytest.raises(UserError, match=rf"verify of length {length} was not measured \(measured: 2, 6, 9\)"):
        PARTS.verify_seconds(length)
    with pytest.raises(UserError, match=r"draft of length 6 was not measured \(measured: 1, 5\)"):
        predicted(gamma=6)
    with pytest.raises(UserError, match=r"measured: none"):
        parts(draft={}).draft_seconds(1)


def anchors(free=(0, 0)) -> Anchors:
    """Two answers of 13 tokens: everything is right, and nothing is."""
    left = np.arange(12, -1, -1)
    right = np.stack([np.minimum(left, 4), np.zeros(13, int)])
    right[:, 12] = -1
    return Anchors(
        right=right.astype(np.int32), gamma=4, target_len=np.array([13, 13], np.int32), free=np.array(free, np.int32)
    )  # fmt: skip


CHEAP = Parts(vision=0.0, prefill=1.0, decode_step=1.0, verify={2: 1.0, 3: 1.0, 4: 1.5, 5: 4.0}, draft={1: 0, 4: 0})


def test_the_best_gamma_is_the_fastest_predicted_one():
    # passes of the two answers: gamma 1: 6 + 12, 2: 4 + 12, 3: 3 + 12, 4: 3 + 12
    choice = best_gamma(anchors(), CHEAP, sequences=["a", "b"])
    assert {gamma: s.value for gamma, s in choice.speedups.items()} == pytest.approx(
        {0: 1, 1: 26 / 20, 2: 26 / 18, 3: 26 / (2 + 15 * 1.5), 4: 26 / (2 + 15 * 4)}
    )
    assert choice.best == 2
    assert all(s.low is not None for s in choice.speedups.values())


def test_plain_decoding_wins_where_no_draft_pays():
    choice = best_gamma(anchors(), Parts(**{**vars(CHEAP), "host": 5.0}), sequences=None)
    assert choice.best == 0
    assert choice.speedups[0].value == 1


def test_the_walk_of_a_prediction_starts_after_the_free_prefix():
    asked = {"sequences": None, "prefill_mode": "ride", "prefill_draft_len": 6}
    choice = best_gamma(anchors(free=(6, 0)), CHEAP, **asked)
    # anchor 6 of 13: gamma 2 takes two passes instead of four; plain decoding six steps instead of twelve
    assert choice.speedups[2].value == pytest.approx(26 / (2 + 2 + 12))
    assert choice.speedups[0].value == pytest.approx(26 / (2 + 6 + 12))
    with pytest.raises(ValueError, match="name its prefill_mode"):
        best_gamma(anchors(free=(6, 0)), CHEAP, sequences=None)


def test_parts_come_back_from_json_as_they_were():
    for given in (PARTS, parts(lanes="parallel", kappa=0.2), parts(draft={})):
        assert Parts.from_json(json.loads(json.dumps(given.to_json()))) == given


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"verfy": {}}, "unknown part verfy; known: vision"),
        ({"verify": [1, 2]}, "verify must map lengths to seconds"),
        ({"verify": {"a": 1.0}}, "verify must map lengths to seconds"),
        ({"verify": {"0": 1.0}}, "a length must be a whole number from 1 on"),
        ({"verify": {"2": -1.0}}, r"verify\[2\] must be finite seconds >= 0, got -1.0"),
        ({"draft": {"2": "1"}}, r"draft\[2\] must be finite seconds"),
        ({"host": None}, "host must be finite seconds"),
        ({"host": float("nan")}, "host must be finite seconds"),
        ({"vision": True}, "vision must be finite seconds"),
        ({"lanes": "both"}, "lanes must be serial or parallel"),
        ({"kappa": 0.1}, "kappa must be 0 where lanes run one after the other"),
    ],
)
def test_parts_that_make_no_sense_are_one_clear_error(change, told):
    with pytest.raises(UserError, match=told) as caught:
        Parts.from_json({**PARTS.to_json(), **change})
    assert "\n" not in str(caught.value)


def test_parts_that_are_missing_or_no_object_are_one_clear_error():
    with pytest.raises(UserError, match="prefill, decode_step must be given"):
        Parts.from_json({"vision": 1.0})
    with pytest.raises(UserError, match="expected an object"):
        Parts.from_json([1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_free": [0]}, "one value per answer"),
        ({"gamma": -1}, "gamma must be 0"),
        ({"prefill_mode": "ride"}, "prefill_draft_len must be positive"),
        ({"prefill_draft_len": 3}, "prefill_draft_len must be positive"),
        ({"prefill_mode": "wait", "prefill_draft_len": 3}, "first_pass belongs to"),
        ({"prefill_mode": "ride", "prefill_draft_len": 3, "first_pass": np.zeros(3, bool)}, "first_pass belongs to"),
        ({"prefill_mode": "wait", "prefill_draft_len": 3, "first_pass": np.zeros(2, bool)}, "first_pass must be bool"),
    ],
)
def test_a_question_that_contradicts_itself_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        predicted(**change)
