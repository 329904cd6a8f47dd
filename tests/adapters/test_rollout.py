"""Rollouts equal the slow, obvious way; a live call equals the offline one; what is never drafted."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.adapters.small import (
    CONTROL_1,
    FACTS,
    FIRST,
    GAMMA,
    HEAD_ROWS,
    LENGTH,
    MODES,
    ROWS,
    VOCABULARY,
    WIDTH,
    StateHead,
    drafts,
    every,
    head,
    lively,
    normal,
    streams,
)
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import make
from xmsd_jax.adapters.rollout import NO_DRAFT, Drafted, first_drafts, rollout, rollout_everywhere
from xmsd_jax.adapters.token_head import TokenHead

TRAINED = [(name, mode) for name, mode in MODES if name != CONTROL_1]
REAL = dict(atol=1e-5, rtol=1e-5)


@cache
def whole(name: str):
    """The whole adapter on whole sequences, compiled for one length."""
    graph, params = nnx.split(lively(name))
    call = jax.jit(lambda params, given, mask: nnx.merge(graph, params)(given, mask))
    return lambda given, mask: call(params, given, mask)


def by_hand(name: str, mode: str, given: Streams, row: int, t: int) -> list[np.ndarray]:
    """Predicted states t+1..t+gamma: append the last prediction, call the whole adapter, take the last output."""
    drafter, target = (np.array(stream[row]) for stream in given)
    states = list(target[: t + 1])
    predicted = []
    for j in range(GAMMA):
        seen = t + j + 1
        own = list(drafter[:seen])
        synced = [*drafter[: t + 2], *[drafter[t + 1]] * GAMMA][:seen]
        pair = Streams(padded(own if mode == "own" else synced), padded(states))
        mask = jnp.arange(LENGTH + GAMMA)[None] < seen
        predicted.append(np.array(whole(name)(pair, mask)[0, seen - 1]))
        states.append(predicted[-1])
    return predicted


def padded(states: list[np.ndarray]) -> jax.Array:
    """[1, length + gamma, d]: the same shape at every step."""
    blank = np.zeros((LENGTH + GAMMA - len(states), WIDTH), np.float32)
    return jnp.asarray(np.concatenate([np.stack(states), blank]))[None]


@pytest.mark.parametrize(("name", "mode"), TRAINED)
def test_a_rollout_is_the_whole_adapter_step_by_step(name, mode):
    given = streams()
    found = drafts(name, mode, given, to=StateHead(head()))
    for row, t in [(0, 0), (0, 1), (1, 3), (2, LENGTH - GAMMA)]:
        wanted = np.stack(by_hand(name, mode, given, row, t))
        np.testing.assert_allclose(found.margins[row, t], wanted, **REAL)  # StateHead: the states
        np.testing.assert_array_equal(found.ids[row, t], head().ids(wanted))


@pytest.mark.parametrize(("name", "mode"), TRAINED)
@pytest.mark.parametrize(("t", "unroll"), [(0, False), (5, True)])
def test_a_live_call_drafts_what_the_offline_one_does(name, mode, t, unroll):
    """One answer, one anchor, kept states padded to a capacity with garbage that the mask hides."""
    adapter, capacity, given = lively(name), 16, streams()
    garbage = 100 * normal(1, capacity, WIDTH, seed=7)
    live = Streams(*(garbage.at[:, : t + 1].set(stream[1:2, : t + 1]) for stream in given))
    reach = GAMMA if mode == "own" else 2
    found = rollout(
        adapter,
        lambda predicted: Drafted(*StateHead(head()).ids_and_margins(predicted)),
        kept=adapter.keep(live, jnp.arange(capacity, dtype=jnp.int32)[None]),
        kept_mask=(jnp.arange(capacity) < t)[None, None],
        anchors=jnp.full((1, 1), t, jnp.int32),
        target=None if FACTS[name].inputs == "drafter" else given.target[1:2, t : t + 1],
        ahead=None if FACTS[name].inputs == "target" else given.drafter[1:2, None, t : t + reach],
        gamma=GAMMA,
        unroll=unroll,
    )
    offline = drafts(name, mode, given, to=StateHead(head()))
    np.testing.assert_array_equal(found.ids[0, 0], offline.ids[1, t])
    np.testing.assert_allclose(found.margins[0, 0], offline.margins[1, t], **REAL)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_the_first_draft_is_the_teacher_forced_one(name, mode):
    given = streams()
    forced = head().ids(lively(name)(given, every()))
    np.testing.assert_array_equal(drafts(name, mode, given).ids[..., 0], forced)


@pytest.mark.parametrize(("name", "mode"), TRAINED)
def test_a_shorter_draft_is_the_start_of_a_longer_one(name, mode):
    short = drafts(name, mode, streams(), gamma=1).ids
    np.testing.assert_array_equal(short, drafts(name, mode, streams()).ids[..., :1])


def test_the_identity_of_the_target_repeats_its_token():
    given = streams()
    token = np.asarray(head().ids(given.target))
    np.testing.assert_array_equal(drafts(CONTROL_1, "own", given).ids, np.repeat(token[..., None], GAMMA, -1))


@pytest.mark.parametrize("name", ["L5", "L5F"])
def test_in_mode_own_there_is_no_draft_past_the_drafters_own_answer(name):
    lengths = np.array([LENGTH, 6, 1])
    ids = drafts(name, "own", streams(), own_len=lengths).ids
    reads = np.arange(LENGTH)[:, None] + np.arange(GAMMA)  # d_j at anchor t reads g[t + j - 1]
    np.testing.assert_array_equal(ids != NO_DRAFT, reads < lengths[:, None, None])
    assert (drafts(name, "synced", streams(), own_len=lengths).ids != NO_DRAFT).all()


def test_the_baseline_does_not_care_how_long_the_drafters_answer_is():
    assert (drafts("B1", "own", streams(), own_len=np.ones(ROWS)).ids != NO_DRAFT).all()


@pytest.mark.parametrize("name", FIRST)
def test_first_drafts_stop_at_the_drafters_answer_and_are_the_adapters_tokens(name):
    drafter, count = streams().drafter[:, :5], jnp.asarray([5, 2, 0], jnp.int32)
    ids = np.asarray(first_drafts(lively(name), head(), drafter, count).ids)
    real = np.arange(5) < np.asarray(count)[:, None]
    np.testing.assert_array_equal(ids != NO_DRAFT, real)
    wanted = head().ids(lively(name)(Streams(drafter=drafter), jnp.asarray(real)))
    np.testing.assert_array_equal(ids[real], np.asarray(wanted)[real])


def padding_wins() -> TokenHead:
    """A head whose padding rows have the largest logit of any state: v and -v, a hundred times as long."""
    weight = np.array(head().weight)
    half = (HEAD_ROWS - VOCABULARY) // 2
    weight[VOCABULARY : VOCABULARY + half] = 100 * weight[:half]
    weight[VOCABULARY + half :] = -100 * weight[:half]
    return TokenHead.of(jnp.asarray(weight), VOCABULARY)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_padding_is_never_drafted_however_large_its_logits(name, mode):
    largest = np.argmax(np.asarray(streams().target @ padding_wins().weight.T), -1)
    assert (largest >= VOCABULARY).all()
    ids = drafts(name, mode, streams(), to=padding_wins()).ids
    drafted = ids[ids != NO_DRAFT]
    assert len(drafted) > ids.size // 2
    assert 0 <= drafted.min() <= drafted.max() < VOCABULARY


def test_padding_is_never_a_first_draft():
    found = first_drafts(lively("L4"), padding_wins(), streams().drafter, jnp.full(ROWS, LENGTH, jnp.int32))
    assert 0 <= found.ids.min() <= found.ids.max() < VOCABULARY


def test_an_adapter_of_offset_1_makes_no_first_drafts():
    with pytest.raises(ValueError, match="offset 0, got DrafterEagle"):
        first_drafts(lively("L5"), head(), streams().drafter, jnp.ones(ROWS, jnp.int32))


def test_a_wrong_number_of_drafter_states_is_refused():
    adapter, given = lively("L5"), streams()
    anchors = jnp.zeros((ROWS, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"ahead: 4 drafter states \(own\) or 2 \(synced\) for gamma = 4, got 3"):
        rollout(
            adapter, head().ids, kept=adapter.keep(given, anchors), kept_mask=jnp.zeros((ROWS, 1, LENGTH), bool),
            anchors=anchors, target=None, ahead=given.drafter[:, None, :3], gamma=4,
        )  # fmt: skip


def test_one_program_serves_all_answers_heads_and_parameters_of_a_shape():
    traces = []
    graph, params = nnx.split(lively("L5F"))

    @jax.jit
    def draft(params, head, given, drafter_len):
        traces.append(1)
        return rollout_everywhere(nnx.merge(graph, params), head, given, drafter_len, gamma=2, mode="own").ids

    length = jnp.full(ROWS, LENGTH, jnp.int32)
    one = draft(params, head(), streams(), length)
    two = draft(params, TokenHead.of(head().weight, 30), streams(seed=5), length - 1)
    draft(nnx.split(make("L5F", WIDTH))[1], head(), streams(), length)
    assert len(traces) == 1
    assert (one != two).any()
